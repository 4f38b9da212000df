"""What became of each row of a batch: what its folder holds, and what Slurm's queue says.

done        it ended by itself, well or diverged
running     Slurm, or a process on this machine, is at it
queued      Slurm, or submit_multiple.py -s local, will come to it
interrupted it was ended by Ctrl-C, by hand, or by the program that ran it
failed      it ended otherwise; kind and cause say how
lost        it was begun and not ended, but nobody is at it
unstarted   nothing says that it was ever begun
"""

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from src.grid.damage import read_json
from src.grid.failures import (
    LONGEST_CAUSE,
    STOPPED,
    Attempt,
    Failure,
    failure_of_error,
    failure_of_log,
    failure_of_stop,
    last_attempt,
    seconds_of,
    words_of_attempt,
    words_of_slurm,
)
from src.grid.folders import Batch, Row, is_copy
from src.grid.journal import Call, Journal
from src.grid.local import runner
from src.grid.slurm.commands import NoSlurm, QueuedJob, queued_rows, read_queue
from src.logging import Cost
from src.support import UserError, one_line, processes

STATES = ("done", "running", "queued", "interrupted", "failed", "lost", "unstarted")

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
GOES_ON = ("interrupted", "timeout", "preempted")  # from the state that they have saved
MOST_SECONDS_TO_END = 60.0  # of a process whose run is done; else the log was touched later
SECONDS_OF_SILENCE = 600.0  # after which a run that cannot be asked counts as dead


@dataclass(frozen=True)
class RowStatus:
    """How far one row is."""

    row: Row
    state: str
    kind: str | None = None  # of failures.KINDS, for failed and interrupted rows
    cause: str | None = None  # one line for a person
    node: str | None = None
    job: str | None = None  # Slurm's '123_4'
    progress: float = 0.0  # 0…1
    seconds: float | None = None  # so far, or taken, by its processes from beginning to end
    seconds_left: float | None = None  # of a running row, by its own estimate
    outcome: str | None = None  # of a done row: finished, early_stopped, diverged
    cost: Cost | None = None  # so far, as its status tells
    wasted: Cost | None = None  # of it: in vain (progress.py sums both)
    damage: str | None = None  # what of its folder cannot be read, and why


def row_statuses(batch: Batch, queue: Mapping[str, QueuedJob] | None) -> list[RowStatus]:
    """A status for each row, in their order.

    queue: row -> its live job (slurm.queued_rows); None where Slurm cannot be asked.

    Limits: that a process number lives on this machine is taken for the run living, though
    the number may have come again. Elsewhere, and where Slurm cannot tell, a run lives that
    has written its status in the last ten minutes: one that evaluates longer seems lost.
    """
    look = _Look(batch, queue)
    return [look.at(row) for row in batch.rows]


def ask_queue(batch: Batch) -> dict[str, QueuedJob] | None:
    """Row -> its live job; None for a batch that Slurm was never asked to run.

    Raises UserError where only Slurm would know, and does not say.
    """
    journal = read_journal(batch)
    if not journal.calls:
        return None
    if not batch.is_ours:  # squeue tells of our own jobs only
        raise UserError(f"{batch.path}: belongs to another user, whose jobs Slurm does not show us")
    try:
        return queued_rows(batch, journal, read_queue())
    except NoSlurm as error:
        raise UserError(f"Slurm has rows of this batch and cannot be asked: {error}") from None


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


class _Look:
    """One look at a batch: what all its rows are judged by."""

    def __init__(self, batch: Batch, queue: Mapping[str, QueuedJob] | None) -> None:
        self.batch, self.queue = batch, queue
        self.host, self.now = platform.node(), time.time()
        self.local_rows, self.local_since = _rows_of_local_runner(batch)

    def at(self, row: Row) -> RowStatus:
        folder = os.fspath(row.folder)
        (done, problem), (written, other) = (read_json(folder, x) for x in ("done", "status.json"))
        status = with_costs(self._judged(row, done, written), written or {})
        return replace(status, damage=problem or other) if problem or other else status

    def _judged(self, row: Row, done: dict | None, written: dict | None) -> RowStatus:
        status = written or {}
        if done is not None:
            return self._done(row, done, status)
        job = (self.queue or {}).get(row.name)
        if job and job.state in WAITING:
            return _queued(row, status, _reason(job.reason), job)
        attempt = last_attempt(row.log)
        begun = status  # by this attempt or by one before
        if _is_of_earlier_attempt(status, attempt, job):
            status = {}
        state = self._state_if_held(row, status, attempt, job)
        if state == "running":
            return self._running(row, status, attempt, job, begun=begun)
        if state == "queued":
            cause = "goes on when its job does" if job else "its turn has not come"
            return _queued(row, begun, cause, job)
        return self._ended(row, status, attempt, was_begun=written is not None)

    # ---- Who is at it? -------------------------------------------------------------------

    def _state_if_held(
        self, row: Row, status: dict, attempt: Attempt | None, job: QueuedJob | None
    ) -> str | None:
        """running or queued where somebody will go on with it, else None."""
        has_ended = attempt is not None and attempt.code is not None
        if job:
            # Of rows that share a job, one can be over, or stopped, while the others run.
            if attempt is None or not has_ended or attempt.job != job.job:
                return "running"
            return "queued" if attempt.code == STOPPED else None
        if row.name in self.local_rows:
            if attempt is None or attempt.written < self.local_since:
                return "queued"
            return None if has_ended else "running"
        if not has_ended and self._lives(row, status, attempt):
            return "running"
        return None

    def _lives(self, row: Row, status: dict, attempt: Attempt | None) -> bool:
        """Whether a run that nobody speaks for goes on; see the limits in row_statuses."""
        if status.get("state") != "running":
            # The first line of a log stands there some seconds before the first status.
            is_bare = attempt is not None and not status and not attempt.text.strip()
            is_fresh = attempt is not None and self.now - attempt.written < SECONDS_OF_SILENCE
            return is_bare and is_fresh and self.queue is None
        if is_copy(row.folder):
            return False  # it goes on where this folder was copied from
        if status.get("host") == self.host:
            return processes.start_time(status.get("pid")) is not None
        if self.queue is not None and status.get("job"):
            return False
        if attempt and words_of_slurm(attempt.text):
            return False
        updated = seconds_of(status.get("updated"))
        return updated is not None and self.now - updated < SECONDS_OF_SILENCE

    # ---- What there is to say of it ------------------------------------------------------

    def _done(self, row: Row, done: dict, status: dict) -> RowStatus:
        outcome = _text(done.get("outcome"))
        return RowStatus(
            row,
            "done",
            cause=_text(done.get("reason")),
            node=_text(status.get("host")),
            job=_text(status.get("job")),
            progress=1.0,
            seconds=_seconds(status, self._end_of_process(row, seconds_of(done.get("time")))),
            outcome=outcome,
        )

    def _end_of_process(self, row: Row, done: float | None) -> float | None:
        """Of a run that was done at that moment. It ends some seconds later, when its log gets a
        last line: asked while other rows run or wait, as those will take that long as well."""
        if done is None or not (self.local_rows or self.queue):
            return done
        with suppress(OSError):
            ended = os.stat(row.log).st_mtime
            if 0 <= ended - done < MOST_SECONDS_TO_END:
                return ended
        return done

    def _since(self, moment: float | None) -> float | None:
        return None if moment is None else max(0.0, self.now - moment)

    def _running(
        self,
        row: Row,
        status: dict,
        attempt: Attempt | None,
        job: QueuedJob | None,
        *,
        begun: dict,
    ) -> RowStatus:
        left, updated = _number(status.get("seconds_left")), seconds_of(status.get("updated"))
        if left is not None and updated is not None:
            left = max(0.0, left - (self.now - updated))
        is_starting = status.get("state") != "running"  # no status of this attempt yet
        return RowStatus(
            row,
            "running",
            cause="starting" if is_starting else None,
            node=(job.node if job else None) or _node(status, attempt),
            job=(job.job if job else None) or _job(status, attempt),
            progress=_progress(begun),
            seconds=(
                self._since(attempt.started if attempt else None)
                if is_starting
                else _seconds(status, self.now)
            ),
            seconds_left=None if is_starting else left,
        )

    def _ended(
        self, row: Row, status: dict, attempt: Attempt | None, *, was_begun: bool
    ) -> RowStatus:
        failure = self._failure(row, status, attempt)
        if failure:
            state = "interrupted" if failure.kind == "interrupted" else "failed"
            cause = failure.cause
        elif was_begun or attempt:
            state, cause = "lost", "was begun and not ended, but nobody is at it"
        else:
            state, cause = "unstarted", self._refusals.get(row.name, "never started")
        return RowStatus(
            row,
            state,
            kind=failure.kind if failure else None,
            cause=cause,
            node=_node(status, attempt),
            job=_job(status, attempt),
            progress=_progress(status),
            seconds=_seconds(status, seconds_of(status.get("updated"))),
        )

    def _failure(self, row: Row, status: dict, attempt: Attempt | None) -> Failure | None:
        """How it ended. Slurm's word comes first: what it kills may fail in strange ways."""
        if attempt:
            words = words_of_attempt(attempt.text) or words_of_slurm(attempt.text)
            if words := words or self._words_to_its_task(row, attempt):
                return words
        state = status.get("state")
        if state == "stopped":
            return failure_of_stop(status)
        if state == "failed":
            return failure_of_error(str(status.get("error") or "no reason given"))
        if state == "interrupted":
            return Failure("interrupted", "interrupted")
        if state == "left":
            return Failure("interrupted", "left early by the program that ran it")
        return failure_of_log(attempt, has_status=bool(status)) if attempt else None

    @cached_property
    def _refusals(self) -> dict[str, str]:
        """Row -> what Slurm said when it refused it last."""
        calls = read_journal(self.batch).calls.values()
        return {row: f"Slurm refused: {c.why}" for c in calls if c.why for row in c.rows}

    def _words_to_its_task(self, row: Row, attempt: Attempt) -> Failure | None:
        """Of rows that share a job, for those that were killed: their job's log says why."""
        array, _, task = (attempt.job or "").partition("_")
        if not task.isdigit() or not (attempt.code in (None, STOPPED) or attempt.code < 0):
            return None
        for call in self._packed_calls:
            if call.job in (array, None) and row.name in call.rows_of_task(int(task)):
                folder = self.batch.submissions / call.label / task
                shared = last_attempt(folder / "job.log")
                return words_of_slurm(shared.text) if shared else None
        return None

    @cached_property
    def _packed_calls(self) -> list[Call]:
        """The newest first."""
        calls = read_journal(self.batch).calls.values()
        return [call for call in reversed(calls) if call.pack > 1]


def with_costs(status: RowStatus, written: dict) -> RowStatus:
    """As its status.json counts them. Wasted is what is or was done again, and all of a row
    that has failed, until -r takes it up; of one that was stopped and resumes, the former alone."""
    if "cost" not in written:
        return status
    total, wasted = Cost.of_run(written)
    is_wasted = status.state in ("failed", "lost") and status.kind not in GOES_ON
    return replace(status, cost=total, wasted=total if is_wasted else wasted)


def _queued(row: Row, begun: dict, cause: str | None, job: QueuedJob | None) -> RowStatus:
    """What it has reached is not lost while it waits to go on."""
    number = job.job if job else None
    return RowStatus(row, "queued", cause=cause, job=number, progress=_progress(begun))


def _rows_of_local_runner(batch: Batch) -> tuple[set[str], float]:
    """(rows, since when) of `submit_multiple.py -s local` where it is at this batch now."""
    try:
        facts = runner(batch) or {"rows": []}
        since = (batch.submissions / "local.json").stat().st_mtime if facts["rows"] else 0.0
        return {name for name in facts["rows"] if isinstance(name, str)}, since
    except (OSError, KeyError, TypeError):  # gone by now, or garbage
        return set(), 0.0


def _is_of_earlier_attempt(status: dict, attempt: Attempt | None, job: QueuedJob | None) -> bool:
    """Whether the row was begun again since, and that attempt has not come to a status."""
    if job and status.get("job") not in (None, job.job):
        return True
    updated = seconds_of(status.get("updated"))
    if updated is None or attempt is None or attempt.started is None:
        return False
    return updated < int(attempt.started)


# ---- Facts that may be missing, torn or of a wrong type -----------------------------------


def _text(value: object) -> str | None:
    return one_line(value, LONGEST_CAUSE) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _seconds(status: dict, end: float | None) -> float | None:
    """Of this attempt from the beginning of its process up to its end, and of those before it."""
    start = seconds_of(status.get("started"))
    if start is None or end is None:
        return None
    others = [_number(status.get(key)) or 0.0 for key in ("seconds_to_start", "seconds_before")]
    return max(0.0, end - start) + sum(others)


def _progress(status: dict) -> float:
    return min(max(_number(status.get("progress")) or 0.0, 0.0), 1.0)


def _node(status: dict, attempt: Attempt | None) -> str | None:
    return (attempt and attempt.node) or _text(status.get("host"))


def _job(status: dict, attempt: Attempt | None) -> str | None:
    return (attempt and attempt.job) or _text(status.get("job"))


def _reason(reason: str) -> str | None:
    return None if reason in ("", "None") else one_line(reason, LONGEST_CAUSE)
