"""A program that imports torch and the modules that it is given once, and runs commands in forks
of itself, each measured.

stdin: a JSON list of [folder, module, arguments]. A line of JSON for each, as it ends: [exit code
or null where it was killed, seconds of the processor, megabytes beyond this program's, output].
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PROCESSOR_SECONDS = 60  # of which a command is killed
WALL_SECONDS = 300
BYTES_OF_ADDRESSES = 16 * 2**30  # beyond those that torch maps


def measured(folder: str, module: str, arguments: list[str]) -> list:
    """Of the command and the processes that it has waited for."""
    output = Path(folder) / ".output"
    before = pages(1)
    child = os.fork()
    if not child:
        become(folder, output, module, arguments)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    megabytes = max(0, usage.ru_maxrss / 1024 - before / 2**20)
    seconds = usage.ru_utime + usage.ru_stime
    return [code if code >= 0 else None, seconds, megabytes, output.read_text(errors="replace")]


def pages(field: int) -> int:
    """Bytes of this process: 0 those of its addresses, 1 those in memory."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def become(folder: str, output: Path, module: str, arguments: list[str]) -> None:
    """The command, in a fork; it never returns."""
    code = 1
    try:
        addresses = pages(0) + BYTES_OF_ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
        signal.alarm(WALL_SECONDS)
        os.chdir(folder)
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.argv = [str(ROOT / f"{module}.py"), *arguments]
        code = importlib.import_module(module).main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    for warm in sys.argv[1:]:
        importlib.import_module(warm)
    for case in json.load(sys.stdin):
        print(json.dumps(measured(*case)), flush=True)
