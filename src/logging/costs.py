"""What a run has cost so far, in status.json: core-seconds, GPU-seconds, and how much was wasted.

In a job of Slurm the cores and GPUs that it was given count, used or not, shared among the runs
of --pack. Elsewhere the processor time that was used counts, and the run's GPUs. `python train.py`
counts as a whole, from its first instruction on, with the processes below it and the one that has
started it on several GPUs. In another program a run counts from when its folder is taken.

Wasted is what an attempt did after the last state that it saved, and all of one that never came
to a step: known when the next attempt says from where it resumes.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
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

    @classmethod
    def of_run(cls, status: Mapping[str, Any]) -> "tuple[Cost, Cost]":
        """(all attempts at a run, what of it was wasted), from its status.json."""
        costs = RunCost.read(status)
        return costs.total, costs.wasted

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.core_seconds + other.core_seconds, self.gpu_seconds + other.gpu_seconds)

    def __mul__(self, factor: float) -> "Cost":
        return Cost(self.core_seconds * factor, self.gpu_seconds * factor)


@dataclass(frozen=True)
class AttemptCost:
    """What one attempt at a run has cost, from which step to which."""

    cost: Cost = Cost()
    first_step: int | None = None  # None: it never came to a step
    step: int = 0

    def wasted(self, next_step: int) -> Cost:
        """The part that is done again when the next attempt resumes after next_step."""
        if self.first_step is None or self.step <= self.first_step:
            return self.cost
        share = (self.step - next_step) / (self.step - self.first_step)
        return self.cost * min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class RunCost:
    """The cost of all attempts at a run, those before the last two as a sum."""

    before: Cost = Cost()
    wasted: Cost = Cost()  # of `before`
    waiting: AttemptCost | None = None  # ended; the next one tells how much of it is wasted
    current: AttemptCost = AttemptCost()

    @classmethod
    def read(cls, status: Mapping[str, Any]) -> "RunCost":
        """From the content of a status.json; nothing where it tells of no cost."""

        def attempt(facts: Mapping[str, Any]) -> AttemptCost:
            first_step = facts["first_step"]
            first_step = None if first_step is None else int(first_step)
            return AttemptCost(Cost(**facts["cost"]), first_step, int(facts["step"]))

        try:
            facts = status["cost"]
            waiting = attempt(facts["waiting"]) if facts["waiting"] else None
            before, wasted = Cost(**facts["before"]), Cost(**facts["lost"])
            return cls(before, wasted, waiting, attempt(facts["current"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return cls()

    @property
    def total(self) -> Cost:
        waiting = self.waiting.cost if self.waiting else Cost()
        return self.before + waiting + self.current.cost

    def next_attempt(self) -> "RunCost":
        """The current attempt has ended."""
        if self.current.first_step is None:
            cost = self.current.cost
            return RunCost(self.before + cost, self.wasted + cost, self.waiting)
        return RunCost(self.before, self.wasted, self.current)

    def resumes(self, first_step: int) -> "RunCost":
        """The current attempt starts or resumes after this step."""
        before, wasted = self.before, self.wasted
        if self.waiting:
            before += self.waiting.cost
            wasted += self.waiting.wasted(first_step)
        return RunCost(before, wasted, None, AttemptCost(self.current.cost, first_step, first_step))


class CostMeter:
    """Counts the cost of this attempt."""

    def __init__(self, earlier: Mapping[str, Any]) -> None:
        """earlier: status.json of the attempt before, {} where this is the first."""
        self.costs = RunCost.read(earlier).next_attempt()
        parent = os.getppid()
        launcher = parent if os.environ.get(processes.LAUNCHER) == str(parent) else None
        self.processor_time = ProcessorTime(launcher)
        # Before the first instruction of a whole process nothing was used. In another program,
        # the run is charged for what comes from now on.
        program = getattr(sys.modules["__main__"], "__file__", None) or ""
        self.is_launched, self.used_before, self.start_up = launcher is not None, 0.0, 0.0
        if launcher or Path(program).name == "train.py":
            self.start_up = seconds_since_start(launcher or os.getpid())
        else:
            self.used_before = self.processor_time()
        self.began = monotonic() - self.start_up
        self.num_cores = allotted_cores(os.environ)
        self.num_gpus = allotted_gpus(os.environ)
        self.uses, self.is_started = THIS_PROCESS, False

    def start(self, first_step: int, uses: Uses) -> None:
        """Training starts or resumes after this step."""
        self.uses, self.is_started = uses, True
        self.costs = self.costs.resumes(first_step)

    def status(self, step: int) -> dict[str, Any]:
        """The part of status.json, after this step: {'cost': …}."""
        seconds = monotonic() - self.began
        # Processes of one run do the same: where others have started them, on more machines than
        # this one perhaps, each costs what the main one does. Those of our launcher are measured.
        number = 1 if self.is_launched else self.uses.num_processes
        used = (self.processor_time() - self.used_before) * number
        if self.num_cores is not None:
            used = self.num_cores * seconds
        gpus = self.uses.num_gpus if self.num_gpus is None else self.num_gpus
        cost = Cost(round(used, 3), round(gpus * seconds, 3))
        step = step if self.is_started else 0
        current = AttemptCost(cost, self.costs.current.first_step, step)
        facts = asdict(replace(self.costs, current=current))
        facts["lost"] = facts.pop("wasted")  # by its name in status.json
        return {"cost": facts}


def allotted_cores(environment: Mapping[str, str]) -> float | None:
    """The cores of a job of Slurm, this run's share; None outside of a job."""
    text = environment.get("SLURM_JOB_CPUS_PER_NODE", "")  # 4, or 4(x2),8
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    if not groups:
        return None
    return sum(int(n) * int(times or 1) for n, times in groups) / _runs_of_job(environment)


def allotted_gpus(environment: Mapping[str, str]) -> float | None:
    """As allotted_cores; a job without GPUs has none."""
    if "SLURM_JOB_ID" not in environment:
        return None
    on_node, nodes = (environment.get(f"SLURM_{x}", "") for x in ("GPUS_ON_NODE", "JOB_NUM_NODES"))
    if not on_node.isdigit():
        return 0.0
    return int(on_node) * int(nodes if nodes.isdigit() else 1) / _runs_of_job(environment)


def _runs_of_job(environment: Mapping[str, str]) -> int:
    """How many runs share the job (--pack)."""
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
