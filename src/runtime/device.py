"""What a run computes on, and how it takes memory."""

import ctypes

import torch

from src.support import bad_value

# malloc.h of glibc: below so many bytes memory comes from the heap (at most 32 MB, the value to
# which glibc raises it by itself); from so many on, freed at its end, it is given back (-1: never)
M_MMAP_THRESHOLD, FROM_HEAP = -3, 32 * 2**20
M_TRIM_THRESHOLD, NEVER = -1, -1


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or cuda where there is one, else cpu. Raises UserError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there_are = f"null or cpu, as {torch.cuda.device_count()} CUDA devices are visible"
        raise bad_value("device", name, there_are)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise bad_value("device", name, "null or cpu, as this machine has no MPS device")
    return device


def disable_malloc_trim() -> None:
    """Keep what a step frees for the next one. Only glibc needs to be told.

    It may give the end of its heap back after every step, and then fetches it again page by
    page: that depends on what was freed before, and costs a small network up to a third.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, FROM_HEAP)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
