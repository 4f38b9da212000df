"""Slices of a data set's parts, spelled as in TFDS: 'train[:90%]', 'train[100:2000]+test'."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from loguru import logger

from src.support import UserError, closest, one_line, short_repr

KEY = "data_splits_map"
BOUND = r"-?\d{1,15}(?:\.\d{1,15})?%|-?\d[\d_]{0,17}"
PART = re.compile(rf"\s*([\w.-]+?)\s*(?:\[\s*({BOUND})?\s*:\s*({BOUND})?\s*\])?\s*")


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
            if base not in bases:
                raise _unknown_base(
                    f"{one_line(split)}: {short_repr(spelling)}", base, bases, dataset
                )


def resolve(spelling: str, sizes: Mapping[str, int]) -> list[Range]:
    """Which examples a spelling means, given the number of examples of each part.

    >>> resolve("train[:90%]+test[-10:]", {"train": 50, "test": 20})
    [Range(base='train', start=0, stop=45), Range(base='test', start=10, stop=20)]
    """
    ranges = []
    for base, first, last in parse(spelling):
        start = _index(first, sizes[base], spelling) if first else 0
        stop = _index(last, sizes[base], spelling) if last else sizes[base]
        if start >= stop:
            raise UserError(
                f"{KEY}: {short_repr(spelling)} is empty, as {base!r} has {sizes[base]} examples"
                f" and [{first}:{last}] means {start} to {stop}"
            )
        ranges.append(Range(base, start, stop))
    return ranges


def resolve_all(splits_map: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, list[Range]]:
    """The ranges of each split; a warning where others hold examples of `train`."""
    ranges = {split: resolve(spelling, sizes) for split, spelling in splits_map.items()}
    warn_of_overlap(ranges)
    return ranges


def warn_of_overlap(ranges: Mapping[str, Sequence[Range]]) -> None:
    """Say how many examples of other splits are trained on: 'train[90:]' for 'train[90%:]'."""
    trained = ranges.get("train", ())
    for split, of_split in ranges.items():
        both = sum(
            max(0, min(one.stop, other.stop) - max(one.start, other.start))
            for one in of_split
            for other in trained
            if one.base == other.base
        )
        if both and split != "train":
            size = sum(stop - start for _, start, stop in of_split)
            logger.warning("{}: {:,} of {:,} examples of {} are in train", KEY, both, size, split)


def check_brackets(spelling: str) -> None:
    """Raise UserError where a bracket is alone: what stands in brackets is read differently."""
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


def _index(bound: str, size: int, spelling: str) -> int:
    """'90%' or '-10' as a position in 0…size; a percentage goes to the nearest one, as in TFDS."""
    position = round(float(bound[:-1]) * size / 100) if bound.endswith("%") else int(bound)
    if abs(position) > size:
        raise UserError(
            f"{KEY}: {bound} in {short_repr(spelling)} is beyond the {size} examples there are"
        )
    from_end = bound.startswith("-")
    return size + position if from_end else position


def _unknown_base(where: str, base: str, bases: Collection[str], dataset: str) -> UserError:
    near = closest(base, bases)
    hint = f"; did you mean {near!r}?" if near else ""
    if not near and "train" in bases:
        hint = "; slices of it do instead, such as {train: 'train[:80%]', test: 'train[80%:]'}"
    known = ", ".join(map(repr, bases))
    return UserError(
        f"{KEY}: {where}: {dataset} has no {short_repr(base)}, there is: {known}{hint}"
    )
