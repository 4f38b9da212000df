"""What the files of one run folder hold; also those of older experiments, which lack some."""

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from src.config import make_config, read_yaml
from src.keys import AugmentationKeys
from src.support import UserError

SPECS = ("config.yaml", "spec.yaml")  # what was in force; else what was asked for
FILES = (*SPECS, "stats.csv", "status.json", "done")
Signature = tuple[int, ...]  # of a file: when it was written and changed, its size, its number
PER_FILE = 4
NOT_KNOWN = "not known"  # what an older copy did, whatever our default is
AUGMENTATION = [key.name for key in fields(AugmentationKeys)]
AUGMENTED = ("timm/", "tiny/", "clip/")  # models whose images older copies augmented, always
PATH = re.compile(r"(\w+): (/[\w./+=-]*)\n?", re.ASCII)


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    name: str
    facts: dict[str, Any]  # configuration, state, outcome, node
    stats: dict[str, np.ndarray]  # column -> (epochs,) floats; timestamps are text


class Unreadable(Exception):  # noqa: N818 - other runs can be read
    """A run folder that is broken, and how."""


def signature(folder: str) -> Signature:
    """(4 × files,) By which one sees that a file is another one; zeros where there is none."""
    found: list[int] = []
    for name in FILES:
        try:
            stat = os.stat(f"{folder}/{name}")
            found += (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
        except OSError:
            found += (0,) * PER_FILE
    return tuple(found)


def is_run(files: Signature) -> bool:
    return any(files[: PER_FILE * len(SPECS)])


def read_run(folder: str) -> Run | Unreadable:
    """An error is handed back: thousands of other runs are read meanwhile."""
    try:
        return _run(folder)
    except Unreadable as error:
        return error


def _text(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{os.path.basename(path)}: {error.strerror}") from None


def _run(folder: str) -> Run:
    config = _config(folder)
    if isinstance(splits := config.get("data_splits_map"), str):
        config["data_splits_map"] = _spelled_out(splits)
    text = _text(f"{folder}/stats.csv")
    stats = _columns(text or "")
    done, status = _json(folder, "done"), _json(folder, "status.json")
    if done is not None and not any(map(len, stats.values())):
        raise Unreadable("stats.csv: nothing in it, though the run is done")
    if text is not None and "\n" not in text:
        raise Unreadable("stats.csv: nothing in it")
    if _is_older(folder, status, has_run=text is not None):
        missing = [key for key in _not_known(config) if config.get(key) is None]
        config |= dict.fromkeys(missing, NOT_KNOWN)
    facts = {
        "state": _state(done, status, has_stats=bool(stats)),
        "outcome": (done or {}).get("outcome"),
        "node": (status or {}).get("host"),
    }
    return Run(Path(folder).name, config | facts, stats)


def _config(folder: str) -> dict[str, Any]:
    """What was in force, else what was asked for."""
    for name in SPECS:
        if (text := _text(f"{folder}/{name}")) is not None:
            return read_flat_yaml(text, name)
    raise Unreadable("neither config.yaml nor spec.yaml")


def _is_older(folder: str, status: dict | None, *, has_run: bool) -> bool:
    """Whether an older copy of this template made the run, or would have: it has none of our files.

    A row that waits has only a spec.yaml in each; its batch tells.
    """
    ours = "provenance.json" if has_run else "../rows.jsonl"
    return status is None and not os.path.exists(f"{folder}/{ours}")


def _not_known(config: Mapping[str, Any]) -> list[str]:
    """Keys that older copies did not have and whose default was not in force in them.

    They dropped the last batch where it was short, and trained some models with a random crop of
    0.08 to 1, flips of 0.5 and a colour jitter of 0.4.
    """
    is_augmented = str(config.get("model")).startswith(AUGMENTED)
    return ["drop_last", *(AUGMENTATION if is_augmented else ())]


def _state(done: dict | None, status: dict | None, *, has_stats: bool) -> str:
    """As the run has left it; whether one that says it is running still does, report.py knows."""
    if done is not None:
        return "done"
    if status and isinstance(status.get("state"), str):
        return status["state"]
    return "unfinished" if has_stats else "unstarted"


def _json(folder: str, name: str) -> dict[str, Any] | None:
    """{} for a file that is empty, as older experiments leave it, or torn."""
    text = _text(f"{folder}/{name}")
    if text is None:
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
    """The mapping that a string of a spec spells, as config.yaml has it."""
    try:
        return make_config({"data_splits_map": splits}).data_splits_map
    except UserError:
        return splits


# ---- YAML --------------------------------------------------------------------------------

MOST_KEYS = 1_000  # of a configuration; what has more is no such file, and read as a whole


def read_flat_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping whose keys begin its lines, each block of lines read once for all runs.

    Reading 10,000 files of 60 keys as a whole would take half a minute. Raises Unreadable.
    """
    try:
        texts = re.split(r"(?<=\n)(?=[^\s#-])", text)
        blocks = [_block(block) for block in (texts if len(texts) <= MOST_KEYS else [text])]
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


def _block(text: str) -> dict[str, Any]:
    """Paths differ in each run; of these characters they are text in any YAML."""
    if ": /" in text and (match := PATH.fullmatch(text)):
        return {match[1]: match[2]}
    return _parsed(text)


@lru_cache(maxsize=100_000)
def _parsed(text: str) -> dict[str, Any]:
    content = read_yaml(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TypeError
    return content


# ---- Stats -------------------------------------------------------------------------------


def _columns(text: str) -> dict[str, np.ndarray]:
    """Column -> its values; a last line that was cut off is left out."""
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    names = _names(header)
    rows = [line.split(",") for line in lines]
    if any(len(row) != len(names) for row in rows):
        raise Unreadable("stats.csv: lines of different lengths")
    pairs = zip(names, zip(*rows, strict=True), strict=False)
    return {name: _values(cells, name) for name, cells in pairs if name}


@lru_cache(maxsize=256)
def _names(header: str) -> list[str]:
    try:
        return next(csv.reader([header]), [])
    except csv.Error as error:
        raise Unreadable(f"stats.csv: {error}") from None


def _values(cells: Sequence[str], name: str) -> np.ndarray:
    if name == "timestamp":
        return np.array(cells)
    try:
        whole = cells if all(cells) else [cell or "nan" for cell in cells]
        return np.array(list(map(float, whole)))
    except ValueError as error:
        raise Unreadable(f"stats.csv: {name}: {error}") from None
