"""This machine: the rows of a batch in worker processes, a few at a time.

They are forks of one warm process (fork_server.py) where that can be, else started each by itself.
"""

import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from src.grid.folders import Batch, Row
from src.grid.forks import WarmProcess
from src.grid.local_display import LocalDisplay
from src.grid.notices import report_failure, wait_until_sent
from src.grid.stacks import Task, local_tasks
from src.grid.status import KILLED_AFTER_CTRL_C, STOPPED, returncode, runner
from src.support import UserError, processes, write_atomically

SECONDS_TO_STOP = 30.0  # from Ctrl-C to killing what has not stopped
SECONDS_BETWEEN_LOOKS = 0.1
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


@dataclass(frozen=True)
class Machine:
    """What of it the rows may use."""

    jobs: int
    gpus: list[str]  # empty: what the environment shows
    is_warm: bool = True  # runs are forks of one process that has imported torch
    stack: str | None = None  # see tasks_of()
    job: str | None = None  # Slurm's '123_4', of a worker that is one

    def variables(self, slot: int) -> dict[str, str]:
        """The environment of a row in this slot: its GPU, its share of the cores."""
        variables = {"OMP_NUM_THREADS": str(max(1, ceil(processes.num_cores()) // self.jobs))}
        variables |= os.environ
        variables["EXPERIMENT_SHARES_JOB"] = str(self.jobs)  # where this is a job of Slurm
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return variables


def default_jobs(gpus: Sequence[str]) -> int:
    """One row a GPU, else one for every two cores."""
    return len(gpus) or max(1, ceil(processes.num_cores()) // 2)


def run_rows(batch: Batch, rows: Sequence[Row], machine: Machine, *, code: Path) -> Counter[str]:
    """Run them all, each logging to its own folder; how many ended how (ENDS). Ctrl-C stops them
    cleanly, and so does a terminal that is closed, or `kill`."""
    if other := runner(batch):
        raise UserError(f"process {other['pid']} runs rows of {batch.path.name} already")
    notice, pid = batch.submissions / "local.json", os.getpid()
    facts: dict[str, Any] = {
        "pid": pid,
        "began": processes.start_time(pid),
        "host": platform.node(),
    }
    facts |= {"rows": [row.name for row in rows], "batch": str(batch.path), "jobs": machine.jobs}
    write_atomically(notice, json.dumps(facts))
    signals = (signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        tasks = local_tasks(batch.submissions, rows, machine.stack, machine.jobs)
        return Workers(Listed(tasks), machine, code, LocalDisplay(batch, rows, machine.jobs)).run()
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
        notice.unlink(missing_ok=True)


# ---- Processes ---------------------------------------------------------------------------


class Process(Protocol):
    """What a row needs of a Popen."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


# ---- Rows --------------------------------------------------------------------------------


class Source(Protocol):
    """Where Workers have their tasks from."""

    @property
    def is_over(self) -> bool:
        """There is none left."""
        ...

    def take(self, *, is_idle: bool) -> Task | None:
        """The next one; None: none now. is_idle: no other runs here."""

    def ended(self, task: Task, how: str, *, is_ours: bool) -> None:
        """how: of ENDS. is_ours: we have stopped it."""


class Listed:
    """Tasks that are ours alone."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.waiting = list(reversed(tasks))

    @property
    def is_over(self) -> bool:
        return not self.waiting

    def take(self, *, is_idle: bool) -> Task | None:
        return self.waiting.pop()

    def ended(self, task: Task, how: str, *, is_ours: bool) -> None:
        pass


class Display(Protocol):
    """A context that says how far the runs are."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def failed(self, row: Row, why: str | None = None) -> None: ...

    def update(self, ended: Counter[str]) -> None: ...


class Workers:
    """The tasks that run, a slot each."""

    def __init__(self, source: Source, machine: Machine, code: Path, display: Display) -> None:
        self.source, self.display = source, display
        self.machine, self.code = machine, code
        # Of one run alone nothing would be gained.
        waiting = source.waiting if isinstance(source, Listed) else []
        self.is_warm = machine.is_warm and not (isinstance(source, Listed) and len(waiting) < 2)
        self.preloaded_for = [row for task in waiting for row in task.runs]
        self.warm: WarmProcess | None = None
        self.running: dict[int, tuple[Task, Process]] = {}
        self.ended: Counter[str] = Counter()  # of ENDS
        self.messages: list[subprocess.Popen | None] = []  # on their way

    def run(self) -> Counter[str]:
        """Until there are none left; how many ended how. A KeyboardInterrupt stops them: by the
        signal that it has as `number`, by default SIGINT."""
        with self.display:
            try:
                while not self.source.is_over or self.running:
                    for slot in range(self.machine.jobs):
                        if slot in self.running or self.source.is_over:
                            continue
                        if task := self.source.take(is_idle=not self.running):
                            self._start(slot, task)
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    self._reap()
                    self.display.update(self.ended)
            except BaseException as error:  # Ctrl-C, a full disk: nothing runs on without us
                self._stop(getattr(error, "number", signal.SIGINT))
                raise
            finally:
                if self.warm:
                    self.warm.close()
        for process in self.messages:
            wait_until_sent(process)
        return self.ended

    def _start(self, slot: int, task: Task) -> None:
        try:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            job = self.machine.job
            who = f"job {job}" if job else f"local {os.getpid()}"
            _note(task.row, f"{now} {who} on {platform.node()}")
            # A session of its own: Ctrl-C reaches us alone, and we pass it on once.
            with open(task.row.log, "ab") as log:
                self._launch(slot, task, log)
        # A folder or a log that is not what it should be is the row's own matter.
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            self.display.failed(task.runs[0], f"{error.filename}: {error.strerror}")
            self.ended["failed"] += len(task.runs)
            self.source.ended(task, "failed", is_ours=False)

    def _launch(self, slot: int, task: Task, log: BinaryIO) -> None:
        row = task.row
        arguments, variables = ["train.py", str(row.spec)], self.machine.variables(slot)
        if self.is_warm and not self.warm:
            self.warm = WarmProcess.started(self.code, self.preloaded_for or [row])
            self.is_warm = self.warm is not None
        if self.warm:
            # A signal between the fork and its place in `running` would leave it to itself. (A
            # process of its own inherits what is blocked.)
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                if fork := self.warm.fork(arguments, variables, log):
                    self.running[slot] = task, fork
                    return
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.code,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.running[slot] = task, process

    def _reap(self, *, is_stopping: bool = False) -> None:
        for slot, (task, process) in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[slot]
            words = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
            _note(task.row, f"ended: {words}")
            by_signal = returncode(code) in (-signal.SIGINT, -signal.SIGTERM)
            # Of a stack some runs may have ended before that.
            left = [] if code == 0 else task.unfinished if task.is_stack else task.runs
            if len(left) < len(task.runs):
                self.ended["done"] += len(task.runs) - len(left)
            how = "done" if not left else "failed"
            if left and (is_stopping or code == STOPPED or by_signal):  # somebody has stopped it
                how = "interrupted"
            elif left:
                self.display.failed(left[0])
                self.messages += [report_failure(row.folder, code) for row in left]
            self.ended[how] += len(left)
            self.source.ended(task, how, is_ours=is_stopping)

    def _stop(self, number: int) -> None:
        """Ask each to stop as we were; kill what takes too long, or at a second Ctrl-C."""
        for _, process in self.running.values():
            process.send_signal(number)
        # Slurm ends a job by itself.
        until = math.inf if self.machine.job else time.monotonic() + SECONDS_TO_STOP
        try:
            while self.running and time.monotonic() < until:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                self._reap(is_stopping=True)
        except KeyboardInterrupt:
            pass
        for task, process in self.running.values():
            _note(task.row, KILLED_AFTER_CTRL_C)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        while self.running:
            self._reap(is_stopping=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _note(row: Row, what: str) -> None:
    """A line in job.log that marks where an attempt begins or ends."""
    with open(row.log, "a") as log:
        log.write(f"--- {what} ---\n")
