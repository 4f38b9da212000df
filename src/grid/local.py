"""This machine: the rows of a batch in worker processes, a few at a time."""

import json
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
from typing import Any

from tqdm import tqdm

from src.grid.folders import Batch, Row
from src.grid.notices import report_failure, wait_until_sent
from src.support import UserError, processes, write_atomically

SECONDS_TO_STOP = 30.0  # from Ctrl-C to killing what has not stopped
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal to draw a bar on
ENDS = ("done", "interrupted", "failed")  # how a row may have ended
STOPPED = 75  # the exit code of a run that has saved its state, to resume later
KILLED_AFTER_CTRL_C = "killed, as it did not stop in time after Ctrl-C"  # a line of the log


@dataclass(frozen=True)
class Machine:
    """What of it the rows may use."""

    jobs: int
    gpus: list[str]  # empty: what the environment shows

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


def returncode(code: int) -> int:
    """As Popen has it: -9 for signal 9, which shells give as 137."""
    return 128 - code if 128 < code < 160 else code


def runner(batch: Batch) -> dict[str, Any] | None:
    """Who runs rows of this batch on this machine now: pid, host, rows, and how many at a time
    (jobs); None: nobody."""
    try:
        facts = json.loads((batch.submissions / "local.json").read_text())
        began = facts["began"]
        is_alive = began is not None and processes.start_time(facts["pid"]) == began
        # A copy of the batch holds the notice as well.
        is_of_batch = os.path.samefile(facts.get("batch", batch.path), batch.path)
        return facts if is_alive and is_of_batch and facts["host"] == platform.node() else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


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
        return _Workers(rows, machine, code).run()
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
        notice.unlink(missing_ok=True)


class _Workers:
    """The rows that wait, those that run, a slot each, and a line that shows how far they are."""

    def __init__(self, rows: Sequence[Row], machine: Machine, code: Path) -> None:
        self.num_rows, self.waiting = len(rows), list(reversed(rows))
        self.machine, self.code = machine, code
        self.running: dict[int, tuple[Row, subprocess.Popen]] = {}
        self.ended: Counter[str] = Counter()  # of ENDS
        self.messages: list[subprocess.Popen | None] = []  # on their way
        self.shown = time.monotonic()

    def run(self) -> Counter[str]:
        form = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"
        no_bar = not sys.stderr.isatty()
        with tqdm(total=self.num_rows, disable=no_bar, bar_format=form) as bar:
            try:
                while self.waiting or self.running:
                    for slot in range(self.machine.jobs):
                        if self.waiting and slot not in self.running:
                            self._start(slot, self.waiting.pop())
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                    self._reap()
                    self._show(bar)
            except BaseException:  # Ctrl-C, a full disk: nothing runs on without us
                self._stop()
                raise
        for process in self.messages:
            wait_until_sent(process)
        return self.ended

    def _start(self, slot: int, row: Row) -> None:
        try:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            _note(row, f"{now} local {os.getpid()} on {platform.node()}")
            # A session of its own: Ctrl-C reaches us alone, and we pass it on once.
            with open(row.log, "ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "train.py", str(row.spec)],
                    cwd=self.code,
                    env=self.machine.variables(slot),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.running[slot] = row, process
        # A folder or a log that is not what it should be is the row's own matter.
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            print(f"{row.name}: {error.filename}: {error.strerror}", file=sys.stderr)
            self.ended["failed"] += 1

    def _reap(self, *, is_stopping: bool = False) -> None:
        for slot, (row, process) in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[slot]
            how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
            _note(row, f"ended: {how}")
            by_signal = returncode(code) in (-signal.SIGINT, -signal.SIGTERM)
            if code == 0:
                self.ended["done"] += 1
            elif is_stopping or code == STOPPED or by_signal:  # somebody has stopped it
                self.ended["interrupted"] += 1
            else:
                self.ended["failed"] += 1
                self.messages.append(report_failure(row.folder, code))

    def _stop(self) -> None:
        """Ask each to stop as Ctrl-C would; kill what takes too long, or at a second Ctrl-C."""
        for _, process in self.running.values():
            process.send_signal(signal.SIGINT)
        until = time.monotonic() + SECONDS_TO_STOP
        try:
            while self.running and time.monotonic() < until:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                self._reap(is_stopping=True)
        except KeyboardInterrupt:
            pass
        for row, process in self.running.values():
            _note(row, KILLED_AFTER_CTRL_C)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._reap(is_stopping=True)

    def _show(self, bar: tqdm) -> None:
        """A bar on a terminal, else a line of text every minute."""
        is_due = time.monotonic() - self.shown > (SECONDS_BETWEEN_LINES if bar.disable else 1)
        if not is_due and (bar.disable or self.running):
            return
        self.shown = time.monotonic()
        parts = [f"{self.ended['done']}/{self.num_rows} done"]
        parts += [f"{self.ended[how]} {how}" for how in ENDS[1:] if self.ended[how]]
        text = ", ".join([*parts, f"{len(self.running)} running"])
        if bar.disable:
            print(text, file=sys.stderr, flush=True)
            return
        bar.n = self.ended.total()
        for row, _ in self.running.values():
            with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                status = json.loads((row.folder / "status.json").read_text())
                bar.n += float(status["progress"]) if status["state"] == "running" else 0.0
        bar.set_description_str(text)


def _note(row: Row, what: str) -> None:
    """A line in job.log that marks where an attempt begins or ends."""
    with open(row.log, "a") as log:
        log.write(f"--- {what} ---\n")
