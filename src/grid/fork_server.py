"""A warm process, of which runs are forks: what train.py imports is imported once, not once a run.

    python fork_server.py SOCKET MODULE ...     in the folder of the code that runs

A program by itself, without the rest of src/: the code that runs may be an older copy. A fork is
a process as if `python train.py SPEC` had been started: in a session of its own, with its own
environment, log, threads and random numbers, and train.py is its main program. So that forks are
safe, the warm process computes nothing, and never looks for a GPU.

SOCKET: the number of a descriptor (SOCK_SEQPACKET). The first message on it is {"unfit": reason or
null}. Then a request gets one answer, with the request's "id":

    {"id", "arguments": [...], "variables": {...}}, with the descriptor of a log -> {"pid"}
    {"id"} -> {"codes": {pid: exit code}} of the forks that have ended since

When the socket closes, or this process is killed, its forks get SIGTERM: they save and end.
"""

import ast
import ctypes
import gc
import importlib
import json
import os
import random
import signal
import socket
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path

SET_PARENT_DEATH_SIGNAL, SET_NAME = 1, 15  # of prctl(2)
# Threads that don't matter: the allocator's stops and starts by itself around a fork.
HARMLESS_THREADS = {"jemalloc_bg_thd"}
MOST_BYTES = 2**20  # of a message


def preload(program: Path, modules: list[str]) -> None:
    """Import what the program imports at its top; then, if torch was among it, these modules. What
    fails here fails again, and is reported, in the fork that needs it."""
    lines: list[ast.stmt] = []
    with suppress(Exception):
        lines = ast.parse(program.read_bytes()).body
    for line in lines:
        if isinstance(line, ast.Import):
            for alias in line.names:
                with suppress(Exception):
                    importlib.import_module(alias.name)
        elif isinstance(line, ast.ImportFrom) and line.module and not line.level:
            with suppress(Exception):
                module = importlib.import_module(line.module)
                for alias in line.names:  # a door imports them when they are asked for
                    getattr(module, alias.name, None)
    for name in modules if "torch" in sys.modules else ():
        with suppress(Exception):
            importlib.import_module(name)


def why_unfit() -> str | None:
    """What a fork of this process would lack."""
    tasks = Path("/proc/self/task").glob("*/comm")
    names = {task.read_text().strip() for task in tasks if task.parent.name != str(os.getpid())}
    if threads := names - HARMLESS_THREADS:
        return f"an import of train.py starts threads ({', '.join(sorted(threads))})"
    if torch := sys.modules.get("torch"):
        # Where CUDA was asked how many GPUs there are, a fork can use none; only a fork notices.
        is_bad = getattr(torch.cuda, "_is_in_bad_fork", torch.cuda.is_initialized)
        if not (pid := os.fork()):
            os._exit(int(is_bad()))
        if os.waitpid(pid, 0)[1]:
            return "an import of train.py looks for a GPU"
    return None


def serve(connection: socket.socket) -> list[str] | None:
    """Answer requests until the socket closes. In a fork: the arguments of the program that it is
    to be; in the warm process itself, at its end, None."""
    me = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MOST_BYTES, 1)
        if not message:
            return None
        request = json.loads(message)
        answer = {"id": request["id"]}
        if "arguments" in request:
            (log,) = descriptors
            if not (pid := os.fork()):
                connection.close()
                become(request["arguments"], request["variables"], log, parent=me)
                return request["arguments"]
            os.close(log)
            answer["pid"] = pid
        else:
            answer["codes"] = dict(reap())
        connection.send(json.dumps(answer).encode())


def reap() -> list[tuple[int, int]]:
    """(pid, exit code) of each fork that has ended since; -9: killed by signal 9."""
    ended: list[tuple[int, int]] = []
    with suppress(ChildProcessError):  # there are none
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append((found[0], os.waitstatus_to_exitcode(found[1])))
    return ended


def become(arguments: list[str], variables: dict[str, str], log: int, *, parent: int) -> None:
    """Make this fork what a process of its own would be."""
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that call
        os._exit(1)
    # In `ps` and `top`: the beginning of the run's folder.
    libc.prctl(SET_NAME, Path(arguments[1]).parent.name[:15].encode() or b"train.py")
    os.environ.update(variables)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, descriptor in enumerate((nothing, log, log)):
        os.dup2(descriptor, standard)
    os.close(nothing)
    os.close(log)
    sys.argv = arguments
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch:
        # The variable is read when torch is imported: here that is over. Called in any case, while
        # there is one thread: torch renews its thread pool at the first call after a fork, and two
        # threads that come to it together break it.
        threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        is_given = threads.isdigit() and int(threads)
        torch.set_num_threads(int(threads) if is_given else torch.get_num_threads())
    # Whoever draws without a seed gets other numbers in each run.
    random.seed()
    if numpy:
        numpy.random.seed()
    if torch:
        torch.random.default_generator.seed()


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    sys.path[0] = os.getcwd()
    preload(Path("train.py"), sys.argv[2:])
    connection.send(json.dumps({"unfit": why_unfit()}).encode())
    gc.collect()
    gc.freeze()  # else the forks' collections would copy every page
    arguments = None
    with suppress(BrokenPipeError, ConnectionResetError):  # the other side was killed
        arguments = serve(connection)
    if arguments is not None:
        run_as_main(Path(arguments[0]).absolute())


def run_as_main(program: Path) -> None:
    """What Python does with a program that it is given. (runpy would change sys.argv.)"""
    loader = SourceFileLoader("__main__", str(program))
    module = module_from_spec(ModuleSpec("__main__", loader, origin=str(program)))
    module.__file__, module.__spec__ = str(program), None
    sys.modules["__main__"] = module
    loader.exec_module(module)


if __name__ == "__main__":
    main()
