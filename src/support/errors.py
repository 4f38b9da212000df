"""Names chosen in YAML: `family/rest`, looked up in a literal table, answered with the closest."""

import argparse
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NoReturn, TypeVar

T = TypeVar("T")
MOST_NAMES_SHOWN = 24
MOST_CHARACTERS = 200  # of a key or a value, in an error


class UserError(ValueError):
    """A mistake of the user: shown as one line without a traceback, exit code 2."""

    def _render_traceback_(self) -> list[str]:
        """What notebooks show."""
        return [f"{type(self).__name__}: {self}"]


class OneLineParser(argparse.ArgumentParser):
    """A mistake on the command line is a UserError as any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all)")


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, or its beginning and an ellipsis where it is long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def shown(value: object) -> str:
    """repr, cut where it is long."""
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested too deep
        return f"a {type(value).__name__} too large to show"


def key_shown(key: str) -> str:
    """The key as it is typed, cut where it is long, in quotes where it would break the line."""
    return cut(key) if key.isprintable() else shown(key)


def bad_value(key: str, value: object, expected: str) -> UserError:
    """The error for a value that the key does not take.

    >>> str(bad_value("batch_size", 0, "a whole number from 1 up"))
    'batch_size: got 0, expected a whole number from 1 up'
    """
    return UserError(f"{key_shown(key)}: got {shown(value)}, expected {expected}")


def unknown_name(key: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: lists what does, the closest first."""
    known = sorted(known)
    there_is = ", ".join(known[:MOST_NAMES_SHOWN])
    if len(known) > MOST_NAMES_SHOWN:
        there_is += f", … ({len(known)} in all)"
    hint = f"; did you mean {close!r}?" if (close := closest(name, known)) else ";"
    unknown = f"{key_shown(key)}: unknown {shown(name)}{hint}"
    return UserError(f"{unknown} there is: {there_is or 'none yet'}")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like this one, or None where none is alike."""
    if len(name := str(name)) > MOST_CHARACTERS:
        return None
    by_lower = {k.lower(): k for k in known}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def pick(table: Mapping[str, T], name: str, key: str) -> T:
    """table[name]; a name that is not there raises UserError with the key and the closest."""
    if name not in table:
        raise unknown_name(key, name, table)
    return table[name]


def split_family(name: str) -> tuple[str, str]:
    """'timm/torch/cifar10' -> ('timm', 'torch/cifar10'); 'linear' -> ('linear', '')."""
    family, _, rest = name.partition("/")
    return family, rest
