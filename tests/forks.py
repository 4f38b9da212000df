"""Commands in forks of a process that has imported torch: without the seconds of a start.

As a program: it imports the modules that it is given once, and runs commands in forks of itself,
each measured. stdin: a JSON list of [folder, module, arguments]. A line of JSON for each, as it
ends: [exit code or null where it was killed, seconds of the processor, megabytes beyond this
program's, output].
"""

import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from src.grid import check

ROOT = Path(__file__).parents[1]
PROCESSOR_SECONDS = 60  # of which a command is killed
WALL_SECONDS = 300
BYTES_OF_ADDRESSES = 16 * 2**30  # beyond those that torch maps


def become(main: Callable[[], object], *streams: int) -> None:
    """In a fork: what a program does whose main() this is, to its end; it never returns.

    streams: file descriptors for what it reads, prints and reports as errors.
    """
    code = 1
    inherited = sys.stdout, sys.stderr  # noqa: F841 - kept: what they hold the parent will write
    try:
        for standard, stream in enumerate(streams):
            os.dup2(stream, standard)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(n, "w" if n else "r", errors="replace", closefd=False) for n in range(3)
        )
        torch.set_num_threads(torch.get_num_threads())  # renews the pool while there is one thread
        tqdm.set_lock(threading.RLock())  # killed with the lock of all, it would stop the tests
        # A program starts with other random numbers each time; what is not seeded must show.
        random.seed()
        np.random.seed()
        torch.seed()
        code = main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Fork:
    """What src/runtime/certificate.py uses of a Popen: a fork that runs main() in a process group
    of its own."""

    def __init__(self, main: Callable[[], object], output: BinaryIO) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)
            with open(os.devnull) as nothing:
                become(main, nothing.fileno(), output.fileno(), output.fileno())
        os.setpgid(self.pid, self.pid)  # by both, as a signal may be sent before the fork runs

    def poll(self) -> int | None:
        return self.returncode if self.returncode is not None else self.wait(os.WNOHANG)

    def wait(self, options: int = 0) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


class LookupFork:
    """What src/grid/check.py uses of the process beside that knows which names exist."""

    @classmethod
    @contextmanager
    def started(cls) -> Iterator["LookupFork"]:
        yield cls()

    def communicate(self, questions: str, seconds: float) -> tuple[str, str]:
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
            files[0].write(questions)
            files[0].seek(0)
            if not (child := os.fork()):
                signal.alarm(ceil(seconds))
                become(check.main, *(file.fileno() for file in files))
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for file in files:
                file.seek(0)
            return files[1].read(), files[2].read()


def measured(folder: str, module: str, arguments: list[str]) -> list:
    """Of the command and the processes that it has waited for."""
    output = Path(folder) / ".output"
    before = pages(1) - pages(2)  # without files, which a fork maps when it reads them
    with open(os.devnull) as nothing, open(output, "wb") as written:
        if not (child := os.fork()):
            streams = (nothing.fileno(), written.fileno(), written.fileno())
            become(lambda: bounded(folder, module, arguments), *streams)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    megabytes = max(0, usage.ru_maxrss / 1024 - before / 2**20)
    seconds = usage.ru_utime + usage.ru_stime
    return [code if code >= 0 else None, seconds, megabytes, output.read_text(errors="replace")]


def pages(field: int) -> int:
    """Bytes of this process: 0 those of its addresses, 1 those in memory, 2 of these files."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def bounded(folder: str, module: str, arguments: list[str]) -> int:
    """The command, with bounds on what it may take."""
    addresses = pages(0) + BYTES_OF_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    signal.alarm(WALL_SECONDS)
    os.chdir(folder)
    sys.argv = [str(ROOT / f"{module}.py"), *arguments]
    return importlib.import_module(module).main(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    for warm in sys.argv[1:]:
        importlib.import_module(warm)
    check.name_checks()  # imports what the process beside imports
    torch.optim.SGD([torch.ones(1)], 1).step()  # the first one imports as much as torch itself
    check._lookup_process = LookupFork.started
    for case in json.load(sys.stdin):
        print(json.dumps(measured(*case)), flush=True)
