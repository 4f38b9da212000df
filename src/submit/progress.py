"""How far batches are, and their best rows: all that report.py shows."""

import csv
import heapq
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from src.metrics import DIRECTIONS, direction, metric_columns
from src.names import UserError
from src.record.costs import Cost
from src.submit.damage import problem_of_configuration, problem_of_stats
from src.submit.failures import MENDABLE, Group, group_rows, retry_command
from src.submit.folders import Batch, Row, count_rows, open_batch
from src.submit.journal import Journal
from src.submit.local import runner
from src.submit.slurm import NoSlurm, QueuedJob, queued_rows, read_queue
from src.submit.status import RowStatus, read_journal, row_statuses

ROOT = Path(__file__).parents[2]
RESULTS = Path("results")
MOST_BATCHES = 5  # where none is named
MOST_DAMAGED = 5  # rows that are named
SECONDS_TO_KNOW = 20.0  # of training, after which its pace says how long it will take
# The first that a batch has: what is looked at again and again is no test any more.
DEFAULT_METRICS = [f"{split}/.*/{name}" for name in DIRECTIONS for split in ("val", "test")]


@dataclass(frozen=True)
class Best:
    """The best value of a row so far."""

    row: RowStatus
    column: str
    value: float
    epoch: int


@dataclass(frozen=True)
class Report:
    """What is known of one batch."""

    batch: Batch
    journal: Journal
    is_queue_unknown: bool  # Slurm was asked to run rows, but cannot be asked about them
    statuses: list[RowStatus]
    columns: list[str]  # that rows are ranked by
    best: list[Best]
    num_slots: int = 0  # rows that this machine runs at a time, where it runs some now

    @property
    def counts(self) -> Counter[str]:
        return Counter(status.state for status in self.statuses)

    @property
    def num_diverged(self) -> int:
        return sum(status.outcome == "diverged" for status in self.statuses)

    @property
    def progress(self) -> float:
        return sum(s.progress for s in self.statuses) / max(len(self.statuses), 1)

    @cached_property
    def changed_code(self) -> list[str]:
        """The files that have changed since the batch's code was frozen, where rows failed of which
        other code might be the remedy: git and all files are asked only then."""
        if not any(group.only in MENDABLE for group in self.groups):
            return []
        from src.submit.snapshot import changed_since_last_copy, repository_of

        return changed_since_last_copy(repository_of(ROOT), self.batch.path)

    def retry_command(self, only: str | None) -> str:
        """only: a kind, lost or unstarted; None: all that is not done."""
        kinds = {only} if only else {group.only for group in self.groups}
        refreeze = kinds <= MENDABLE and bool(self.changed_code)
        return retry_command(self.batch, self.journal, only, refreeze=refreeze)

    @property
    def damage(self) -> list[str]:
        """Which rows cannot be read, and why; at most a few lines."""
        damaged = [s for s in self.statuses if s.damage]
        lines = [f"{s.row.name}: {s.damage}" for s in damaged[:MOST_DAMAGED]]
        more = len(damaged) - len(lines)
        return lines + [f"{count_rows(more)} more (report.py --json names all)"] * bool(more)

    @property
    def seconds_left(self) -> float | None:
        return seconds_left(self.statuses, self.num_slots)

    @property
    def cost(self) -> Cost:
        """Of all rows whose status tells of it."""
        return sum((status.cost or Cost() for status in self.statuses), Cost())

    @property
    def wasted(self) -> Cost:
        """Of the cost: failed rows, and what killed ones did after their last saved state."""
        return sum((status.wasted or Cost() for status in self.statuses), Cost())

    @property
    def groups(self) -> list[Group]:
        """What one would run again. Rows that a silent Slurm may hold are not among it."""
        groups = group_rows(self.statuses, self.batch.varying)
        return [g for g in groups if not (self.is_queue_unknown and g.only == "unstarted")]


def find_batches(folder: Path) -> list[Path]:
    """The batches in a folder, the newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        marks = [mark for name in ("rows.jsonl", "job.yaml") if (mark := path / name).is_file()]
        if marks:
            found.append((marks[0].stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def chosen_batches(named: Sequence[str]) -> tuple[list[Batch], int]:
    """(those that are named, else the newest; how many older ones there are)."""
    if named:
        return [_opened(path) for path in named], 0
    paths = find_batches(RESULTS)
    if not paths:
        raise UserError(f"{RESULTS}: no batch there; python report.py FOLDER names one")
    batches = []
    for path in paths[:MOST_BATCHES]:
        try:
            batches.append(_opened(path))
        except UserError as error:  # one broken index need not hide the others
            print(error, file=sys.stderr)
    return batches, max(0, len(paths) - MOST_BATCHES)


def _opened(path: str | Path) -> Batch:
    batch = open_batch(path)
    if batch.damage:
        print(batch.damage, file=sys.stderr)
    return batch


def reports(batches: Sequence[Batch], metric: str | None, num_best: int) -> list[Report]:
    """A report for each batch. Raises UserError where none has the metric."""
    journals = [read_journal(batch) for batch in batches]
    jobs = ask_slurm() if any(journal.calls for journal in journals) else None
    found, seen = [], set()
    for batch, journal in zip(batches, journals, strict=True):
        queue = None if jobs is None or not batch.is_ours else queued_rows(batch, journal, jobs)
        statuses = row_statuses(batch, queue)
        texts = {s.row.name: stats_text(s.row) for s in statuses if s.state != "unstarted"}
        statuses = [with_damage(s, texts.get(s.row.name)) for s in statuses]
        known = sorted({c for text in texts.values() for c in columns_of(header_of(text))})
        seen |= set(known)
        columns = columns_to_rank_by(metric, known)
        best = best_rows(statuses, texts, columns)[:num_best]
        is_unknown = queue is None and bool(journal.calls)
        slots = num_slots_here(batch)
        found.append(Report(batch, journal, is_unknown, statuses, columns, best, slots))
    if metric and seen and not any(report.columns for report in found):
        metric_columns(metric, sorted(seen), key="--metric")  # raises
    return found


def with_damage(status: RowStatus, stats: str | None) -> RowStatus:
    """With the first thing in its folder that cannot be read. stats: the text, where it has any."""
    if status.damage:
        return status
    folder = str(status.row.folder)
    damage = problem_of_configuration(folder)
    if damage is None and stats is not None:
        num_columns, is_done = len(columns_of(header_of(stats))), status.state == "done"
        damage = problem_of_stats(folder, stats, num_columns, is_done=is_done)
    return replace(status, damage=damage) if damage else status


def ask_slurm() -> list[QueuedJob] | None:
    """Our jobs; None where Slurm is not here or silent."""
    try:
        return read_queue()
    except NoSlurm:
        return None


# ---- The best rows -----------------------------------------------------------------------


def stats_text(row: Row) -> str:
    """stats.csv up to its last whole line; '' where there is none."""
    try:
        with open(f"{row.folder}/stats.csv", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition("\n")[0]
    except OSError:
        return ""


def header_of(text: str) -> str:
    return text.partition("\n")[0]


@lru_cache(maxsize=256)
def columns_of(header: str) -> list[str]:
    """Most rows of a batch have the same ones."""
    return next(csv.reader([header]), [])


def columns_to_rank_by(metric: str | None, known: Sequence[str]) -> list[str]:
    """The metric's, or those of the first default that there is; none where nothing fits."""
    for pattern in [metric] if metric else DEFAULT_METRICS:
        if any(re.fullmatch(pattern, column) for column in known):
            return metric_columns(pattern, known, key="--metric")
    return []


def best_rows(
    statuses: Iterable[RowStatus], texts: Mapping[str, str], columns: Sequence[str]
) -> list[Best]:
    """All rows that have a value, the best first; of a row its best epoch counts."""
    if not columns:
        return []
    sign = direction(columns[0])
    found = []
    for status in statuses:
        values = list(values_of(texts.get(status.row.name, ""), columns))
        if values:
            value, epoch, column = max(values, key=lambda v: (sign * v[0], -v[1]))
            found.append(Best(status, column, value, epoch))
    return sorted(found, key=lambda best: -sign * best.value)


def values_of(text: str, columns: Sequence[str]) -> Iterable[tuple[float, int, str]]:
    """(value, epoch, column) for all finite values of these columns."""
    header = columns_of(header_of(text))
    wanted = [(i, name) for i, name in enumerate(header) if name in columns]
    epoch_at = header.index("epoch") if "epoch" in header else -1
    for number, line in enumerate(text.splitlines()[1:], 1):
        cells = line.split(",")  # numbers and times: no quotes
        for i, name in wanted:
            try:
                value = float(cells[i])
                epoch = int(cells[epoch_at]) if epoch_at >= 0 else number
            except (ValueError, IndexError):  # empty where the run diverged, or torn
                continue
            if math.isfinite(value):
                yield value, epoch, name


# ---- Time left ---------------------------------------------------------------------------


def num_slots_here(batch: Batch) -> int:
    """How many rows of it this machine runs at a time; 0 where it runs none, or an older copy."""
    jobs = (runner(batch) or {}).get("jobs")
    return jobs if isinstance(jobs, int) else 0


def seconds_left(statuses: Sequence[RowStatus], num_slots: int = 0) -> float | None:
    """Until what runs and waits is done; None where nobody can tell.

    num_slots: rows that run at a time, at least those that run now. A row is thought to take as
    long as those that were begun, with all that it needs to start and to end; its own estimate,
    from the pace of its training, counts where that has lasted for a while.
    """
    running = [s for s in statuses if s.state == "running"]
    queued = [s for s in statuses if s.state == "queued"]
    mean = seconds_per_row(statuses)
    slots = [0.0] * (num_slots - len(running))  # when each is free
    for status in running:
        if status.seconds_left is not None and (_is_well_known(status) or mean is None):
            slots.append(status.seconds_left)
        elif mean is None:
            return None
        else:
            begun = status.progress if status.seconds_left is None else 0.0  # by earlier attempts
            slots.append(max(0.0, mean * (1 - begun) - (status.seconds or 0.0)))
    if not queued:
        return max(slots, default=0.0)
    if mean is None or not slots:
        return None
    heapq.heapify(slots)
    for status in queued:  # each takes the slot that is free first
        heapq.heapreplace(slots, slots[0] + mean * (1 - status.progress))
    return max(slots)


def seconds_per_row(statuses: Iterable[RowStatus]) -> float | None:
    """The mean of those that are done and of those that know how long they will take: of rows
    that run side by side the fast ones are done first. None where there is none."""
    known: list[float] = []
    expected: list[float] = []
    for status in statuses:
        if status.seconds is not None and status.state == "done":
            known.append(status.seconds)
        elif status.seconds is not None and status.seconds_left is not None:
            both = status.seconds + status.seconds_left
            (known if _is_well_known(status) else expected).append(both)
    taken = known or expected
    return sum(taken) / len(taken) if taken else None


def _is_well_known(status: RowStatus) -> bool:
    """Whether a row's own estimate is worth something: the first steps take longer."""
    left, progress = status.seconds_left, status.progress
    if left is None or not progress:
        return False
    seconds_of_training = left * progress / max(1 - progress, 1e-9)
    return seconds_of_training >= SECONDS_TO_KNOW


# ---- Cost --------------------------------------------------------------------------------


def cost_in_words(report: Report) -> str | None:
    """'12 core-hours; in vain 10%, 1.2 core-hours (…)'; None where nobody has counted."""
    cost, wasted = report.cost, report.wasted
    if not cost.core_seconds + cost.gpu_seconds:
        return None
    words, is_gpu = f"{hours(cost.core_seconds)} core-hours", cost.gpu_seconds > 0
    if is_gpu:
        words += f" and {hours(cost.gpu_seconds)} GPU-hours"
    if not wasted.core_seconds + wasted.gpu_seconds:
        return words
    # GPUs are what is dear
    share = (
        wasted.gpu_seconds / cost.gpu_seconds
        if is_gpu
        else (wasted.core_seconds / cost.core_seconds)
    )
    in_vain = f"{hours(wasted.core_seconds)} core-hours"
    in_vain += f" and {hours(wasted.gpu_seconds)} GPU-hours" * is_gpu
    return f"{words}; in vain {share:.0%}, {in_vain} (failed, or lost to kills)"


def hours(seconds: float) -> str:
    """Two or three digits that count, down to a few seconds."""
    number = seconds / 3600
    if 0 < number < 0.001:
        return "<0.001"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
