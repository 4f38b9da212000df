"""How much memory a device has left for data."""

from collections.abc import Iterator
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
# of a cgroup: the limit, and what is in use with the pages of files it has read
FILES = {
    "v2": ("memory.max", "memory.current"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([*_of_machine(), *_of_cgroups()], default=None)


def _of_machine(meminfo: Path = Path("/proc/meminfo")) -> Iterator[int]:
    """What programs may take without swapping."""
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_cgroups(own: Path = Path("/proc/self/cgroup"), mounted: Path = CGROUPS) -> Iterator[int]:
    """What is left in each cgroup around this process: Slurm and containers limit by them."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit, used = FILES["v1" if controllers else "v2"]
        inner = mounted / controllers / path.strip("/")
        for folder in (inner, *inner.parents):
            numbers = [_text(folder / limit), _text(folder / used)]
            if folder.is_relative_to(mounted) and all(n.strip().isdigit() for n in numbers):
                yield max(0, int(numbers[0]) - int(numbers[1]))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
