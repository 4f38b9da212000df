"""What this process may take of the machine: memory and cores, by the machine and its cgroups.

Slurm and containers limit by cgroups: those around this process count, each with its own limit.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# of a cgroup: the limit of its memory, and what is in use with the pages of files it has read
MEMORY_FILES = {
    "v2": ("memory.max", "memory.current"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
PAGES_OF_FILES = {"active_file", "inactive_file", "total_active_file", "total_inactive_file"}
NO_LIMIT = 2**60  # bytes: above any machine's memory; version 1 writes a huge number for none


@dataclass(frozen=True)
class Uses:
    """What a run has of the machine."""

    root: int | None = None  # the process whose children are the run's as well; None: this one
    gpus: tuple[str, ...] = ()  # their identifiers, GPU-…, as NVIDIA's library knows them
    num_gpus: int = 0  # on all machines
    num_processes: int = 1  # that train, on all machines


THIS_PROCESS = Uses()


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    limit: int
    free: int  # without swapping; pages of files that could be dropped count as free
    whose: str  # this machine, or its cgroup: for a person

    @property
    def used_share(self) -> float:
        return 1 - self.free / max(self.limit, 1)


def memories() -> list[Memory]:
    """Of the machine and of each cgroup with a limit; [] where nobody knows."""
    return [*_of_machine(), *_of_cgroups()]


def num_cores() -> float:
    """The cores that this process may use: 2, or 1.5 where a cgroup gives it a share of time."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(own), *_quotas()])


def num_whole_cores() -> int:
    """Those that threads may be given, at least one."""
    return ceil(num_cores())


def _of_machine(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Memory]:
    lines = (line.split() for line in _text(meminfo).splitlines())
    found = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
    if {"MemTotal:", "MemAvailable:"} <= found.keys():
        yield Memory(found["MemTotal:"], found["MemAvailable:"], "this machine")


def _of_cgroups(own: Path = Path("/proc/self/cgroup"), mounted: Path = CGROUPS) -> Iterator[Memory]:
    for folder, version in _folders("memory", own, mounted):
        limit, used = (_number(folder / name) for name in MEMORY_FILES[version])
        if limit is not None and used is not None and limit < NO_LIMIT:
            free = limit - used + min(_pages_of_files(folder / "memory.stat"), used)
            yield Memory(limit, max(0, free), "its cgroup")


def _pages_of_files(path: Path) -> int:
    """Bytes that the kernel drops before anything else. Version 1 counts them twice: for the
    cgroup itself, and in all with those inside of it."""
    lines = (line.split() for line in _text(path).splitlines())
    found = {words[0]: int(words[1]) for words in lines if words and words[0] in PAGES_OF_FILES}
    totals = {name: value for name, value in found.items() if name.startswith("total_")}
    return sum((totals or found).values())


def _quotas(own: Path = Path("/proc/self/cgroup"), mounted: Path = CGROUPS) -> Iterator[float]:
    """Cores' worth of time that cgroups allow."""
    for folder, version in _folders("cpu", own, mounted):
        if version == "v2":
            numbers = _text(folder / "cpu.max").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            numbers = [_text(folder / name).strip() for name in names]
        if len(numbers) == 2 and all(n.isdigit() for n in numbers) and int(numbers[1]):
            yield int(numbers[0]) / int(numbers[1])


def _folders(controller: str, own: Path, mounted: Path) -> Iterator[tuple[Path, str]]:
    """(folder, v1 or v2) of the cgroups around this process, the innermost first."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controllers
        if controllers and not root.exists():  # cpu,cpuacct is also there as cpu
            root = mounted / controller
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                yield folder, "v1" if controllers else "v2"


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
