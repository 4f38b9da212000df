"""Why rows failed: read from the end of a log; and what failed in the same way.

A log is a row's job.log: all that its attempts printed, one after the other. Where we run
them (array or local), an attempt begins with `--- TIME job 123_4 on NODE ---` and may end
with `--- ended: exit code 1 ---`. Slurm's last words stand there too.
"""

import json
import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from src.grid.folders import Batch
from src.grid.journal import Journal
from src.support import one_line

if TYPE_CHECKING:
    from src.grid.status import RowStatus

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
MENDABLE = {"error", "oom", "killed"}  # by other code; other rows go on with that of before
TAIL = 8192  # bytes of a log that are read
LONGEST_CAUSE = 150  # characters
SAME = 80  # characters that are alike in the same causes, which may be cut off soon after


class Failure(NamedTuple):
    kind: str  # of KINDS
    cause: str  # one line for a person


# ---- What a log tells --------------------------------------------------------------------

BEGIN = re.compile(r"^--- (\S+) (job|local) (\S+) on (.*) ---$", re.MULTILINE)
END = re.compile(r"^--- ended: (exit code|killed by signal) (\d+) ---$", re.MULTILINE)
WORDS = (
    (
        r"oom[-_ ]kill|Out Of Memory|Exceeded \w+ memory limit",
        Failure("oom", "out of memory, killed by Slurm"),
    ),
    (r"DUE TO TIME LIMIT", Failure("timeout", "time limit")),
    (r"DUE TO PREEMPTION", Failure("preempted", "preempted")),
    (r"DUE TO NODE FAIL", Failure("node", "node failure")),
    # What says JOB REQUEUE goes on by itself, and explains no end.
    (r"CANCELLED AT (?!.*DUE TO JOB REQUEUE)", Failure("cancelled", "cancelled")),
)
STOPPED = 75  # the exit code of a run that has saved its state, to go on later
KILLED_AFTER_CTRL_C = "killed, as it did not stop in time after Ctrl-C"  # a line of the log
NOT_CONTINUED = re.compile(r"^not continued after .*?(time limit|restart).*", re.MULTILINE)
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|MemoryError|[Cc]an't allocate memory|Cannot allocate memory"
    r"|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"
)
EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception)\b.*", re.MULTILINE)
NOT_OURS = re.compile(r"^(srun|slurmstepd)\b|^--- ")


@dataclass(frozen=True)
class Attempt:
    """The last attempt that the end of a log tells of."""

    text: str  # what it printed, or the last of it
    written: float  # when the file was changed last; seconds since 1970, as `started`
    started: float | None = None  # this and the next two only where a first line says so
    job: str | None = None  # Slurm's, '123_4'
    node: str | None = None
    code: int | None = None  # its exit code, -9 for signal 9; None: no last line says so


def last_attempt(path: str | os.PathLike) -> Attempt | None:
    """None where there is no log, or nothing in it."""
    try:
        with open(path, "rb") as file:
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
    code = _exit_code(end[1] != "exit code", int(end[2])) if end else None
    if begin is None:
        return Attempt(text, facts.st_mtime, code=code)
    job = begin[3] if begin[2] == "job" else None
    return Attempt(text, facts.st_mtime, seconds_of(begin[1]), job, begin[4] or None, code)


def is_interruption(code: int) -> bool:
    """Whether somebody has stopped a row that ran here, by its exit code."""
    is_signal = _exit_code(False, code) in (-signal.SIGINT, -signal.SIGTERM)
    return is_signal or code == STOPPED


def _exit_code(is_signal: bool, number: int) -> int:
    """Shells add 128 to the signal that killed a program."""
    if is_signal:
        return -number
    return 128 - number if 128 < number < 160 else number


def words_of_slurm(text: str) -> Failure | None:
    """Why Slurm ended a job, which it writes into its log."""
    words = "\n".join(re.findall(r"^(?:slurmstepd|srun)[^:\n]*: .*", text, re.MULTILINE))
    return next((failure for pattern, failure in WORDS if re.search(pattern, words)), None)


def words_of_attempt(text: str) -> Failure | None:
    """Why no further attempt was asked for (src/grid/slurm/attempt.py)."""
    *_, match = [None, *NOT_CONTINUED.finditer(text)]
    if match is None:
        return None
    return Failure(
        "timeout" if match[1] == "time limit" else "preempted", one_line(match[0], LONGEST_CAUSE)
    )


def failure_of_stop(status: Mapping[str, Any]) -> Failure:
    """Of a run that has saved its state and gone, and for which no job waits."""
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


def failure_of_log(attempt: Attempt, *, has_status: bool) -> Failure | None:
    """What the end of a log says; with a status, idle words in it prove no failure."""
    code = attempt.code
    if code == -9 and f"--- {KILLED_AFTER_CTRL_C} ---" in attempt.text:
        return Failure("interrupted", KILLED_AFTER_CTRL_C)
    if code == -9:
        return Failure("killed", "killed by signal 9, perhaps out of memory")
    if code == -signal.SIGINT:
        return Failure("interrupted", "interrupted")
    if code == -signal.SIGTERM:
        return Failure("interrupted", "interrupted by signal 15")
    if code == STOPPED:
        return failure_of_stop({"job": attempt.job})
    if line := exception_line(attempt.text):
        return failure_of_error(line)
    if code is not None and code < 0:
        return Failure("killed", f"killed by signal {-code}")
    if code == 0:
        return Failure("error", "exit code 0, yet the run is not done")
    if has_status and code is None:
        return None
    if line := last_line(attempt.text):
        return failure_of_error(line)
    return None if code is None else Failure("error", f"exit code {code}")


def exception_line(text: str) -> str | None:
    """The line that ends the last traceback; of a traceback that is cut off as well."""
    _, found, rest = text.rpartition("Traceback (most recent call last):")
    if found:
        ends = (line for line in rest.splitlines()[1:] if line and not line[0].isspace())
        return next(ends, None)
    *_, match = [None, *EXCEPTION.finditer(text)]
    return match[0] if match else None


def last_line(text: str) -> str | None:
    """The last one that a program of ours has printed."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not NOT_OURS.search(line)), None)


def seconds_of(moment: object) -> float | None:
    """'2026-11-23T01:20:00+00:00' -> seconds since 1970."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# ---- What failed in the same way ---------------------------------------------------------

PLACEHOLDERS = (
    (r"0x[0-9a-fA-F]+", "ADDRESS"),
    (r"(?<![\w.])[~.]{0,2}/[^\s'\",:;)\]]+", "PATH"),
    (r"\d[\d.,]*\s?([kKMGT]i?B|bytes)\b", "SIZE"),
    (r"[-+]?\d[\d.,_]*(e[-+]?\d+)?", "N"),
)


@dataclass(frozen=True)
class Group:
    """Rows that are not done for the same reason."""

    rows: list[str]  # names of their folders
    only: str  # a kind, lost or unstarted: what --only takes
    cause: str  # of the first of them
    shared: dict[str, Any]  # varying keys that have this one value in all of them
    node: str | None  # where all of them were, though the batch was elsewhere too

    @property
    def detail(self) -> str | None:
        """The cause, where the headline does not say as much."""
        is_said = self.only == "lost" or self.cause in ("never started", KINDS.get(self.only))
        return None if is_said else self.cause


def group_rows(statuses: Sequence["RowStatus"], varying: Sequence[str]) -> list[Group]:
    """The rows to run again (interrupted, failed, lost, unstarted) by cause: kinds together, the
    largest group first."""
    nodes = {status.node for status in statuses if status.node}
    members: dict[tuple[str, str], list[RowStatus]] = {}
    for status in statuses:
        if status.state in ("interrupted", "failed", "lost", "unstarted"):
            only = status.kind or status.state
            members.setdefault((only, normalised(status.cause or "")), []).append(status)
    groups = [_group(only, some, varying, nodes) for (only, _), some in members.items()]
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group.only] = sizes.get(group.only, 0) + len(group.rows)
    return sorted(groups, key=lambda g: (-sizes[g.only], g.only, -len(g.rows)))


def _group(
    only: str, members: Sequence["RowStatus"], varying: Sequence[str], nodes: set[str]
) -> Group:
    """One row alone shares nothing: its name says all."""
    first, is_several = members[0], len(members) > 1
    shared = {
        key: first.row.values.get(key)
        for key in varying
        if is_several and all(m.row.values.get(key) == first.row.values.get(key) for m in members)
    }
    is_one_node = is_several and len(nodes) > 1 and {m.node for m in members} == {first.node}
    return Group(
        [member.row.name for member in members],
        only,
        first.cause or only,
        shared,
        first.node if is_one_node else None,
    )


def normalised(cause: str) -> str:
    """Equal for causes that differ in numbers, sizes, addresses, paths, or late."""
    for pattern, placeholder in PLACEHOLDERS:
        cause = re.sub(pattern, placeholder, cause)
    return cause[:SAME]


def headline(group: Group) -> str:
    """'17 runs: out of memory, all with batch_size=8192'; of a single row its name."""
    what = KINDS.get(group.only) or {"unstarted": "never started"}.get(group.only, group.only)
    if len(group.rows) == 1:
        return f"1 run: {what}, {group.rows[0]}"
    shared = " ".join(f"{key}={shown(value)}" for key, value in group.shared.items())
    parts = [f"{len(group.rows)} runs: {what}"]
    parts += [f"all with {shared}"] if shared else []
    parts += [f"all on node {group.node}"] if group.node else []
    return ", ".join(parts)


def shown(value: Any) -> str:
    """A value of a row in a few characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return one_line(text, 40)


def retry_command(
    batch: Batch, journal: Journal, only: str | None, *, refreeze: bool = False
) -> str:
    """What a person types to submit these rows again, as the last submission was; None: all that
    is not done. refreeze: with the code as it is now."""
    command = ["python", "submit_multiple.py", "-r", short_path(batch.path)]
    last = journal.last_options
    command += ["-s", str(last.script)]
    if last.no_array:
        command += ["--no-array"]
    if last.pack > 1:
        command += ["--pack", str(last.pack)]
    command += ["--only", only] if only else []
    command += ["--refreeze"] * refreeze
    return shlex.join(command + (["--", *last.extra] if last.extra else []))


def short_path(path: Path) -> str:
    """Relative to the working directory where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
