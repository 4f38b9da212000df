"""This machine: the rows of a batch in worker processes, a few at a time.

They are forks of one warm process (fork_server.py) where that can be, else started each by itself.
"""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from loguru import logger
from tqdm import tqdm

from src.grid.folders import Batch, Row
from src.grid.notices import report_failure, wait_until_sent
from src.support import UserError, processes, write_atomically

SECONDS_TO_STOP = 30.0  # from Ctrl-C to killing what has not stopped
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal to draw a bar on
ENDS = ("done", "interrupted", "failed")  # how a row may have ended
STOPPED = 75  # the exit code of a run that has saved its state, to resume later
MOST_BYTES = 2**20  # of a message of the warm process
KILLED_AFTER_CTRL_C = "killed, as it did not stop in time after Ctrl-C"  # a line of the log


@dataclass(frozen=True)
class Machine:
    """What of it the rows may use."""

    jobs: int
    gpus: list[str]  # empty: what the environment shows
    is_warm: bool = True  # runs are forks of one process that has imported torch

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


# ---- Processes ---------------------------------------------------------------------------


class Process(Protocol):
    """What a row needs of a Popen."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


# What runs import only when they need it, and where none of it starts threads or looks for a GPU:
# text of a spec -> modules that are imported beforehand.
PRELOADED = {
    "": [
        "torch.fx.experimental.symbolic_shapes",
        "src.analysis",
        "matplotlib.backends.backend_agg",
    ],
    "dataset: sklearn/": ["sklearn.datasets"],
    "dataset: libsvm/": ["scipy.sparse", "libsvmdata"],
    "dataset: torchvision/": ["torchvision.transforms.v2"],
    "dataset: imagefolder": ["torchvision.transforms.v2"],
    "dataset: hf/": ["datasets"],
    "model: timm/": ["timm"],
    "model: torchvision/": ["torchvision.models"],
    "model: clip/": ["open_clip"],
    "model: hf/": ["transformers"],
}
SECONDS_TO_WARM_UP = 300.0  # imports over a slow network
SECONDS_TO_ANSWER = 60.0


class WarmProcess:
    """Our side of fork_server.py."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen) -> None:
        self._connection, self._process, self._requests = connection, process, 0
        self._codes: dict[int, int] = {}  # of forks that have ended

    @classmethod
    def started(cls, code: Path, rows: Sequence[Row]) -> "WarmProcess | None":
        """One that runs this code; None, with a line that says why, where runs are to be started
        each by itself."""
        if sys.platform != "linux":
            return None
        specs = {row.spec.read_text(errors="replace") for row in rows if row.spec.exists()}
        modules = [names for key, names in PRELOADED.items() if any(key in s for s in specs)]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = str(Path(__file__).with_name("fork_server.py"))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, program, str(theirs.fileno()), *chain.from_iterable(modules)],
                cwd=code,
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads do not survive a fork
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        warm = cls(ours, process)
        answer = warm._receive(SECONDS_TO_WARM_UP) or {"unfit": "the warm process ended"}
        if answer["unfit"]:
            logger.warning("each run is started by itself: {}", answer["unfit"])
            warm.close()
            return None
        return warm

    def fork(
        self, arguments: Sequence[str], variables: dict[str, str], log: BinaryIO
    ) -> "Fork | None":
        """Run the program in a fork; None: the warm process has ended."""
        # The others it has, from us; of threads it has one.
        own = {"OMP_NUM_THREADS": variables["OMP_NUM_THREADS"]}
        own |= {key: value for key, value in variables.items() if os.environ.get(key) != value}
        request = {"arguments": list(arguments), "variables": own}
        answer = self._ask(request, [log.fileno()])
        return Fork(self, answer["pid"]) if answer else None

    def code(self, pid: int) -> int | None:
        """The exit code of a fork, as Popen has it; None: it runs."""
        if pid not in self._codes and (answer := self._ask({}, [])):
            self._codes |= {int(ended): code for ended, code in answer["codes"].items()}
        elif pid not in self._codes and processes.start_time(pid) is None:
            return -signal.SIGTERM  # what it gets when the warm process ends
        return self._codes.get(pid)

    def close(self) -> None:
        self._connection.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any] | None:
        self._requests += 1
        message = json.dumps(request | {"id": self._requests}).encode()
        try:
            socket.send_fds(self._connection, [message], descriptors)
        except OSError:
            return None
        # An answer that Ctrl-C kept us from reading may come first.
        while (answer := self._receive(SECONDS_TO_ANSWER)) and answer.get("id") != self._requests:
            pass
        return answer

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        self._connection.settimeout(seconds)
        try:
            message = self._connection.recv(MOST_BYTES)
        except OSError:
            message = b""
        return json.loads(message) if message else None


@dataclass(frozen=True)
class Fork:
    """A run in a fork of the warm process."""

    warm: WarmProcess
    pid: int

    def poll(self) -> int | None:
        return self.warm.code(self.pid)

    def send_signal(self, number: int, /) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


# ---- Rows --------------------------------------------------------------------------------


class _Workers:
    """The rows that wait, those that run, a slot each, and a line that shows how far they are."""

    def __init__(self, rows: Sequence[Row], machine: Machine, code: Path) -> None:
        self.num_rows, self.waiting = len(rows), list(reversed(rows))
        self.machine, self.code = machine, code
        self.warm: WarmProcess | None = None
        self.running: dict[int, tuple[Row, Process]] = {}
        self.ended: Counter[str] = Counter()  # of ENDS
        self.messages: list[subprocess.Popen | None] = []  # on their way
        self.shown = time.monotonic()

    def run(self) -> Counter[str]:
        form = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"
        no_bar = not sys.stderr.isatty()
        with tqdm(total=self.num_rows, disable=no_bar, bar_format=form) as bar:
            try:
                if self.machine.is_warm and self.num_rows > 1:
                    self.warm = WarmProcess.started(self.code, self.waiting)
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
            finally:
                if self.warm:
                    self.warm.close()
        for process in self.messages:
            wait_until_sent(process)
        return self.ended

    def _start(self, slot: int, row: Row) -> None:
        try:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            _note(row, f"{now} local {os.getpid()} on {platform.node()}")
            # A session of its own: Ctrl-C reaches us alone, and we pass it on once.
            with open(row.log, "ab") as log:
                self.running[slot] = row, self._process(row, slot, log)
        # A folder or a log that is not what it should be is the row's own matter.
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            print(f"{row.name}: {error.filename}: {error.strerror}", file=sys.stderr)
            self.ended["failed"] += 1

    def _process(self, row: Row, slot: int, log: BinaryIO) -> "Process":
        arguments, variables = ["train.py", str(row.spec)], self.machine.variables(slot)
        if self.warm and (fork := self.warm.fork(arguments, variables, log)):
            return fork
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.code,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

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
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        while self.running:
            self._reap(is_stopping=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)

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
