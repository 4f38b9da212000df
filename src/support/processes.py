"""The processes of this machine: when one started, its job of Slurm, which one of its run it is,
running several at once, and the memory and cores that this one may use.

psutil knows neither cgroups, by which Slurm and containers limit a process, nor the exact moment
at which a process started.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCHER = "EXPERIMENT_LAUNCHER"  # environment: the number of the process that started this one


def slurm_job() -> str | None:
    """'123' or, for a task of an array, '123_4'; None outside Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def start_time(pid: object) -> str | None:
    """When a live process started, in the system's own unit; None: there is no such process.

    Together with the number it names one process, as numbers are used again. Where there is no
    /proc it is 'some time': a number that is used again is not noticed there.
    """
    if not isinstance(pid, int) or pid <= 0:
        return None
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]  # a zombie has ended
    try:
        os.kill(pid, 0)
    except PermissionError:  # somebody else's
        return "some time"
    except (OSError, OverflowError):
        return None
    return "some time"


# ---- The processes of one run -------------------------------------------------------------

PORTS = range(20_000, 32_768)  # below those that Linux gives out by itself


@dataclass(frozen=True)
class RankInfo:
    """Which process this is, counted from 0, of how many; which one of its machine."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: str


def detect_rank(environment: Mapping[str, str]) -> RankInfo | None:
    """The rank that torchrun, srun or our own launcher (as torchrun) has set; None: one process."""
    given, names = environment.get, ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if int(given("WORLD_SIZE", 1)) <= 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    rank, size, local_rank = (int(given(name, 0)) for name in names)
    if size <= 1:
        return None
    # srun's own node, the first one of the job where a submit script calls it
    address = given("MASTER_ADDR") or given("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"
    job = int(given("SLURM_JOB_ID", 0)) + int(given("SLURM_STEP_ID", 0))
    port = given("MASTER_PORT") or str(PORTS[job % len(PORTS)])
    return RankInfo(rank, size, local_rank, address, port)


def is_main_process() -> bool:
    """Whether this process prints and writes for all."""
    rank_info = detect_rank(os.environ)
    return rank_info is None or rank_info.rank == 0


def report_exit(message: object, exit_code: int) -> int:
    """Print how the run ended, and return the code. Other processes than the main one are silent
    and return 0, as launchers take the first code that is not 0 for that of all."""
    if not is_main_process():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun sends it when the main one has ended
        return 0
    print(message, file=sys.stderr)
    return exit_code


# ---- Running programs --------------------------------------------------------------------

FORWARDED = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
STOPPED = {75, 130}  # exit codes of a train.py that was stopped by a signal, as the others were
SECONDS_TO_END = 30.0  # for the others when one has failed, before they are killed


def hold_signals() -> None:
    """From here on signals wait until run_programs() takes them, and none is lost.

    The submit script ignores SIGUSR1 until now: it would have killed the job. POSIX leaves open
    whether an ignored signal can be waited for, and SIGCHLD is ignored by default.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _held())


def run_programs(
    program: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]]
) -> tuple[int, set[int]]:
    """Run one command in each of the environments, after hold_signals(), and forward signals.

    Returns (the first exit code that is not 0, or minus the signal that killed it; the signals
    that came). If one fails, the others are ended.
    """
    # In groups of their own: Ctrl-C and `scancel --full` reach us alone, not them twice.
    living = {
        os.posix_spawnp(
            program,
            [program, *arguments],
            environment,
            setpgroup=0,
            setsigmask=(),
            setsigdef=_held(),
        )
        for environment in environments
    }

    def send(number: int) -> None:
        for child in living:
            os.kill(child, number)

    code, received = 0, set[int]()
    while living:
        if code:  # one has failed; sigtimedwait is not on macOS, where nothing runs in several
            info = signal.sigtimedwait(_held(), SECONDS_TO_END)
            number = info.si_signo if info else None
        else:
            number = signal.sigwait(_held())
        if number in FORWARDED:
            received.add(number)
            send(number)
            continue
        for child in list(living):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            living.remove(child)
            child_code = os.waitstatus_to_exitcode(status)
            if child_code and not code:
                code = child_code
                if code not in STOPPED:
                    send(signal.SIGTERM)
        if number is None:
            send(signal.SIGKILL)
    return code, received


def _held() -> set[signal.Signals]:
    """The signals that wait; without a hang-up that nohup ignores: it stays so, for the programs
    as well."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return {*FORWARDED, signal.SIGCHLD} - ({signal.SIGHUP} if is_ignored else set())


# ---- Memory and cores --------------------------------------------------------------------

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Version 1 is no past: containers and clusters of Red Hat 8 have it. For each version the files
# of a cgroup with the limit of its memory, and what is used with the pages of files it has read.
MEMORY_FILES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
NO_LIMIT = 2**60  # bytes: above any machine's memory; version 1 writes a huge number for none


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    limit: int
    free: int  # without swapping; pages of files that could be dropped count as free
    whose: str  # this machine, or its cgroup: for a person

    @property
    def used_share(self) -> float:
        return 1 - self.free / max(self.limit, 1)


def memories(
    meminfo: Path = Path("/proc/meminfo"), own: Path = OWN_CGROUP, mounted: Path = CGROUPS
) -> list[Memory]:
    """The memory of the machine, and of each cgroup with a limit; [] where nobody knows."""
    found = []
    of_machine = _numbers(meminfo)
    if {"MemTotal:", "MemAvailable:"} <= of_machine.keys():
        limit, free = (1024 * of_machine[name] for name in ("MemTotal:", "MemAvailable:"))
        found.append(Memory(limit, free, "this machine"))
    for folder, version in _cgroups("memory", own, mounted):
        limit_text, used_text = (_text(folder / name).strip() for name in MEMORY_FILES[version])
        if not (limit_text.isdigit() and used_text.isdigit()) or int(limit_text) >= NO_LIMIT:
            continue
        limit, used = int(limit_text), int(used_text)
        # Pages of files are dropped before anything else. Version 1 counts them twice: for the
        # cgroup itself, and with those of the cgroups inside of it.
        stat = _numbers(folder / "memory.stat")
        kinds = ("active_file", "inactive_file")
        of_all = [stat[f"total_{kind}"] for kind in kinds if f"total_{kind}" in stat]
        pages = sum(of_all or [stat.get(kind, 0) for kind in kinds])
        found.append(Memory(limit, max(0, limit - used + min(pages, used)), "its cgroup"))
    return found


def free_memory(device: Any = None) -> int | None:
    """Bytes of a torch.device, by default of this machine; None where nobody knows."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min((memory.free for memory in memories()), default=None)


def in_bytes(number: int) -> str:
    """'1.2 GB' or '3.4 MB'."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def num_cores(own: Path = OWN_CGROUP, mounted: Path = CGROUPS) -> float:
    """The cores that this process may use: 2, or 1.5 where a cgroup limits its time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [float(cores or 1)]
    for folder, version in _cgroups("cpu", own, mounted):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(_text(folder / name) for name in files).split()
        if len(numbers) == 2 and all(n.isdigit() for n in numbers) and int(numbers[1]):
            found.append(int(numbers[0]) / int(numbers[1]))
    return min(found)


def _cgroups(controller: str, own: Path, mounted: Path) -> Iterator[tuple[Path, int]]:
    """(folder, version) of the cgroups around this process, the innermost first."""
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
                yield folder, 1 if controllers else 2


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name number …` of a file."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
