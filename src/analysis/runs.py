"""What the files of runs hold, as columns; and the cache of them: `.big_df.npz` beside the runs.

Folders of older experiments lack some of the files. 10,000 runs of 60 keys are few different
values and long arrays, so that is how they are kept. A run is read again when one of its files has
changed: by time, size or inode. The whole cache is thrown away when it is broken, or was written
by another version of the code.
"""

import csv
import inspect
import io
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from src.config import make_config, read_yaml
from src.keys import AugmentationKeys
from src.support import UserError, write_atomically

SPECS = ("config.yaml", "spec.yaml")  # the configuration as resolved, else as requested
FILES = (*SPECS, "stats.csv", "status.json", "done")
Signature = tuple[int, ...]  # of each file: when it was written and changed, its size, its inode
PER_FILE = 4
NOT_KNOWN = "not known"  # what an older copy of this template did, whatever our default is
# Older copies dropped the last batch where it was short, and trained these families with a random
# crop of 0.08 to 1, flips of 0.5 and a colour jitter of 0.4.
AUGMENTED = ("timm/", "tiny/", "clip/")
AUGMENTATION = [key.name for key in fields(AugmentationKeys)]
PATH = re.compile(r"(\w+): (/[\w./+=-]*)\n?", re.ASCII)
MOST_KEYS = 1_000  # of a configuration; a file that has more is parsed as a whole
CACHE = ".big_df.npz"
DIGEST = sha256().digest_size  # bytes at the end of the cache
HOUR = 3600  # seconds; no process writes for so long
ABSENT = object()  # the value of a key that a run does not have


class Unreadable(Exception):  # noqa: N818 - other runs can be read
    """A run folder that is broken, and how."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    name: str
    facts: dict[str, Any]  # configuration, state, outcome, node
    stats: dict[str, np.ndarray]  # column -> (epochs,) floats; timestamps are text


# ---- One run folder ----------------------------------------------------------------------


def signature(folder: str) -> Signature:
    """(4 × files,) It changes whenever a file of the run does; zeros where there is no file."""
    found: list[int] = []
    for name in FILES:
        try:
            stat = os.stat(f"{folder}/{name}")
            found += (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
        except OSError:
            found += (0,) * PER_FILE
    return tuple(found)


def read_run(folder: str) -> Run | Unreadable:
    """An error is handed back: thousands of other runs are read meanwhile."""
    try:
        texts = ((name, _read_text(f"{folder}/{name}")) for name in SPECS)
        name, spec = next(((n, text) for n, text in texts if text is not None), ("", None))
        if spec is None:
            raise Unreadable("neither config.yaml nor spec.yaml")
        facts = read_flat_yaml(spec, name)
        text = _read_text(f"{folder}/stats.csv")
        stats = _parse_stats(text or "")
        done, status = _read_json(folder, "done"), _read_json(folder, "status.json")
        if done is not None and not any(map(len, stats.values())):
            raise Unreadable("stats.csv: nothing in it, though the run is done")
        if text is not None and "\n" not in text:
            raise Unreadable("stats.csv: nothing in it")
    except Unreadable as error:
        return error
    if isinstance(splits := facts.get("data_splits_map"), str):
        facts["data_splits_map"] = _spelled_out(splits)
    # Of a run that has not begun, both kinds of copies leave a spec.yaml alone; its batch tells.
    ours = "provenance.json" if text is not None else "../rows.jsonl"
    if status is None and not os.path.exists(f"{folder}/{ours}"):
        is_augmented = str(facts.get("model")).startswith(AUGMENTED)
        for key in ["drop_last", *(AUGMENTATION if is_augmented else ())]:
            if facts.get(key) is None:
                facts[key] = NOT_KNOWN

    # The state as the run has left it; report.py knows whether a running one still lives.
    facts["state"] = "unfinished" if stats else "unstarted"
    if done is not None:
        facts["state"] = "done"
    elif status and isinstance(status.get("state"), str):
        facts["state"] = status["state"]
    facts |= {"outcome": (done or {}).get("outcome"), "node": (status or {}).get("host")}
    return Run(Path(folder).name, facts, stats)


def _read_text(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{os.path.basename(path)}: {error.strerror}") from None


def _read_json(folder: str, name: str) -> dict[str, Any] | None:
    """{} for a file that is empty, as older experiments leave it, or torn."""
    if (text := _read_text(f"{folder}/{name}")) is None:
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    except RecursionError:
        raise Unreadable(f"{name}: nested too deeply") from None
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=256)
def _spelled_out(splits: str) -> Any:
    """The mapping that a string of a spec.yaml spells, as config.yaml has it."""
    try:
        return make_config({"data_splits_map": splits}).data_splits_map
    except UserError:
        return splits


def read_flat_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping whose keys begin its lines; equal blocks of lines are parsed once for all runs.

    Parsing 10,000 files of 60 keys as a whole would take half a minute. Raises Unreadable.
    """
    try:
        texts = re.split(r"(?<=\n)(?=[^\s#-])", text)
        blocks = []
        for block in texts if len(texts) <= MOST_KEYS else [text]:
            # Paths differ in each run; of these characters they are text in any YAML.
            path = PATH.fullmatch(block) if ": /" in block else None
            blocks.append({path[1]: path[2]} if path else _parse_yaml(block))
        values = {key: value for block in blocks for key, value in block.items()}
        if len(values) == sum(map(len, blocks)):  # else a key is set twice
            return values
    except (UserError, TypeError, ValueError):  # other YAML, or none
        pass
    try:
        content = read_yaml(text, source=source)
    except UserError as error:
        raise Unreadable(str(error)) from None
    if not isinstance(content, dict):
        raise Unreadable(f"{source}: no lines of the form `key: value`")
    return {str(key): value for key, value in content.items()}


@lru_cache(maxsize=100_000)
def _parse_yaml(text: str) -> dict[str, Any]:
    content = read_yaml(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TypeError
    return content


def _parse_stats(text: str) -> dict[str, np.ndarray]:
    """Column -> its values; a last line that was cut off is left out.

    By hand, as pandas.read_csv takes 1 ms for each of thousands of small files.
    """
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    try:
        names = next(csv.reader([header]), [])
    except csv.Error as error:
        raise Unreadable(f"stats.csv: {error}") from None
    rows = [line.split(",") for line in lines]
    if any(len(row) != len(names) for row in rows):
        raise Unreadable("stats.csv: lines of different lengths")
    stats = {}
    for name, cells in zip(names, zip(*rows, strict=True), strict=False):
        try:
            if name == "timestamp":
                stats[name] = np.array(cells)
            elif name:
                stats[name] = np.array([float(cell or "nan") for cell in cells])
        except ValueError as error:
            raise Unreadable(f"stats.csv: {name}: {error}") from None
    return stats


# ---- Many runs ---------------------------------------------------------------------------


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
        facts = [(k, c.options, c.codes.tolist()) for k, c in self.facts.items()]
        runs = []
        for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            of_run = {k: options[codes[i]] for k, options, codes in facts if codes[i] >= 0}
            stats = {name: v[begin:end] for name, v in self.stats.items() if self.has[name][i]}
            runs.append(Run(self.names[i], of_run, stats))
        return runs


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


# ---- The cache: an archive of numpy, and the digest of it and of the code -------------------


def read_cache(batch: Path) -> tuple[Runs, list[Signature]] | None:
    """(the runs, their signatures); None where there is no usable cache."""
    with suppress(Exception):  # whatever numpy and json say of what is no cache
        content = (batch / CACHE).read_bytes()
        archive, digest = content[:-DIGEST], content[-DIGEST:]
        if digest == _digest(archive):
            with np.load(io.BytesIO(archive), allow_pickle=False) as file:
                facts = json.loads(file["facts"].tobytes())
                stats = {name: file[f"stats{i}"] for i, name in enumerate(facts["columns"])}
                has = dict(zip(stats, file["has"], strict=True))
                columns = map(Column, facts["options"].values(), file["codes"])
                options = dict(zip(facts["options"], columns, strict=True))
                runs = Runs(facts["names"], options, stats, has, file["lengths"])
                return runs, list(map(tuple, file["signatures"].tolist()))
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
        "facts": np.frombuffer(text.encode(), dtype=np.uint8),
        "codes": np.array(codes, dtype=np.int32).reshape(len(codes), len(runs.names)),
        "has": np.array([*runs.has.values()], bool).reshape(len(runs.has), len(runs.names)),
        "lengths": runs.lengths,
        "signatures": np.array(signatures, dtype=np.int64),
    }
    arrays |= {f"stats{i}": values for i, values in enumerate(runs.stats.values())}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    archive = file.getvalue()
    with suppress(OSError):
        write_atomically(batch / CACHE, archive + _digest(archive), durable=False)
    for torn in batch.glob(f".{CACHE}.*"):  # what a kill in the middle of writing has left
        with suppress(OSError):
            if time.time() - torn.stat().st_mtime > HOUR:
                torn.unlink()


def _digest(archive: bytes) -> bytes:
    """Of the code that reads run folders too, so that nobody must remember to count it up."""
    sources = [__file__, inspect.getfile(read_yaml)]
    return sha256(b"".join([archive, *(Path(source).read_bytes() for source in sources)])).digest()
