"""How far batches are, and their best settings: all that report.py shows."""

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
from typing import Any

from src.grid.damage import problem_of_configuration, problem_of_stats
from src.grid.failures import MENDABLE, Group, group_rows, retry_command
from src.grid.folders import Batch, Row, count_runs, open_batch, row_identity, same
from src.grid.journal import Journal
from src.grid.local import runner
from src.grid.slurm.commands import NoSlurm, QueuedJob, queued_rows, read_queue
from src.grid.status import RowStatus, read_journal, row_statuses
from src.logging import Cost
from src.metrics import (
    LOSS_KEYS,
    OF_LOSS,
    direction,
    main_columns,
    metric_columns,
    metric_name,
)
from src.ranking import NON_SEMANTIC_KEYS, SEEDS, Run, Standing, rank
from src.support import ROOT, UserError

RESULTS = Path("results")
MOST_BATCHES = 5  # where none is named
MOST_DAMAGED = 5  # rows that are named
SECONDS_TO_KNOW = 20.0  # of training, after which its pace says how long it will take


@dataclass(frozen=True)
class Reached:
    """A row, and what it has reached in its last epoch."""

    status: RowStatus
    epoch: int | None
    values: Mapping[str, float]  # column -> value

    def run(self, column: str) -> Run:
        """What the ranking needs to know. A failed row has no value: it is to be run again."""
        values, state = self.status.row.values, self.status.state
        seeds = tuple(same(values.get(key)) for key in SEEDS)  # null: each run draws its own
        value = math.nan if state == "failed" else self.values.get(column, math.nan)
        seed = self.status.row.name if None in seeds else seeds
        return Run(seed, value, self.status.outcome == "diverged")


@dataclass(frozen=True)
class Best:
    """A setting, that is rows that differ in seeds only, and what it has reached so far."""

    rows: list[Reached]
    column: str
    standing: Standing

    def values(self, keys: Iterable[str]) -> dict[str, Any]:
        return {key: self.rows[0].status.row.values.get(key) for key in keys}

    @property
    def value_in_words(self) -> str:
        """'0.9512 ± 0.0031', the mean and the standard deviation over seeds; '-': no value."""
        found = self.standing
        spread = f" ± {found.std:.2g}" if found.num_seeds > 1 else ""
        return f"{found.mean:.5g}{spread}" if found.num_seeds else "-"

    @property
    def seeds_in_words(self) -> str:
        """'3 seeds', '2 of 3 seeds, 1 diverged'."""
        found = self.standing
        of = f"of {found.num_expected} " if found.num_seeds < found.num_expected else ""
        words = f"{found.num_seeds} {of}seed{'s' * (found.num_expected > 1)}"
        return words + (f", {found.num_diverged} diverged" if found.num_diverged else "")


@dataclass(frozen=True)
class Report:
    """What is known of one batch."""

    batch: Batch
    journal: Journal
    is_queue_unknown: bool  # Slurm was asked to run rows, but cannot be asked about them
    statuses: list[RowStatus]
    columns: list[str]  # that settings are ranked by
    best: list[Best]  # the best settings
    num_slots: int = 0  # rows that this machine runs at a time, where it runs some now

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(status.state for status in self.statuses)

    @property
    def keys(self) -> list[str]:
        """Those in which settings differ."""
        return [k for k in self.batch.varying if k not in SEEDS and k not in NON_SEMANTIC_KEYS]

    @property
    def doubts(self) -> list[str]:
        """Why the values of the best settings may mislead."""
        measured = {metric_name(column) for column in self.columns}
        differing = [key for key in LOSS_KEYS if key in self.keys and measured & set(OF_LOSS)]
        found = [f"not comparable: {', '.join(differing)} differ"] if differing else []
        if any(column.startswith("test/") for column in self.columns):
            found.append("chosen and reported on the same split")
        return found

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
        from src.grid.snapshot import changed_since_last_copy, repository_of

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
        return lines + [f"{count_runs(more)} more (report.py --json names all)"] * bool(more)

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

    @cached_property
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
            batch = _opened(path)
            read_journal(batch)
        except UserError as error:  # one broken index or journal need not hide the other batches
            print(error, file=sys.stderr)
        else:
            batches.append(batch)
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
        known = list(dict.fromkeys(c for t in texts.values() for c in columns_of(header_of(t))))
        seen |= set(known)
        columns = columns_to_rank_by(metric, known)
        best = best_settings(statuses, texts, columns)[:num_best]
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


# ---- The best settings -------------------------------------------------------------------


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
    """Most rows of a batch have the same ones; none where it is no header."""
    try:
        return next(csv.reader([header]), [])
    except csv.Error:
        return []


def columns_to_rank_by(metric: str | None, known: Sequence[str]) -> list[str]:
    """The metric's, as metric_columns has it, else the one that main_columns chooses by; none where
    nothing fits, not even in part."""
    if metric is None:
        found = main_columns(known)
        return [found[0]] if found else []
    if any(re.search(metric, column) for column in known):
        return metric_columns(metric, known, key="--metric")
    return []


def best_settings(
    statuses: Iterable[RowStatus], texts: Mapping[str, str], columns: Sequence[str]
) -> list[Best]:
    """All settings in which a run has a value or diverged, as src/ranking.py ranks them.

    texts: the rows' stats.csv. Of several columns a setting counts by its best one.
    """
    rows = [Reached(status, *end_of(texts.get(status.row.name, ""))) for status in statuses]
    settings = settings_of(rows)
    found = []
    for column in columns:
        sign = direction(column)
        standings = rank([[row.run(column) for row in setting] for setting in settings], sign)
        there = [s for s in standings if s.num_seeds or s.num_diverged]
        found += [(s.order(sign), s.index, Best(settings[s.index], column, s)) for s in there]
    first: dict[int, Best] = {}
    for _, index, best in sorted(found, key=lambda one: one[0]):
        first.setdefault(index, best)
    return list(first.values())


def settings_of(rows: Iterable[Reached]) -> list[list[Reached]]:
    """The rows that differ in seeds and in what has no effect only, together."""
    found: dict[Any, list[Reached]] = {}
    for row in rows:
        values = row.status.row.values
        asked = {k: v for k, v in values.items() if k not in SEEDS and k not in NON_SEMANTIC_KEYS}
        # a learning rate that each run draws by its seed is another one in each
        drawn = row.status.row.name if is_expression(values.get("base_lr")) else ""
        found.setdefault((row_identity(asked), drawn), []).append(row)
    return list(found.values())


def is_expression(value: Any) -> bool:
    """Whether it is text that stands for no single number."""
    try:
        float(value if isinstance(value, str) else 0)
    except ValueError:
        return True
    return False


def end_of(text: str) -> tuple[int | None, dict[str, float]]:
    """(the last epoch, column -> its value there) of a stats.csv; NaN where there is no number."""
    header, (*_, last) = columns_of(header_of(text)), ["", *text.rstrip("\n").split("\n")[1:]]
    cells = last.split(",")  # numbers and times: no quotes
    values = {name: _number(cell) for name, cell in zip(header, cells, strict=False) if name}
    epoch = values.get("epoch", math.nan)
    return int(epoch) if math.isfinite(epoch) else None, values


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # empty where the run diverged; a time
        return math.nan


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
