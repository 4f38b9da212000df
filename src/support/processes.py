"""Processes of this machine: whether one lives, whether its number came again, what it takes."""

import os
import time
from contextlib import suppress
from pathlib import Path

LAUNCHER = "EXPERIMENT_LAUNCHER"  # the number of the process that has started this one
MOST_OF_A_CORE = 0.004  # that looking at the processes below one may take


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


def seconds_since_start(pid: int) -> float:
    """For how long a process has been living; 0.0 where the system does not say."""
    ticks = began(pid)
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
            began_looking = time.thread_time()
            self.found, self.own_then = self._of_all(), own
            spent = time.thread_time() - began_looking
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
