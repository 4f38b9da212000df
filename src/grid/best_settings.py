"""The best settings of a batch so far, by the last line of each run's stats.csv.

A setting is a configuration without its seeds; src/ranking.py ranks them. The files are read by
hand: pandas takes most of a second to import, and ten times as long for 10,000 of them.
"""

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.grid.folders import Row, row_identity, same
from src.grid.status import RowStatus
from src.metrics import direction, main_columns, metric_columns
from src.ranking import NON_SEMANTIC_KEYS, SEEDS, Run, Standing, rank

WITHIN_A_SETTING = {*SEEDS, *NON_SEMANTIC_KEYS}  # keys in which the runs of a setting may differ


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
