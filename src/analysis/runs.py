"""Many runs as columns, and the cache of them: `.big_df.npz` in the folder of a batch.

10,000 runs of 60 keys are few different values and long arrays, so that is how they are kept. A
run is read again when one of its files has changed: by time, size or inode. The whole cache is
thrown away when it is broken, or was written by another version of the code.
"""

import inspect
import io
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from src.analysis import run_files
from src.analysis.run_files import FILES, PER_FILE, Run, Signature
from src.config import read_yaml
from src.support import write_atomically

CACHE = ".big_df.npz"
HOUR = 3600  # seconds; no process writes for so long
ABSENT = object()  # the value of a key that a run does not have


@dataclass(frozen=True)
class Column:
    """A key of many runs: its few different values, and which run has which."""

    options: list[Any]
    codes: np.ndarray  # (runs,) position in options; -1 where a run lacks the key


@dataclass(frozen=True)
class Runs:
    """Many runs. The curves of a column lie one after the other, at the same places in all."""

    names: list[str]
    facts: dict[str, Column]
    stats: dict[str, np.ndarray]  # column -> (all epochs of all runs,)
    has: dict[str, np.ndarray]  # column -> (runs,) whether a run has it
    lengths: np.ndarray  # (runs,) number of epochs

    def take(self, rows: np.ndarray) -> "Runs":
        """The runs at these positions, in this order."""
        begins, lengths = (np.cumsum(self.lengths) - self.lengths)[rows], self.lengths[rows]
        shift = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        places = shift + np.arange(lengths.sum())
        return Runs(
            [self.names[row] for row in rows],
            {key: Column(c.options, c.codes[rows]) for key, c in self.facts.items()},
            {name: values[places] for name, values in self.stats.items()},
            {name: has[rows] for name, has in self.has.items()},
            lengths,
        )

    def split(self) -> list[Run]:
        """One by one, the inverse of as_columns."""
        ends = np.cumsum(self.lengths).tolist()
        spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        facts = [(k, c.options, c.codes.tolist()) for k, c in self.facts.items()]
        stats = [(name, values, self.has[name]) for name, values in self.stats.items()]
        return [
            Run(
                run,
                {k: values[c[i]] for k, values, c in facts if c[i] >= 0},
                {name: values[spans[i]] for name, values, has in stats if has[i]},
            )
            for i, run in enumerate(self.names)
        ]


def as_columns(runs: Sequence[Run]) -> Runs:
    lengths = np.array([max(map(len, run.stats.values()), default=0) for run in runs], np.int64)
    stats, has = {}, {}
    for name in dict.fromkeys(name for run in runs for name in run.stats):
        nothing = "" if name == "timestamp" else np.nan
        pieces = [
            run.stats[name] if name in run.stats else np.full(length, nothing)
            for run, length in zip(runs, lengths, strict=True)
        ]
        # empty ones do not decide about the type
        stats[name] = np.concatenate([piece for piece in pieces if len(piece)] or [np.zeros(0)])
        has[name] = np.array([name in run.stats for run in runs], dtype=bool)
    facts = {}
    for key in dict.fromkeys(key for run in runs for key in run.facts):
        # 1, 1.0 and True are different; most values are the same object in many runs
        options: list[Any] = []
        code_of: dict[tuple[type, str], int] = {}
        code_of_id = {id(ABSENT): -1}
        codes = np.empty(len(runs), dtype=np.int32)
        for row, run in enumerate(runs):
            value = run.facts.get(key, ABSENT)
            if (code := code_of_id.get(id(value))) is None:
                code = code_of.setdefault((type(value), repr(value)), len(options))
                options += [value] * (code == len(options))
                code_of_id[id(value)] = code
            codes[row] = code
        facts[key] = Column(options, codes)
    return Runs([run.name for run in runs], facts, stats, has, lengths)


# ---- The cache ---------------------------------------------------------------------------


def read_cache(batch: Path) -> tuple[Runs, list[Signature]] | None:
    """(the runs, their signatures); None where there is no usable cache."""
    try:
        with np.load(batch / CACHE, allow_pickle=False) as file:
            if file["version"].tobytes() != _version():
                return None
            facts = json.loads(file["facts"].tobytes())
            names, columns, options = facts["names"], facts["columns"], facts["options"]
            codes, has, lengths = file["codes"], file["has"], file["lengths"]
            signatures, stats = file["signatures"], [file[f"stats{i}"] for i in range(len(columns))]
        expected = [
            (codes, np.int32, (len(options), len(names))),
            (has, np.bool_, (len(columns), len(names))),
            (lengths, np.int64, (len(names),)),
            (signatures, np.int64, (len(names), PER_FILE * len(FILES))),
            *((values, values.dtype, (lengths.sum(),)) for values in stats),
        ]
        most = np.array([len(values) for values in options.values()])[:, None]
        if (
            any(array.dtype != kind or array.shape != shape for array, kind, shape in expected)
            or not all(isinstance(name, str) for name in names)
            or ((codes < -1) | (codes >= most)).any()
            or (lengths < 0).any()
        ):
            return None
        of_keys = {key: Column(options[key], codes[i]) for i, key in enumerate(options)}
        runs = Runs(
            names,
            of_keys,
            dict(zip(columns, stats, strict=True)),
            dict(zip(columns, has, strict=True)),
            lengths,
        )
        return runs, list(map(tuple, signatures.tolist()))
    except Exception:  # whatever numpy and json say of a file that is broken
        return None


def write_cache(batch: Path, runs: Runs, signatures: Sequence[Signature]) -> None:
    """Nothing is written where JSON does not hold the values (dates, say), or the folder is not
    ours to write in: then the next reading takes as long as this one."""
    options = {key: column.options for key, column in runs.facts.items()}
    facts = {"names": runs.names, "columns": list(runs.stats), "options": options}
    try:
        text = json.dumps(facts)
    except (TypeError, ValueError):
        return
    if repr(json.loads(text)) != repr(facts):  # keys of a mapping that are numbers
        return
    codes = [column.codes for column in runs.facts.values()]
    arrays: dict[str, Any] = {
        "version": np.frombuffer(_version(), dtype=np.uint8),
        "facts": np.frombuffer(text.encode(), dtype=np.uint8),
        "codes": np.array(codes, dtype=np.int32).reshape(len(codes), len(runs.names)),
        "has": np.array([*runs.has.values()], bool).reshape(len(runs.has), len(runs.names)),
        "lengths": runs.lengths,
        "signatures": np.array(signatures, dtype=np.int64),
    }
    arrays |= {f"stats{i}": values for i, values in enumerate(runs.stats.values())}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    with suppress(OSError):
        write_atomically(batch / CACHE, file.getvalue(), durable=False)
    for torn in batch.glob(f".{CACHE}.*"):  # what a kill in the middle of writing has left
        with suppress(OSError):
            if time.time() - torn.stat().st_mtime > HOUR:
                torn.unlink()


@lru_cache(maxsize=1)
def _version() -> bytes:
    """Of the code that reads run folders, so that nobody must remember to count it up."""
    sources = [__file__, inspect.getfile(run_files), inspect.getfile(read_yaml)]
    return sha256(b"".join(Path(source).read_bytes() for source in sources)).digest()
