"""Processes of this machine: whether one lives, and whether its number came again."""

import os
from pathlib import Path


def began(pid: object) -> str | None:
    """When a live process began, in the system's own unit; None: there is none.

    Where there is no /proc, 'some time': a number that came again is not noticed there.
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
