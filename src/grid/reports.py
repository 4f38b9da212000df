"""How far batches are, what failed why, what they cost: all that report.py and messages show."""

import csv
import heapq
import json
import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from src.grid.folders import Batch, Row, count_runs, open_batch, row_identity, same
from src.grid.journal import Journal, queued_rows
from src.grid.slurm import NoSlurm, read_queue
from src.grid.status import (
    KINDS,
    NAMES,
    RowStatus,
    problem_of_configuration,
    read_journal,
    row_statuses,
    runner,
)
from src.logging import Cost
from src.metrics import (
    LOSS_KEYS,
    LOSS_METRICS,
    direction,
    main_columns,
    metric_columns,
    metric_name,
)
from src.ranking import NON_SEMANTIC_KEYS, SEEDS, Run, Standing, rank
from src.support import ROOT, UserError, one_line

RESULTS = Path("results")
MOST_BATCHES = 5  # where none is named
MOST_DAMAGED = 5  # runs that are named
MENDABLE = {"error", "oom", "killed"}  # by other code; other runs resume with that of before
SAME = 80  # characters that are alike in the same causes, which may be cut off soon after
SECONDS_TO_KNOW = 20.0  # of training, after which its pace says how long it will take
WITHIN_A_SETTING = {*SEEDS, *NON_SEMANTIC_KEYS}  # keys in which the runs of a setting may differ


@dataclass(frozen=True)
class Report:
    """What is known of one batch."""

    batch: Batch
    journal: Journal
    is_queue_unknown: bool  # Slurm was asked to run some, but cannot be asked about them
    statuses: list[RowStatus]
    columns: list[str]  # that settings are ranked by
    best: list["RankedSetting"]
    num_slots: int = 0  # runs that this machine runs at a time, where it runs some now

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(status.state for status in self.statuses)

    @property
    def keys(self) -> list[str]:
        """Those in which settings differ."""
        return [key for key in self.batch.varying if key not in WITHIN_A_SETTING]

    @property
    def doubts(self) -> list[str]:
        """Why the values of the best settings may mislead."""
        measured = {metric_name(column) for column in self.columns}
        differing = [key for key in LOSS_KEYS if key in self.keys and measured & set(LOSS_METRICS)]
        found = [f"not comparable: {', '.join(differing)} differ"] if differing else []
        if any(column.startswith("test/") for column in self.columns):
            found.append("chosen and reported on the same split")
        return found

    @property
    def ranking_text(self) -> str:
        """'by test/last/accuracy (chosen and reported on the same split)'"""
        doubts = f" ({'; '.join(self.doubts)})" if self.doubts else ""
        return f"by {', '.join(self.columns)}{doubts}"

    @property
    def num_diverged(self) -> int:
        return sum(status.outcome == "diverged" for status in self.statuses)

    @property
    def progress(self) -> float:
        return sum(s.progress for s in self.statuses) / max(len(self.statuses), 1)

    @property
    def seconds_left(self) -> float | None:
        return seconds_left(self.statuses, self.num_slots)

    @property
    def damage(self) -> list[str]:
        """Which runs cannot be read, and why; at most a few lines."""
        damaged = [s for s in self.statuses if s.damage]
        lines = [f"{s.row.name}: {s.damage}" for s in damaged[:MOST_DAMAGED]]
        more = len(damaged) - len(lines)
        return lines + [f"{count_runs(more)} more (report.py --json names all)"] * bool(more)

    @property
    def cost(self) -> Cost:
        """Of all runs whose status tells it."""
        return sum((status.cost or Cost() for status in self.statuses), Cost())

    @property
    def wasted(self) -> Cost:
        """Of the cost: failed runs, and what killed ones did after their last saved state."""
        return sum((status.wasted or Cost() for status in self.statuses), Cost())

    @property
    def cost_text(self) -> str | None:
        """'12 core-hours; wasted 10%, 1.2 core-hours (…)'; None where nobody has counted."""
        cost, wasted = self.cost, self.wasted

        def in_hours(part: Cost) -> str:
            gpu_hours = f" and {_hours(part.gpu_seconds)} GPU-hours" if cost.gpu_seconds else ""
            return f"{_hours(part.core_seconds)} core-hours{gpu_hours}"

        if not cost.core_seconds + cost.gpu_seconds:
            return None
        if not wasted.core_seconds + wasted.gpu_seconds:
            return in_hours(cost)
        dear = "gpu_seconds" if cost.gpu_seconds else "core_seconds"
        share = f"{getattr(wasted, dear) / getattr(cost, dear):.0%}"
        return f"{in_hours(cost)}; wasted {share}, {in_hours(wasted)} (failed, or lost to kills)"

    @cached_property
    def groups(self) -> list["FailureGroup"]:
        """What one would run again, without the runs that a silent Slurm may hold."""
        groups = group_failures(self.statuses, self.batch.varying)
        return [g for g in groups if not (self.is_queue_unknown and g.only == "unstarted")]

    @cached_property
    def changed_code(self) -> list[str]:
        """The files that have changed since the batch's code was frozen, where runs failed of which
        other code might be the remedy: git and all files are asked only then."""
        if not any(group.only in MENDABLE for group in self.groups):
            return []
        from src.grid.snapshot import changed_since_last_copy, repository_of  # imports numpy

        return changed_since_last_copy(repository_of(ROOT), self.batch.path)

    def retry_command(self, only: str | None) -> str:
        """What a person types to submit these runs again, as the last submission was.

        only: a kind, lost or unstarted; None: all that is not done.
        """
        last = self.journal.last_options
        command = ["python", "submit_multiple.py", "-r", short_path(self.batch.path)]
        command += ["-s", str(last.script), *["--no-array"] * last.no_array]
        command += ["--pack", str(last.pack)] if last.pack > 1 else []
        command += ["--only", only] if only else []
        kinds = {only} if only else {group.only for group in self.groups}
        command += ["--refreeze"] * (kinds <= MENDABLE and bool(self.changed_code))
        return shlex.join(command + (["--", *last.extra] if last.extra else []))


def _hours(seconds: float) -> str:
    """Two or three digits that count, down to a few seconds."""
    if 0 < seconds < 3.6:
        return "<0.001"
    return f"{seconds / 3600:,.0f}" if seconds >= 360_000 else f"{seconds / 3600:.3g}"


def describe(values: Mapping[str, Any]) -> str:
    """'lr=0.1 bs=32': what a run was given, each value in a few characters."""

    def short(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        return one_line(value if isinstance(value, str) else json.dumps(value, default=str), 40)

    return " ".join(f"{key}={short(value)}" for key, value in values.items())


def short_path(path: Path) -> str:
    """Relative to the working directory where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# ---- Reading -----------------------------------------------------------------------------


def read_reports(
    named: Sequence[str | Path], metric: str | None = None, num_best: int = 3
) -> tuple[list[Report], int]:
    """(a report for each of these batches, else for the newest few; how many older ones there are).

    What cannot be read of a batch is printed to stderr. Raises UserError where there is no batch,
    a named one cannot be read, or none has the metric, a pattern of columns.
    """
    paths = [Path(path) for path in named] or find_batches(RESULTS)
    if not paths:
        raise UserError(f"{RESULTS}: no batch there; python report.py FOLDER names one")
    num_older = 0 if named else max(0, len(paths) - MOST_BATCHES)
    batches: list[tuple[Batch, Journal]] = []
    for path in paths[: len(paths) - num_older]:
        try:
            batch = open_batch(path)
            if batch.damage:
                print(batch.damage, file=sys.stderr)
            batches.append((batch, read_journal(batch)))
        except UserError as error:
            if named:
                raise
            print(error, file=sys.stderr)  # one broken index or journal hides no other batch
    try:
        jobs = read_queue() if any(journal.calls for _, journal in batches) else None
    except NoSlurm:
        jobs = None
    found, seen = [], set()
    for batch, journal in batches:
        queue = None if jobs is None or not batch.is_ours else queued_rows(batch, journal, jobs)
        statuses, stats = row_statuses(batch, queue), {}
        for i, status in enumerate(statuses):
            damage = status.damage or problem_of_configuration(str(status.row.folder))
            if status.state != "unstarted":
                is_done = status.state == "done"
                stats[status.row.name], problem = read_stats_text(status.row, is_done=is_done)
                damage = damage or problem
            statuses[i] = replace(status, damage=damage) if damage else status
        headers = dict.fromkeys(text.partition("\n")[0] for text in stats.values())
        known = list(dict.fromkeys(column for text in headers for column in columns_of(text)))
        seen |= set(known)
        columns = columns_to_rank_by(metric, known)
        best = rank_settings(statuses, stats, columns)[:num_best]
        is_unknown = queue is None and bool(journal.calls)
        slots = (runner(batch) or {}).get("jobs")  # older runners do not tell
        slots = slots if isinstance(slots, int) else 0
        found.append(Report(batch, journal, is_unknown, statuses, columns, best, slots))
    if metric and seen and not any(report.columns for report in found):
        metric_columns(metric, sorted(seen), key="--metric")  # raises
    return found, num_older


def find_batches(folder: Path) -> list[Path]:
    """The batches in a folder, the newest first."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        marks = [mark for name in ("rows.jsonl", "job.yaml") if (mark := path / name).is_file()]
        if marks:
            found[path] = marks[0].stat().st_mtime
    return sorted(found, key=lambda path: (found[path], path), reverse=True)


# ---- The best settings, by the last line of each run's stats.csv --------------------------

# A setting is a configuration without its seeds; src/ranking.py ranks them. The files are read by
# hand: pandas takes most of a second to import, and ten times as long for 10,000 of them.


@dataclass(frozen=True)
class RunResult:
    """What a run has reached in its last epoch."""

    status: RowStatus
    epoch: int | None
    values: Mapping[str, float]  # column -> value

    def ranked_by(self, column: str) -> Run:
        """What the ranking needs to know. A failed run has no value: it is to be run again."""
        values, state = self.status.row.values, self.status.state
        seeds = tuple(same(values.get(key)) for key in SEEDS)  # null: each run draws its own
        value = math.nan if state == "failed" else self.values.get(column, math.nan)
        seed = self.status.row.name if None in seeds else seeds
        return Run(seed, value, self.status.outcome == "diverged")


@dataclass(frozen=True)
class RankedSetting:
    """The runs of a setting, and what they have reached so far."""

    results: list[RunResult]
    column: str
    standing: Standing

    def values(self, keys: Iterable[str]) -> dict[str, Any]:
        return {key: self.results[0].status.row.values.get(key) for key in keys}

    @property
    def value_text(self) -> str:
        """'0.9512 ± 0.0031', the mean and the standard deviation over seeds; '-': no value."""
        found = self.standing
        spread = f" ± {found.std:.2g}" if found.num_seeds > 1 else ""
        return f"{found.mean:.5g}{spread}" if found.num_seeds else "-"

    @property
    def seeds_text(self) -> str:
        """'3 seeds', '2 of 3 seeds, 1 diverged'."""
        found = self.standing
        of = f"of {found.num_expected} " if found.num_seeds < found.num_expected else ""
        words = f"{found.num_seeds} {of}seed{'s' * (found.num_expected > 1)}"
        return words + (f", {found.num_diverged} diverged" if found.num_diverged else "")


def rank_settings(
    statuses: Iterable[RowStatus], stats: Mapping[str, str], columns: Sequence[str]
) -> list[RankedSetting]:
    """All settings in which a run has a value or diverged, the best first.

    stats: folder -> the text of its stats.csv. Of several columns a setting counts by its best one.
    """
    settings: dict[Any, list[RunResult]] = {}
    for status in statuses:
        name, values = status.row.name, status.row.values
        setting = {k: v for k, v in values.items() if k not in WITHIN_A_SETTING}
        drawn = ""
        try:
            float(rate if isinstance(rate := values.get("base_lr"), str) else 0)
        except ValueError:  # a learning rate that each run draws by its seed is another in each
            drawn = name
        result = RunResult(status, *last_epoch(stats.get(name, "")))
        settings.setdefault((row_identity(setting), drawn), []).append(result)
    found, runs_of = [], list(settings.values())
    for column in columns:
        sign = direction(column)
        for standing in rank([[r.ranked_by(column) for r in runs] for runs in runs_of], sign):
            if standing.num_seeds or standing.num_diverged:
                found.append((standing.order(sign), column, standing))
    best: dict[int, RankedSetting] = {}
    for _, column, standing in sorted(found, key=lambda one: one[0]):
        best.setdefault(standing.index, RankedSetting(runs_of[standing.index], column, standing))
    return list(best.values())


def columns_to_rank_by(metric: str | None, known: Sequence[str]) -> list[str]:
    """Those of the metric, by metric_columns, else the one that main_columns chooses by; none
    where nothing fits, not even in part."""
    if metric is None:
        found = main_columns(known)
        return [found[0]] if found else []
    if any(re.search(metric, column) for column in known):
        return metric_columns(metric, known, key="--metric")
    return []


def read_stats_text(row: Row, *, is_done: bool) -> tuple[str, str | None]:
    """(stats.csv up to its last whole line, '' where there is none; what is wrong with it)."""
    text, problem = "", None
    try:
        with open(f"{row.folder}/stats.csv", encoding="utf-8", errors="replace") as file:
            text = file.read().rpartition("\n")[0]
        problem = None if text else "nothing in it"
    except FileNotFoundError:
        pass  # a run that has just begun has none
    except OSError as error:
        problem = error.strerror
    num_commas, (_, *lines) = len(columns_of(text)) - 1, text.split("\n")
    if any(line.count(",") != num_commas for line in lines):
        problem = "lines of different lengths"
    elif is_done and not lines:
        problem = problem or "nothing in it, though the run is done"
    return text, problem and f"stats.csv: {problem}"


def columns_of(stats: str) -> list[str]:
    """None where its first line is no header."""
    try:
        return next(csv.reader([stats.partition("\n")[0]]), [])
    except csv.Error:
        return []


def last_epoch(stats: str) -> tuple[int | None, dict[str, float]]:
    """(its number, column -> value) of a stats.csv; NaN where there is no number."""
    *_, last = ["", *stats.rstrip("\n").split("\n")[1:]]
    values = {}
    for name, cell in zip(columns_of(stats), last.split(","), strict=False):  # it has no quotes
        try:
            values[name] = float(cell)
        except ValueError:  # empty where the run diverged; a time
            values[name] = math.nan
    values.pop("", None)
    epoch = values.get("epoch", math.nan)
    return int(epoch) if math.isfinite(epoch) else None, values


# ---- What failed in the same way ---------------------------------------------------------


@dataclass(frozen=True)
class FailureGroup:
    """Runs that are not done for the same reason."""

    rows: list[str]  # names of their folders
    only: str  # a kind, lost or unstarted: what --only takes
    cause: str  # of the first of them
    shared: dict[str, Any]  # varying keys that have this one value in all of them
    node: str | None  # where all of them were, though the batch was elsewhere too

    @property
    def headline(self) -> str:
        """'17 runs: out of memory, all with batch_size=8192'; of a single run its name."""
        what = (KINDS | NAMES).get(self.only, self.only)
        if len(self.rows) == 1:
            return f"1 run: {what}, {self.rows[0]}"
        shared = f", all with {describe(self.shared)}" if self.shared else ""
        node = f", all on node {self.node}" if self.node else ""
        return f"{len(self.rows)} runs: {what}{shared}{node}"

    @property
    def detail(self) -> str | None:
        """The cause, where the headline does not say as much."""
        is_known = self.only == "lost" or self.cause in ("never started", KINDS.get(self.only))
        return None if is_known else self.cause


def group_failures(statuses: Sequence[RowStatus], varying: Sequence[str]) -> list[FailureGroup]:
    """The runs to run again (interrupted, failed, lost, unstarted) by cause: kinds together, the
    largest group first."""
    nodes = {status.node for status in statuses if status.node}
    members: dict[tuple[str, str], list[RowStatus]] = {}
    for status in statuses:
        if status.state in ("interrupted", "failed", "lost", "unstarted"):
            only = status.kind or status.state
            members.setdefault((only, normalize_cause(status.cause or "")), []).append(status)
    groups, sizes = [], Counter[str]()
    for (only, _), alike in members.items():
        first, shared, node = alike[0], dict[str, Any](), None
        if len(alike) > 1:  # one run alone shares nothing
            every = [status.row.values for status in alike]
            same = [k for k in varying if all(v.get(k) == every[0].get(k) for v in every)]
            shared = {key: every[0].get(key) for key in same}
            is_one_node = len(nodes) > 1 and {s.node for s in alike} == {first.node}
            node = first.node if is_one_node else None
        names = [status.row.name for status in alike]
        groups.append(FailureGroup(names, only, first.cause or only, shared, node))
        sizes[only] += len(names)
    return sorted(groups, key=lambda g: (-sizes[g.only], g.only, -len(g.rows)))


def normalize_cause(cause: str) -> str:
    """Equal for causes that differ in numbers, sizes, addresses, paths, or late."""
    for pattern, placeholder in (
        (r"0x[0-9a-fA-F]+", "ADDRESS"),
        (r"(?<![\w.])[~.]{0,2}/[^\s'\",:;)\]]+", "PATH"),
        (r"\d[\d.,]*\s?([kKMGT]i?B|bytes)\b", "SIZE"),
        (r"[-+]?\d[\d.,_]*(e[-+]?\d+)?", "N"),
    ):
        cause = re.sub(pattern, placeholder, cause)
    return cause[:SAME]


# ---- Time left ---------------------------------------------------------------------------


def seconds_left(statuses: Sequence[RowStatus], num_slots: int = 0) -> float | None:
    """Until what runs and waits is done; None where nobody can tell.

    num_slots: runs at a time, at least those that run now. A run is thought to take as long as
    those that were started, with all that it needs to start and to end; its own estimate, from the
    pace of its training, counts where that has lasted for a while.
    """
    # The mean of those that are done and of those that know how long they will take: of runs side
    # by side the fast ones are done first.
    known, expected = list[float](), list[float]()
    for status in statuses:
        if status.seconds is not None and status.state == "done":
            known.append(status.seconds)
        elif status.seconds is not None and status.seconds_left is not None:
            both = status.seconds + status.seconds_left
            (known if _is_well_known(status) else expected).append(both)
    taken = known or expected
    mean = sum(taken) / len(taken) if taken else None
    running = [s for s in statuses if s.state == "running"]
    slots = [0.0] * (num_slots - len(running))  # when each is free
    for status in running:
        if status.seconds_left is not None and (_is_well_known(status) or mean is None):
            slots.append(status.seconds_left)
        elif mean is None:
            return None
        else:
            begun = status.progress if status.seconds_left is None else 0.0  # by earlier attempts
            slots.append(max(0.0, mean * (1 - begun) - (status.seconds or 0.0)))
    queued = [s for s in statuses if s.state == "queued"]
    if not queued:
        return max(slots, default=0.0)
    if mean is None or not slots:
        return None
    heapq.heapify(slots)
    for status in queued:  # each takes the slot that is free first
        heapq.heapreplace(slots, slots[0] + mean * (1 - status.progress))
    return max(slots)


def _is_well_known(status: RowStatus) -> bool:
    """Whether a run's own estimate is worth something: the first steps take longer."""
    left, progress = status.seconds_left, status.progress
    if left is None or not progress:
        return False
    return left * progress / max(1 - progress, 1e-9) >= SECONDS_TO_KNOW
