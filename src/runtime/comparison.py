"""Where two run folders first differ, in what must not depend on how often a run was killed.

Tensors are compared by their bytes, numbers by all their digits: NaN equals NaN, and 0.0 is not
-0.0. Times are no result: they are left out.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.metrics import is_time
from src.runtime.checkpoint_files import CheckpointFiles, CorruptCheckpoint, read_state

# What a state holds besides results: what was asked for, and seconds
NOT_RESULTS = {"config", "data_time", "training_seconds", "run_seconds", "num_processes"}
NAMES = {"model": "weights", "generators": "random generators"}


def first_differences(folder: Path, other: Path) -> list[str]:
    """One line for each part in which the runs differ; [] where they are equal."""
    states = final_state(folder), final_state(other)
    parts, other_parts = (_parts(state) for state in states)
    found = [
        first_difference(parts.get(name), other_parts.get(name), name)
        for name in parts | other_parts
    ]
    rows, other_rows = (state["parts"]["stats"]["rows"] for state in states)
    found.append(
        first_difference_of_rows(rows, other_rows, "stats")
        or first_difference_of_rows(_rows(folder), _rows(other), "stats.csv")
    )
    found.append(_difference_of_checkpoints(folder / "checkpoints", other / "checkpoints"))
    return [line for line in found if line]


def final_state(folder: Path) -> dict[str, Any]:
    """The newest state of a run folder. Raises CorruptCheckpoint."""
    newest = next(iter(CheckpointFiles(folder / "state").paths()), folder / "state")
    try:
        return read_state(newest)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{newest} {error}") from None


def names_of_parts(state: Mapping[str, Any]) -> list[str]:
    """What is compared besides the stats and the step: weights, optimizer, av, …"""
    return [name for name, value in _parts(state).items() if isinstance(value, dict)]


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared as it is; the stats hold times, and have their own comparison."""
    own = {key: value for key, value in state.items() if key not in {*NOT_RESULTS, "parts"}}
    parts = {key: value for key, value in state["parts"].items() if key != "stats"}
    return {NAMES.get(key) or key: value for key, value in (parts | own).items()}


# ---- Trees of tensors and plain values ---------------------------------------------------


def first_difference(value: Any, other: Any, path: str = "") -> str | None:
    """Where two trees of dicts, lists, tensors and plain values first differ; None: nowhere."""
    if type(value) is not type(other):
        return f"{path}: {_short(value)} and {_short(other)}"
    if isinstance(value, Tensor):
        return _difference_of_tensors(value, other, path)
    if isinstance(value, Mapping):
        if list(value) != list(other):
            only = [str(key) for key in value.keys() ^ other.keys()] or ["their order"]
            return f"{path}: the names differ in {', '.join(sorted(only))}"
        return _first(first_difference(value[key], other[key], f"{path} {key}") for key in value)
    if isinstance(value, list | tuple):
        if len(value) != len(other):
            return f"{path}: {len(value)} and {len(other)} entries"
        pairs = enumerate(zip(value, other, strict=True))
        return _first(first_difference(*pair, f"{path} {i}") for i, pair in pairs)
    # repr() of a number gives all its digits
    return None if repr(value) == repr(other) else f"{path}: {value!r} and {other!r}"


def _first(found: Iterable[str | None]) -> str | None:
    return next(filter(None, found), None)


def _difference_of_tensors(tensor: Tensor, other: Tensor, path: str) -> str | None:
    kinds = [f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in (tensor, other)]
    if kinds[0] != kinds[1]:
        return f"{path}: {kinds[0]} and {kinds[1]}"
    differing = (_bytes(tensor) != _bytes(other)).any(dim=1).nonzero().flatten()
    if not len(differing):
        return None
    first = int(differing[0])
    index = [int(i) for i in np.unravel_index(first, tensor.shape)] if tensor.ndim else ""
    values = [x.reshape(-1)[first].item() for x in (tensor, other)]
    count = f"{len(differing)} of {tensor.numel()} values differ"
    return f"{path}{index}: {values[0]!r} and {values[1]!r}; {count}"


def _bytes(tensor: Tensor) -> Tensor:
    """(number of values, bytes a value) uint8"""
    return tensor.reshape(-1, 1).contiguous().view(torch.uint8)


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__


# ---- Stats and checkpoints ---------------------------------------------------------------


def first_difference_of_rows(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], name: str
) -> str | None:
    """Where two tables of stats first differ: the epoch, the column and both values."""
    for row, other in zip(rows, others, strict=False):
        if line := first_difference(_without_times(row), _without_times(other), ""):
            return f"{name}: epoch {row['epoch']},{line}"
    if len(rows) != len(others):
        return f"{name}: {len(rows)} and {len(others)} rows"
    return None


def _without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {column: x for column, x in row.items() if not is_time(column)}


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "stats.csv", newline="") as file:
        return list(csv.DictReader(file))


def _difference_of_checkpoints(folder: Path, other: Path) -> str | None:
    names = [sorted(path.name for path in place.glob("*.pt")) for place in (folder, other)]
    if names[0] != names[1]:
        return f"checkpoints: {', '.join(sorted({*names[0]} ^ {*names[1]}))} on one side only"
    return _first(first_difference(_load(folder / x), _load(other / x), x) for x in names[0])


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)
