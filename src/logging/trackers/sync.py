"""python report.py sync [FOLDER …]: send to trackers what could not be sent while runs went."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from src.config import make_config, read_yaml_file
from src.logging.lease import live_owner
from src.logging.trackers.processes import kill_with_children, start_following
from src.logging.trackers.registry import load_service, tracker_names
from src.logging.trackers.tail import read_told
from src.logging.trackers.tracked import FOLDER
from src.support import UserError

ONLINE = ("wandb", "comet")  # those that have a place elsewhere
LOGIN = {
    "wandb": "call `wandb login` or set WANDB_API_KEY, and unset WANDB_MODE",
    "comet": "set COMET_API_KEY",
}
SECONDS_PER_RUN = 600.0


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs that were told to trackers, in these folders or below. Raises UserError."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"sync: there is no folder {path}")
        found |= dict.fromkeys(mark.parent for mark in sorted(path.rglob(FOLDER)) if mark.is_dir())
    return list(found)


def unsent(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """(run folder, tracker) of all that is not online as a whole. Raises UserError."""
    found = []
    for folder in folders:
        if not (folder / "config.yaml").exists():
            continue
        config = make_config(read_yaml_file(folder / "config.yaml"))
        for name in tracker_names(config):
            told = read_told(folder, name)
            if name in ONLINE and not (told.is_online and told.is_complete):
                found.append((folder, name))
    return found


def obstacles(names: Iterable[str]) -> dict[str, str]:
    """Trackers that could not be told who we are, and why, in words."""
    found = {}
    for name in dict.fromkeys(names):
        try:
            if not load_service(name).has_credentials():
                found[name] = f"{name} has no credentials: {LOGIN[name]}"
        except ImportError as error:
            found[name] = str(error)
    return found


def send(folder: Path, name: str) -> str | None:
    """What is wrong, or None: it is all there. A live run sees to itself."""
    if owner := live_owner(folder):
        return f"goes on: {owner}"
    with open(folder / FOLDER / f"{name}.log", "ab") as log:
        process = start_following(folder, name, log.fileno(), must_be_online=True)
    try:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(SECONDS_PER_RUN)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS_PER_RUN:.0f} s"
    finally:
        if process.poll() is None:
            kill_with_children(process)
    told = read_told(folder, name)
    is_sent = told.is_online and told.is_complete and not process.returncode
    return None if is_sent else told.problem or f"exit code {process.returncode}"
