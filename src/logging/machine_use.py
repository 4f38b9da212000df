"""How much of the machine a run uses: system.csv at intervals, system/… columns of an epoch.

cores               of which this run's processes kept so many busy
memory_gb           of all its processes; pages that several share count in each
memory_peak_gb      the most so far, also between two looks for this process itself
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
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import psutil
from loguru import logger

from src.logging.costs import Uses
from src.support import processes

MOST_OF_A_CORE = 0.004  # that looking may take: where it takes long, it looks less often
GB, MB = 1e9, 1e6
STARVING, IDLE, NEAR = 0.3, 0.2, 0.9  # shares from which on a warning says so
FEWEST_LOOKS = 3  # at a GPU, before it is called idle
SECONDS_TO_END = 5.0
Sample = dict[str, float]


class MachineUse:
    """Looks at intervals, in a thread; without a folder, or at an interval of 0, never."""

    def __init__(self) -> None:
        self.uses = Uses()
        self.thread: threading.Thread | None = None
        self.reported: set[str] = set()
        self.samples: list[Sample] = []  # since the last epoch
        self.lock = threading.Lock()
        self.ended = threading.Event()

    def start(
        self,
        path: Path | None,
        interval: float,
        uses: Uses,
        *,
        num_workers: int = 0,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """path: system.csv, to which an attempt that goes on appends.

        interval: in seconds; 0: never. num_workers: that load data. may_write: asked before each
        line; where it says no, nobody looks any more.
        """
        if path is None or not interval:
            return
        self.uses, self.num_workers, self.may_write = uses, num_workers, may_write
        try:
            look = Look(uses)
        except Exception as error:  # a /proc that is hidden, an odd driver
            logger.warning("machine use is not recorded: {}", error)
            return
        self.file = SystemFile(path)
        self.thread = threading.Thread(
            target=self._run, args=(look, interval), name="machine use", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        if self.thread:
            self.ended.set()
            self.thread.join(SECONDS_TO_END)  # a driver may never answer
            self.thread = None

    def _run(self, look: Callable[[], Sample], interval: float) -> None:
        wait = interval
        while not self.ended.wait(wait):
            began = thread_time()
            try:
                sample = look()
                if not self.may_write():
                    return
                self.file.write(sample)
            except Exception as error:  # a file of /proc, a driver, a disk: the run goes on
                logger.warning("machine use is not recorded any more: {}", error)
                return
            with self.lock:
                self.samples.append(sample)
            self._say(memory_warning(sample))  # at once: an epoch may be too long to wait for
            wait = max(interval, (thread_time() - began) / MOST_OF_A_CORE)

    def of_epoch(self, train: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """{'system': {'cores_mean': …, 'cores_peak': …}} since the last call, for the stats;
        {} where nobody has looked since. Says what is wrong with it.

        train: time and data_time of the epoch's training, in seconds.
        """
        with self.lock:
            samples, self.samples = self.samples, []
        if not self.thread:
            return {}
        for warning in gpu_warnings(samples, train, len(self.uses.gpus), self.num_workers):
            self._say(warning)
        return {"system": summary(samples)} if samples else {}

    def _say(self, warning: tuple[str, str] | None) -> None:
        """Each kind once."""
        if warning and warning[0] not in self.reported:
            self.reported.add(warning[0])
            logger.warning(warning[1])


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean and peak of each quantity; of a peak itself the last."""
    found = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        values = [sample[name] for sample in samples if name in sample]
        if "_peak" in name:
            found[name] = values[-1]
        else:
            found[f"{name}_mean"] = sum(values) / len(values)
            found[f"{name}_peak"] = max(values)
    return found


def memory_warning(sample: Sample) -> tuple[str, str] | None:
    """(kind, what is wrong and which key to change)"""
    share = sample.get("memory_share", 0.0)
    if share <= NEAR:
        return None
    words = f"{share:.0%} of the memory limit is in use: lower num_workers or batch_size, or ask"
    return "memory", f"{words} for more (--mem in the submit script)"


def gpu_warnings(
    samples: Sequence[Sample], train: Mapping[str, float], num_gpus: int, num_workers: int
) -> list[tuple[str, str]]:
    """(kind, what is wrong and which key to change), of an epoch."""
    found = []
    waited = train["data_time"] / max(train["time"], 1e-9)
    is_starving = num_gpus > 0 and bool(samples) and waited > STARVING
    if is_starving:
        found.append(
            (
                "starving",
                f"the GPU waited for data for {waited:.0%} of the training time: raise num_workers "
                f"({num_workers} now, on {processes.num_cores():g} cores), or set data_on_device: "
                "auto",
            )
        )
    for number in range(num_gpus):
        shares = [sample[f"gpu{number}_use"] for sample in samples if f"gpu{number}_use" in sample]
        if len(shares) >= FEWEST_LOOKS and sum(shares) / len(shares) < IDLE and not is_starving:
            found.append(
                (
                    f"idle {number}",
                    f"GPU {number} of {num_gpus} was busy for {sum(shares) / len(shares):.0%}"
                    " of the time: raise batch_size, try compile: reduce-overhead, or run several "
                    "experiments on it (--pack)",
                )
            )
    return found


class SystemFile:
    """system.csv: a line a look; what an attempt before this one has left stays."""

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
            number = 1
            while (earlier := self.path.with_name(f"system.{number}.csv")).exists():
                number += 1
            os.replace(self.path, earlier)
        return False


# ---- One look ----------------------------------------------------------------------------


class Look:
    """Called again and again: what was used since the last call, or is now."""

    def __init__(self, uses: Uses) -> None:
        self.root = psutil.Process(uses.root)
        self.gpus = _Gpus(uses.gpus)
        self.known: dict[tuple[int, float], tuple[float, int, int]] = {}
        self.peak = 0.0
        self.network: tuple[int, int] | None = None
        self.moment = monotonic()
        self()  # from here on it counts

    def __call__(self) -> Sample:
        now = monotonic()
        seconds = max(now - self.moment, 1e-9)
        self.moment = now
        processor, read, written, memory = self._of_processes()
        self.peak = max(self.peak, memory, _peak_of_this_process())
        sample = {
            "cores": processor / seconds,
            "memory_gb": memory / GB,
            "memory_peak_gb": self.peak / GB,
        }
        if limits := processes.memories():
            sample["memory_share"] = max(limit.used_share for limit in limits)
        sample["disk_read_mb_s"] = read / seconds / MB
        sample["disk_write_mb_s"] = written / seconds / MB
        if (network := _network()) is not None:
            before = self.network or network
            sample["network_in_mb_s"] = max(0, network[0] - before[0]) / seconds / MB
            sample["network_out_mb_s"] = max(0, network[1] - before[1]) / seconds / MB
            self.network = network
        return sample | self.gpus()

    def _of_processes(self) -> tuple[float, int, int, int]:
        """(seconds of processor time, bytes read, bytes written: since the last look; bytes held).

        A process that has begun and ended between two looks is missed.
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
        spent = [
            sum(
                max(0, values[i] - self.known.get(who, (0, 0, 0))[i]) for who, values in now.items()
            )
            for i in range(3)
        ]
        self.known = now
        return spent[0], int(spent[1]), int(spent[2]), memory


def _peak_of_this_process() -> int:
    """Bytes; Linux counts in kB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _network() -> tuple[int, int] | None:
    """Bytes received and sent, but for what the machine tells itself."""
    with suppress(OSError, psutil.Error):
        cards = psutil.net_io_counters(pernic=True)
        own = [counters for name, counters in cards.items() if not name.startswith("lo")]
        return sum(c.bytes_recv for c in own), sum(c.bytes_sent for c in own)
    return None


class _Gpus:
    """NVIDIA's, by their identifiers; what a card or driver doesn't tell is left out."""

    def __init__(self, identifiers: Sequence[str]) -> None:
        self.handles: list[Any] = []
        if not identifiers:
            return
        import pynvml

        try:
            pynvml.nvmlInit()
            self.handles = [pynvml.nvmlDeviceGetHandleByUUID(x) for x in identifiers]
        except pynvml.NVMLError as error:
            logger.info("the use of GPUs is not recorded: {}", error)

    def __call__(self) -> Sample:
        sample: Sample = {}
        if not self.handles:
            return sample
        import pynvml

        questions: dict[str, Callable[[Any], float]] = {
            "use": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
            "memory_gb": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / GB,
            "power_w": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "temperature_c": lambda gpu: pynvml.nvmlDeviceGetTemperature(
                gpu, pynvml.NVML_TEMPERATURE_GPU
            ),
        }
        for number, handle in enumerate(self.handles):
            for name, question in questions.items():
                with suppress(pynvml.NVMLError):  # such as the power of an old card
                    sample[f"gpu{number}_{name}"] = float(question(handle))
        return sample
