"""Many runs as columns: what a folder of them holds, kept in a cache, made into a dataframe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.analysis.run_files import Run


@dataclass(frozen=True)
class Column:
    """A fact of many runs: few different values, and which run has which."""

    options: list[Any]
    codes: np.ndarray  # (runs,) position in options; -1 where a run has none


@dataclass(frozen=True)
class Runs:
    """The curves of one column lie one after the other, those of all columns at the same places."""

    names: list[str]
    facts: dict[str, Column]
    stats: dict[str, np.ndarray]  # column -> (all epochs of all runs,)
    has: dict[str, np.ndarray]  # column -> (runs,) whether a run has it
    lengths: np.ndarray  # (runs,) how many epochs

    def take(self, rows: np.ndarray) -> "Runs":
        """The runs at these positions, in this order."""
        ends = np.cumsum(self.lengths)
        lengths = self.lengths[rows]
        new_ends = np.cumsum(lengths)
        shift = np.repeat((ends - self.lengths)[rows] - (new_ends - lengths), lengths)
        places = shift + np.arange(lengths.sum())
        return Runs(
            [self.names[row] for row in rows],
            {key: Column(c.options, c.codes[rows]) for key, c in self.facts.items()},
            {name: values[places] for name, values in self.stats.items()},
            {name: has[rows] for name, has in self.has.items()},
            lengths,
        )


def as_columns(runs: Sequence[Run]) -> Runs:
    """Of runs that were read one by one."""
    lengths = np.array([max(map(len, run.stats.values()), default=0) for run in runs], np.int64)
    names = dict.fromkeys(name for run in runs for name in run.stats)
    keys = dict.fromkeys(key for run in runs for key in run.facts)
    stats = {}
    for name in names:
        pieces = [run.stats.get(name) for run in runs]
        filled = [
            np.full(length, _nothing(name)) if piece is None else piece
            for piece, length in zip(pieces, lengths, strict=True)
        ]
        stats[name] = np.concatenate([piece for piece in filled if len(piece)] or [np.zeros(0)])
    return Runs(
        [run.name for run in runs],
        {key: _column([run.facts.get(key, Column) for run in runs]) for key in keys},
        stats,
        {name: np.array([name in run.stats for run in runs], dtype=bool) for name in names},
        lengths,
    )


def _nothing(name: str) -> Any:
    return "" if name == "timestamp" else np.nan


def _column(values: Sequence[Any]) -> Column:
    """values: Column, the class, stands for none.

    1, 1.0 and True are different; most values are the same object in many runs.
    """
    options: list[Any] = []
    codes: dict[tuple[type, str], int] = {}
    by_id: dict[int, int] = {id(Column): -1}
    found = np.empty(len(values), dtype=np.int32)
    for row, value in enumerate(values):
        code = by_id.get(id(value))
        if code is None:
            code = codes.setdefault((type(value), repr(value)), len(options))
            if code == len(options):
                options.append(value)
            by_id[id(value)] = code
        found[row] = code
    return Column(options, found)


def joined(parts: Sequence[Runs]) -> Runs:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.stats)
    keys = dict.fromkeys(key for part in parts for key in part.facts)
    stats, has = {}, {}
    for name in names:
        pieces = [
            part.stats.get(name, np.full(part.lengths.sum(), _nothing(name))) for part in parts
        ]
        stats[name] = np.concatenate([piece for piece in pieces if len(piece)] or [np.zeros(0)])
        has[name] = np.concatenate(
            [part.has.get(name, np.zeros(len(part.names), dtype=bool)) for part in parts]
        )
    return Runs(
        [name for part in parts for name in part.names],
        {key: _joined_column(key, parts) for key in keys},
        stats,
        has,
        np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64),
    )


def _joined_column(key: str, parts: Sequence[Runs]) -> Column:
    values: list[Any] = []
    for part in parts:
        column = part.facts.get(key)
        if column is None:
            values += [Column] * len(part.names)
        else:
            options = [*column.options, Column]  # -1 is the last
            values += [options[code] for code in column.codes.tolist()]
    return _column(values)


# ---- As a file ---------------------------------------------------------------------------


def to_arrays(runs: Runs) -> dict[str, np.ndarray] | None:
    """For a file without pickle; None where JSON cannot hold the values of a key (dates, say)."""
    facts: dict[str, Any] = {
        "names": runs.names,
        "columns": list(runs.stats),
        "options": {key: column.options for key, column in runs.facts.items()},
    }
    try:
        text = json.dumps(facts)
    except (TypeError, ValueError):
        return None
    if repr(json.loads(text)) != repr(facts):  # keys of a mapping that are numbers
        return None
    num = len(runs.names)
    codes = [column.codes for column in runs.facts.values()]
    arrays: dict[str, np.ndarray] = {
        "facts": np.frombuffer(text.encode(), dtype=np.uint8),
        "codes": np.array(codes, dtype=np.int32).reshape(len(codes), num),
        "has": np.array([*runs.has.values()], dtype=bool).reshape(len(runs.has), num),
        "lengths": runs.lengths,
    }
    return arrays | {f"stats{i}": values for i, values in enumerate(runs.stats.values())}


def from_arrays(arrays: Any) -> Runs:
    """What to_arrays made; whatever is broken raises an error of some kind."""
    facts = json.loads(arrays["facts"].tobytes())
    codes, has, lengths = arrays["codes"], arrays["has"], arrays["lengths"]
    options, columns, names = facts["options"], facts["columns"], facts["names"]
    stats = {name: arrays[f"stats{i}"] for i, name in enumerate(columns)}
    most = np.array([len(of_key) for of_key in options.values()])
    types = [codes.dtype, lengths.dtype, has.dtype]
    if types != [np.int32, np.int64, np.bool_] or not all(isinstance(n, str) for n in names):
        raise ValueError("values of other types")
    if codes.shape != (len(options), len(names)) or has.shape != (len(columns), len(names)):
        raise ValueError("tables of other sizes")
    if (codes < -1).any() or (codes >= most[:, None]).any() or lengths.shape != (len(names),):
        raise ValueError("values that are not there")
    if (lengths < 0).any() or any(v.shape != (lengths.sum(),) for v in stats.values()):
        raise ValueError("curves of other lengths")
    return Runs(
        names,
        {key: Column(values, codes[i]) for i, (key, values) in enumerate(options.items())},
        stats,
        {name: has[i] for i, name in enumerate(columns)},
        lengths,
    )
