"""data_splits_map: slices of a data set's parts, and splits of other data sets.

Slices are spelled as in TFDS: 'train[:90%]', 'train[100:2000]+test'. Of 'tfds/imagenet_v2:test' the
classes get the numbers that they have in the data set that is trained on.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loguru import logger

from src.data.splits import Data
from src.support import UserError, bad_value, closest, one_line, short_repr

KEY = "data_splits_map"
BOUND = r"-?\d{1,15}(?:\.\d{1,15})?%|-?\d[\d_]{0,17}"
PART = re.compile(rf"\s*([\w.-]+?)\s*(?:\[\s*({BOUND})?\s*:\s*({BOUND})?\s*\])?\s*")
MOST_SHOWN = 8
LEFT_OUT = -1
ClassMap = Mapping[str | int, str | int | None]


class Range(NamedTuple):
    """Examples start, …, stop - 1 of one part ('base') of the data set."""

    base: str
    start: int
    stop: int


def bases_used(splits_map: Mapping[str, str]) -> list[str]:
    """The parts of the data set that the splits take from; those of `train` come first."""
    spellings = [splits_map["train"], *splits_map.values()] if "train" in splits_map else []
    parts = [part for spelling in spellings or splits_map.values() for part in parse(spelling)]
    return list(dict.fromkeys(base for base, _, _ in parts))


def check_bases(splits_map: Mapping[str, str], bases: Collection[str], dataset: str) -> None:
    """Raise UserError where a split takes from a part that the data set does not have."""
    for split, spelling in splits_map.items():
        for base, _, _ in parse(spelling):
            if base in bases:
                continue
            near = closest(base, bases)
            hint = f"; did you mean {near!r}?" if near else ""
            if not near and "train" in bases:
                hint = "; slices of it do instead, such as "
                hint += "{train: 'train[:80%]', test: 'train[80%:]'}"
            where = f"{KEY}: {one_line(split)}: {short_repr(spelling)}"
            lack = f"{dataset} has no {short_repr(base)}, there is: {', '.join(map(repr, bases))}"
            raise UserError(f"{where}: {lack}{hint}")


def resolve(spelling: str, sizes: Mapping[str, int]) -> list[Range]:
    """Which examples a spelling means, given the number of examples of each part.

    >>> resolve("train[:90%]+test[-10:]", {"train": 50, "test": 20})
    [Range(base='train', start=0, stop=45), Range(base='test', start=10, stop=20)]
    """
    ranges = []
    for base, first, last in parse(spelling):
        size = sizes[base]
        start = _index(first, size, spelling) if first else 0
        stop = _index(last, size, spelling) if last else size
        if start >= stop:
            means = f"{base!r} has {size} examples and [{first}:{last}] means {start} to {stop}"
            raise UserError(f"{KEY}: {short_repr(spelling)} is empty, as {means}")
        ranges.append(Range(base, start, stop))
    return ranges


def _index(bound: str, size: int, spelling: str) -> int:
    """'90%' or '-10' as a position in 0…size; a percentage goes to the nearest one, as in TFDS."""
    position = round(float(bound[:-1]) * size / 100) if bound.endswith("%") else int(bound)
    if abs(position) > size:
        beyond = f"{bound} in {short_repr(spelling)} is beyond the {size} examples there are"
        raise UserError(f"{KEY}: {beyond}")
    return size + position if bound.startswith("-") else position


def resolve_all(splits_map: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, list[Range]]:
    """The ranges of each split; a warning where others hold examples of `train`."""
    ranges = {split: resolve(spelling, sizes) for split, spelling in splits_map.items()}
    warn_of_overlap(ranges)
    return ranges


def warn_of_overlap(ranges: Mapping[str, Sequence[Range]]) -> None:
    """Warn where examples of other splits are trained on: 'train[90:]' for 'train[90%:]'."""
    for split, of_split in ranges.items():
        both = sum(
            max(0, min(one.stop, other.stop) - max(one.start, other.start))
            for one in of_split
            for other in ranges.get("train", ())
            if one.base == other.base
        )
        if both and split != "train":
            size = sum(stop - start for _, start, stop in of_split)
            logger.warning("{}: {:,} of {:,} examples of {} are in train", KEY, both, size, split)


def check_brackets(spelling: str) -> None:
    """Raise UserError where a bracket is alone."""
    left = re.sub(r"\[[^][]*\]", "", spelling)
    for bracket, lack in (("[", "is not closed"), ("]", "was not opened")):
        if bracket in left:
            raise UserError(f"{KEY}: {short_repr(spelling)}: the bracket {bracket} {lack}")


def parse(spelling: str) -> list[tuple[str, str, str]]:
    """'train[:90%]+test' -> [('train', '', '90%'), ('test', '', '')]."""
    check_brackets(spelling)
    parts = []
    for text in str(spelling).split("+"):
        match = PART.fullmatch(text)
        if not match:
            raise UserError(
                f"{KEY}: cannot read {short_repr(text)} in {short_repr(spelling)}, expected a part "
                "or a slice of one such as train, train[:90%], train[100:2000], "
                "train[10%:20%]+train[90%:]"
            )
        base, first, last = match.groups(default="")
        parts.append((base, first, last))
    return parts


# ---- Splits of other data sets -----------------------------------------------------------


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
    """Our data and the splits of other data sets, whose classes get our numbers.

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
            raise bad_value(KEY, dataset, f"{expected}, not {list(other.input_shape)}")
        for name, split in other.splits.items():
            table = _table(data, other, class_maps.get(name, {}), f"{name} ({dataset})")
            splits[name] = split if table is None else split.with_classes(table)
            if not len(splits[name]):
                raise bad_value("data_class_map", name, "a split of which some class is left")
    return replace(data, splits={split: splits[split] for split in order})


def _table(ours: Data, other: Data, class_map: ClassMap, where: str) -> list[int] | None:
    """The number of ours for each class of the other; None where they are the same already."""
    is_alike = ours.n_classes == other.n_classes
    if ours.n_classes is None or other.n_classes is None:
        if is_alike:
            return None
        raise UserError(f"{KEY}: {where}: one has classes, the other real targets")
    if not class_map and (ours.class_names is None or other.class_names is None):
        if is_alike:
            return None
        raise UserError(
            f"{KEY}: {where} has {other.n_classes} classes, ours are {ours.n_classes}, "
            "and there are no names to match them by: give data_class_map"
        )
    if not class_map and ours.class_names == other.class_names:
        return None  # also where some have the same name
    given = {_number(other, key, where): value for key, value in class_map.items()}
    table, unmapped = [], []
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
            unmapped.append(name)
    if unmapped:
        own = ours.class_names or tuple(map(str, range(ours.n_classes)))
        example = f"{{{unmapped[0]!r}: {closest(unmapped[0], own) or own[0]!r}}}"
        raise UserError(
            f"data_class_map: {where} has {len(unmapped)} classes that are none of ours: "
            f"{_first_of(list(map(repr, unmapped)))}; say which they are, such as {example}, or "
            f"null to leave them out; ours are {_first_of(own)}"
        )
    return None if table == list(range(ours.n_classes)) else table


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + ", …" * (len(names) > MOST_SHOWN)


def _called(data: Data, name: str) -> list[int]:
    """The numbers of the classes of that name, to the letter or, where there is none, nearly:
    'Tiger_Cat' is 'tiger cat'."""

    def plain(text: str) -> list[str]:
        return text.casefold().replace("_", " ").split()

    names = data.class_names or ()
    exact = [number for number, own in enumerate(names) if own == name]
    return exact or [number for number, own in enumerate(names) if plain(own) == plain(name)]


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
