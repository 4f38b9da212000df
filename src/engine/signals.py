"""Signals that ask a run to stop: Slurm's before a time limit or a preemption, and Ctrl-C.

A handler only notes the signal; the run asks between two steps, where its state is whole. Not
in the handler itself: logging and torch may be in the middle of something there.
"""

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequested(KeyboardInterrupt):
    """Raised where the run can stop; programs that do not know it see a Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class Signals:
    """A context in which the signals are ours. In other threads than the main one it does nothing.

    Until wait_for_steps() TERM and Ctrl-C end the run at once, as there is nothing to save; from
    then on check() does. USR1, a warning, always waits for a step: without one there would be no
    progress between two time limits. A second Ctrl-C ends the run at once in any case.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.num_interrupts = 0
        self.is_waiting = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.num_interrupts += number == signal.SIGINT
        if self.num_interrupts > 1:
            raise KeyboardInterrupt
        if self.received in (None, signal.SIGUSR1):
            self.received = number
            if not self.is_waiting and number != signal.SIGUSR1:
                raise StopRequested(number)

    def wait_for_steps(self) -> None:
        self.is_waiting = True

    def check(self) -> None:
        """Raises StopRequested if a signal has come."""
        if self.received is not None:
            raise StopRequested(self.received)

    def watched(self, items: Generator[T, None, None]) -> Generator[T, None, None]:
        """The items, with a check before each; closed together with them."""
        with closing(items):
            for item in items:
                self.check()
                yield item

    @contextmanager
    def released(self) -> Iterator[None]:
        """While the caller has the turn, signals are the caller's."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()
