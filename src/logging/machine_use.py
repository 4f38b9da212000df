"""How much of the machine a run uses: system.csv at intervals, system/… columns of an epoch.

cores               of which this run's processes kept so many busy
memory_gb           of all its processes; pages that several share count in each
memory_peak_gb      the most so far, also between two samples for this process itself
memory_share        of the limit, of the machine or a cgroup, that is nearest: used by anyone
disk_read_mb_s      and disk_write_mb_s: of this run's processes, past the system's cache
network_in_mb_s     and network_out_mb_s: of the machine
gpu0_use            share of the time in which some kernel ran, 0…1; of each GPU of this run
gpu0_memory_gb      by anyone, as gpu0_power_w and gpu0_temperature_c
"""

import csv
import os
import resource
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import psutil
from loguru import logger

from src.logging.costs import Uses
from src.support import processes

MAX_CORE_SHARE = 0.004  # that sampling may take: where it takes long, samples are fewer
GB, MB = 1e9, 1e6
STARVING, IDLE, NEAR = 0.3, 0.2, 0.9  # shares from which on there is a warning
MIN_SAMPLES = 3  # of a GPU, before it is called idle
SECONDS_TO_END = 5.0
Sample = dict[str, float]  # name -> value, of one moment


class MachineUse:
    """Takes samples at intervals, in a thread; without a folder, or at an interval of 0, none."""

    def __init__(self) -> None:
        self.uses = Uses()
        self.thread: threading.Thread | None = None
        self.reported: set[str] = set()  # kinds of warnings that are in the log
        self.samples: list[Sample] = []  # since the last epoch
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def start(
        self,
        path: Path,
        interval: float,
        uses: Uses,
        *,
        num_workers: int = 0,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """path: system.csv, to which an attempt that resumes appends.

        interval: in seconds; 0: never. num_workers: that load data. may_write: asked before each
        line; where it says no, sampling ends.
        """
        if not interval:
            return
        self.uses, self.num_workers, self.may_write = uses, num_workers, may_write
        try:
            sampler = Sampler(uses)
        except Exception as error:  # a /proc that is hidden, an odd driver
            logger.warning("machine use is not recorded: {}", error)
            return
        self.file = SystemFile(path)
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
                self.file.write(sample)
            except Exception as error:  # a file of /proc, a driver, a disk: the run goes on
                logger.warning("machine use is not recorded any more: {}", error)
                return
            with self.lock:
                self.samples.append(sample)
            self._warn(memory_warning(sample))  # at once: an epoch may be too long to wait for
            wait = max(interval, (thread_time() - start) / MAX_CORE_SHARE)

    def of_epoch(self, train: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """{'system': {'cores_mean': …, 'cores_peak': …}} since the last call, for the stats;
        {} where no sample was taken since. Warns of idle GPUs.

        train: time and data_time of the epoch's training, in seconds.
        """
        with self.lock:
            samples, self.samples = self.samples, []
        if not self.thread:
            return {}
        self._warn(gpu_warnings(samples, train, len(self.uses.gpus), self.num_workers))
        return {"system": mean_and_peak(samples)} if samples else {}

    def _warn(self, warnings: Mapping[str, str]) -> None:
        """Each kind once."""
        for kind, words in warnings.items():
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


def memory_warning(sample: Sample) -> dict[str, str]:
    """kind -> what is wrong and which key to change"""
    share = sample.get("memory_share", 0.0)
    words = f"{share:.0%} of the memory limit is in use: lower num_workers or batch_size, or ask"
    words += " for more (--mem in the submit script)"
    return {"memory": words} if share > NEAR else {}


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


class SystemFile:
    """system.csv: a line a sample; what an attempt before this one has left stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] | None = None

    def write(self, sample: Sample) -> None:
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        is_new = self.names is None and not self._has_header(["timestamp", *sample])
        self.names = self.names or ["timestamp", *sample]
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.names, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            rounded = {name: float(f"{value:.4g}") for name, value in sample.items()}
            writer.writerow({"timestamp": moment, **rounded})

    def _has_header(self, names: list[str]) -> bool:
        """One of the same columns; another one makes way, as on a machine with other GPUs."""
        with suppress(OSError), open(self.path, newline="") as file:
            if next(csv.reader(file), None) == names:
                return True
            numbered = (self.path.with_name(f"system.{number}.csv") for number in count(1))
            os.replace(self.path, next(path for path in numbered if not path.exists()))
        return False


# ---- One sample --------------------------------------------------------------------------


class Sampler:
    """Called again and again: what was used since the last call, or is now."""

    def __init__(self, uses: Uses) -> None:
        self.root = psutil.Process(uses.root)
        self.gpus = _gpu_handles(uses.gpus)
        # (number, start) of a process -> seconds of processor time, bytes read, bytes written
        self.known: dict[tuple[int, float], tuple[float, int, int]] = {}
        self.peak = 0.0
        self.network: tuple[int, int] | None = None
        self.moment = monotonic()
        self()  # from here on it counts

    def __call__(self) -> Sample:
        now = monotonic()
        seconds = max(now - self.moment, 1e-9)
        self.moment = now
        (processor, read, written), memory = self._of_processes()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in kB
        own_peak = most if sys.platform == "darwin" else most * 1024
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
        return sample | _of_gpus(self.gpus)

    def _of_processes(self) -> tuple[list[float], int]:
        """[seconds of processor time, bytes read, bytes written] since the last call; bytes held.

        A process that has started and ended between two calls is missed.
        """
        if not self.root.is_running():  # whoever started us was killed
            self.root = psutil.Process()
        now, memory = {}, 0
        for process in [self.root, *self.root.children(recursive=True)]:
            with suppress(psutil.Error), process.oneshot():  # it may have ended meanwhile
                times = process.cpu_times()
                memory += process.memory_info().rss
                read = written = 0
                with suppress(psutil.Error, AttributeError):  # macOS tells nobody
                    counters = process.io_counters()
                    read, written = counters.read_bytes, counters.write_bytes
                who = process.pid, process.create_time()
                now[who] = times.user + times.system, read, written
        spent = [0.0, 0.0, 0.0]
        for who, values in now.items():
            before = self.known.get(who, (0.0, 0, 0))
            for i in range(3):
                spent[i] += max(0, values[i] - before[i])
        self.known = now
        return spent, memory


def _gpu_handles(identifiers: Sequence[str]) -> list[Any]:
    """NVIDIA's, of GPUs by their identifiers; none where its library doesn't answer."""
    if not identifiers:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByUUID(x) for x in identifiers]
    except pynvml.NVMLError as error:
        logger.info("the use of GPUs is not recorded: {}", error)
        return []


def _of_gpus(handles: Sequence[Any]) -> Sample:
    """What a card or driver doesn't tell is left out."""
    if not handles:
        return {}
    import pynvml as nv

    questions: dict[str, Callable[[Any], float]] = {
        "use": lambda gpu: nv.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
        "memory_gb": lambda gpu: nv.nvmlDeviceGetMemoryInfo(gpu).used / GB,
        "power_w": lambda gpu: nv.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "temperature_c": lambda gpu: nv.nvmlDeviceGetTemperature(gpu, nv.NVML_TEMPERATURE_GPU),
    }
    sample = {}
    for number, handle in enumerate(handles):
        for name, question in questions.items():
            with suppress(nv.NVMLError):  # such as the power of an old card
                sample[f"gpu{number}_{name}"] = float(question(handle))
    return sample
