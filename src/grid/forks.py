"""Our side of fork_server.py: a warm process, and runs that are forks of it."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from loguru import logger

from src.grid.folders import Row
from src.support import processes

# What runs import only when they need it, and where none of it starts threads or looks for a GPU:
# text of a spec -> modules that are imported beforehand.
PRELOADED = {
    "": [
        "torch.fx.experimental.symbolic_shapes",
        "src.analysis",
        "matplotlib.backends.backend_agg",
    ],
    "dataset: sklearn/": ["sklearn.datasets"],
    "dataset: libsvm/": ["scipy.sparse", "libsvmdata"],
    "dataset: timm/": ["timm.data", "torchvision.transforms.v2"],
    "dataset: tfds/": ["torchvision.transforms.v2"],
    "dataset: hf/": ["datasets"],
    "model: timm/": ["timm"],
    "model: torchvision/": ["torchvision.models"],
    "model: clip/": ["open_clip"],
    "model: hf/": ["transformers"],
}
SECONDS_TO_WARM_UP = 300.0  # imports over a slow network
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_END = 10.0
SECONDS_BETWEEN_LOOKS = 0.1  # at a fork
MOST_BYTES = 2**20  # of a message
# What runs of a packed task may have of their own: both are read, or set again, after the fork.
OWN_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class WarmProcess:
    """A process that has imported what the rows' code imports."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen | None = None) -> None:
        """process: None where others use it as well."""
        self._connection, self._process, self._requests = connection, process, 0
        self._codes: dict[int, int] = {}  # of forks that have ended

    @classmethod
    def started(cls, code: Path, rows: Sequence[Row]) -> "WarmProcess | None":
        """One that runs this code; None, with a line that says why, where runs are to be started
        each by itself."""
        if sys.platform != "linux":
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = _start(theirs, code, [row.spec for row in rows])
        warm = cls(ours, process)
        return warm if warm._is_fit() else None

    @classmethod
    def shared(cls, folder: Path) -> "WarmProcess | None":
        """That of a packed task of Slurm: started by the first run that comes here, it ends with
        the last. None as above, and where this run's submit script has made an environment that
        differs from the first one's.

        folder: nobody else's; `runs` in it leads to the runs of the task.
        """
        if sys.platform != "linux":
            return None
        variables = {k: text for k, text in os.environ.items() if k not in OWN_VARIABLES}
        place = [sys.executable, os.getcwd(), *os.sched_getaffinity(0)]
        environment = sha256(repr([place, sorted(variables.items())]).encode()).hexdigest()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with open(folder / "environment", "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # who comes meanwhile waits for the imports
                file.seek(0)
                if file.read() not in ("", environment):
                    return None
                path = folder / "socket"
                try:
                    connection.connect(str(path))
                except (FileNotFoundError, ConnectionRefusedError):  # there is none, or no more
                    path.unlink(missing_ok=True)
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                        listener.bind(str(path))
                        listener.listen()
                        connection.connect(str(path))
                        _start(listener, Path.cwd(), (folder / "runs").glob("*/spec.yaml"))
                is_fit = (warm := cls(connection))._is_fit()
                file.truncate(0)
                file.write(environment if is_fit else "unfit")
                return warm if is_fit else None
        except OSError:
            return None

    def fork(
        self, arguments: Sequence[str], variables: dict[str, str], log: BinaryIO
    ) -> "Fork | None":
        """Run the program in a fork; None: the warm process has ended."""
        # The others it has, from us; of threads it has one.
        own = {"OMP_NUM_THREADS": variables["OMP_NUM_THREADS"]}
        own |= {key: value for key, value in variables.items() if os.environ.get(key) != value}
        pid = self._fork(arguments, own, [log.fileno(), log.fileno()])
        return Fork(self, pid) if pid else None

    def run(self, arguments: Sequence[str]) -> tuple[int | None, set[int]]:
        """As run_programs(), the program in a fork with our output, after hold_signals(). None in
        place of the exit code: the warm process has ended, and the fork with it."""
        received = set[int]()
        variables = {name: os.environ.get(name) for name in OWN_VARIABLES}
        if not (pid := self._fork(arguments, variables, [1, 2])):
            return None, received
        began = processes.start_time(pid)
        while began and processes.start_time(pid) == began:
            if info := signal.sigtimedwait(processes.FORWARDED, SECONDS_BETWEEN_LOOKS):
                received.add(info.si_signo)
                Fork(self, pid).send_signal(info.si_signo)
        answer = self._ask({}, [])
        return (answer["codes"].get(str(pid)) if answer else None), received

    def code(self, pid: int) -> int | None:
        """The exit code of a fork, as Popen has it; None: it runs."""
        if pid not in self._codes and (answer := self._ask({}, [])):
            self._codes |= {int(ended): code for ended, code in answer["codes"].items()}
        elif pid not in self._codes and processes.start_time(pid) is None:
            return -signal.SIGTERM  # what it gets when the warm process ends
        return self._codes.get(pid)

    def close(self) -> None:
        self._connection.close()
        if not self._process:
            return
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # an import hangs
            self._process.kill()
            self._process.wait()

    def _is_fit(self) -> bool:
        """Whether it can be forked; else it is closed, and a line says why."""
        answer = self._receive(SECONDS_TO_WARM_UP) or {"unfit": "the warm process ended"}
        if answer["unfit"]:
            logger.warning("each run is started by itself: {}", answer["unfit"])
            self.close()
        return not answer["unfit"]

    def _fork(
        self, arguments: Sequence[str], variables: Mapping[str, str | None], outputs: list[int]
    ) -> int | None:
        """The process's number. outputs: stdout and stderr."""
        request = {"arguments": list(arguments), "variables": dict(variables)}
        answer = self._ask(request, outputs)
        return answer["pid"] if answer else None

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any] | None:
        self._requests += 1
        message = json.dumps(request | {"id": self._requests}).encode()
        try:
            socket.send_fds(self._connection, [message], descriptors)
        except OSError:
            return None
        # An answer that Ctrl-C kept us from reading may come first.
        while (answer := self._receive(SECONDS_TO_ANSWER)) and answer.get("id") != self._requests:
            pass
        return answer

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        self._connection.settimeout(seconds)
        try:
            message = self._connection.recv(MOST_BYTES)
        except OSError:
            message = b""
        return json.loads(message) if message else None


def _start(given: socket.socket, code: Path, specs: Iterable[Path]) -> subprocess.Popen:
    """fork_server.py with its end of a connection, or a socket on which it gets several."""
    texts = {spec.read_text(errors="replace") for spec in specs if spec.exists()}
    modules = [names for key, names in PRELOADED.items() if any(key in text for text in texts)]
    program = str(Path(__file__).with_name("fork_server.py"))
    return subprocess.Popen(
        [sys.executable, program, str(given.fileno()), *chain.from_iterable(modules)],
        cwd=code,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads do not survive a fork
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[given.fileno()],
        start_new_session=True,
    )


@dataclass(frozen=True)
class Fork:
    """A run in a fork of the warm process."""

    warm: WarmProcess
    pid: int

    def poll(self) -> int | None:
        return self.warm.code(self.pid)

    def send_signal(self, number: int, /) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
