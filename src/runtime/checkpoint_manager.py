"""When the state of a run is saved: by the clock, at ends of epochs, on a signal, at the end."""

import io
import sys
import threading
from collections.abc import Collection
from math import inf
from time import perf_counter
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from src.runtime.checkpoint_files import CheckpointFiles, CorruptCheckpoint, read_state
from src.runtime.distributed import SINGLE_PROCESS, DistributedContext
from src.runtime.signals import StopRequested
from src.runtime.train_state import TrainState, snapshot
from src.support import UserError

# At an epoch's end a state is saved only if saving has cost at most this share of the time.
SHARE = 1 / 50
SECONDS_TO_RETRY = 60.0  # after a save that failed
PLAIN = {int, float, str, bool, type(None)}


class CheckpointManager:
    """Saves a state in a thread, so that training goes on meanwhile. A context around training.

    A save that fails (a full disk) is reported; the files of before stay, the run goes on.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        state: TrainState,
        distributed: DistributedContext = SINGLE_PROCESS,
        *,
        minutes: float,
    ) -> None:
        """distributed: all processes put together what is saved, and the main one writes it."""
        self.files, self.state, self.distributed = files, state, distributed
        self.seconds_between = 60 * minutes
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        # seconds of the last save, the thread's included
        self.cost = 0.0 if files.is_written else inf
        self.proven: set[Any] = set()  # kinds of values that were written and read again
        self.last = perf_counter()
        self.due = self.last + self.seconds_between if files.is_written else inf

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, StopRequested):
            self._at_stop()
        elif isinstance(error, GeneratorExit) and not sys.is_finalizing():
            self._report(self.now())  # the state is whole then
        elif self.thread:
            self.thread.join()

    def by_the_clock(self) -> None:
        """Called after a step: save every so many minutes."""
        if self.distributed.max(perf_counter() >= self.due and not self._is_busy()):
            self._start()

    def at_epoch_end(self) -> None:
        """Save, unless the last save is so young that this would slow the run down."""
        is_cheap = (perf_counter() - self.last) * SHARE >= self.cost
        if self.distributed.max(is_cheap and not self._is_busy()):
            self._start()

    def _at_stop(self) -> None:
        """Raises UserError where there is nothing to go on from."""
        error = self.now()
        if error and self.files.is_written and not self.files.paths():
            raise UserError(f"stopped, and no state could be saved: {error}")
        self._report(error)

    def at_end(self) -> None:
        """The state of a run that is over. Raises UserError where the disk refuses."""
        error = self.now()
        if isinstance(error, OSError):
            why = f"the last state could not be saved ({error.strerror or error})"
            raise UserError(f"{why}; start again when there is room")
        self._report(error)

    def now(self) -> Exception | None:
        """Save and wait until it is on disk; what prevented it."""
        self._finish_thread()
        self._write(self.state.step, [self._snapshot()])
        error, self.error = self.error, None
        return error

    def _is_busy(self) -> bool:
        """Whether the disk is slower than the clock."""
        return self.thread is not None and self.thread.is_alive()

    def _snapshot(self) -> dict[str, Any]:
        return snapshot(self.state.state_dict(), is_kept=self.distributed.is_main)

    def _start(self) -> None:
        self._finish_thread()
        started = perf_counter()
        arguments = (self.state.step, [self._snapshot()])
        self.cost = perf_counter() - started
        self.last, self.due = started, started + self.seconds_between
        self.thread = threading.Thread(target=self._write, args=arguments, name="saving")
        self.thread.start()

    def _write(self, step: int, content: list[dict[str, Any]]) -> None:
        """content: one snapshot, taken out of the list so that its memory is free when written."""
        if not self.files.is_written:
            return
        started = perf_counter()
        try:
            unproven = kinds(content[0], self.proven)
            self.files.save(step, content.pop())
            self._prove(unproven)
        except Exception as error:  # reported by the main thread, whose log it is
            self.error = error
            self.cost = max(self.cost, SECONDS_TO_RETRY * SHARE)
        self.cost += perf_counter() - started

    def _prove(self, unproven: dict[Any, tuple[str, Any]]) -> None:
        """A file with values of a new kind is read again: a part of the state may come to hold what
        no file without pickle can."""
        if unproven and (paths := self.files.paths()):
            try:
                read_state(paths[0], device="meta")
            except CorruptCheckpoint as error:
                if isinstance(error.__context__, OSError):  # the disk's mistake, not the file's
                    raise
                paths[0].unlink()  # it would be in the way of the one before it
                where = [
                    f"{type(value).__module__}.{type(value).__qualname__} at {path[1:]}"
                    for path, value in unproven.values()
                    if not can_be_read(value)
                ]
                raise CorruptCheckpoint(
                    f"{error}: {', '.join(where)}" if where else str(error)
                ) from None
        self.proven |= unproven.keys()

    def _finish_thread(self) -> None:
        if self.thread:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        self._report(error)

    def _report(self, error: Exception | None) -> None:
        if isinstance(error, UserError):  # the folder is not ours any more
            raise error
        kept = self.files.paths() if error else []
        if isinstance(error, CorruptCheckpoint):
            logger.warning(
                "the state of this run {}; {}",
                error,
                f"{kept[0]} is kept" if kept else "the run cannot be continued",
            )
        elif error:
            logger.warning(
                "the state could not be saved ({}); {}",
                getattr(error, "strerror", None) or error,
                f"{kept[0]} is kept" if kept else "there is none yet",
            )


def kinds(content: Any, known: Collection[Any] = ()) -> dict[Any, tuple[str, Any]]:
    """Each kind of value in the tree that is not known: the path and the value of one of them."""
    found: dict[Any, tuple[str, Any]] = {}
    todo = [("", content)]
    while todo:
        path, value = todo.pop()
        kind: Any = type(value)
        if isinstance(value, Tensor):
            kind = (kind, value.dtype, value.layout)
        if kind not in known:
            found.setdefault(kind, (path, value))
        inside: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            inside = [
                *value.items(),
                *((f"{key!r} (a key)", key) for key in value if type(key) is not str),
            ]
        elif isinstance(value, list | tuple | set | frozenset):
            inside = list(enumerate(value))
        if isinstance(value, dict | list | tuple):  # torch's modules leave notes on their dicts
            inside += getattr(value, "__dict__", {}).items()
        # most values are numbers in rows of stats
        todo += [
            (f"{path}/{name}", item)
            for name, item in inside
            if not (type(item) in PLAIN and type(item) in known)
        ]
    return found


def can_be_read(value: Any) -> bool:
    """Whether a file that holds it can be read again without pickle."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
        return True
    except Exception:
        return False
