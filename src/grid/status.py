"""What became of each run of a batch, and why it failed, by its folder, its log, Slurm's queue.

done        it ended by itself, well or diverged
running     Slurm, or a process on this machine, runs it
queued      Slurm, or submit_multiple.py -s local, will run it
interrupted it was ended by Ctrl-C, by hand, or by the program that ran it
failed      it ended otherwise; kind and cause say how
lost        it died without reporting: it was started and has not ended, but nobody runs it
unstarted   nothing says that it was ever started

A run's job.log holds all that its attempts printed, one after the other. Where we start them (in an
array, or on this machine), an attempt begins with `--- TIME job 123_4 on NODE ---` and may end with
`--- ended: exit code 1 ---`. Slurm's last words stand there too.
"""

import json
import math
import os
import platform
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from src.config import read_yaml
from src.grid.folders import Batch, Row, is_copy
from src.grid.journal import Call, Journal, queued_rows
from src.grid.run_queue import RunQueue
from src.grid.slurm import NoSlurm, QueuedJob, read_queue
from src.logging import Cost
from src.support import UserError, one_line, processes

STATES = ("done", "running", "queued", "interrupted", "failed", "lost", "unstarted")
NAMES = {"unstarted": "never started"}  # of states, where a person reads another word
KINDS = {  # of failures -> the words for a person
    "error": "error",
    "oom": "out of memory",
    "timeout": "time limit",
    "cancelled": "cancelled",
    "preempted": "preempted",
    "node": "node failure",
    "interrupted": "interrupted",
    "killed": "killed",
}
RESUMABLE = ("interrupted", "timeout", "preempted")  # kinds of failure: the state was saved
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
MOST_SECONDS_TO_END = 60.0  # of a process whose run is done; else the log was touched later
SECONDS_OF_SILENCE = 600.0  # after which a run that cannot be asked counts as dead
STOPPED = 75  # the exit code of a run that has saved its state, to resume later
KILLED_AFTER_CTRL_C = "killed, as it did not stop in time after Ctrl-C"  # a line of the log
LONGEST_CAUSE = 150  # characters
TAIL = 8192  # bytes of a log that are read


@dataclass(frozen=True)
class RowStatus:
    """How far one run is."""

    row: Row
    state: str  # of STATES
    kind: str | None = None  # of KINDS, for failed and interrupted runs
    cause: str | None = None  # one line for a person
    node: str | None = None
    job: str | None = None  # Slurm's '123_4'
    progress: float = 0.0  # 0…1
    seconds: float | None = None  # so far, or taken, by its processes from beginning to end
    seconds_left: float | None = None  # of a running one, by its own estimate
    outcome: str | None = None  # of a done one: finished, early_stopped, diverged
    cost: Cost | None = None  # so far, by its status.json
    wasted: Cost | None = None  # the part of it that is or was done again
    damage: str | None = None  # what of its folder cannot be read, and why


def row_statuses(batch: Batch, queue: Mapping[str, QueuedJob] | None) -> list[RowStatus]:
    """A status for each run, in their order.

    queue: folder -> its live job (submission.queued_rows); None where Slurm cannot be asked.

    Limits: that a process number lives on this machine is taken for the run living, though
    the number may have come again. Elsewhere, and where Slurm cannot tell, a run lives that
    has written its status in the last ten minutes: one that evaluates longer seems lost.
    """
    reader = _StatusReader(batch, queue)
    return [reader.read(row) for row in batch.rows]


def ask_queue(batch: Batch) -> dict[str, QueuedJob] | None:
    """Folder -> its live job; None for a batch that Slurm was never asked to run.

    Raises UserError where only Slurm would know, and does not say.
    """
    journal = read_journal(batch)
    if not journal.calls:
        return None
    if not batch.is_ours:  # squeue shows our own jobs only
        raise UserError(f"{batch.path}: belongs to another user, whose jobs Slurm does not show us")
    try:
        return queued_rows(batch, journal, read_queue())
    except NoSlurm as error:
        raise UserError(f"Slurm has runs of this batch and cannot be asked: {error}") from None


def count_states(statuses: Sequence[RowStatus]) -> str:
    """'100 done, 8 failed'."""
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])


def read_journal(batch: Batch) -> Journal:
    """The batch's journal, an empty one where nothing was asked of Slurm."""
    try:
        return Journal(batch.submissions)
    except (OSError, ValueError, TypeError, LookupError) as error:
        path = batch.submissions / "journal.jsonl"
        raise UserError(f"{path}: cannot be read ({error!r})") from None


# ---- Why a run failed --------------------------------------------------------------------


class Failure(NamedTuple):
    kind: str  # of KINDS
    cause: str  # one line for a person


BEGIN = re.compile(r"^--- (\S+) (job|local) (\S+) on (.*) ---$", re.MULTILINE)
END = re.compile(r"^--- ended: (exit code|killed by signal) (\d+) ---$", re.MULTILINE)
FAILURES_BY_SLURM = {  # a pattern in its lines -> why it ended a job
    r"oom[-_ ]kill|Out Of Memory|Exceeded \w+ memory limit": (
        "oom",
        "out of memory, killed by Slurm",
    ),
    "DUE TO TIME LIMIT": ("timeout", "time limit"),
    "DUE TO PREEMPTION": ("preempted", "preempted"),
    "DUE TO NODE FAIL": ("node", "node failure"),
    # What says JOB REQUEUE resumes by itself, and explains no end.
    "CANCELLED AT (?!.*DUE TO JOB REQUEUE)": ("cancelled", "cancelled"),
}
FAILURES_BY_SIGNAL = {
    -signal.SIGKILL: Failure("killed", "killed by signal 9, perhaps out of memory"),
    -signal.SIGINT: Failure("interrupted", "interrupted"),
    -signal.SIGTERM: Failure("interrupted", "interrupted by signal 15"),
}
NOT_CONTINUED = re.compile(
    r"^not continued after .*?(time limit|restart|ends without).*", re.MULTILINE
)
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|MemoryError|[Cc]an't allocate memory|Cannot allocate memory"
    r"|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"
)
EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception)\b.*", re.MULTILINE)


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
    code = None
    if end:
        code = returncode(int(end[2])) if end[1] == "exit code" else -int(end[2])
    if begin is None:
        return LoggedAttempt(text, facts.st_mtime, code=code)
    job = begin[3] if begin[2] == "job" else None
    return LoggedAttempt(text, facts.st_mtime, seconds_of(begin[1]), job, begin[4] or None, code)


def failure_by_slurm(text: str) -> Failure | None:
    """Why Slurm ended a job, which it writes into its log."""
    words = "\n".join(re.findall(r"^(?:slurmstepd|srun)[^:\n]*: .*", text, re.MULTILINE))
    found = (why for pattern, why in FAILURES_BY_SLURM.items() if re.search(pattern, words))
    return Failure(*why) if (why := next(found, None)) else None


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
    _, has_traceback, rest = text.rpartition("Traceback (most recent call last):")
    if has_traceback:
        found = [ln for ln in rest.splitlines()[1:] if ln and not ln[0].isspace()][:1]
    else:  # the traceback may be cut off
        found = EXCEPTION.findall(text)[-1:]
    if found:
        return failure_of_error(found[0])
    if code is not None and code < 0:
        return Failure("killed", f"killed by signal {-code}")
    if code == 0:
        return Failure("error", "exit code 0, yet the run is not done")
    if has_status and code is None:
        return None
    for line in map(str.strip, reversed(text.splitlines())):
        if line and not re.match(r"(srun|slurmstepd)\b|--- ", line):
            return failure_of_error(line)
    return None if code is None else Failure("error", f"exit code {code}")


def returncode(code: int) -> int:
    """As Popen has it: -9 for signal 9, which shells give as 137."""
    return 128 - code if 128 < code < 160 else code


def runner(batch: Batch) -> dict[str, Any] | None:
    """Who runs rows of this batch on this machine now: pid, host, rows, and how many at a time
    (jobs); None: nobody."""
    try:
        facts = json.loads((batch.submissions / "local.json").read_text())
        began = facts["began"]
        is_alive = began is not None and processes.start_time(facts["pid"]) == began
        # A copy of the batch holds the notice as well.
        is_of_batch = os.path.samefile(facts.get("batch", batch.path), batch.path)
        return facts if is_alive and is_of_batch and facts["host"] == platform.node() else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


# ---- What a folder holds -----------------------------------------------------------------


def read_json(folder: str, name: str) -> tuple[dict[str, Any] | None, str | None]:
    """(content, what is wrong with it). None: there is no such file; {}: it cannot be read as an
    object of JSON. Older experiments leave an empty file `done`, which is whole."""
    try:
        with open(f"{folder}/{name}", "rb") as file:
            text = file.read()
        content = json.loads(text)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{name}: {error.strerror}"
    except ValueError:
        return {}, f"{name}: no JSON, or cut off" if text or name != "done" else None
    except RecursionError:
        return {}, f"{name}: nested too deeply"
    if isinstance(content, dict):
        return content, None
    return {}, f"{name}: {type(content).__name__} instead of an object"


# Of what a run writes most lines are a key and a word, path or number, which are YAML for sure.
# The others are the same in most runs of a batch, and parsed once for all of them.
OTHER_LINES = re.compile(
    r"^(?!\w+: (?:[A-Za-z_/][\w./+=-]{0,500}|-?\d{1,20}(?:\.\d{1,20})?(?:e[-+]\d{1,3})?)$).+$",
    re.MULTILINE | re.ASCII,
)


def problem_of_configuration(folder: str) -> str | None:
    """Of config.yaml, else of spec.yaml; None where it can be read, or neither is there."""
    for name in ("config.yaml", "spec.yaml"):
        try:
            with open(f"{folder}/{name}", "rb") as file:
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{name}: {error.strerror}"
        if not text.strip():  # a spec without a key asks for all defaults
            return f"{name}: nothing in it" if name == "config.yaml" else None
        others = "\n".join(OTHER_LINES.findall(text))
        if others and _problem_of_yaml(others, name):
            return _problem_of_yaml(text, name)  # what spans lines may be fine as a whole
        return None
    return None


@lru_cache(maxsize=4096)
def _problem_of_yaml(text: str, name: str) -> str | None:
    try:
        content = read_yaml(text, source=name)
    except UserError as error:
        return one_line(str(error), LONGEST_CAUSE)
    except (ValueError, TypeError, RecursionError) as error:
        return one_line(f"{name}: {error}", LONGEST_CAUSE)
    return None if isinstance(content, dict) else f"{name}: no lines of the form `key: value`"


def _text(value: object) -> str | None:
    return one_line(value, LONGEST_CAUSE) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def seconds_of(moment: object) -> float | None:
    """'2026-11-23T01:20:00+00:00' -> seconds since 1970."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _seconds(status: dict, end: float | None) -> float | None:
    """Of this attempt from the beginning of its process up to its end, and of those before it."""
    start = seconds_of(status.get("started"))
    if start is None or end is None:
        return None
    others = [_number(status.get(key)) or 0.0 for key in ("seconds_to_start", "seconds_before")]
    return max(0.0, end - start) + sum(others)


def _progress(status: dict) -> float:
    return min(max(_number(status.get("progress")) or 0.0, 0.0), 1.0)


class _StatusReader:
    """One look at a batch: what the status of every run is judged by."""

    def __init__(self, batch: Batch, queue: Mapping[str, QueuedJob] | None) -> None:
        self.batch, self.queue = batch, queue
        self.host, self.now = platform.node(), time.time()
        shared = RunQueue(batch.submissions)
        # run -> its entry, run -> its worker; and which workers live, as far as we can see
        self.free, taken = shared.free_runs(), shared.taken_runs()
        here = {path.name for path in shared.workers_here()}
        workers = here | {name[1:] for name in queue or () if name.startswith("@")}
        self.has_workers = bool(workers)
        self.taken = {run for run, worker in taken.items() if worker in workers}
        # the runs of `submit_multiple.py -s local` where it is at this batch now, and since when
        self.local_rows, self.local_since = set[str](), 0.0
        with suppress(OSError, KeyError, TypeError):  # gone by now, or garbage
            if rows := (runner(batch) or {"rows": []})["rows"]:
                self.local_since = (batch.submissions / "local.json").stat().st_mtime
                self.local_rows = {name for name in rows if isinstance(name, str)}

    def read(self, row: Row) -> RowStatus:
        folder = os.fspath(row.folder)
        (done, problem), (written, other) = (read_json(folder, x) for x in ("done", "status.json"))
        if done is not None:
            status = self._done(row, done, written or {})
        else:
            status = self._not_done(row, written)
        if damage := problem or other:
            status = replace(status, damage=damage)
        if not written or "cost" not in written:
            return status
        # All of a run that has failed is wasted, until -r runs it again; of one that was stopped
        # and resumes, what is done twice.
        total, wasted = Cost.of_run(written)
        is_wasted = status.state in ("failed", "lost") and status.kind not in RESUMABLE
        return replace(status, cost=total, wasted=total if is_wasted else wasted)

    def _done(self, row: Row, done: dict, status: dict) -> RowStatus:
        end = seconds_of(done.get("time"))
        if end is not None and (self.local_rows or self.queue):
            # Its process ended some seconds later, when its log got a last line. Asked while
            # other runs go or wait, as those will take that long as well.
            with suppress(OSError):
                ended = os.stat(row.log).st_mtime
                end = ended if 0 <= ended - end < MOST_SECONDS_TO_END else end
        cause, outcome = _text(done.get("reason")), _text(done.get("outcome"))
        node, job = _text(status.get("host")), _text(status.get("job"))
        seconds = _seconds(status, end)
        return RowStatus(row, "done", None, cause, node, job, 1.0, seconds, outcome=outcome)

    def _not_done(self, row: Row, written: dict | None) -> RowStatus:
        status, job = written or {}, (self.queue or {}).get(row.name)
        # what it has reached is not lost while it waits
        number = job.job if job else None
        queued = RowStatus(row, "queued", job=number, progress=_progress(status))
        if job and job.state in WAITING:
            reason = None if job.reason in ("", "None") else _text(job.reason)
            return replace(queued, cause=reason)
        attempt = last_attempt(row.log)
        updated = seconds_of(status.get("updated"))
        started = attempt.started if attempt else None
        if (job and status.get("job") not in (None, job.job)) or (
            updated is not None and started is not None and updated < int(started)
        ):
            status = {}  # it was started again since, and that attempt has not come to a status
        node = (attempt and attempt.node) or _text(status.get("host"))
        number = (attempt and attempt.job) or _text(status.get("job"))
        state = self._state_if_held(row, status, attempt, job)
        if state == "queued":
            cause = "goes on when its job does" if job else "its turn has not come"
            return replace(queued, cause=cause)
        if state == "running":
            node, number = (job.node if job else None) or node, queued.job or number
            running = replace(queued, state="running", node=node, job=number)
            if status.get("state") != "running":  # no status of this attempt yet
                seconds = None if started is None else max(0.0, self.now - started)
                return replace(running, cause="starting", seconds=seconds)
            left = _number(status.get("seconds_left"))
            if left is not None and updated is not None:
                left = max(0.0, left - (self.now - updated))
            return replace(running, seconds=_seconds(status, self.now), seconds_left=left)
        kind = None
        if failure := self._failure(row, status, attempt):
            kind, cause = failure
            state = "interrupted" if kind == "interrupted" else "failed"
        elif written is not None or attempt:
            state, cause = "lost", "was begun and not ended, but nobody is at it"
        else:
            state, cause = "unstarted", self._refusals.get(row.name, "never started")
        seconds = _seconds(status, seconds_of(status.get("updated")))
        progress = _progress(status)
        return RowStatus(row, state, kind, cause, node, number, progress, seconds)

    def _state_if_held(
        self, row: Row, status: dict, attempt: LoggedAttempt | None, job: QueuedJob | None
    ) -> str | None:
        """running or queued where somebody runs it or will resume it, else None; see
        row_statuses for what is taken for running that nobody here knows."""
        has_ended = attempt is not None and attempt.code is not None
        if row.name in self.taken:
            return "running"
        if row.name in self.free and self.has_workers:
            return "queued"
        if job:
            # Of runs that share a job, one can be over, or stopped, while the others run.
            if attempt is None or not has_ended or attempt.job != job.job:
                return "running"
            return "queued" if attempt.code == STOPPED else None
        if row.name in self.local_rows:
            if attempt is None or attempt.written < self.local_since:
                return "queued"
            return None if has_ended else "running"
        if has_ended or status.get("state") != "running":
            # The first line of a log stands there some seconds before the first status.
            is_bare = attempt is not None and not has_ended and not attempt.text.strip()
            is_fresh = attempt is not None and self.now - attempt.written < SECONDS_OF_SILENCE
            lives = is_bare and is_fresh and not status and self.queue is None
        elif is_copy(row.folder):
            lives = False  # it runs where this folder was copied from
        elif status.get("host") == self.host:
            lives = processes.start_time(status.get("pid")) is not None
        else:
            failure = failure_by_slurm(attempt.text) if attempt else None
            is_unknown = self.queue is not None and status.get("job")  # Slurm would tell of it
            updated = seconds_of(status.get("updated"))
            is_fresh = updated is not None and self.now - updated < SECONDS_OF_SILENCE
            lives = is_fresh and not failure and not is_unknown
        return "running" if lives else None

    def _failure(self, row: Row, status: dict, attempt: LoggedAttempt | None) -> Failure | None:
        """How it ended. Slurm's word comes first: what it kills may fail in strange ways."""
        if attempt:
            # why no further attempt was requested, which src/grid/attempt.py writes
            *_, refusal = [None, *NOT_CONTINUED.finditer(attempt.text)]
            if refusal:
                kinds = {"time limit": "timeout", "restart": "preempted", "ends without": "killed"}
                return Failure(kinds[refusal[1]], one_line(refusal[0], LONGEST_CAUSE))
            failure = failure_by_slurm(attempt.text) or self._failure_of_job(row, attempt)
            if failure:
                return failure
        match status.get("state"):
            case "stopped":
                return failure_of_stop(status)
            case "failed":
                return failure_of_error(str(status.get("error") or "no reason given"))
            case "interrupted":
                return Failure("interrupted", "interrupted")
            case "left":
                return Failure("interrupted", "left early by the program that ran it")
        return failure_of_log(attempt, has_status=bool(status)) if attempt else None

    def _failure_of_job(self, row: Row, attempt: LoggedAttempt) -> Failure | None:
        """Of runs that share a job, for those that were killed: their job's log says why."""
        array, _, task = (attempt.job or "").partition("_")
        if not task.isdigit() or not (attempt.code in (None, STOPPED) or attempt.code < 0):
            return None
        for call in reversed(self._calls):
            is_packed = call.pack > 1 and call.job in (array, None)
            if is_packed and row.name in call.rows_of_task(int(task)):
                shared = last_attempt(self.batch.submissions / call.label / task / "job.log")
                return failure_by_slurm(shared.text) if shared else None
        return None

    @cached_property
    def _calls(self) -> list[Call]:
        return list(read_journal(self.batch).calls.values())

    @cached_property
    def _refusals(self) -> dict[str, str]:
        """Folder -> what Slurm said when it refused the run last."""
        return {row: f"Slurm refused: {c.why}" for c in self._calls if c.why for row in c.rows}
