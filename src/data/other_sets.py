"""Splits of other data sets beside our own: v2: 'tfds/imagenet_v2:test'; their classes as ours."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from src.data.slices import check_brackets
from src.data.splits import Data
from src.support import UserError, bad_value, closest

MOST_SHOWN = 8
LEFT_OUT = -1
ClassMap = Mapping[str | int, str | int | None]


def by_dataset(splits_map: Mapping[str, str], own: str) -> dict[str, dict[str, str]]:
    """Data set -> split -> the data set's spelling of it; our own first.

    >>> by_dataset({"train": "train[:9]", "v2": "tfds/x:test[:9]"}, "tfds/y")
    {'tfds/y': {'train': 'train[:9]'}, 'tfds/x': {'v2': 'test[:9]'}}
    """
    found: dict[str, dict[str, str]] = {own: {}}
    for split, spelling in splits_map.items():
        if "/" not in spelling:  # of ours; the name of another one may be a pattern of files
            check_brackets(spelling)
        # a slice's colon stands in brackets; a data set may have others of its own
        start = re.sub(r"\[[^]]*\]", lambda match: "_" * len(match[0]), spelling).rfind(":")
        dataset, rest = (own, spelling) if start < 0 else (spelling[:start], spelling[start + 1 :])
        if split == "train" and dataset != own:
            raise bad_value("data_splits_map", spelling, f"train to be a part of {own}, dataset")
        found.setdefault(dataset, {})[split] = rest
    return found


def joined(
    data: Data, others: Mapping[str, Data], class_maps: Mapping[str, ClassMap], order: Iterable[str]
) -> Data:
    """Our data and the splits of other data sets, with our numbers for their classes.

    class_maps: split -> {its class: ours}, by name or number, what is missing there by name;
    None leaves its examples out. UserError where a class is none of ours, and where the
    examples look different.
    """
    splits = dict(data.splits)
    known = {split for other in others.values() for split in other.splits}
    if unknown := [split for split in class_maps if split not in known]:
        raise bad_value("data_class_map", unknown[0], "a split of another data set")
    for dataset, other in others.items():
        if other.input_shape != data.input_shape:
            expected = f"one with examples of shape {list(data.input_shape)} for other splits"
            raise bad_value(
                "data_splits_map", dataset, f"{expected}, not {list(other.input_shape)}"
            )
        for name, split in other.splits.items():
            table = _table(data, other, class_maps.get(name, {}), f"{name} ({dataset})")
            splits[name] = split if table is None else split.with_classes(table)
            if not len(splits[name]):
                raise bad_value("data_class_map", name, "a split of which some class is left")
    return replace(data, splits={split: splits[split] for split in order})


def _table(ours: Data, other: Data, class_map: ClassMap, where: str) -> list[int] | None:
    """The number of ours for each class of the other; None where they are the same already."""
    if ours.n_classes is None or other.n_classes is None:
        if ours.n_classes == other.n_classes:
            return None
        raise UserError(f"data_splits_map: {where}: one has classes, the other real targets")
    if not class_map and (ours.class_names is None or other.class_names is None):
        if ours.n_classes == other.n_classes:
            return None
        raise UserError(
            f"data_splits_map: {where} has {other.n_classes} classes, ours are {ours.n_classes}, "
            f"and there are no names to match them by: give data_class_map"
        )
    if not class_map and ours.class_names == other.class_names:
        return None  # also where some have the same name
    given = {_number(other, key, where): value for key, value in class_map.items()}
    table, lost = [], []
    for number in range(other.n_classes):
        name = other.class_names[number] if other.class_names else str(number)
        if number in given:
            ours_is = given[number]
            table.append(LEFT_OUT if ours_is is None else _number(ours, ours_is, where))
        elif other.class_names and (found := _called(ours, name)):
            if len(found) > 1:
                expected = f"one class of ours that is called {name!r}, not {len(found)}"
                raise UserError(f"data_class_map: {where}: {expected}; say which it is")
            table.append(found[0])
        else:
            lost.append(name)
    if lost:
        raise _unmapped(lost, ours, where)
    return None if table == list(range(ours.n_classes)) else table


def _called(data: Data, name: str) -> list[int]:
    """The numbers of the classes of that name, to the letter or, where there is none, nearly."""
    names = data.class_names or ()
    if exact := [number for number, own in enumerate(names) if own == name]:
        return exact
    return [number for number, own in enumerate(names) if _plain(own) == _plain(name)]


def _plain(name: str) -> str:
    """'Tiger_Cat' is 'tiger cat'."""
    return " ".join(name.casefold().replace("_", " ").split())


def _number(data: Data, name: str | int, where: str) -> int:
    """The number of a class given by its name or number."""
    is_number = isinstance(name, int) and 0 <= name < (data.n_classes or 0)
    found = _called(data, str(name))
    if len(found) > 1 or (found and is_number and found != [name]):
        numbers = f"class {name} is called {data.class_names[name]!r}" if is_number else found  # type: ignore[index]
        raise UserError(f"data_class_map: {where}: {name!r} may be several classes ({numbers})")
    if found or is_number:
        return found[0] if found else int(name)
    near = closest(str(name), data.class_names or ())
    hint = f"; did you mean {near!r}?" if near else f"; there are {data.n_classes}"
    raise UserError(f"data_class_map: {where}: no class {name!r}{hint}")


def _unmapped(lost: Sequence[str], ours: Data, where: str) -> UserError:
    more = ", …" * (len(lost) > MOST_SHOWN)
    names = ours.class_names or tuple(map(str, range(ours.n_classes or 0)))
    near = {name: closest(name, names) for name in lost[:1]}
    example = f"{lost[0]!r}: {near[lost[0]] or names[0]!r}"
    return UserError(
        f"data_class_map: {where} has {len(lost)} classes that are none of ours: "
        f"{', '.join(map(repr, lost[:MOST_SHOWN]))}{more}; say which they are, such as "
        f"{{{example}}}, or null to leave them out; ours are {', '.join(names[:MOST_SHOWN])}"
        + ", …"
        * (len(names) > MOST_SHOWN)
    )
