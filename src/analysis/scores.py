"""Scores: one number for each run, and what they come to over the seeds of a setting.

Which setting is best is decided by src/ranking.py, here as everywhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from src.analysis.curves import CurveArray, main_metrics, numbers
from src.analysis.settings import groups, seeds_of, varying
from src.ranking import Run, Standing, rank
from src.support import bad_value, unknown_name

LEVEL = 0.95
INTERVAL = "95 % Student's t interval of the mean"  # in captions


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high), each (…), of values (seeds, …): Student's 95 % interval of the mean.

    mean ± t · s / √n, with the quantile t of n - 1 degrees of freedom (Student 1908). It holds
    from two seeds on where they are about normally distributed: of two it is 12.7 · s / √2 wide on
    each side. NaN where there is none: of one seed, of a NaN, and of values that are all equal,
    as those are that do not depend on the seed.
    """
    values = np.asarray(values, dtype=float)
    num, nothing = len(values), np.full(values.shape[1:], np.nan)
    if num < 2:
        return (values[0] if num else nothing), nothing, nothing
    # scipy.stats.t has the same quantile, after a second of imports; the bootstrap of three seeds
    # covers the mean in 77 % of experiments, not in 95
    from scipy.special import stdtrit

    mean = values.mean(axis=0)
    half = stdtrit(num - 1, (1 + LEVEL) / 2) * values.std(axis=0, ddof=1) / np.sqrt(num)
    half = np.where(np.ptp(values, axis=0) > 0, half, np.nan)
    return mean, mean - half, mean + half


# ---- One number for each run -------------------------------------------------------------


def diverged(df: pd.DataFrame) -> np.ndarray:
    """(runs,) Whether each run ended so."""
    if "outcome" not in df:
        return np.zeros(len(df), dtype=bool)
    return df["outcome"].eq("diverged").to_numpy(dtype=bool, na_value=False)


def scores_of(df: pd.DataFrame, column: str, when: str | float) -> np.ndarray:
    """(runs,) NaN where a run has no finite value, diverged or failed: it may have been good."""
    values = numbers(df, column, when).to_numpy()
    has_failed = df["state"].eq("failed").to_numpy() if "state" in df else np.zeros(len(df))
    is_out = diverged(df) | np.asarray(has_failed, dtype=bool)
    return np.where(np.isfinite(values) & ~is_out, values, np.nan)


def metrics_of(df: pd.DataFrame, metric: str | None) -> tuple[str, str]:
    """(the column to choose by, the column to show); a requested metric is both."""
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


# ---- Settings and their scores -----------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seeds only."""

    values: dict[str, Any]  # of the keys that make the setting
    rows: np.ndarray  # positions of the runs in the dataframe

    @property
    def row(self) -> int:
        """One of them, to look up what they share."""
        return int(self.rows[0])


def settings_of(df: pd.DataFrame, keys: Iterable[str | None] = ()) -> list[Setting]:
    """The settings by all varying keys and those given, ordered by their values."""
    wanted = list(dict.fromkeys([*varying(df), *(key for key in keys if key)]))
    table = df[wanted].reset_index(drop=True)  # two batches may have runs of the same name
    return [Setting(values, rows.index.to_numpy()) for values, rows in groups(table, wanted)]


@dataclass(frozen=True)
class Scores:
    """The scores of all runs by one metric, averaged by setting."""

    values: np.ndarray  # (runs,) NaN where a run has none
    is_diverged: np.ndarray  # (runs,) whether it has none because the run diverged
    seeds: np.ndarray  # (runs,) equal numbers for equal seeds

    def standing(self, setting: Setting) -> Standing:
        """The setting on its own: it is expected to have the seeds that it has."""
        parts = (self.seeds, self.values, self.is_diverged)
        runs = zip(*(part[setting.rows].tolist() for part in parts), strict=True)
        return rank([[Run(*run) for run in runs]], 1)[0]

    def of(self, setting: Setting) -> np.ndarray:
        """(seeds,) Of each seed that has a score; NaN of those that diverged."""
        standing = self.standing(setting)
        return np.array([*standing.values, *[np.nan] * standing.num_diverged], dtype=float)

    def mean(self, setting: Setting) -> float:
        """NaN where a seed diverged: the other seeds alone would flatter the setting."""
        values = self.of(setting)
        return float(values.mean()) if len(values) else np.nan

    def counts(self, settings: Iterable[Setting]) -> list[int]:
        """How many seeds each mean is over."""
        return [len(self.of(setting)) for setting in settings]

    def has_diverged(self, setting: Setting) -> bool:
        return self.standing(setting).num_diverged > 0

    def rank(self, setting: Setting, sign: int) -> tuple[float, float]:
        """Lower is better. Infinite in its second part where no seed has a score."""
        return self.standing(setting).order(sign)

    def best(self, settings: Sequence[Setting], sign: int) -> Setting:
        """The setting that choose() would choose; where none has a score, one that diverged."""

        def order(setting: Setting) -> tuple[float, float, bool]:
            standing = self.standing(setting)
            return *standing.order(sign), not standing.num_seeds and not standing.num_diverged

        return min(settings, key=order)


def scores_by(df: pd.DataFrame, column: str, when: str | float = "last") -> Scores:
    """A run that diverged counts as such whatever it reached before, as does one that ends in NaN.

    Raises UserError where there is no such column, or it holds no numbers.
    """
    values, last = scores_of(df, column, when), numbers(df, column).to_numpy(dtype=float)
    if df[column].dtype == "curve":
        is_there = np.diff(cast(CurveArray, df[column].array).cells, axis=1)[:, 0] > 0
    else:
        is_there = np.isfinite(last)
    has_bad_end = diverged(df) | ~np.isfinite(last)
    _, seeds = np.unique(seeds_of(df), return_inverse=True)
    return Scores(values, np.isnan(values) & is_there & has_bad_end, seeds)
