"""Signals that ask a run to stop: Slurm's before a time limit or a preemption, and Ctrl-C.

A handler only notes the signal; the run asks between two steps, where its state is whole. Not
in the handler itself: logging and torch may be in the middle of something there.
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
    """Raised where the run can stop; programs that do not know it see a Ctrl-C."""

    def __init__(self, number: int, *, is_agreed: bool = False) -> None:
        """is_agreed: all processes of the run stop at this step."""
        self.is_agreed = is_agreed
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)
        is_ctrl_c = self.signal == signal.SIGINT
        self.words = "interrupted" if is_ctrl_c else f"stopped by {self.signal.name}"
        self.exit_code = 130 if is_ctrl_c else 75  # EX_TEMPFAIL


class Signals:
    """A context in which the signals are ours. In other threads than the main one it does nothing.

    Until wait_for_steps() TERM and Ctrl-C end the run at once, as there is nothing to save; from
    then on check() does. USR1, a warning, always waits for a step: without one there would be no
    progress between two time limits. A second Ctrl-C ends the run at once in any case.
    """

    def __init__(self, distributed: DistributedContext = SINGLE_PROCESS) -> None:
        self.distributed = distributed
        self.launcher = os.environ.get(processes.LAUNCHER)
        self.received: int | None = None
        self.num_interrupts = 0
        self.is_waiting = self.is_over = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._take(*NUMBERS)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        if not sys.is_finalizing():
            self._give_back(*NUMBERS)

    def _take(self, *numbers: int) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                self.before[number] = signal.signal(number, self._note)

    def _give_back(self, *numbers: int) -> None:
        """Where the handler is another's by now, ours stays below it, and hands on."""
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if number in self.before and signal.getsignal(number) == self._note:
                    signal.signal(number, self.before[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
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

    def wait_for_steps(self) -> None:
        self.is_waiting = True

    def wait_for_others(self) -> None:
        """Several processes stop together, after a step: one that left would be waited for."""
        self.is_waiting = self.is_waiting or self.distributed.size > 1

    def check(self) -> None:
        """Raises StopRequested if a signal has come to one of the processes, in all of them; also
        where the launcher was killed, who can't pass signals on any more."""
        if self.launcher and self.launcher != str(os.getppid()):
            self.received = self.received or signal.SIGTERM
        if number := self.distributed.max(self.received or 0):
            raise StopRequested(number, is_agreed=True)

    def watched(self, items: Generator[T, None, None]) -> Generator[T, None, None]:
        """The items, with a check before each; closed together with them."""
        self.distributed.sync_flags_next()
        with closing(items):
            for item in items:
                if self.distributed.should_sync_flags():
                    self.check()
                yield item
        self.distributed.sync_flags_next()

    @contextmanager
    def released(self) -> Iterator[None]:
        """While the caller has the turn, Ctrl-C is the caller's."""
        self._give_back(signal.SIGINT)
        try:
            yield
        finally:
            self._take(signal.SIGINT)
