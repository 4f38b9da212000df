"""Many runs in one dataframe, a row a run: big_df = read_experiments([…])."""

import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from src.analysis.cache import read_cache, write_cache
from src.analysis.curves import CurveArray
from src.analysis.run_files import (
    AUGMENTATION,
    NOT_KNOWN,
    Run,
    Signature,
    Unreadable,
    is_run,
    read_run,
    signature,
)
from src.analysis.runs import Column, Runs, as_columns, joined
from src.analysis.settings import is_number
from src.config import read_yaml_file
from src.grid import read_job
from src.support import ROOT, UserError, bad_value, closest, unknown_name

RESULTS = Path("results")
LEDGER = ROOT / "src/config/defaults.yaml"
ORDER = ("batch", "state", "outcome", "node", "seconds")  # these columns first
THREADS = 4  # that wait for the disk; more of them wait for each other
CHUNK = 128  # runs that a thread takes at once
WORTH_KEEPING = 100  # runs that were read: a cache for fewer saves nobody time
# Older experiments have no column of steps: what tells it, with the batch size
COUNTED = {"step": "train/seen_examples", "train/seen_examples": "step"}
RUN = re.compile(r"\d+_")  # the name of a row's folder begins so
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
    """One row a run: every configuration key, every column of the stats as a curve, how it ended.

    batches: folders of batches or runs, names or patterns of them in `results`, or the names of
    job files. index_field: what curves are indexed by: epoch, step, train/seen_examples, or time
    (seconds of training and evaluating), also where older results have no such column. Keys that
    a run did not have yet get their default, or 'not known' where an older copy of this template,
    which had no such key, did otherwise. Runs that cannot be read are said, and listed in
    attrs["skipped"].

    Raises UserError where a batch does not exist, or no run has the field.
    """
    found, skipped = [], []
    for batch, looks in find_runs(batches, Path(results)).items():
        runs, broken = _read_batch(batch, looks)
        if only_done:
            runs = runs.take(np.flatnonzero(_fact(runs, "state") == "done"))
        found.append((batch, runs))
        skipped += [(str(batch / name), str(error)) for name, error in broken.items()]
    for path, reason in skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    frame = _frame(found, index_field)
    frame.attrs["skipped"] = skipped
    if text := _of_older_copies(frame):
        warnings.warn(text, OlderCopyWarning, stacklevel=2)
    return frame


def _of_older_copies(frame: pd.DataFrame) -> str:
    """What is not known of the runs that older copies made; '' where they made none."""

    def is_unknown(*keys: str) -> np.ndarray:
        rows = zip(*(frame[key] for key in keys), strict=True)  # pd.NA == … is no answer
        return np.array([any(isinstance(x, str) and x == NOT_KNOWN for x in r) for r in rows], bool)

    dropped, augmented = is_unknown("drop_last"), is_unknown(*AUGMENTATION)
    has_ema = np.array(["ema" in str(value) for value in frame["averaging"]], dtype=bool)
    found = {
        "drop_last": dropped,
        "aug_*": augmented,
        "whether ema_G of averaging has G and 1-G swapped": dropped & has_ema,
    }
    counts = {key: int(rows.sum()) for key, rows in found.items() if rows.any()}
    keys = ", ".join(f"{key} ({num} run{'s' * (num > 1)})" for key, num in counts.items())
    which = f"{(dropped | augmented).sum()} of {len(frame)} runs are of older copies"
    page = "docs/older_copies.md says what those did"
    return f"{which}; not known of them: {keys}; {page}" if counts else ""


# ---- Which folders -----------------------------------------------------------------------


def find_runs(
    batches: str | Path | Sequence[str | Path], results: Path
) -> dict[Path, dict[str, Signature]]:
    """Batch folder -> run folders in it and how their files look, in the order of the batches.

    A folder that is named twice, also by a link or an absolute path, is there once.
    """
    found: dict[Path, tuple[Path, dict[str, Signature]]] = {}
    wanted = [batches] if isinstance(batches, str | Path) else list(batches)
    if not wanted:
        raise bad_value("batches", wanted, "at least one batch")
    for batch in wanted:
        has_runs = False
        for folder in _batch_folders(str(batch), results):
            for parent, runs in _runs_in(folder).items():
                found.setdefault(parent.resolve(), (parent, {}))[1].update(runs)
                has_runs |= bool(runs)
        if not has_runs:
            raise UserError(f"{batch}: no runs there")
    return dict(found.values())


def _batch_folders(name: str, results: Path) -> list[Path]:
    """A path; else a name or pattern in results; else a job's name, of all days."""
    if os.path.isdir(name):  # Path.is_dir raises where a name is too long
        return [Path(name)]
    job = _batch_of_job(name)
    for pattern in (name, results / name, results / (DAY + job)):
        if found := [Path(path) for path in sorted(glob(str(pattern))) if os.path.isdir(path)]:
            return found
    known = [path.name for path in results.iterdir()] if results.is_dir() else []
    near = closest(name, [*known, *(re.sub(f"^{DAY}", "", name) for name in known)])
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"{name}: no such batch, neither as a path nor in {results}{hint}")


def _batch_of_job(name: str) -> str:
    """What the batch of jobs/x.yaml is called, without its day; 'x' where there is no such file."""
    if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
        return read_job(name).batch_name
    return re.sub(r"\.ya?ml$", "", Path(name).name)


def _runs_in(folder: Path) -> dict[Path, dict[str, Signature]]:
    """The folder itself, or those in it, half-written ones too."""
    if is_run(own := signature(str(folder))):
        whole = folder.resolve() if folder.name in ("", "..") else folder
        return {whole.parent: {whole.name: own}}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _may_be_run(entry))
    signatures = _in_threads(lambda name: signature(f"{folder}/{name}"), names)
    pairs = zip(names, signatures, strict=True)
    return {folder: {n: look for n, look in pairs if any(look) or RUN.match(n)}}


def _may_be_run(entry: os.DirEntry) -> bool:
    """A folder, or what has the name of a run and is none: a broken link, say."""
    try:
        return entry.is_dir() or bool(RUN.match(entry.name))
    except OSError:  # a link to itself
        return bool(RUN.match(entry.name))


def _in_threads(call: Any, items: Sequence[Any]) -> Iterator[Any]:
    """call(item) of each, in their order; threads wait for the disk while another one works."""
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        for answers in pool.map(lambda chunk: [call(item) for item in chunk], chunks):
            yield from answers


# ---- One batch ---------------------------------------------------------------------------


def _read_batch(batch: Path, looks: dict[str, Signature]) -> tuple[Runs, dict[str, Unreadable]]:
    """(the runs that can be read, the others); from the cache where their files are the same."""
    known, unread = _from_cache(batch, looks)
    read, broken = _read_folders(batch, unread)
    found = joined([known, as_columns(read)]) if read else known
    position = {name: row for row, name in enumerate(found.names)}
    found = found.take(np.array([position[n] for n in looks if n in position], dtype=np.int64))
    if len(read) >= WORTH_KEEPING:
        write_cache(batch, found, [looks[name] for name in found.names])
    return found, broken


def _from_cache(batch: Path, looks: dict[str, Signature]) -> tuple[Runs, list[str]]:
    """(the runs whose files are as they were, the names of the others)."""
    cached = read_cache(batch)
    if cached is None:
        return as_columns([]), list(looks)
    runs, signatures = cached
    seen = dict(zip(runs.names, map(tuple, signatures.tolist()), strict=True))
    row_of = {name: row for row, name in enumerate(runs.names)}
    same = [name for name, look in looks.items() if seen.get(name) == look]
    unread = [name for name, look in looks.items() if seen.get(name) != look]
    return runs.take(np.array([row_of[name] for name in same], dtype=np.int64)), unread


def _read_folders(batch: Path, names: Sequence[str]) -> tuple[list[Run], dict[str, Unreadable]]:
    is_seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(total=len(names), unit="run", leave=False, delay=0.5, disable=not is_seen)
    runs: list[Run] = []
    broken: dict[str, Unreadable] = {}
    with bar:
        answers = _in_threads(lambda name: read_run(f"{batch}/{name}"), names)
        for name, run in zip(names, answers, strict=True):
            if isinstance(run, Run):
                runs.append(run)
            else:
                broken[name] = run
            bar.update()
    return runs, broken


# ---- The table ---------------------------------------------------------------------------


def _frame(batches: Sequence[tuple[Path, Runs]], field: str) -> pd.DataFrame:
    runs = joined([runs for _, runs in batches])
    names = [batch.absolute().name for batch, runs in batches for _ in runs.names]
    keys = [key for key in dict.fromkeys([*runs.facts, *_defaults()]) if key not in ORDER]
    found = {key: _fact(runs, key) for key in [*keys, "state", "outcome", "node"]}
    ends = np.cumsum(runs.lengths)
    seconds = np.concatenate([[np.nan], _elapsed(runs)])[np.where(runs.lengths > 0, ends, 0)]
    found |= {"batch": names, "seconds": seconds}
    found = {key: found.pop(key) for key in ORDER if key in found} | found
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
    options = [*column.options, None]  # -1 is the last
    options = [_defaults().get(key) if value is None else value for value in options]
    options = deepcopy(options)  # whoever changes a list in the frame changes no later one
    used = np.unique(column.codes)
    place = np.searchsorted(used, column.codes)
    values = [options[code] for code in used]
    is_whole = {int, type(None)} == set(map(type, values))  # as floats, seeds would be rounded
    is_whole = is_whole and all(abs(value) < 2**63 for value in values if value is not None)
    return pd.Series(values, dtype="Int64" if is_whole else None).array.take(place)


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """What a key meant before it existed."""
    return {key: entry["default"] for key, entry in read_yaml_file(LEDGER).items()}


def _index(runs: Runs, field: str) -> tuple[np.ndarray, np.ndarray]:
    """((all epochs,) what the curves are indexed by, (runs,) whether a run has that)."""
    begins = np.repeat(np.cumsum(runs.lengths) - runs.lengths, runs.lengths)
    everywhere = runs.lengths > 0
    if field == "time":
        return _elapsed(runs), everywhere
    values = runs.stats.get(field, np.zeros(runs.lengths.sum()))
    has = runs.has.get(field, np.zeros(len(runs.names), dtype=bool))
    if field == "epoch":  # older experiments have none
        counted = np.arange(len(begins)) - begins + 1
        values, has = np.where(np.repeat(has, runs.lengths), values, counted), everywhere
    elif field in COUNTED and not has[everywhere].all():
        counted, can = _counted(runs, field)
        values, has = np.where(np.repeat(has, runs.lengths), values, counted), has | can
    known = [name for name, values in runs.stats.items() if values.dtype.kind == "f"]
    if (everywhere.any() and not has.any()) or values.dtype.kind != "f":
        raise unknown_name("index_field", field, sorted({*known, "epoch", "step", "time"}))
    there = values[np.repeat(has, runs.lengths)]
    is_whole = values.dtype.kind == "f" and (there == np.trunc(there)).all()
    return (np.nan_to_num(values).astype(np.int64) if is_whole else values), has


def _counted(runs: Runs, field: str) -> tuple[np.ndarray, np.ndarray]:
    """((all epochs,) steps told by examples, or the other way, (runs,) whether a run tells)."""
    sizes = [x if is_number(x) and x > 0 else np.nan for x in _fact(runs, "batch_size")]
    size = np.array(sizes, dtype=float)
    other = COUNTED[field]
    of_other = runs.stats.get(other, np.zeros(runs.lengths.sum()))
    has = runs.has.get(other, np.zeros(len(runs.names), dtype=bool)) & ~np.isnan(size)
    of_epochs = np.repeat(size, runs.lengths)
    return np.ceil(of_other / of_epochs) if field == "step" else of_other * of_epochs, has


def _elapsed(runs: Runs) -> np.ndarray:
    """(all epochs,) Seconds of training and evaluating since the run began."""
    times = [np.nan_to_num(v) for name, v in runs.stats.items() if name.endswith("/time")]
    seconds = np.sum(times, axis=0) if times else np.zeros(runs.lengths.sum())
    ends = np.cumsum(runs.lengths)
    of_runs = np.split(seconds, ends[:-1])  # each for itself: no run's rounding is another's
    return np.concatenate([np.cumsum(of_run) for of_run in of_runs])
