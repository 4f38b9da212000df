"""Workers: processes that share the runs of a batch, on Slurm or wherever its folder is seen.

A worker takes the next free run (run_queue.py), trains it in a fork of its warm process, and goes
on until nothing is free, its time limit is near, or somebody has said --stop. It holds a lease of
its own folder (lease.py): when that has lapsed, other workers put its runs back. Whatever happens
here, train.py's lease of the run's folder keeps two processes from training one run.
"""

import json
import math
import os
import platform
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from src.config import read_yaml_file
from src.grid import slurm
from src.grid.attempt import request_attempt
from src.grid.folders import Batch, Row, count_runs, slug
from src.grid.local import Machine, Workers
from src.grid.local_display import ENDS
from src.grid.run_queue import RunQueue
from src.grid.stacks import Task, own_log
from src.logging import lease
from src.support import UserError, processes, write_atomically

MOST_DEATHS = 3  # ends of a run by a signal, or with its worker, without a step between
SPREAD = 16  # one of so many first free runs is taken, at random: few workers collide
LOOKED_AT = 4  # workers that an idle one watches: with the last ones all are
SECONDS_BETWEEN_LOOKS = 5.0  # where nothing was free
SECONDS_TO_SAVE = 120.0  # that an idle worker waits for somebody who is at a free run
SECONDS_TO_START = 30.0  # of a run, where none has told yet
STOPPED = 75  # EX_TEMPFAIL, as train.py


class WorkerSource:
    """Runs for a worker, one after the other: the source of its Workers."""

    def __init__(self, batch: Batch, name: str, kind: str, own: lease.Lease | None = None) -> None:
        """name: as entries in taken/ have it. kind: of device, one word. own: the worker's lease;
        where it is lost, another attempt has the name."""
        self.batch, self.name, self.kind, self.own = batch, name, kind, own
        self.queue = RunQueue(batch.submissions)
        self.is_over = False
        # run that we have -> its step when we took it, and the time.monotonic()
        self.began: dict[str, tuple[int, float]] = {}
        self.progress = 0  # steps made, and runs ended
        self.seconds_to_start = 0.0  # the longest of a run
        self.longest = 0.0  # seconds of a whole run
        self.seconds_to_save: float | None = None  # between two saves; None: nothing was taken yet
        self.num_left = 0  # free runs, where the time limit is too near for one
        # Of time.monotonic():
        self.look_again, self.waits_since = 0.0, math.inf  # where nothing was free
        self.avoided: dict[str, float] = {}  # run that somebody else is at -> when to look again

    # ---- What Workers ask ----------------------------------------------------------------

    def take(self, *, is_idle: bool) -> Task | None:
        """The next run; None: none now. is_idle: nothing runs here, so that there is time to look
        for what dead workers have left; where that is nothing either, this worker is over."""
        now = time.monotonic()
        if now < self.look_again:
            return None
        self.look_again = now + SECONDS_BETWEEN_LOOKS
        free, is_stopped = self.queue.look()
        is_lost = self.own is not None and not self.own.is_held()
        if is_stopped or is_lost:
            self.is_over = True
        elif self._is_late():
            self.is_over, self.num_left = True, len(free)
        elif row := self._next(free):
            self.look_again, self.waits_since = 0.0, math.inf
            return Task([row], row)
        elif is_idle and self._recover():
            self.look_again = 0.0
        elif is_idle:  # what is free has somebody who saves it, or trains it for himself
            self.waits_since = min(self.waits_since, now)
            self.is_over = not free or now - self.waits_since > SECONDS_TO_SAVE
        return None

    def ended(self, task: Task, how: str, *, is_ours: bool) -> None:
        """how: of ENDS. What was interrupted is free again; where we did not stop it (is_ours), a
        few times."""
        (row,), self.look_again = task.runs, 0.0
        status, (step, began) = _status(row), self.began.pop(row.name, (0, 0.0))
        with suppress(TypeError, ValueError):
            self.progress += max(0, int(status.get("step") or 0) - step) + (how != "interrupted")
            seconds = float(status.get("seconds_to_start") or 0)
            self.seconds_to_start = max(self.seconds_to_start, seconds)
        if how == "done":
            self.longest = max(self.longest, time.monotonic() - began)
        if how != "interrupted" or (row.folder / "done").exists():
            self._own(row.name).unlink(missing_ok=True)
        elif is_ours:
            self._rename(self._own(row.name), self.queue.free / f"{row.name}@{self.kind}")
        else:
            self._put_back(row.name, self.name)

    # ---- Entries -------------------------------------------------------------------------

    def _own(self, run: str) -> Path:
        return self.queue.taken / f"{run}@{self.name}"

    def _is_late(self) -> bool:
        """Whether a start and a save fit no more into what is left, nor a run as long as those that
        ended here. The first run is begun in any case."""
        end = end_of_job(processes.slurm_job())
        if end is None or self.seconds_to_save is None:
            return False
        needed = (self.seconds_to_start or SECONDS_TO_START) + self.seconds_to_save
        return end - time.time() < min(needed, 2 * self.longest or needed)

    def _next(self, free: Mapping[str, str]) -> Row | None:
        """A run that is ours from here on: one that began on our kind of device, else a new one,
        else one that began elsewhere."""
        now = time.monotonic()
        entries = [entry for run, entry in free.items() if self.avoided.get(run, 0.0) <= now]
        kinds = [entry.partition("@")[2] for entry in entries]
        for wanted in dict.fromkeys([self.kind, "", *kinds]):
            of_kind = [e for e, kind in zip(entries, kinds, strict=True) if kind == wanted]
            if row := self._first_of(of_kind):
                return row
        return None

    def _first_of(self, entries: list[str]) -> Row | None:
        while entries:
            entry = entries.pop(random.randrange(min(SPREAD, len(entries))))
            row = Row(self.batch.path / entry.partition("@")[0], {})
            if not self._rename(self.queue.free / entry, self._own(row.name)):
                continue  # somebody was faster
            if (row.folder / "done").exists():
                self._own(row.name).unlink(missing_ok=True)
            elif who := lease.live_owner(row.folder):
                if row.name not in self.avoided:
                    print(f"{row.name}: left to {who}", flush=True)
                self.avoided[row.name] = time.monotonic() + SECONDS_BETWEEN_LOOKS
                self._rename(self._own(row.name), self.queue.free / entry)
            else:
                own_log(row)
                self.began[row.name] = _step(row), time.monotonic()
                if self.seconds_to_save is None:
                    self.seconds_to_save = 60 * _checkpoint_minutes(row)
                return row
        return None

    def _rename(self, source: Path, target: Path) -> bool:
        try:
            os.rename(source, target)
        except FileNotFoundError:
            return target.exists()  # a file server may be asked twice where its answer was lost
        except OSError as error:
            raise UserError(f"{source}: cannot be taken ({error.strerror})") from None
        return True

    def _recover(self) -> bool:
        """Put back the runs of workers that have died; whether there were any. Takes up to a
        minute where one was on another machine."""
        taken = self.queue.taken_runs()
        others = sorted({*taken.values()} - {self.name})
        watched = random.sample(others, min(LOOKED_AT, len(others)))
        owners: dict[str, str | None] = {}

        def look(worker: str) -> None:
            owners[worker] = lease.live_owner(self.queue.worker_folder(worker))

        # Daemons, so that a signal is not kept waiting.
        threads = [threading.Thread(target=look, args=(x,), daemon=True) for x in watched]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lost = [run for run, worker in taken.items() if not owners.get(worker, "not watched")]
        freed = [self._put_back(run, taken[run]) for run in lost]
        return any(freed)

    def give_back(self) -> None:
        """What a signal kept us from starting."""
        for run, worker in self.queue.taken_runs().items():
            if worker == self.name:
                self._rename(self._own(run), self.queue.free / run)

    def put_back_own(self) -> None:
        """The runs with which an earlier attempt of this worker has died."""
        for run, worker in self.queue.taken_runs().items():
            if worker == self.name:
                self._put_back(run, worker)

    def _put_back(self, run: str, worker: str) -> bool:
        """Whether it is free again: it may be what its workers die of."""
        entry, folder, kind = self.queue.taken / f"{run}@{worker}", self.batch.path / run, ""
        with suppress(OSError, ValueError, TypeError):
            deaths, step = json.loads(entry.read_text() or "[0, 0]")
            reached = _step(Row(folder, {}))
            deaths = 1 if reached > step else deaths + 1
            if deaths >= MOST_DEATHS and not (folder / "done").exists():
                with open(folder / "job.log", "a") as log:
                    words = f"{deaths} ends without a step, by a signal or with its worker"
                    print(f"not continued after {words}; -r runs it again", file=log)
                entry.unlink()
                return False
            with open(entry, "r+") as file:  # which makes none where another worker was faster
                file.write(f"{json.dumps([deaths, reached]):<40}")
        with suppress(OSError, ValueError, LookupError, TypeError):
            facts = json.loads((self.queue.worker_folder(worker) / "worker.json").read_text())
            kind = f"@{facts['kind']}" if (folder / "status.json").exists() else ""
        return self._rename(entry, self.queue.free / f"{run}{kind}")


def _status(row: Row) -> Mapping[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((row.folder / "status.json").read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _step(row: Row) -> int:
    step = _status(row).get("step")
    return step if isinstance(step, int) else 0


def _checkpoint_minutes(row: Row) -> float:
    from src.config import KEYS  # here, as report.py starts without numpy

    default: Any = KEYS["checkpoint_minutes"].default
    with suppress(UserError, OSError, TypeError, ValueError, AttributeError):
        return float(read_yaml_file(row.spec).get("checkpoint_minutes") or default)
    return default


@cache
def end_of_job(job: str | None) -> float | None:
    """When its time limit comes, seconds since 1970; None where there is none, or Slurm is silent.
    Slurm before 23.02 does not put it into the environment."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if job is None or end.isdigit():
        return float(end) if job and end.isdigit() else None
    with suppress(slurm.NoSlurm):
        return (left := slurm.seconds_left(job)) and time.time() + left
    return None


def device_kind() -> str:
    """What of this machine decides how fast a run is, as a word: 'cpu', 'NVIDIA-H200'."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        if name := done.stdout.strip():
            return slug(name.splitlines()[0], 40)
    return "cpu"


# ---- A worker ----------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    """A signal came."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Lines:
    """A display for a log."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def failed(self, row: Row, why: str | None = None) -> None:
        print(f"failed: {row.name}" + f": {why}" * bool(why), flush=True)

    def update(self, ended: Counter[str]) -> None:
        pass


def run_worker(values: Mapping[str, Any]) -> int:
    """What train.py does with the spec.yaml of a worker; the exit code: 0, 1 where runs have
    failed, 75 or 130 where it was stopped."""
    batch, folder = Batch(Path(values["worker"]), []), Path(values["output_dir"])
    job = processes.slurm_job()
    machine = Machine(jobs=1, gpus=[], job=job)
    try:
        ended, num_left = work(batch, folder, machine, code=Path.cwd())
    except Stop as stop:
        name = signal.Signals(stop.number).name
        print(f"stopped by {name}; what it had is saved, and free for other workers", flush=True)
        return 130 if stop.number == signal.SIGINT else STOPPED
    if job and num_left:
        words = f"the time limit is near, and {count_runs(num_left)} free: another attempt"
        print(f"{in_words(ended)}; {words}", flush=True)
        slurm_says = request_attempt(job, {str(folder / "spec.yaml"): folder})
        if slurm_says:
            print(f"not continued after {slurm_says}; --join adds workers", flush=True)
    else:
        print(f"nothing more to take: {in_words(ended)}", flush=True)
    return int(bool(ended["failed"]))


def in_words(ended: Counter[str]) -> str:
    return ", ".join(f"{ended[how]} {how}" for how in ENDS if ended[how] or how == "done")


def work_here(batch: Batch, machine: Machine, *, code: Path) -> Counter[str]:
    """The same on this machine, in a folder that is gone afterwards."""
    folder = batch.submissions / f"here-{slug(platform.node(), 60).replace('.', '-')}-{os.getpid()}"
    folder.mkdir(exist_ok=True)  # numbers of processes come again
    try:
        return work(batch, folder, machine, code=code)[0]
    finally:
        for name in ("worker.json", "status.json"):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds the claim of whoever has taken it over
            folder.rmdir()


def work(batch: Batch, folder: Path, machine: Machine, *, code: Path) -> tuple[Counter[str], int]:
    """Take runs of the batch until there are none that this worker can train.

    Returns (how many ended how, how many are free and have to wait for another attempt, as the time
    limit is near). folder: the worker's own, below submissions/. Raises Stop.
    """
    name, kind = ".".join(folder.relative_to(batch.submissions).parts), device_kind()
    own = lease.Lease(folder)
    try:
        own.take()
    except OSError as error:
        raise UserError.from_os(error, str(folder)) from None
    source = WorkerSource(batch, name, kind, own)
    signals = {signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup
        signals.remove(signal.SIGHUP)
    before = {number: signal.signal(number, _stop) for number in signals}
    try:
        facts = {"kind": kind, "batch": str(batch.path)}
        write_atomically(folder / "worker.json", json.dumps(facts))
        source.put_back_own()
        return Workers(source, machine, code, Lines()).run(), source.num_left
    finally:
        source.give_back()
        step = _step(Row(folder, {})) + source.progress  # attempt.py looks whether it grows
        with suppress(OSError):
            write_atomically(folder / "status.json", json.dumps({"step": step}))
        own.release()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: object) -> None:
    for other in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):  # the runs are saving
        signal.signal(other, signal.SIG_IGN)
    raise Stop(number)
