"""What a run uses of the machine: system.csv and system/… columns of an epoch; and what it costs.

system.csv, a line every few seconds:

cores               of which this run's processes kept so many busy
memory_gb           of all its processes; pages that several share count in each
memory_peak_gb      the most so far, also between two samples for this process itself
memory_share        of the limit, of the machine or a cgroup, that is nearest: used by anyone
disk_read_mb_s      and disk_write_mb_s: of this run's processes, past the system's cache
network_in_mb_s     and network_out_mb_s: of the machine
gpu0_use            fraction of the time in which some kernel ran, 0…1; of each GPU of this run
gpu0_memory_gb      by anyone, as gpu0_power_w and gpu0_temperature_c

The cost, in status.json, is core-seconds and GPU-seconds. In a job of Slurm the cores and GPUs that
it was given count, used or not, shared among the runs of --pack. Elsewhere the processor time that
was used counts, and the run's GPUs. `python train.py` counts as a whole, from its first instruction
on, with the processes below it and the one that has started it on several GPUs. In another program
a run counts from when its folder is taken. Wasted is what an attempt did after the last state that
it saved, and all of one that never came to a step: known when the next attempt says from where it
resumes.
"""

import csv
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import monotonic, thread_time
from typing import Annotated, Any

import psutil
from loguru import logger
from pydantic import Field, TypeAdapter

from src.support import processes

MAX_CORE_SHARE = 0.004  # that measuring may take: where it takes long, it is done less often
GB, MB = 1e9, 1e6
STARVING, IDLE, NEAR = 0.3, 0.2, 0.9  # shares from which on there is a warning
MIN_SAMPLES = 3  # of a GPU, before it is called idle
SECONDS_TO_END = 5.0
Sample = dict[str, float]  # name -> value, of one moment


@dataclass(frozen=True)
class Uses:
    """What a run has of the machine."""

    root: int | None = None  # the process whose children are the run's as well; None: this one
    gpus: tuple[str, ...] = ()  # their identifiers, GPU-…, as NVIDIA's library knows them
    num_gpus: int = 0  # on all machines
    num_processes: int = 1  # that train, on all machines
    num_runs: int = 1  # that this process trains together: each costs a part of it


# ---- Samples -----------------------------------------------------------------------------


class MachineUse:
    """Takes samples at intervals, in a thread, from start() on until stop()."""

    def __init__(self, may_write: Callable[[], bool] = lambda: True) -> None:
        """may_write: called before each line; where it says no, sampling ends."""
        self.may_write = may_write
        self.thread: threading.Thread | None = None
        self.reported: set[str] = set()  # kinds of warnings that are in the log
        self.samples: list[Sample] = []  # since the last epoch
        self.columns: list[str] = []  # of system.csv, when a line of this attempt is in it
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def start(self, path: Path, interval: float, uses: Uses, num_workers: int = 0) -> None:
        """path: system.csv, to which an attempt that resumes appends. interval: in seconds; 0:
        no samples are taken. num_workers: that load data."""
        if not interval:
            return
        self.path, self.uses, self.num_workers = path, uses, num_workers
        try:
            sampler = Sampler(uses)
        except Exception as error:  # a /proc that is hidden, an odd driver
            logger.warning("machine use is not recorded: {}", error)
            return
        self.thread = threading.Thread(
            target=self._run, args=(sampler, interval), name="machine use", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        if self.thread:
            self.stopping.set()
            self.thread.join(SECONDS_TO_END)  # a driver may never answer
            self.thread = None

    def _run(self, take_sample: Callable[[], Sample], interval: float) -> None:
        wait = interval
        while not self.stopping.wait(wait):
            start = thread_time()
            try:
                sample = take_sample()
                if not self.may_write():
                    return
                self.write(sample)
            except Exception as error:  # a file of /proc, a driver, a disk: the run continues
                logger.warning("machine use is not recorded any more: {}", error)
                return
            with self.lock:
                self.samples.append(sample)
            if (share := sample.get("memory_share", 0.0)) > NEAR:
                words = f"{share:.0%} of the memory limit is in use: lower num_workers or "
                words += "batch_size, or ask for more (--mem in the submit script)"
                self._warn("memory", words)  # at once: an epoch may be too long to wait for
            wait = max(interval, (thread_time() - start) / MAX_CORE_SHARE)

    def write(self, sample: Sample) -> None:
        """A line of system.csv. A file of other columns, as of a machine with other GPUs, that an
        attempt before this one has left makes way."""
        is_new = False
        if not self.columns:
            self.columns, is_new = ["timestamp", *sample], True
            with suppress(OSError), open(self.path, newline="") as file:
                is_new = next(csv.reader(file), None) != self.columns
                if is_new:
                    numbered = (self.path.with_name(f"system.{number}.csv") for number in count(1))
                    os.replace(self.path, next(path for path in numbered if not path.exists()))
        values: dict[str, Any] = {"timestamp": datetime.now(UTC).isoformat(timespec="seconds")}
        values |= {name: float(f"{value:.4g}") for name, value in sample.items()}
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(values)

    def of_epoch(self, train: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """{'system': {'cores_mean': …, 'cores_peak': …}} since the last call, for the stats;
        {} where no sample was taken since. Warns of idle GPUs.

        train: time and data_time of the epoch's training, in seconds.
        """
        with self.lock:
            samples, self.samples = self.samples, []
        if not self.thread:
            return {}
        warnings = gpu_warnings(samples, train, len(self.uses.gpus), self.num_workers)
        for kind, words in warnings.items():
            self._warn(kind, words)
        return {"system": mean_and_peak(samples)} if samples else {}

    def _warn(self, kind: str, words: str) -> None:
        """Each kind once."""
        if kind not in self.reported:
            self.reported.add(kind)
            logger.warning(words)


def mean_and_peak(samples: Sequence[Sample]) -> dict[str, float]:
    """NAME_mean and NAME_peak of each quantity; of a peak itself the last."""
    found = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        values = [sample[name] for sample in samples if name in sample]
        if "_peak" in name:
            found[name] = values[-1]
        else:
            found[f"{name}_mean"] = sum(values) / len(values)
            found[f"{name}_peak"] = max(values)
    return found


def gpu_warnings(
    samples: Sequence[Sample], train: Mapping[str, float], num_gpus: int, num_workers: int
) -> dict[str, str]:
    """kind -> what is wrong and which key to change, of an epoch."""
    waited = train["data_time"] / max(train["time"], 1e-9)
    if num_gpus and samples and waited > STARVING:  # then it is idle too, and this is why
        words = f"the GPU waited for data for {waited:.0%} of the training time: raise num_workers "
        words += f"({num_workers} now, on {processes.num_cores():g} cores), or set data_on_device: "
        return {"starving": words + "auto"}
    found = {}
    for number in range(num_gpus):
        name = f"gpu{number}_use"
        shares = [sample[name] for sample in samples if name in sample]
        if len(shares) >= MIN_SAMPLES and (busy := sum(shares) / len(shares)) < IDLE:
            words = f"GPU {number} of {num_gpus} was busy for {busy:.0%} of the time: raise "
            words += "batch_size, try compile: reduce-overhead, or run several experiments on it "
            found[f"idle {number}"] = words + "(--pack)"
    return found


class Sampler:
    """Called again and again: what was used since the last call, or is now."""

    def __init__(self, uses: Uses) -> None:
        self.root = psutil.Process(uses.root)
        self.of_gpus = gpu_sampler(uses.gpus)
        # (number, start) of a process -> seconds of processor time, bytes read, bytes written
        self.known: dict[tuple[int, float], tuple[float, int, int]] = {}
        self.peak = 0.0
        self.network: tuple[int, int] | None = None
        self.moment = monotonic()
        self()  # from here on it counts

    def __call__(self) -> Sample:
        now = monotonic()
        seconds, self.moment = max(now - self.moment, 1e-9), now
        (processor, read, written), memory = self._of_processes()
        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        self.peak = max(self.peak, memory, own_peak)
        sample = {"cores": processor / seconds}
        sample |= {"memory_gb": memory / GB, "memory_peak_gb": self.peak / GB}
        if limits := processes.memories():
            sample["memory_share"] = max(limit.used_share for limit in limits)
        sample["disk_read_mb_s"] = read / seconds / MB
        sample["disk_write_mb_s"] = written / seconds / MB
        with suppress(OSError, psutil.Error):
            cards = psutil.net_io_counters(pernic=True).items()
            outside = [card for name, card in cards if not name.startswith("lo")]
            received, sent = sum(c.bytes_recv for c in outside), sum(c.bytes_sent for c in outside)
            before = self.network or (received, sent)
            sample["network_in_mb_s"] = max(0, received - before[0]) / seconds / MB
            sample["network_out_mb_s"] = max(0, sent - before[1]) / seconds / MB
            self.network = received, sent
        return sample | self.of_gpus()

    def _of_processes(self) -> tuple[list[float], int]:
        """[seconds of processor time, bytes read, bytes written] since the last call; bytes held.

        A process that has started and ended between two calls is missed.
        """
        if not self.root.is_running():  # whoever started us was killed
            self.root = psutil.Process()
        before, self.known = self.known, {}
        spent, memory = [0.0, 0.0, 0.0], 0
        for process in [self.root, *self.root.children(recursive=True)]:
            with suppress(psutil.Error), process.oneshot():  # it may have ended meanwhile
                times = process.cpu_times()
                memory += process.memory_info().rss
                read = written = 0
                with suppress(psutil.Error, AttributeError):  # macOS tells nobody
                    counters = process.io_counters()
                    read, written = counters.read_bytes, counters.write_bytes
                who = process.pid, process.create_time()
                now = self.known[who] = times.user + times.system, read, written
                then = before.get(who, (0.0, 0, 0))
                spent = [s + max(0, x - y) for s, x, y in zip(spent, now, then, strict=True)]
        return spent, memory


def gpu_sampler(identifiers: Sequence[str]) -> Callable[[], Sample]:
    """A function that gives a sample of these GPUs, which the driver knows by their identifiers;
    {} where NVIDIA's library does not answer. What a card does not tell is left out."""
    if not identifiers:
        return dict
    import pynvml as nv

    try:
        nv.nvmlInit()
        gpus = [nv.nvmlDeviceGetHandleByUUID(x) for x in identifiers]
    except nv.NVMLError as error:
        logger.info("the use of GPUs is not recorded: {}", error)
        return dict
    questions: dict[str, Callable[[Any], float]] = {
        "use": lambda gpu: nv.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
        "memory_gb": lambda gpu: nv.nvmlDeviceGetMemoryInfo(gpu).used / GB,
        "power_w": lambda gpu: nv.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "temperature_c": lambda gpu: nv.nvmlDeviceGetTemperature(gpu, nv.NVML_TEMPERATURE_GPU),
    }

    def take_sample() -> Sample:
        sample = {}
        for number, gpu in enumerate(gpus):
            for name, question in questions.items():
                with suppress(nv.NVMLError):  # such as the power of an old card
                    sample[f"gpu{number}_{name}"] = float(question(gpu))
        return sample

    return take_sample


# ---- The cost ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """In seconds."""

    core_seconds: float = 0.0
    gpu_seconds: float = 0.0

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
    wasted: Annotated[Cost, Field(alias="lost")] = Cost()  # of `before`; its name in status.json
    waiting: AttemptCost | None = None  # ended; the next one tells how much of it is wasted
    current: AttemptCost = AttemptCost()

    @classmethod
    def read(cls, status: Mapping[str, Any]) -> "RunCost":
        """From the content of a status.json; nothing where that tells of no cost, or is damaged."""
        try:
            return RUN_COST.validate_python(status["cost"])
        except (LookupError, ValueError):
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


RUN_COST = TypeAdapter(RunCost)


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
        self.allotted = allotted(os.environ)
        self.uses, self.is_started = Uses(), False

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
        gpus: float = self.uses.num_gpus
        if self.allotted:
            used, gpus = self.allotted[0] * seconds, self.allotted[1]
        used, gpus = used / self.uses.num_runs, gpus / self.uses.num_runs
        cost = Cost(round(used, 3), round(gpus * seconds, 3))
        step = step if self.is_started else 0
        current = AttemptCost(cost, self.costs.current.first_step, step)
        costs = replace(self.costs, current=current)
        return {"cost": RUN_COST.dump_python(costs, by_alias=True)}


def allotted(environment: Mapping[str, str]) -> tuple[float, float] | None:
    """(cores, GPUs) of a job of Slurm, this run's part of them; None outside of a job."""

    def number(name: str, default: int) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else default

    text = environment.get("SLURM_JOB_CPUS_PER_NODE", "")  # 4, or 4(x2),8
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    if not groups:
        return None
    cores = sum(int(cores) * int(nodes or 1) for cores, nodes in groups)
    gpus = number("SLURM_GPUS_ON_NODE", 0) * number("SLURM_JOB_NUM_NODES", 1)
    num_runs = max(1, number("EXPERIMENT_SHARES_JOB", 1))  # of --pack
    return cores / num_runs, gpus / num_runs


def seconds_since_start(pid: int) -> float:
    """For how long a process has been living; 0.0 where the system does not say."""
    ticks = processes.start_time(pid)
    if ticks is not None and ticks.isdigit():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    with suppress(psutil.Error):  # its moments are whole seconds apart on Linux
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
        self.found = self.own_then = self.most = self.next_look = 0.0

    def __call__(self) -> float:
        own = sum(os.times()[:2])
        if time.monotonic() >= self.next_look:
            start = time.thread_time()
            self.found, self.own_then = 0.0, own
            with suppress(psutil.Error):  # whoever started us may be gone
                root = psutil.Process(self.root)
                for process in [root, *root.children(recursive=True)]:
                    with suppress(psutil.Error):  # it may have ended meanwhile
                        # Those below it that have ended are in its times, so nothing counts twice.
                        self.found += sum(process.cpu_times()[:4])
            spent = time.thread_time() - start
            self.next_look = time.monotonic() + spent / MAX_CORE_SHARE
        # What has ended since the last look is in the second number alone.
        self.most = max(self.most, self.found + own - self.own_then, sum(os.times()[:4]))
        return self.most
