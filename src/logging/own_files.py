"""The files that a run writes into its folder. A run removes and replaces these exact names alone,
and only in a folder that a sign shows to be a run's."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from src.logging.trackers.registry import TRACKERS
from src.support import ROOT, UserError

SIGNS = ("spec.yaml", "status.json", "claim")  # older experiments have the first
FILES = (
    *SIGNS,
    *("config.yaml", "training.log", "stats.csv", "system.csv", "provenance.json"),
    *("uncommitted.diff", "curves.png", "trace.json.gz", "done"),
)
FOLDERS = ("checkpoints", "state", "trackers")
RESULT = re.compile(r"stats\.csv|curves\.png|trace\.json\.gz|system(\.\d+)?\.csv")
CHECKPOINT = re.compile(r"epoch_\d{4,}\.pt|best\.pt")
_NAMES = "|".join(TRACKERS)
TRACKED_FILE = re.compile(rf"id|({_NAMES})\.(json|log|lock)")
TRACKED_FOLDER = re.compile(rf"({_NAMES})(-online)?")
# What a process that was killed while it wrote has left: .NAME.PID
_ATOMIC = "|".join(map(re.escape, (*FILES, "attempts.json", "trace.json")))
TORN = re.compile(rf"\.({_ATOMIC})\.\d+")
TORN_CHECKPOINT = re.compile(rf"\.({CHECKPOINT.pattern})\.\d+")
MOST_LOOKED_AT = 1000  # folders in a folder, which may hold millions


def is_run_folder(folder: Path) -> bool:
    """Whether a run of ours was submitted to it, or begun in it."""
    return any(os.path.isfile(folder / sign) for sign in SIGNS)


def check_run_folder(folder: Path) -> None:
    """Raises UserError where a run must not write into this folder; changes nothing."""
    if not os.path.exists(folder):
        return
    if os.path.samefile(folder, ROOT):
        raise UserError(f"output_dir: {folder} is the repository; write output_dir=results/NAME")
    if not is_run_folder(folder):
        if run := _run_below(folder):
            raise UserError(
                f"output_dir: {folder} holds folders of runs (such as {run.relative_to(folder)}); "
                f"write output_dir={folder / 'NAME'}"
            )
        for name in (*FILES, *FOLDERS):
            if os.path.lexists(folder / name):
                raise UserError(
                    f"output_dir: {folder} is not the folder of a run, and its {name} is in the "
                    "way; choose another output_dir"
                )
    for names, is_right, kind in (
        (FILES, os.path.isfile, "file"),
        (FOLDERS, os.path.isdir, "folder"),
    ):
        for name in names:
            if os.path.lexists(folder / name) and not is_right(folder / name):
                raise UserError(
                    f"output_dir: {folder / name} is no {kind}, and a run has a {kind} there; "
                    "move it away, or choose another output_dir"
                )


def _run_below(folder: Path) -> Path | None:
    """A run folder in this one, or in a batch in this one."""
    for child in _folders_in(folder):
        for path in (child, *_folders_in(child)):
            if is_run_folder(path):
                return path
    return None


def _folders_in(folder: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in islice(entries, MOST_LOOKED_AT):
            if entry.is_dir():
                yield Path(entry.path)


def remove_torn(folder: Path) -> None:
    """What was half-written when a process was killed."""
    _remove_files(folder, TORN)
    _remove_files(folder / "checkpoints", TORN_CHECKPOINT)


def results_in(folder: Path) -> list[Path]:
    """What a run has left, stats.csv or checkpoints/best.pt and the like, as relative paths."""
    found = [*_files(folder, RESULT), *_files(folder / "checkpoints", CHECKPOINT)]
    return [path.relative_to(folder) for path in found]


def remove_tracked(folder: Path) -> None:
    """What trackers were told of another run."""
    trackers = folder / "trackers"
    _remove_files(trackers, TRACKED_FILE)
    for path in trackers.iterdir() if trackers.is_dir() else ():
        if TRACKED_FOLDER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    remove_if_empty(trackers)


def _remove_files(folder: Path, names: re.Pattern[str]) -> None:
    for path in _files(folder, names):
        path.unlink(missing_ok=True)


def _files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if names.fullmatch(path.name) and path.is_file()]


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds what is not ours, or is a link
        folder.rmdir()
