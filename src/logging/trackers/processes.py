"""The processes that log runs to trackers, one a tracker: beside a run, and for report.py sync."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

import psutil
from loguru import logger
from tqdm import tqdm

from src.config import make_config, read_yaml_file
from src.logging.lease import live_owner
from src.logging.trackers.services import load_service
from src.logging.trackers.tracked import FOLDER, SyncState, tracker_names
from src.support import ROOT, UserError

SECONDS_TO_END = 20.0  # after the run, before what is left waits for `report.py sync`
SECONDS_WHEN_STOPPED = 5.0  # by a signal: Slurm waits for us
SECONDS_PER_SYNC = 600.0  # of one run
NO_COMPUTE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LOGIN = {  # the trackers that are online
    "wandb": "call `wandb login` or set WANDB_API_KEY, and unset WANDB_MODE",
    "comet": "set COMET_API_KEY",
}


class TrackerProcesses:
    """Those of a run. Nothing that they do raises here."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen] = {}
        self.reported: set[str] = set()  # trackers whose problem is in the log

    def start(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        for name in names:
            try:
                (folder / FOLDER).mkdir(exist_ok=True)
                forget_problem(folder, name)
                self.processes[name] = start_tail(folder, name)
            except OSError as error:
                logger.warning("{}: this run is not logged to it: {}", name, error.strerror)

    def check(self) -> None:
        """Log once what is wrong with one of them."""
        for name, process in self.processes.items():
            if name in self.reported:
                continue
            code = process.poll()
            problem = SyncState.read(self.folder, name).problem
            if problem or code:
                self.reported.add(name)
                problem = problem or f"ended by itself ({code})"
                log = self.folder / FOLDER / f"{name}.log"
                logger.warning("{}: {}; the run goes on without it ({})", name, problem, log)

    def close(self, *, is_stopped: bool = False) -> None:
        """The run has ended, and all its files are written."""
        for process in self.processes.values():
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        until = monotonic() + (SECONDS_WHEN_STOPPED if is_stopped else SECONDS_TO_END)
        for name, process in self.processes.items():
            try:
                process.wait(max(0.0, until - monotonic()))
            except subprocess.TimeoutExpired:
                kill_with_children(process)
                self.reported.add(name)
                words = "{}: upload incomplete; python report.py sync {} sends the rest"
                logger.warning(words, name, self.folder)
        self.check()
        for name in self.processes.keys() - self.reported:
            if name in LOGIN and not SyncState.read(self.folder, name).is_online:
                words = "{}: kept offline; python report.py sync {} sends it"
                logger.info(words, name, self.folder)
        self.processes = {}


def start_tail(folder: Path, name: str, *, must_be_online: bool = False) -> subprocess.Popen:
    """A process group of its own: signals to the run's are not for it. No session of its own,
    which Linux would give as much of the processor as the run's, however nice its processes are."""
    command = [sys.executable, "-m", "src.logging.trackers.tail", str(folder.resolve()), name]
    with open(folder / FOLDER / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            command + ["--online"] * must_be_online,
            cwd=ROOT,
            env=os.environ | NO_COMPUTE,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def forget_problem(folder: Path, name: str) -> None:
    """What went wrong in an earlier attempt is not reported of the next one."""
    if (folder / FOLDER / f"{name}.json").exists():
        state = SyncState.read(folder, name)
        replace(state, problem=None, is_complete=False).write(folder, name)


def kill_with_children(process: subprocess.Popen) -> None:
    """wandb's own service has a session of its own, so a process group is not all."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


# ---- report.py sync ----------------------------------------------------------------------


def sync_runs(folders: Sequence[Path]) -> tuple[int, int]:
    """Send the runs in these folders or below that are not online as a whole.

    Returns (how many were sent, how many there were to send). Prints to stderr what is wrong, as
    it happens. Raises UserError where no tracker has credentials.
    """
    waiting = unsent_runs(folders)
    lacking = {name: problem for _, name in waiting if (problem := login_problem(name))}
    possible = [(folder, name) for folder, name in waiting if name not in lacking]
    words = "\n".join(f"sync: {problem}" for problem in lacking.values())
    if lacking and not possible:
        raise UserError(words)
    if lacking:  # who has an account with one alone
        print(words, file=sys.stderr)
    num_sent = 0
    with tqdm(possible, unit="run", disable=not sys.stderr.isatty(), leave=False) as bar:
        for folder, name in bar:
            if problem := sync_run(folder, name):
                here = Path.cwd()
                shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
                tqdm.write(f"{shown}: {name}: {problem}", file=sys.stderr)
            else:
                num_sent += 1
    return num_sent, len(waiting)


def unsent_runs(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """(run folder, tracker) of all that is not online as a whole. Raises UserError."""
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"sync: there is no folder {folder}")
        runs |= dict.fromkeys(path.parent for path in sorted(folder.rglob(FOLDER)) if path.is_dir())
    found = []
    for run in runs:
        if not (run / "config.yaml").exists():
            continue
        for name in tracker_names(make_config(read_yaml_file(run / "config.yaml"))):
            state = SyncState.read(run, name)
            if name in LOGIN and not (state.is_online and state.is_complete):
                found.append((run, name))
    return found


def login_problem(name: str) -> str | None:
    """Why a tracker would not know who we are, in words; None: it would."""
    try:
        has_credentials = load_service(name).has_credentials()
    except ImportError as error:
        return str(error)
    return None if has_credentials else f"{name} has no credentials: {LOGIN[name]}"


def sync_run(folder: Path, name: str) -> str | None:
    """What is wrong, or None: it is all there. A live run logs itself."""
    if owner := live_owner(folder):
        return f"still running: {owner}"
    process = start_tail(folder, name, must_be_online=True)
    try:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(SECONDS_PER_SYNC)
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS_PER_SYNC:.0f} s"
    finally:
        if process.poll() is None:
            kill_with_children(process)
    state = SyncState.read(folder, name)
    is_sent = state.is_online and state.is_complete and not process.returncode
    return None if is_sent else state.problem or f"exit code {process.returncode}"
