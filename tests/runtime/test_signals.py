import os
import signal
import threading

import pytest

from src.runtime.signals import Signals, StopRequested


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_acted_upon_when_asked(number):
    with Signals() as signals:
        signals.is_waiting = True
        send(number)
        with pytest.raises(StopRequested) as stopped:
            signals.check()
    assert stopped.value.signal == number
    assert isinstance(stopped.value, KeyboardInterrupt)  # for programs that know no better


def test_before_there_is_anything_to_save_it_ends_the_run_at_once():
    with Signals(), pytest.raises(StopRequested):
        send(signal.SIGTERM)


def test_a_warning_that_comes_early_leaves_time_for_a_step():
    with Signals() as signals:
        send(signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
        with pytest.raises(StopRequested, match="SIGTERM"):
            send(signal.SIGTERM)


def test_a_signal_that_comes_twice_does_not_disturb_the_saving():
    """Some clusters send TERM to a child once themselves and once through its parent."""
    with Signals() as signals:
        signals.is_waiting = True
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGUSR1)
        with pytest.raises(StopRequested, match="SIGTERM"):
            signals.check()


def test_a_second_ctrl_c_ends_it_at_once():
    with Signals() as signals:
        signals.is_waiting = True
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as stopped:
            send(signal.SIGINT)
    assert not isinstance(stopped.value, StopRequested)


@pytest.fixture
def noted():
    """What the caller's own handlers have heard."""
    heard, before = [], {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda *what: heard.append(what[0]))
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def test_in_the_callers_turn_ctrl_c_is_the_callers_and_warnings_are_not_lost(noted):
    with Signals() as signals:
        signals.is_waiting = True
        with signals.released():
            send(signal.SIGINT)
            assert noted == [signal.SIGINT]
            send(signal.SIGTERM)
        with pytest.raises(StopRequested, match="SIGTERM"):
            signals.check()
        send(signal.SIGINT)
    assert noted == [signal.SIGINT]
    send(signal.SIGTERM)
    assert noted == [signal.SIGINT, signal.SIGTERM]


def test_runs_that_take_turns_and_end_in_any_order_leave_the_callers_handlers(noted):
    first, second = Signals(), Signals()
    for signals in (first, second):
        signals.__enter__()
        signals.is_waiting = True
    first.__exit__()
    send(signal.SIGTERM)
    assert second.received == signal.SIGTERM
    second.__exit__()
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert noted == [signal.SIGTERM] * 2


def test_in_another_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with Signals() as signals:
            signals.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_check_comes_before_each_item_and_closes_what_gives_them():
    closed = []

    def numbers():
        try:
            yield from range(3)
        finally:
            closed.append(True)

    with Signals() as signals:
        signals.is_waiting = True
        items = signals.watched(numbers())
        assert next(items) == 0
        send(signal.SIGUSR1)
        with pytest.raises(StopRequested) as stopped:
            next(items)
    assert stopped
    assert closed
