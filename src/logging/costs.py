"""What a run has cost so far, in status.json: core-seconds, GPU-seconds, and how much was lost.

In a job of Slurm the cores and GPUs that it was given count, used or not, shared among the rows
of --pack. Elsewhere the processor time that was used counts, and the run's GPUs. `python train.py`
counts as a whole, from its first instruction on, with the processes below it and the one that has
started it on several GPUs. In another program a run counts from when its folder is taken.

Lost is what an attempt did after the last state that it saved, and all of one that never came to
a step: known when the next attempt says from where it goes on.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from src.support import processes

MOST_OF_A_CORE = 0.004  # that looking at the processes below one may take


@dataclass(frozen=True)
class Uses:
    """What a run has of the machine."""

    root: int | None = None  # the process whose children are the run's as well; None: this one
    gpus: tuple[str, ...] = ()  # their identifiers, GPU-…, as NVIDIA's library knows them
    num_gpus: int = 0  # on all machines
    num_processes: int = 1  # that train, on all machines


THIS_PROCESS = Uses()


@dataclass(frozen=True)
class Cost:
    """In seconds."""

    core_seconds: float = 0.0
    gpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not all(isinstance(seconds, int | float) for seconds in vars(self).values()):
            raise TypeError("seconds are numbers")  # a damaged status.json

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.core_seconds + other.core_seconds, self.gpu_seconds + other.gpu_seconds)

    def __mul__(self, factor: float) -> "Cost":
        return Cost(self.core_seconds * factor, self.gpu_seconds * factor)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: its cost, from which step to which."""

    cost: Cost = Cost()
    first_step: int | None = None  # None: it never came to a step
    step: int = 0

    def lost(self, next_step: int) -> Cost:
        """Of its cost, where the next attempt goes on after next_step."""
        if self.first_step is None or self.step <= self.first_step:
            return self.cost
        share = (self.step - next_step) / (self.step - self.first_step)
        return self.cost * min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class Account:
    """All attempts: those before the last two in sum."""

    before: Cost = Cost()
    lost: Cost = Cost()  # of `before`
    waiting: Attempt | None = None  # ended; how much of it is lost depends on the next one
    current: Attempt = Attempt()

    @property
    def total(self) -> Cost:
        waiting = self.waiting.cost if self.waiting else Cost()
        return self.before + waiting + self.current.cost

    def next_attempt(self) -> "Account":
        """The current attempt has ended."""
        if self.current.first_step is None:
            cost = self.current.cost
            return Account(self.before + cost, self.lost + cost, self.waiting)
        return Account(self.before, self.lost, self.current)

    def starts(self, first_step: int) -> "Account":
        """The current attempt goes on after this step."""
        before, lost = self.before, self.lost
        if self.waiting:
            before, lost = before + self.waiting.cost, lost + self.waiting.lost(first_step)
        return Account(before, lost, None, Attempt(self.current.cost, first_step, first_step))


def read_account(status: Mapping[str, Any]) -> Account:
    """Of a status.json; an empty one where it tells of no cost."""
    try:
        facts = status["cost"]
        waiting = facts["waiting"]
        return Account(
            Cost(**facts["before"]),
            Cost(**facts["lost"]),
            _attempt(waiting) if waiting else None,
            _attempt(facts["current"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return Account()


def _attempt(facts: Mapping[str, Any]) -> Attempt:
    first_step = facts["first_step"]
    first_step = None if first_step is None else int(first_step)
    return Attempt(Cost(**facts["cost"]), first_step, int(facts["step"]))


class Meter:
    """Counts the cost of this attempt."""

    def __init__(self, earlier: Mapping[str, Any]) -> None:
        """earlier: status.json of the attempt before, {} where this is the first."""
        self.account = read_account(earlier).next_attempt()
        launcher = _launcher()
        self.processor_time = ProcessorTime(launcher)
        # Of whole processes nothing was before; and several of one launcher are counted themselves.
        self.is_launched, self.used_before, self.start_up = launcher is not None, 0.0, 0.0
        if launcher or _is_whole_process():
            self.start_up = seconds_since_start(launcher or os.getpid())
        else:
            self.used_before = self.processor_time()
        self.began = monotonic() - self.start_up
        self.num_cores = allotted_cores(os.environ)
        self.num_gpus = allotted_gpus(os.environ)
        self.uses, self.is_started = THIS_PROCESS, False

    def start(self, first_step: int, uses: Uses) -> None:
        """Training goes on after this step."""
        self.uses, self.is_started = uses, True
        self.account = self.account.starts(first_step)

    def status(self, step: int) -> dict[str, Any]:
        """What status.json says of it, after this step."""
        seconds = monotonic() - self.began
        cores = self.num_cores
        # Processes of one run do the same: where others have started them, on more machines than
        # this one perhaps, they cost what the main one does.
        number = 1 if self.is_launched else self.uses.num_processes
        used = (self.processor_time() - self.used_before) * number
        gpus = self.uses.num_gpus if self.num_gpus is None else self.num_gpus
        cost = Cost(round(used if cores is None else cores * seconds, 3), round(gpus * seconds, 3))
        first_step = self.account.current.first_step
        current = Attempt(cost, first_step, step if self.is_started else 0)
        account = self.account
        return {"cost": asdict(Account(account.before, account.lost, account.waiting, current))}


def _launcher() -> int | None:
    """The process that has started those of this run on this machine; None: nobody has."""
    number = os.environ.get(processes.LAUNCHER, "")
    return int(number) if number == str(os.getppid()) else None


def _is_whole_process() -> bool:
    """Whether this process is the run, and does nothing before it or after it."""
    program = getattr(sys.modules["__main__"], "__file__", None) or ""
    return Path(program).name == "train.py"


def allotted_cores(environment: Mapping[str, str]) -> float | None:
    """Of a job of Slurm, this row's share; None outside."""
    text = environment.get("SLURM_JOB_CPUS_PER_NODE", "")  # 4, or 4(x2),8
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return (
        sum(int(n) * int(times or 1) for n, times in parts) / _rows(environment) if parts else None
    )


def allotted_gpus(environment: Mapping[str, str]) -> float | None:
    """As allotted_cores; a job without GPUs has none."""
    if "SLURM_JOB_ID" not in environment:
        return None
    on_node, nodes = (environment.get(f"SLURM_{x}", "") for x in ("GPUS_ON_NODE", "JOB_NUM_NODES"))
    if not on_node.isdigit():
        return 0.0
    return int(on_node) * int(nodes if nodes.isdigit() else 1) / _rows(environment)


def _rows(environment: Mapping[str, str]) -> int:
    """That share the job."""
    text = environment.get("EXPERIMENT_SHARES_JOB", "")
    return max(1, int(text)) if text.isdigit() else 1


# ---- What processes have used -------------------------------------------------------------


def seconds_since_start(pid: int) -> float:
    """For how long a process has been living; 0.0 where the system does not say."""
    ticks = processes.start_time(pid)
    if ticks is not None and ticks.isdigit():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    import psutil  # its moments are whole seconds apart on Linux

    with suppress(psutil.Error):
        return max(0.0, time.time() - psutil.Process(pid).create_time())
    return 0.0


class ProcessorTime:
    """Seconds of processor time of a process and of all below it, whether they live or have ended.

    Called again and again. To find the processes below one the system's whole list is read: where
    it is long, that is done less often, and the time of this process alone is added meanwhile.
    """

    def __init__(self, root: int | None = None) -> None:
        """root: the number of the process; None: this one."""
        self.root = os.getpid() if root is None else root
        self.found = self.own_then = self.most = 0.0
        self.next_look = 0.0

    def __call__(self) -> float:
        own = sum(os.times()[:2])
        if time.monotonic() >= self.next_look:
            start = time.thread_time()
            self.found, self.own_then = self._of_all(), own
            spent = time.thread_time() - start
            self.next_look = time.monotonic() + spent / MOST_OF_A_CORE
        # What has ended since the last look is in the second number alone.
        self.most = max(self.most, self.found + own - self.own_then, sum(os.times()[:4]))
        return self.most

    def _of_all(self) -> float:
        """A process counts those below it that have ended, so nothing counts twice."""
        import psutil

        seconds = 0.0
        with suppress(psutil.Error):  # whoever started us may be gone
            root = psutil.Process(self.root)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error):  # it may have ended meanwhile
                    seconds += sum(process.cpu_times()[:4])
        return seconds
