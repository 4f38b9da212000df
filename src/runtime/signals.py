"""Signals that stop a run: those of Slurm before a time limit or a preemption, and Ctrl-C.

The handler only records the signal; the run checks between two steps, where its state is whole.
Not in the handler itself: logging and torch may be in the middle of something there.
"""

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, TypeVar

from src.runtime.distributed import SINGLE_PROCESS, DistributedContext
from src.support import processes

T = TypeVar("T")

NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequested(KeyboardInterrupt):
    """Raised where the run can stop; a program that does not know it sees a KeyboardInterrupt."""

    def __init__(self, number: int, *, is_agreed: bool = False) -> None:
        """is_agreed: all processes of the run stop at this step."""
        self.is_agreed = is_agreed
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)
        is_ctrl_c = self.signal == signal.SIGINT
        self.message = "interrupted" if is_ctrl_c else f"stopped by {self.signal.name}"
        self.exit_code = 130 if is_ctrl_c else 75  # EX_TEMPFAIL


class Signals:
    """A context in which our handlers are installed, if it is entered in the main thread.

    Until is_waiting TERM and Ctrl-C end the run at once, as there is nothing to save; from then on
    check() does. USR1, a warning, always waits for a step: without one there would be no progress
    between two time limits. A second Ctrl-C ends the run at once in any case.
    """

    def __init__(self, distributed: DistributedContext = SINGLE_PROCESS) -> None:
        self.distributed = distributed
        self.launcher = os.environ.get(processes.LAUNCHER)
        self.received: int | None = None
        self.num_interrupts = 0
        self.is_waiting = self.is_over = False
        self.is_in_step = False  # half a step is no state to resume from
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._install(*NUMBERS)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        if not sys.is_finalizing():
            self._restore(*NUMBERS)

    def _install(self, *numbers: int) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before |= {number: signal.signal(number, self._handle) for number in numbers}

    def _restore(self, *numbers: int) -> None:
        """Where somebody else has installed a handler since, ours stays below it, and passes on."""
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if number in self.before and signal.getsignal(number) == self._handle:
                    signal.signal(number, self.before[number])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_over:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
            return
        self.num_interrupts += number == signal.SIGINT
        if self.num_interrupts > 1:
            raise KeyboardInterrupt
        if self.received in (None, signal.SIGUSR1):
            self.received = number
            if not self.is_waiting and number != signal.SIGUSR1:
                raise StopRequested(number)

    def check(self) -> None:
        """Raises StopRequested if a signal has come to one of the processes, in all of them; also
        where the launcher was killed, which can't forward signals any more."""
        if self.launcher and self.launcher != str(os.getppid()):
            self.received = self.received or signal.SIGTERM
        if number := self.distributed.max(self.received or 0):
            raise StopRequested(number, is_agreed=True)

    def watched(self, items: Generator[T, None, None]) -> Generator[T, None, None]:
        """The items, with a check before each, but within a step; closed together with them."""
        self.distributed.sync_flags_next()
        with closing(items):
            for item in items:
                if not self.is_in_step and self.distributed.should_sync_flags():
                    self.check()
                yield item
        self.distributed.sync_flags_next()

    @contextmanager
    def released(self) -> Iterator[None]:
        """In the caller's turn Ctrl-C is handled as the caller has chosen."""
        self._restore(signal.SIGINT)
        try:
            yield
        finally:
            self._install(signal.SIGINT)
