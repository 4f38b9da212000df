"""Many runs in one dataframe, a row a run: big_df = read_experiments([…])."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from src.analysis.curves import CurveArray
from src.analysis.runs import (
    AUGMENTATION,
    NOT_KNOWN,
    PER_FILE,
    SPECS,
    Column,
    Run,
    Runs,
    Signature,
    Unreadable,
    as_columns,
    read_cache,
    read_run,
    signature,
    write_cache,
)
from src.analysis.settings import is_number
from src.config import read_yaml_file
from src.grid import read_job
from src.logging import Stats
from src.support import ROOT, UserError, bad_value, closest, unknown_name

RESULTS = Path("results")
DEFAULTS = ROOT / "src/config/defaults.yaml"
FIRST = ("batch", "state", "outcome", "node", "seconds")  # the first columns
THREADS = 4  # that wait for the disk; more of them wait for each other
CHUNK = 128  # runs that a thread takes at once
WORTH_KEEPING = 100  # runs that were read: a cache for fewer saves nobody time
# Older experiments have no column of steps; it follows from the other one and the batch size.
COUNTED = {"step": "train/seen_examples", "train/seen_examples": "step"}
RUN = re.compile(r"\d+_")  # the name of a run's folder in a grid begins so
DAY = "[0-9][0-9]-[0-9][0-9]-[0-9][0-9]-"


class OlderCopyWarning(UserWarning):
    """Older copies of this template trained otherwise than keys with our defaults would say."""


def read_experiments(
    batches: str | Path | Sequence[str | Path],
    *,
    index_field: str = "epoch",
    only_done: bool = False,
    results: str | Path = RESULTS,
) -> pd.DataFrame:
    """One row for each run: its configuration keys, its stats as curves, and how it ended.

    What it measured as arrays comes in columns of arrays, (epochs, …) float64.

    batches: folders of batches or runs, names or patterns of them in `results`, or the names of
    job files. index_field: what curves are indexed by: epoch, step, train/seen_examples, or time
    (seconds of training and evaluating), also where older results have no such column. Keys that
    a run did not have yet get their default, or 'not known' where an older copy of this template,
    which had no such key, did otherwise. Runs that cannot be read are reported on stderr, and
    listed in attrs["skipped"].

    Raises UserError where a batch does not exist, or no run has the field.
    """
    parts: list[Runs] = []  # of each batch
    folders: list[str] = []  # of each run
    names: list[str] = []  # of each run's batch
    skipped: list[tuple[str, str]] = []
    for batch, signatures in _find_runs(batches, Path(results)).items():
        runs, broken = _read_batch(batch, signatures)
        parts.append(runs)
        folders += [str(batch / run) for run in runs.names]
        names += [batch.absolute().name] * len(runs.names)
        skipped += [(str(batch / name), str(error)) for name, error in broken.items()]
    runs = parts[0] if len(parts) == 1 else as_columns([run for p in parts for run in p.split()])
    if only_done:
        done = np.flatnonzero(_fact(runs, "state") == "done").tolist()
        names, folders = [names[row] for row in done], [folders[row] for row in done]
        runs = runs.take(np.array(done, dtype=np.int64))
    frame = _frame(names, runs, index_field)
    arrays: dict[str, np.ndarray] = {}
    for row, (folder, length) in enumerate(zip(folders, runs.lengths, strict=True)):
        for column, values in Stats.read_arrays(folder).items():
            of_column = arrays.setdefault(column, np.full(len(folders), None))
            of_column[row] = values[:length]  # a row may be ahead of stats.csv
    for column, of_column in arrays.items():
        frame[column] = of_column
    frame.attrs["skipped"] = skipped
    for path, reason in skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if text := _older_copies(frame):
        warnings.warn(text, OlderCopyWarning, stacklevel=2)
    return frame


def _older_copies(frame: pd.DataFrame) -> str:
    """What is not known of the runs that older copies made; '' where they made none."""
    keys = ["drop_last", *AUGMENTATION]
    unknown = {key: [isinstance(x, str) and x == NOT_KNOWN for x in frame[key]] for key in keys}
    dropped = np.array(unknown["drop_last"], dtype=bool)
    augmented = np.any([unknown[key] for key in AUGMENTATION], axis=0)
    has_ema = np.array(["ema" in str(value) for value in frame["averaging"]], dtype=bool)
    found = {
        "drop_last": dropped,
        "aug_*": augmented,
        "whether ema_G of averaging has G and 1-G swapped": dropped & has_ema,
    }
    counts = {key: int(rows.sum()) for key, rows in found.items() if rows.any()}
    texts = ", ".join(f"{key} ({num} run{'s' * (num > 1)})" for key, num in counts.items())
    which = f"{(dropped | augmented).sum()} of {len(frame)} runs are of older copies"
    page = "docs/older_copies.md says what those did"
    return f"{which}; not known of them: {texts}; {page}" if counts else ""


def _find_runs(
    batches: str | Path | Sequence[str | Path], results: Path
) -> dict[Path, dict[str, Signature]]:
    """Batch folder -> names of its run folders and their signatures, in the order of the batches.

    A folder that is named twice, also by a link or an absolute path, is there once.
    """
    found: dict[Path, tuple[Path, dict[str, Signature]]] = {}
    wanted = [batches] if isinstance(batches, str | Path) else list(batches)
    if not wanted:
        raise bad_value("batches", wanted, "at least one batch")
    for batch in wanted:
        parts = [_runs_in(folder) for folder in _batch_folders(str(batch), results)]
        parts = [(parent, runs) for parent, runs in parts if runs]
        if not parts:
            raise UserError(f"{batch}: no runs there")
        for parent, runs in parts:
            found.setdefault(parent.resolve(), (parent, {}))[1].update(runs)
    return dict(found.values())


def _batch_folders(name: str, results: Path) -> list[Path]:
    """A path; else a name or pattern in results; else a job's name, of all days."""
    if os.path.isdir(name):  # Path.is_dir raises where a name is too long
        return [Path(name)]
    job = re.sub(r"\.ya?ml$", "", Path(name).name)
    if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
        job = read_job(name).batch_name
    for pattern in (name, results / name, results / (DAY + job)):
        if found := [Path(path) for path in sorted(glob(str(pattern))) if os.path.isdir(path)]:
            return found
    known = [path.name for path in results.iterdir()] if results.is_dir() else []
    near = closest(name, [*known, *(re.sub(f"^{DAY}", "", name) for name in known)])
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"{name}: no such batch, neither as a path nor in {results}{hint}")


def _runs_in(folder: Path) -> tuple[Path, dict[str, Signature]]:
    """(the parent of the runs, the runs): the folder itself, or those in it, half-written too."""
    own = signature(str(folder))
    if any(own[: PER_FILE * len(SPECS)]):  # a run has one of these files
        run = folder.resolve() if folder.name in ("", "..") else folder
        return run.parent, {run.name: own}

    with os.scandir(folder) as entries:  # os.path.isdir raises of no link
        names = sorted(e.name for e in entries if RUN.match(e.name) or os.path.isdir(e.path))
    signatures = _in_threads(lambda name: signature(f"{folder}/{name}"), names)
    pairs = zip(names, signatures, strict=True)
    return folder, {name: found for name, found in pairs if any(found) or RUN.match(name)}


def _in_threads(call: Callable[[str], Any], names: Sequence[str]) -> Iterator[Any]:
    """call(name) of each, in their order; threads wait for the disk while another one works."""
    chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        yield from chain.from_iterable(pool.map(lambda chunk: list(map(call, chunk)), chunks))


def _read_batch(
    batch: Path, signatures: dict[str, Signature]
) -> tuple[Runs, dict[str, Unreadable]]:
    """(the runs that can be read, the others); from the cache where their files are the same."""
    cached, were = read_cache(batch) or (as_columns([]), [])
    row_of = {name: row for row, name in enumerate(cached.names)}
    unread = [n for n, now in signatures.items() if n not in row_of or were[row_of[n]] != now]
    same = signatures.keys() - set(unread)
    known = cached.take(np.array([row_of[n] for n in signatures if n in same], dtype=np.int64))
    is_seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    answers = _in_threads(lambda name: read_run(f"{batch}/{name}"), unread)
    look: dict[str, Any] = {"unit": "run", "leave": False, "delay": 0.5, "disable": not is_seen}
    answers = tqdm(answers, total=len(unread), **look)
    read = dict(zip(unread, answers, strict=True))
    found = {name: run for name, run in read.items() if isinstance(run, Run)}
    broken = {name: error for name, error in read.items() if isinstance(error, Unreadable)}
    if not found:
        return known, broken
    all_runs = found | {run.name: run for run in known.split()}
    runs = as_columns([all_runs[name] for name in signatures if name in all_runs])
    if len(found) >= WORTH_KEEPING:
        write_cache(batch, runs, [signatures[name] for name in runs.names])
    return runs, broken


def _frame(batches: list[str], runs: Runs, field: str) -> pd.DataFrame:
    """batches: the name of each run's batch."""
    keys = [key for key in dict.fromkeys([*runs.facts, *_defaults()]) if key not in FIRST]
    ends = np.cumsum(runs.lengths)
    seconds = np.concatenate([[np.nan], _elapsed(runs)])[np.where(runs.lengths > 0, ends, 0)]
    facts = {key: _fact(runs, key) for key in ("state", "outcome", "node")}
    found: dict[str, Any] = {"batch": batches, **facts, "seconds": seconds}
    found |= {key: _fact(runs, key) for key in keys}
    index, has_index = _index(runs, field)
    cells = np.stack([ends - runs.lengths, ends], axis=1)
    for name, values in runs.stats.items():
        of_column = np.where((runs.has[name] & has_index)[:, None], cells, -1)
        found[name] = CurveArray(values, index, of_column, (name, field))
    frame = pd.DataFrame(found, index=pd.Index(runs.names, name="run"))
    frame.attrs["keys"] = keys  # columns that people add are no settings
    return frame


def _fact(runs: Runs, key: str) -> Any:
    """(runs,) A pandas array; the default of its time for null, and where a run lacks the key."""
    column = runs.facts.get(key, Column([], np.full(len(runs.names), -1)))
    default = _defaults().get(key)
    options = [default if value is None else value for value in [*column.options, None]]  # -1
    options = deepcopy(options)  # whoever changes a list in the frame changes no later one
    used = np.unique(column.codes)
    values = [options[code] for code in used]
    is_whole = {int, type(None)} == set(map(type, values))  # as floats, seeds would be rounded
    is_whole = is_whole and all(abs(value) < 2**63 for value in values if value is not None)
    array = pd.Series(values, dtype="Int64" if is_whole else None).array
    return array.take(np.searchsorted(used, column.codes))


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """What a key meant before it existed."""
    return {key: entry["default"] for key, entry in read_yaml_file(DEFAULTS).items()}


def _index(runs: Runs, field: str) -> tuple[np.ndarray, np.ndarray]:
    """((all epochs,) what the curves are indexed by, (runs,) whether a run has that)."""
    everywhere = runs.lengths > 0
    if field == "time":
        return _elapsed(runs), everywhere

    def of_column(name: str) -> tuple[np.ndarray, np.ndarray]:
        nothing = np.zeros(runs.lengths.sum()), np.zeros(len(runs.names), dtype=bool)
        return runs.stats.get(name, nothing[0]), runs.has.get(name, nothing[1])

    values, has = of_column(field)
    own = np.repeat(has, runs.lengths)
    if field == "epoch":  # older experiments have none
        begins = np.repeat(np.cumsum(runs.lengths) - runs.lengths, runs.lengths)
        values, has = np.where(own, values, np.arange(len(begins)) - begins + 1), everywhere
    elif field in COUNTED and not has[everywhere].all():
        sizes = [x if is_number(x) and x > 0 else np.nan for x in _fact(runs, "batch_size")]
        size = np.repeat(np.array(sizes, dtype=float), runs.lengths)
        other, has_other = of_column(COUNTED[field])
        counted = np.ceil(other / size) if field == "step" else other * size
        values, has = np.where(own, values, counted), has | (has_other & ~np.isnan(sizes))
    if (everywhere.any() and not has.any()) or values.dtype.kind != "f":
        known = [name for name, values in runs.stats.items() if values.dtype.kind == "f"]
        raise unknown_name("index_field", field, sorted({*known, "epoch", "step", "time"}))
    there = values[np.repeat(has, runs.lengths)]
    is_whole = (there == np.trunc(there)).all()
    return (np.nan_to_num(values).astype(np.int64) if is_whole else values), has


def _elapsed(runs: Runs) -> np.ndarray:
    """(all epochs,) Seconds of training and evaluating since the run began."""
    times = [np.nan_to_num(v) for name, v in runs.stats.items() if name.endswith("/time")]
    seconds = np.sum(times, axis=0) if times else np.zeros(runs.lengths.sum())
    of_runs = np.split(seconds, np.cumsum(runs.lengths)[:-1])  # one's rounding is not another's
    return np.concatenate([np.cumsum(of_run) for of_run in of_runs])
