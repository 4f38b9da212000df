"""Why a run failed, read from the end of its log.

A log is a run's job.log: all that its attempts printed, one after the other. Where we start them
(in an array, or on this machine), an attempt begins with `--- TIME job 123_4 on NODE ---` and may
end with `--- ended: exit code 1 ---`. Slurm's last words stand there too.
"""

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from src.support import one_line

KINDS = {
    "error": "error",
    "oom": "out of memory",
    "timeout": "time limit",
    "cancelled": "cancelled",
    "preempted": "preempted",
    "node": "node failure",
    "interrupted": "interrupted",
    "killed": "killed",
}
TAIL = 8192  # bytes of a log that are read
LONGEST_CAUSE = 150  # characters


class Failure(NamedTuple):
    kind: str  # of KINDS
    cause: str  # one line for a person


BEGIN = re.compile(r"^--- (\S+) (job|local) (\S+) on (.*) ---$", re.MULTILINE)
END = re.compile(r"^--- ended: (exit code|killed by signal) (\d+) ---$", re.MULTILINE)
FAILURES_BY_SLURM = (  # pattern in its lines -> why it ended a job
    (
        r"oom[-_ ]kill|Out Of Memory|Exceeded \w+ memory limit",
        Failure("oom", "out of memory, killed by Slurm"),
    ),
    (r"DUE TO TIME LIMIT", Failure("timeout", "time limit")),
    (r"DUE TO PREEMPTION", Failure("preempted", "preempted")),
    (r"DUE TO NODE FAIL", Failure("node", "node failure")),
    # What says JOB REQUEUE resumes by itself, and explains no end.
    (r"CANCELLED AT (?!.*DUE TO JOB REQUEUE)", Failure("cancelled", "cancelled")),
)
FAILURES_BY_SIGNAL = {
    -signal.SIGKILL: Failure("killed", "killed by signal 9, perhaps out of memory"),
    -signal.SIGINT: Failure("interrupted", "interrupted"),
    -signal.SIGTERM: Failure("interrupted", "interrupted by signal 15"),
}
STOPPED = 75  # the exit code of a run that has saved its state, to resume later
KILLED_AFTER_CTRL_C = "killed, as it did not stop in time after Ctrl-C"  # a line of the log
NOT_CONTINUED = re.compile(r"^not continued after .*?(time limit|restart).*", re.MULTILINE)
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|MemoryError|[Cc]an't allocate memory|Cannot allocate memory"
    r"|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"
)
EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception)\b.*", re.MULTILINE)
NOT_OURS = re.compile(r"^(srun|slurmstepd)\b|^--- ")


@dataclass(frozen=True)
class LoggedAttempt:
    """The last attempt that stands at the end of a log."""

    text: str  # what it printed, or the last of it
    written: float  # when the file was changed last; seconds since 1970, as `started`
    started: float | None = None  # this and the next two only where a first line says so
    job: str | None = None  # Slurm's, '123_4'
    node: str | None = None
    code: int | None = None  # its exit code, -9 for signal 9; None: no last line says so


def last_attempt(log: Path) -> LoggedAttempt | None:
    """None where there is no log, or nothing in it."""
    try:
        with open(log, "rb") as file:
            facts = os.fstat(file.fileno())
            file.seek(max(0, facts.st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    if not text.strip():
        return None
    *_, begin = [None, *BEGIN.finditer(text)]
    text = text[begin.end() :] if begin else text
    *_, end = [None, *END.finditer(text)]
    code = int(end[2]) if end else None
    if end and code is not None:
        code = returncode(code) if end[1] == "exit code" else -code
    if begin is None:
        return LoggedAttempt(text, facts.st_mtime, code=code)
    job = begin[3] if begin[2] == "job" else None
    return LoggedAttempt(text, facts.st_mtime, seconds_of(begin[1]), job, begin[4] or None, code)


def returncode(code: int) -> int:
    """As Popen has it: -9 for signal 9, which shells give as 137."""
    return 128 - code if 128 < code < 160 else code


def is_interruption(code: int) -> bool:
    """Whether somebody has stopped a run on this machine, by its exit code."""
    return code == STOPPED or returncode(code) in (-signal.SIGINT, -signal.SIGTERM)


def failure_by_slurm(text: str) -> Failure | None:
    """Why Slurm ended a job, which it writes into its log."""
    words = "\n".join(re.findall(r"^(?:slurmstepd|srun)[^:\n]*: .*", text, re.MULTILINE))
    return next((f for pattern, f in FAILURES_BY_SLURM if re.search(pattern, words)), None)


def failure_to_continue(text: str) -> Failure | None:
    """Why no further attempt was requested, which src/grid/attempt.py writes."""
    *_, match = [None, *NOT_CONTINUED.finditer(text)]
    if match is None:
        return None
    kind = "timeout" if match[1] == "time limit" else "preempted"
    return Failure(kind, one_line(match[0], LONGEST_CAUSE))


def failure_of_stop(status: Mapping[str, Any]) -> Failure:
    """Of a run that has saved its state and ended, and for which no job waits."""
    step = status.get("step")
    where = f" at step {step}" if isinstance(step, int) else ""
    cause = f"stopped with a checkpoint{where} and not continued"
    if status.get("job") is None:  # on a machine without Slurm somebody has stopped it
        return Failure("interrupted", cause)
    return Failure("preempted" if status.get("signal") == "SIGTERM" else "timeout", cause)


def failure_of_error(error: str) -> Failure:
    """Of an exception's line: 'ValueError: …'."""
    cause = one_line(error.removeprefix("UserError: "), LONGEST_CAUSE)
    return Failure("oom" if OUT_OF_MEMORY.search(error) else "error", cause)


def failure_of_log(attempt: LoggedAttempt, *, has_status: bool) -> Failure | None:
    """What the end of a log says. With a status, a last line alone proves no failure."""
    code, text = attempt.code, attempt.text
    if code == -signal.SIGKILL and f"--- {KILLED_AFTER_CTRL_C} ---" in text:
        return Failure("interrupted", KILLED_AFTER_CTRL_C)
    if code in FAILURES_BY_SIGNAL:
        return FAILURES_BY_SIGNAL[code]
    if code == STOPPED:
        return failure_of_stop({"job": attempt.job})
    if line := exception_line(text):
        return failure_of_error(line)
    if code is not None and code < 0:
        return Failure("killed", f"killed by signal {-code}")
    if code == 0:
        return Failure("error", "exit code 0, yet the run is not done")
    if has_status and code is None:
        return None
    lines = (line.strip() for line in reversed(text.splitlines()))
    if line := next((line for line in lines if line and not NOT_OURS.search(line)), None):
        return failure_of_error(line)
    return None if code is None else Failure("error", f"exit code {code}")


def exception_line(text: str) -> str | None:
    """The line that ends the last traceback, also of a traceback that is cut off."""
    _, found, rest = text.rpartition("Traceback (most recent call last):")
    if found:
        ends = (line for line in rest.splitlines()[1:] if line and not line[0].isspace())
        return next(ends, None)
    *_, match = [None, *EXCEPTION.finditer(text)]
    return match[0] if match else None


def seconds_of(moment: object) -> float | None:
    """'2026-11-23T01:20:00+00:00' -> seconds since 1970."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
