"""The processes that tell trackers of a run, seen from the run: a process a tracker."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

import psutil
from loguru import logger

from src.logging.trackers.tail import forget_problem, read_told
from src.logging.trackers.tracked import FOLDER
from src.support import ROOT

SECONDS_TO_END = 20.0  # after the run, before what is left waits for `report.py sync`
SECONDS_WHEN_STOPPED = 5.0  # by a signal: Slurm waits for us
NO_WORK = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Senders:
    """They are told of no epoch: they read the run folder. Nothing they do raises here."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen] = {}
        self.said: set[str] = set()

    def start(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        for name in names:
            try:
                (folder / FOLDER).mkdir(exist_ok=True)
                forget_problem(folder, name)
                with open(folder / FOLDER / f"{name}.log", "ab") as log:
                    self.processes[name] = start_following(folder, name, log.fileno())
            except OSError as error:
                logger.warning("{}: not told of this run: {}", name, error.strerror)

    def look(self) -> None:
        """Say once what is wrong with one of them."""
        for name, process in self.processes.items():
            if name in self.said:
                continue
            code = process.poll()
            problem = read_told(self.folder, name).problem
            if problem or code:
                self.said.add(name)
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
                self.said.add(name)
                logger.warning("{}: not told of all; {}", name, self._sync_words)
        self.look()
        for name in self.processes.keys() - self.said:
            if not read_told(self.folder, name).is_online and name in ("wandb", "comet"):
                logger.info("{}: kept offline; {}", name, self._sync_words)
        self.processes = {}

    @property
    def _sync_words(self) -> str:
        return f"python report.py sync {self.folder} sends it"


def kill_with_children(process: subprocess.Popen) -> None:
    """wandb's own service has a session of its own, so a process group is not all."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def start_following(
    folder: Path, name: str, log: int | None, *, must_be_online: bool = False
) -> subprocess.Popen:
    """A group of its own: what is sent to the run's is not for it. No session of its own, which
    Linux would give as much of the processor as the run's, however nice its processes are."""
    module = "src.logging.trackers.tail"
    options = ["--online"] if must_be_online else []
    return subprocess.Popen(
        [sys.executable, "-m", module, str(folder.resolve()), name, *options],
        cwd=ROOT,
        env=os.environ | NO_WORK,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        process_group=0,
    )
