"""A run as trackers see it: read from the files of its folder, which are written first."""

import csv
import json
import math
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.config import Config, read_yaml_file
from src.support import write_atomically

FOLDER = "trackers"  # of a run folder
PROJECT = "experiments"  # where wandb_project_name is null


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file, or a damaged one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def tracker_names(config: Config) -> list[str]:
    """The trackers that the configuration names, each once."""
    return list(dict.fromkeys([*(["wandb"] * config.wandb), *config.trackers]))


@dataclass(frozen=True)
class TrackedRun:
    """Who the run is, and its configuration."""

    folder: Path
    id: str  # 32 hexadecimal digits
    name: str
    group: str | None  # its batch
    project: str
    tags: tuple[str, ...]
    config: dict[str, Any]  # all keys, resolved
    commit: str | None

    @classmethod
    def read(cls, folder: Path) -> "TrackedRun":
        """Of a run folder that has its config.yaml and the folder trackers."""
        folder = folder.resolve()
        config = read_yaml_file(folder / "config.yaml")
        is_of_batch = any((folder.parent / name).exists() for name in ("rows.jsonl", "job.yaml"))
        commit = read_json(folder / "provenance.json").get("commit")
        identity = folder / FOLDER / "id"
        if not identity.exists():
            write_atomically(identity, secrets.token_hex(16) + "\n")
        return cls(
            folder=folder,
            id=identity.read_text().strip(),
            name=config.get("wandb_run_name") or folder.name,
            group=folder.parent.name if is_of_batch else None,
            project=config.get("wandb_project_name") or PROJECT,
            tags=tuple(config.get("wandb_tags") or ()),
            config=config,
            commit=commit if isinstance(commit, str) else None,
        )

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, values) of each epoch in stats.csv; empty cells and times of day are no values."""
        try:
            with open(self.folder / "stats.csv", newline="") as file:
                lines = list(csv.DictReader(file))
        except FileNotFoundError:
            return
        for line in lines:
            values = {name: _number(text) for name, text in line.items() if name}
            known = {name: value for name, value in values.items() if not math.isnan(value)}
            yield int(known.pop("step")), known

    def end(self) -> tuple[str, str]:
        """(outcome, reason): finished, early_stopped or diverged; else the state it was left in."""
        if done := read_json(self.folder / "done"):
            return str(done.get("outcome")), str(done.get("reason"))
        status = read_json(self.folder / "status.json")
        return str(status.get("state", "unknown")), str(status.get("error") or "")

    def pictures(self) -> dict[str, Path]:
        """Name -> file."""
        path = self.folder / "curves.png"
        return {"curves": path} if path.exists() else {}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class SyncState:
    """trackers/NAME.json: how much of a run one tracker has, for whoever comes next."""

    is_online: bool = False
    is_complete: bool = False  # all rows and the end of the run were logged
    last_step: int = -1  # that was logged by this attempt
    confirmed: int = -1  # the last step that was sent, by whichever attempt
    problem: str | None = None

    @classmethod
    def read(cls, folder: Path, name: str) -> "SyncState":
        """Of a run folder; nothing was logged where there is no such file."""
        try:
            return cls(**read_json(folder / FOLDER / f"{name}.json"))
        except TypeError:
            return cls()

    def write(self, folder: Path, name: str) -> None:
        path = folder / FOLDER / f"{name}.json"
        write_atomically(path, json.dumps(asdict(self)) + "\n", durable=False)
