"""Mistakes of the user, explained in one line: the one place where their texts are built."""

import argparse
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NoReturn, TypeVar

T = TypeVar("T")
MOST_NAMES_SHOWN = 24
MOST_CHARACTERS = 200  # of a key or a value, in an error
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of colours and the cursor


class UserError(ValueError):
    """A mistake of the user: shown as one line without a traceback, exit code 2."""

    def _render_traceback_(self) -> list[str]:
        """What notebooks show."""
        return [f"{type(self).__name__}: {self}"]

    @classmethod
    def from_os(cls, error: OSError, name: object = None) -> "UserError":
        """The error for a file that cannot be used: its name, and the system's reason."""
        named = error.filename if name is None else name
        return cls(f"{one_line(str(named))}: {error.strerror}")


class OneLineParser(argparse.ArgumentParser):
    """An argparse.ArgumentParser that raises UserError where the command line is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all)")


def bad_value(key: str, value: object, expected: str) -> UserError:
    """The error for a value that the key does not take.

    >>> str(bad_value("batch_size", 0, "a whole number from 1 up"))
    'batch_size: got 0, expected a whole number from 1 up'
    """
    return UserError(f"{one_line(key)}: got {short_repr(value)}, expected {expected}")


def unknown_name(key: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: lists what does, the closest first."""
    known = sorted(known)
    there_is = ", ".join(known[:MOST_NAMES_SHOWN]) or "none yet"
    there_is += f", … ({len(known)} in all)" * (len(known) > MOST_NAMES_SHOWN)
    hint = f"; did you mean {close!r}?" if (close := closest(name, known)) else ";"
    return UserError(f"{one_line(key)}: unknown {short_repr(name)}{hint} there is: {there_is}")


def pick(table: Mapping[str, T], name: str, key: str) -> T:
    """table[name]; a name that is not there raises UserError with the key and the closest."""
    if name not in table:
        raise unknown_name(key, name, table)
    return table[name]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like this one, or None where none is alike."""
    if len(name := str(name)) > MOST_CHARACTERS:
        return None
    by_lower = {k.lower(): k for k in known}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def short_repr(value: object) -> str:
    """repr(value), cut where it is long."""
    try:
        return _cut(repr(value), MOST_CHARACTERS)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested too deep
        return f"a {type(value).__name__} too large to show"


def one_line(value: object, most: int | None = None) -> str:
    """A text, or an exception as 'TypeOfError: message', as one printable line.

    most: characters; None: 200 of a text, which may be anything, and all of an exception.
    """
    if isinstance(value, BaseException):
        text = f"{type(value).__name__}: {value}"
    else:
        text, most = str(value), most or MOST_CHARACTERS
    if not text.isprintable():
        text = TERMINAL_CODES.sub(" ", text)
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if most is None else _cut(text, most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
