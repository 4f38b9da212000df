"""A warm process, of which runs are forks: what train.py imports is imported once, not once a run.

    python fork_server.py SOCKET MODULE ...     in the folder of the code that runs

A program by itself, without the rest of src/: the code that runs may be an older copy. A fork is
a process as if `python train.py SPEC` had been started: in a session of its own, with its own
environment, log, threads and random numbers, and train.py is its main program. So that forks are
safe, the warm process computes nothing, and never looks for a GPU.

SOCKET: the number of a descriptor (SOCK_SEQPACKET), of a connection or of a socket that listens for
some. The first message on a connection is {"unfit": reason or null}. Then a request gets one
answer, with the request's "id":

    {"id", "arguments": [...], "variables": {name: text, or null for none}},
        with descriptors of stdout and stderr -> {"pid"}
    {"id"} -> {"codes": {pid: exit code}} of the connection's forks that have ended since

When its connection closes, or this process is killed, a fork gets SIGTERM: it saves and ends. This
process ends with the last connection.
"""

import ast
import ctypes
import gc
import importlib
import json
import os
import random
import select
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


def serve(given: socket.socket, greeting: bytes) -> list[str] | None:
    """Answer requests until the last connection closes. In a fork: the arguments of the program
    that it is to be; in the warm process itself, at its end, None."""
    me = os.getpid()
    is_listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    forks: dict[socket.socket, set[int]] = {}  # of each connection those whose code nobody has had
    if not is_listening:
        given.send(greeting)
        forks[given] = set()
    while True:
        # One that has come while the last one closed is waiting to be accepted.
        sockets = [*forks, given] if is_listening else [*forks]
        ready, _, _ = select.select(sockets, [], [], None if forks else 0)
        if not ready:
            return None
        for connection in ready:
            if connection not in forks:
                connection, _ = given.accept()
                forks[connection] = set()
                with suppress(OSError):  # it has left
                    connection.send(greeting)
                continue
            try:
                message, descriptors, _, _ = socket.recv_fds(connection, MOST_BYTES, 2)
            except OSError:
                message = b""
            if not message:
                reap(left := forks.pop(connection))
                for pid in left if forks else ():  # of the last one they hear it as we end
                    os.kill(pid, signal.SIGTERM)
                connection.close()
                continue
            request = json.loads(message)
            answer = {"id": request["id"]}
            if "arguments" in request:
                if not (pid := os.fork()):
                    for other in {given, *forks}:
                        other.close()
                    become(request["arguments"], request["variables"], descriptors, parent=me)
                    return request["arguments"]
                for descriptor in descriptors:
                    os.close(descriptor)
                forks[connection].add(pid)
                answer["pid"] = pid
            else:
                answer["codes"] = reap(forks[connection])
            with suppress(OSError):
                connection.send(json.dumps(answer).encode())


def reap(pids: set[int]) -> dict[int, int]:
    """Those of the forks that have ended are taken out: pid -> exit code; -9: by signal 9."""
    ended = {}
    for pid in [*pids]:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
            pids.remove(pid)
    return ended


def become(
    arguments: list[str], variables: dict[str, str | None], outputs: list[int], *, parent: int
) -> None:
    """Make this fork what a process of its own would be."""
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that call
        os._exit(1)
    # In `ps` and `top`: the beginning of the run's folder.
    libc.prctl(SET_NAME, Path(arguments[1]).parent.name[:15].encode() or b"train.py")
    for name, text in variables.items():
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, descriptor in enumerate((nothing, *outputs)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
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
    # Signals as from a fresh shell: scripts ignore some, and in a job of Slurm they are held back.
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main() -> None:
    given = socket.socket(fileno=int(sys.argv[1]))
    given.set_inheritable(False)
    sys.path[0] = os.getcwd()
    preload(Path("train.py"), sys.argv[2:])
    greeting = json.dumps({"unfit": why_unfit()}).encode()
    gc.collect()
    gc.freeze()  # else the forks' collections would copy every page
    if (arguments := serve(given, greeting)) is not None:
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
