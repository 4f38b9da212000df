"""Our side of fork_server.py: a warm process, and runs that are forks of it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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
MOST_BYTES = 2**20  # of a message


class WarmProcess:
    """A process that has imported what the rows' code imports."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen) -> None:
        self._connection, self._process, self._requests = connection, process, 0
        self._codes: dict[int, int] = {}  # of forks that have ended

    @classmethod
    def started(cls, code: Path, rows: Sequence[Row]) -> "WarmProcess | None":
        """One that runs this code; None, with a line that says why, where runs are to be started
        each by itself."""
        if sys.platform != "linux":
            return None
        specs = {row.spec.read_text(errors="replace") for row in rows if row.spec.exists()}
        modules = [names for key, names in PRELOADED.items() if any(key in s for s in specs)]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = str(Path(__file__).with_name("fork_server.py"))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, program, str(theirs.fileno()), *chain.from_iterable(modules)],
                cwd=code,
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads do not survive a fork
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        warm = cls(ours, process)
        answer = warm._receive(SECONDS_TO_WARM_UP) or {"unfit": "the warm process ended"}
        if answer["unfit"]:
            logger.warning("each run is started by itself: {}", answer["unfit"])
            warm.close()
            return None
        return warm

    def fork(
        self, arguments: Sequence[str], variables: dict[str, str], log: BinaryIO
    ) -> "Fork | None":
        """Run the program in a fork; None: the warm process has ended."""
        # The others it has, from us; of threads it has one.
        own = {"OMP_NUM_THREADS": variables["OMP_NUM_THREADS"]}
        own |= {key: value for key, value in variables.items() if os.environ.get(key) != value}
        request = {"arguments": list(arguments), "variables": own}
        answer = self._ask(request, [log.fileno()])
        return Fork(self, answer["pid"]) if answer else None

    def code(self, pid: int) -> int | None:
        """The exit code of a fork, as Popen has it; None: it runs."""
        if pid not in self._codes and (answer := self._ask({}, [])):
            self._codes |= {int(ended): code for ended, code in answer["codes"].items()}
        elif pid not in self._codes and processes.start_time(pid) is None:
            return -signal.SIGTERM  # what it gets when the warm process ends
        return self._codes.get(pid)

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # an import hangs
            self._process.kill()
            self._process.wait()

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
