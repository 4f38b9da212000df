"""What a tracker is told of a run: read from the files of the run folder, which come first.

A run is the same one for a tracker as long as its folder is: trackers/id names it, drawn once.
"""

import csv
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from src.config import read_yaml_file
from src.support import write_atomically

FOLDER = "trackers"  # of a run folder
PROJECT = "experiments"  # where wandb_project_name is null


@dataclass(frozen=True)
class Tracked:
    """Who the run is, and what it was asked to do."""

    folder: Path
    id: str  # 32 hexadecimal digits
    name: str
    group: str | None  # its batch
    project: str
    tags: tuple[str, ...]
    config: dict[str, Any]  # all keys in force
    commit: str | None


class Tracker(Protocol):
    """One service, told of one run. Any error it raises ends the telling, never the run.

    Its module also says `has_credentials()`: whether it can be told online.
    """

    def __init__(self, run: Tracked, archive: Path, *, is_online: bool) -> None:
        """archive: the folder for what is kept offline, empty."""

    def last_step(self, confirmed: int) -> int:
        """Up to which the service has this run's values already; -1: none. confirmed: that were
        sent when flush() returned last, in this attempt or an earlier one."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values after so many optimizer steps; steps rise from call to call."""

    def flush(self) -> None:
        """Returns when what was logged is written or sent."""

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        """The run, or this attempt at it, has ended. Returns when all has been written or sent."""


def read_tracked(folder: Path) -> Tracked:
    """Of a run folder that has its config.yaml."""
    folder = folder.resolve()
    config = read_yaml_file(folder / "config.yaml")
    is_of_batch = (folder.parent / "rows.jsonl").exists() or (folder.parent / "job.yaml").exists()
    commit = read_json(folder / "provenance.json").get("commit")
    return Tracked(
        folder=folder,
        id=_identity(folder / FOLDER / "id"),
        name=config.get("wandb_run_name") or folder.name,
        group=folder.parent.name if is_of_batch else None,
        project=config.get("wandb_project_name") or PROJECT,
        tags=tuple(config.get("wandb_tags") or ()),
        config=config,
        commit=commit if isinstance(commit, str) else None,
    )


def _identity(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        write_atomically(path, secrets.token_hex(16) + "\n")
        return path.read_text().strip()


def read_rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of each epoch in stats.csv; cells that are empty are no values."""
    try:
        with open(folder / "stats.csv", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        values = {name: _number(text) for name, text in line.items() if name}
        known = {name: value for name, value in values.items() if value is not None}
        rows.append((int(known.pop("step")), known))
    return rows


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:  # a time of day
        return None
    return None if math.isnan(value) else value


def read_end(folder: Path) -> tuple[str, str]:
    """(outcome, reason): finished, early_stopped or diverged; else the state it was left in."""
    if done := read_json(folder / "done"):
        return str(done.get("outcome")), str(done.get("reason"))
    status = read_json(folder / "status.json")
    return str(status.get("state", "unknown")), str(status.get("error") or "")


def pictures(folder: Path) -> dict[str, Path]:
    """Name -> file."""
    return {"curves": folder / "curves.png"} if (folder / "curves.png").exists() else {}


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is none, or a torn one."""
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
