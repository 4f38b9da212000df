"""Many runs in one dataframe, a row a run: big_df = read_experiments([…]).

Reads what a run folder holds: config.yaml (else spec.yaml), stats.csv, status.json, done; also
those of older experiments, which lack some of it.
"""

import csv
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from src.analysis.curves import Curve, CurveArray
from src.names import UserError, closest
from src.yaml_files import read_yaml, read_yaml_file

RESULTS = Path("results")
LEDGER = Path(__file__).parents[1] / "defaults.yaml"
FILES = ("config.yaml", "spec.yaml", "stats.csv", "status.json", "done")
THREADS = 8  # that wait for the disk
DAY = "[0-9][0-9]-[0-9][0-9]-[0-9][0-9]-"


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    name: str
    facts: dict[str, Any]  # configuration, state, outcome, batch, node, seconds
    columns: dict[str, np.ndarray]  # of the stats


class Unreadable(Exception):  # noqa: N818 - other runs can be read
    """A run folder that is broken, and how."""


def read_experiments(
    batches: Sequence[str | Path],
    *,
    index_field: str = "epoch",
    only_done: bool = False,
    results: str | Path = RESULTS,
) -> pd.DataFrame:
    """One row a run: every configuration key, every column of the stats as a curve, how it ended.

    batches: folders of batches or runs, names or patterns of them in `results`, or the names of
    job files. index_field: what curves are indexed by: epoch, step, train/seen_examples, or time
    (seconds of training and evaluating). Keys that a run did not have yet get their default.
    Runs that cannot be read are said, and listed in attrs["skipped"].

    Raises UserError where a batch does not exist, or no run has the field.
    """
    folders = find_runs(batches, Path(results))
    runs: list[Run] = []
    skipped: list[tuple[str, str]] = []
    bar = tqdm(total=len(folders), unit="run", leave=False, disable=not sys.stderr.isatty())
    with bar, ThreadPoolExecutor(THREADS) as pool:
        for folder, texts in zip(folders, pool.map(_texts, folders, chunksize=32), strict=True):
            try:
                runs.append(_run(folder, texts))
            except Unreadable as error:
                skipped.append((str(folder), str(error)))
            bar.update()
    if only_done:
        runs = [run for run in runs if run.facts["state"] == "done"]
    for path, reason in skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    frame = _frame(runs, index_field)
    frame.attrs["skipped"] = skipped
    return frame


# ---- Which folders -----------------------------------------------------------------------


def find_runs(batches: Sequence[str | Path], results: Path) -> list[Path]:
    """The run folders, in the order of the batches, none twice."""
    found: dict[Path, None] = {}
    for batch in [batches] if isinstance(batches, str | Path) else batches:
        folders = _batch_folders(str(batch), results)
        runs = [run for folder in folders for run in _runs_in(folder)]
        if not runs:
            raise UserError(f"{batch}: no runs there")
        found.update(dict.fromkeys(runs))
    return list(found)


def _batch_folders(name: str, results: Path) -> list[Path]:
    """A path; else a name or pattern in results; else a job's name, of all days."""
    if Path(name).is_dir():
        return [Path(name)]
    job = re.sub(r"\.ya?ml$", "", Path(name).name)
    for pattern in (name, DAY + job):
        if not Path(pattern).is_absolute() and (found := sorted(results.glob(pattern))):
            return [path for path in found if path.is_dir()]
    known = [path.name for path in results.iterdir()] if results.is_dir() else []
    near = closest(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"{name}: no such batch, neither as a path nor in {results}{hint}")


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself, or those in it."""
    if any((folder / name).exists() for name in FILES[:2]):
        return [folder]
    return sorted({path.parent for name in FILES[:2] for path in folder.glob(f"*/{name}")})


# ---- One folder --------------------------------------------------------------------------


def _texts(folder: Path) -> dict[str, str | None]:
    """The content of each file; None where there is none."""
    texts: dict[str, str | None] = {}
    for name in FILES:
        try:
            with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
                texts[name] = file.read()
        except OSError:
            texts[name] = None
    return texts


def _run(folder: Path, texts: dict[str, str | None]) -> Run:
    name = "spec.yaml" if texts["config.yaml"] is None else "config.yaml"
    config = read_flat_yaml(texts[name] or "", name)
    columns = _columns(texts["stats.csv"] or "")
    done, status = _json(texts["done"]), _json(texts["status.json"])
    facts = {
        "state": _state(done, status, has_stats=bool(columns)),
        "outcome": (done or {}).get("outcome"),
        "batch": folder.absolute().parent.name,
        "node": (status or {}).get("host"),
        "seconds": float(_seconds(columns).sum()),
    }
    return Run(folder.name, _defaults() | config | facts, columns)


def _state(done: dict | None, status: dict | None, *, has_stats: bool) -> str:
    """As the run has left it; whether one that says it is running still does, report.py knows."""
    if done is not None:
        return "done"
    if status and isinstance(status.get("state"), str):
        return status["state"]
    return "unfinished" if has_stats else "unstarted"


def _json(text: str | None) -> dict[str, Any] | None:
    """{} for a file that is empty, as older experiments leave it, or torn."""
    if text is None:
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """What a key meant before it existed."""
    return {key: entry["default"] for key, entry in read_yaml_file(LEDGER).items()}


def read_flat_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping whose keys begin its lines, each block of lines read once for all runs.

    Reading 10,000 files of 60 keys as a whole would take half a minute.
    """
    try:
        values: dict[str, Any] = {}
        for block in re.split(r"\n(?=[^\s#-])", text):
            values.update(_block(block))
        return values
    except (UserError, TypeError, ValueError):  # other YAML, or none
        pass
    try:
        content = read_yaml(text, source=source)
    except UserError as error:
        raise Unreadable(str(error)) from None
    if not isinstance(content, dict):
        raise Unreadable(f"{source}: no lines of the form `key: value`")
    return content


@lru_cache(maxsize=100_000)
def _block(text: str) -> dict[str, Any]:
    content = read_yaml(text)
    if not isinstance(content, dict):
        raise TypeError
    return content


# ---- Stats -------------------------------------------------------------------------------


def _columns(text: str) -> dict[str, np.ndarray]:
    """Column -> its values, floats or texts; a last line that was cut off is left out."""
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    names = _names(header)
    rows = [line.split(",") for line in lines]
    if any(len(row) != len(names) for row in rows):
        raise Unreadable("stats.csv: lines of different lengths")
    pairs = zip(names, zip(*rows, strict=True), strict=False)
    return {name: _values(cells, name) for name, cells in pairs if name}


@lru_cache(maxsize=256)
def _names(header: str) -> list[str]:
    return next(csv.reader([header]), [])


def _values(cells: Sequence[str], name: str) -> np.ndarray:
    if name == "timestamp":
        return np.array(cells, dtype=object)
    try:
        return np.array([float(cell or "nan") for cell in cells])
    except ValueError as error:
        raise Unreadable(f"stats.csv: {name}: {error}") from None


def _seconds(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Of each epoch: training and evaluations."""
    times = [values for name, values in columns.items() if name.endswith("/time")]
    return np.sum(times, axis=0) if times else np.zeros(0)


# ---- The table ---------------------------------------------------------------------------


def _index(run: Run, field: str) -> np.ndarray | None:
    """What the curves of a run are indexed by; None where its stats do not have that."""
    if field == "time":
        return np.cumsum(_seconds(run.columns))
    found = run.columns.get(field)
    if found is None and field == "epoch" and run.columns:  # older experiments have none
        return np.arange(1, len(next(iter(run.columns.values()))) + 1)
    if found is not None and (found == found.astype(np.int64)).all():
        return found.astype(np.int64)
    return found


def _frame(runs: Sequence[Run], field: str) -> pd.DataFrame:
    indices = [_index(run, field) for run in runs]
    if any(run.columns for run in runs) and all(index is None for index in indices):
        known = dict.fromkeys(name for run in runs for name in run.columns)
        raise UserError(f"index_field: no run has {field!r}; there are {', '.join(known)}, time")
    index = pd.Index([run.name for run in runs], name="run")
    facts = dict.fromkeys(key for run in runs for key in run.facts)
    columns: dict[str, Any] = {key: [run.facts.get(key) for run in runs] for key in facts}
    for name in dict.fromkeys(name for run in runs for name in run.columns):
        cells = [_cell(run, name, at) for run, at in zip(runs, indices, strict=True)]
        columns[name] = CurveArray.of(cells, name, field)
    return pd.DataFrame(columns, index=index)


def _cell(run: Run, name: str, index: np.ndarray | None) -> Curve | None:
    values = run.columns.get(name)
    return None if values is None or index is None else Curve(values, index)
