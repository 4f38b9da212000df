"""What the files of one run folder hold; also those of older experiments, which lack some."""

import csv
import json
import os
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from src.config import make_config, read_yaml
from src.keys import AugmentationKeys
from src.support import UserError

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


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    name: str
    facts: dict[str, Any]  # configuration, state, outcome, node
    stats: dict[str, np.ndarray]  # column -> (epochs,) floats; timestamps are text


class Unreadable(Exception):  # noqa: N818 - other runs can be read
    """A run folder that is broken, and how."""


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
        config = _read_config(folder)
        text = _read_text(f"{folder}/stats.csv")
        stats = _parse_stats(text or "")
        done, status = _read_json(folder, "done"), _read_json(folder, "status.json")
    except Unreadable as error:
        return error
    if done is not None and not any(map(len, stats.values())):
        return Unreadable("stats.csv: nothing in it, though the run is done")
    if text is not None and "\n" not in text:
        return Unreadable("stats.csv: nothing in it")

    # Of a run that has not begun, both kinds of copies leave a spec.yaml alone; its batch tells.
    ours = "provenance.json" if text is not None else "../rows.jsonl"
    if status is None and not os.path.exists(f"{folder}/{ours}"):
        is_augmented = str(config.get("model")).startswith(AUGMENTED)
        for key in ["drop_last", *(AUGMENTATION if is_augmented else ())]:
            if config.get(key) is None:
                config[key] = NOT_KNOWN

    # The state as the run has left it; report.py knows whether a running one still lives.
    if done is not None:
        state = "done"
    elif status and isinstance(status.get("state"), str):
        state = status["state"]
    else:
        state = "unfinished" if stats else "unstarted"
    facts = {
        "state": state,
        "outcome": (done or {}).get("outcome"),
        "node": (status or {}).get("host"),
    }
    return Run(Path(folder).name, config | facts, stats)


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
    text = _read_text(f"{folder}/{name}")
    if text is None:
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    except RecursionError:
        raise Unreadable(f"{name}: nested too deeply") from None
    return content if isinstance(content, dict) else {}


# ---- The configuration -------------------------------------------------------------------


def _read_config(folder: str) -> dict[str, Any]:
    for name in SPECS:
        if (text := _read_text(f"{folder}/{name}")) is not None:
            config = read_flat_yaml(text, name)
            if isinstance(splits := config.get("data_splits_map"), str):
                config["data_splits_map"] = _spelled_out(splits)
            return config
    raise Unreadable("neither config.yaml nor spec.yaml")


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
        blocks = [_parse_block(block) for block in (texts if len(texts) <= MOST_KEYS else [text])]
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


def _parse_block(text: str) -> dict[str, Any]:
    """Paths differ in each run; of these characters they are text in any YAML."""
    if ": /" in text and (match := PATH.fullmatch(text)):
        return {match[1]: match[2]}
    return _parse_yaml(text)


@lru_cache(maxsize=100_000)
def _parse_yaml(text: str) -> dict[str, Any]:
    content = read_yaml(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TypeError
    return content


# ---- The stats ---------------------------------------------------------------------------


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
