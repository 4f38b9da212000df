"""Programs in processes of their own, which get the signals that this one gets."""

import os
import signal
from collections.abc import Mapping, Sequence

PASSED_ON = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
HELD = PASSED_ON | {signal.SIGCHLD}
STOPPED = {75, 130}  # exit codes of train.py when it has heard a signal, as its fellows have
SECONDS_TO_END = 30.0  # for the others when one has failed, before they are killed


def held() -> set[int]:
    """Without a hang-up that nohup ignores: it stays so, for the programs as well."""
    is_kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return {number for number in HELD if not (is_kept and number == signal.SIGHUP)}


def hold_signals() -> None:
    """From here on signals wait until run_programs() takes them, and none is lost.

    The submit script ignores SIGUSR1 until now: it would have killed the job. Of what is
    ignored, as SIGCHLD is by default, POSIX says not whether it can be waited for.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, held())


def run_programs(
    program: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]]
) -> tuple[int, set[int]]:
    """Run one command in each of the environments, after hold_signals().

    Returns (the first exit code that is not 0, or minus the signal that killed it; signals
    heard). If one fails, the others are ended.
    """
    living = {_start(program, arguments, environment) for environment in environments}
    code, heard = 0, set[int]()
    while living:
        number = _wait(SECONDS_TO_END if code else None)
        if number in PASSED_ON:
            heard.add(number)
            _send(living, number)
            continue
        for child in list(living):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            living.remove(child)
            own_code = os.waitstatus_to_exitcode(status)
            if own_code and not code:
                code = own_code
                if code not in STOPPED:
                    _send(living, signal.SIGTERM)
        if number is None:
            _send(living, signal.SIGKILL)
    return code, heard


def _start(program: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    # A process group of its own: Ctrl-C and `scancel --full` reach us alone, not it twice.
    return os.posix_spawnp(
        program,
        [program, *arguments],
        environment,
        setpgroup=0,
        setsigmask=(),
        setsigdef=held(),
    )


def _wait(seconds: float | None) -> int | None:
    """The next signal; None: there was none for so long."""
    if seconds is None:
        return signal.sigwait(held())
    found = signal.sigtimedwait(held(), seconds)  # not on macOS, where nothing runs in several
    return found.si_signo if found else None


def _send(children: set[int], number: int) -> None:
    for child in children:
        os.kill(child, number)
