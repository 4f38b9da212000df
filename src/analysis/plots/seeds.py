"""Settings of a big_df, and their numbers over seeds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from src.analysis.curves import CurveArray, main_metrics, numbers
from src.analysis.settings import groups, varying
from src.names import bad_value, unknown_name


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

    values: np.ndarray  # (runs,)
    is_broken: np.ndarray  # (runs,)

    def of(self, setting: Setting) -> np.ndarray:
        """(seeds,) Those that are there; NaN where a run diverged."""
        values = self.values[setting.rows]
        return values[np.isfinite(values) | self.is_broken[setting.rows]]

    def mean(self, setting: Setting) -> float:
        """NaN where a seed diverged: the others alone would flatter the setting."""
        values = self.of(setting)
        return float(values.mean()) if len(values) else np.nan

    def counts(self, settings: Iterable[Setting]) -> list[int]:
        """Of the runs that each mean is over."""
        return [len(self.of(setting)) for setting in settings]

    def has_broken(self, setting: Setting) -> bool:
        return bool(self.is_broken[setting.rows].any())


def numbers_of(df: pd.DataFrame, column: str, when: str | float) -> Numbers:
    """Raises UserError where there is no such column, or it holds no numbers."""
    values = numbers(df, column, when).to_numpy(dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    ends = numbers(df, column, "last").to_numpy(dtype=float)
    has_curve = np.zeros(len(df), dtype=bool)
    if df[column].dtype == "curve":
        has_curve = np.diff(cast(CurveArray, df[column].array).cells, axis=1)[:, 0] > 0
    return Numbers(values, np.isnan(values) & has_curve & ~np.isfinite(ends))


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
