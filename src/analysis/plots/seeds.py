"""Settings of a big_df, and their numbers over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from src.analysis.choice import diverged, values_of
from src.analysis.curves import CurveArray, main_metrics, numbers
from src.analysis.settings import groups, seeds_of, varying
from src.ranking import Run, Standing, rank
from src.support import bad_value, unknown_name


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seeds only."""

    values: dict[str, Any]
    rows: np.ndarray  # their positions in the dataframe

    @property
    def row(self) -> int:
        """Any of them: they agree in what matters."""
        return int(self.rows[0])


def settings_of(df: pd.DataFrame, keys: Iterable[str | None]) -> list[Setting]:
    """By all varying keys and those given, in their order."""
    wanted = list(dict.fromkeys([*varying(df), *(key for key in keys if key)]))
    table = df[wanted].reset_index(drop=True)
    return [Setting(values, rows.index.to_numpy()) for values, rows in groups(table, wanted)]


@dataclass(frozen=True)
class Numbers:
    """A number a run, and which of them are missing because the run diverged."""

    values: np.ndarray  # (runs,) NaN where it is missing
    is_broken: np.ndarray  # (runs,)
    seeds: np.ndarray  # (runs,) equal numbers for equal seeds

    def standing(self, setting: Setting) -> Standing:
        """By itself: it expects the seeds that it has."""
        parts = (self.seeds, self.values, self.is_broken)
        runs = zip(*(part[setting.rows].tolist() for part in parts), strict=True)
        return rank([[Run(*run) for run in runs]], 1)[0]

    def of(self, setting: Setting) -> np.ndarray:
        """(seeds,) Those that are there; NaN where one diverged."""
        found = self.standing(setting)
        return np.array([*found.values, *[np.nan] * found.num_diverged], dtype=float)

    def mean(self, setting: Setting) -> float:
        """NaN where a seed diverged: the others alone would flatter the setting."""
        values = self.of(setting)
        return float(values.mean()) if len(values) else np.nan

    def counts(self, settings: Iterable[Setting]) -> list[int]:
        """Of the seeds that each mean is over."""
        return [len(self.of(setting)) for setting in settings]

    def has_broken(self, setting: Setting) -> bool:
        return self.standing(setting).num_diverged > 0

    def rank(self, setting: Setting, sign: int) -> tuple[float, float]:
        """Lower is better, as src/ranking.py has it. Infinite: no seed has a value."""
        return self.standing(setting).order(sign)


def best_of(settings: Sequence[Setting], judged: Numbers, sign: int) -> Setting:
    """The one that choose() would choose; where none has a value, one that diverged."""

    def order(setting: Setting) -> tuple[float, float, bool]:
        standing = judged.standing(setting)
        return *standing.order(sign), not standing.num_seeds and not standing.num_diverged

    return min(settings, key=order)


def numbers_of(df: pd.DataFrame, column: str, when: str | float) -> Numbers:
    """A run that diverged is broken whatever it reached before, as is one that ends in NaN.

    Raises UserError where there is no such column, or it holds no numbers.
    """
    values = values_of(df, column, when)
    ends = np.where(diverged(df), np.nan, numbers(df, column).to_numpy(dtype=float))
    if df[column].dtype == "curve":
        is_there = np.diff(cast(CurveArray, df[column].array).cells, axis=1)[:, 0] > 0
    else:
        is_there = np.isfinite(numbers(df, column).to_numpy(dtype=float))
    _, seeds = np.unique(seeds_of(df), return_inverse=True)
    return Numbers(values, np.isnan(values) & is_there & ~np.isfinite(ends), seeds)


def metrics_of(df: pd.DataFrame, metric: str | None) -> tuple[str, str]:
    """(the column to choose by, the column to show); one that is asked for is both."""
    if metric is None:
        return main_metrics(df)
    if metric not in df:
        known = [str(name) for name in df.columns if df[name].dtype == "curve"]
        raise unknown_name("metric", metric, known)
    return metric, metric


def curves_of(df: pd.DataFrame, metric: str) -> pd.Series:
    """Raises UserError where the metric has no curves."""
    if df[metric].dtype != "curve":
        raise bad_value("metric", metric, "a column of curves")
    return df[metric]
