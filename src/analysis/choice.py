"""The best setting of a grid, chosen by validation, and a table of all of them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.curves import at_best, direction_of, main_metrics, numbers
from src.analysis.intervals import mean_interval
from src.analysis.settings import groups, label, seed_warnings, seeds_of, varying
from src.names import UserError, bad_value

SPLITS = "data_splits_map: {train: 'train[:90%]', val: 'train[90%:]', test: test}"
MOST_SHOWN = 3  # settings, or values of a key, in a text


class ChoiceWarning(UserWarning):
    """The figures are there, but they may not mean what they seem to."""


# ---- The best setting, and all of them ---------------------------------------------------


def choose(
    df: pd.DataFrame,
    by: str | None = None,
    report: str | None = None,
    *,
    per: Sequence[str] = (),
    when: str | float = "last",
) -> pd.DataFrame:
    """The setting whose mean of `by` over its seeds is best, and its mean of `report`.

    per: keys; a choice for each combination of their values. when: as in numbers(); with 'best',
    `report` is read in the epoch that is best by `by`. low, high: 95 % interval of its mean.
    A setting with a seed that diverged or has no value is chosen only where none is complete.
    """
    check_runs(df, "df")
    by, report = by or main_metrics(df)[0], report or main_metrics(df)[1]
    values = np.stack([values_of(df, by, when), _reported(df, by, report, when)], axis=1)
    sign = direction_of(by)
    first = [per] if isinstance(per, str) else list(dict.fromkeys(per))
    keys = first + [key for key in varying(df) if key not in first]
    runs = _numbered(df)
    rivals = [_settings(rows, keys, values) for _, rows in groups(runs, first)]
    is_choice = _is_best(when) or any(len(settings) > 1 for settings in rivals)
    texts = _same_split(by, report) if is_choice else []
    chosen = [min(settings, key=lambda one: one.rank(sign)) for settings in rivals]
    texts += _ties(chosen, rivals, sign)
    warn(texts + _weak_means(df, keys, by, values[:, 0]))
    mean, low, high = _intervals(chosen)
    columns = {by: mean[:, 0], report: mean[:, 1], "low": low[:, 1], "high": high[:, 1]}
    return _frame(chosen, keys, columns)


def table(
    df: pd.DataFrame,
    metrics: str | Sequence[str] | None = None,
    *,
    keys: str | Sequence[str] | None = None,
    when: str | float = "last",
) -> pd.DataFrame:
    """A row a setting, the best by the first metric on top, those that lack seeds at the bottom.

    Columns: the keys (those that vary, where none are given), num_seeds, and of each metric its
    mean over the seeds that have the first one, 'metric low' and 'metric high' (95 %).
    """
    check_runs(df, "df")
    names = [metrics] if isinstance(metrics, str) else list(metrics or main_metrics(df))
    names = list(dict.fromkeys(names))
    values = np.stack([values_of(df, name, when) for name in names], axis=1)
    sign = direction_of(names[0])
    keys = [keys] if isinstance(keys, str) else varying(df) if keys is None else list(keys)
    settings = _settings(_numbered(df), keys, values)
    settings.sort(key=lambda one: one.rank(sign))
    warn(_weak_means(df, keys, names[0], values[:, 0]))
    mean, low, high = _intervals(settings)
    columns: dict[str, np.ndarray] = {}
    for i, name in enumerate(names):
        columns |= {name: mean[:, i], f"{name} low": low[:, i], f"{name} high": high[:, i]}
    return _frame(settings, keys, columns)


@dataclass(frozen=True)
class _Setting:
    """What the runs of one setting have in common, and what they reached."""

    keys: dict[str, Any]
    values: np.ndarray  # (seeds that have a first metric, metrics)
    missing: float  # share of the seeds that have none

    def rank(self, sign: int) -> tuple[float, float]:
        """Lower is better; seeds without a value are the worst."""
        score = sign * self.values[:, 0].mean() if len(self.values) else -np.inf
        return self.missing, -score


def _settings(runs: pd.DataFrame, keys: Sequence[str], values: np.ndarray) -> list[_Setting]:
    """runs: as _numbered. values: (all runs, metrics).

    A seed that ran twice counts once, by the runs that came to a value: a failed one was repeated.
    """
    found = []
    for of_setting, rows in groups(runs, keys):
        _, seed = np.unique(seeds_of(rows), return_inverse=True)
        means = np.full((seed.max() + 1, values.shape[1]), np.nan)
        for one in range(len(means)):
            of_seed = values[rows.index[seed == one]]
            came = of_seed[np.isfinite(of_seed[:, 0])]
            means[one] = (came if len(came) else of_seed).mean(axis=0)
        there = np.isfinite(means[:, 0])
        found.append(_Setting(of_setting, means[there], 1 - there.mean()))
    return found


def _numbered(df: pd.DataFrame) -> pd.DataFrame:
    """Two batches may have runs of the same name."""
    return df.reset_index(drop=True)


def _intervals(settings: Sequence[_Setting]) -> np.ndarray:
    """(3, settings, metrics): means, lower and upper ends."""
    found = np.full((3, len(settings), settings[0].values.shape[1]), np.nan)
    nums = np.array([len(one.values) for one in settings])
    for num in np.unique(nums[nums > 0]):
        same = np.flatnonzero(nums == num)
        found[:, same] = mean_interval(
            np.stack([settings[i].values for i in same.tolist()], axis=1)
        )
    return found


def _frame(
    settings: Sequence[_Setting], keys: Sequence[str], columns: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    found: dict[str, Any] = {key: [one.keys[key] for one in settings] for key in keys}
    found["num_seeds"] = [len(one.values) for one in settings]
    return pd.DataFrame(found | dict(columns))


# ---- The numbers of runs -----------------------------------------------------------------


def check_runs(df: pd.DataFrame, name: str) -> None:
    if not len(df):
        raise UserError(f"{name}: there are no runs in it")


def _is_best(when: str | float) -> bool:
    return str(when).strip() == "best"


def values_of(df: pd.DataFrame, column: str, when: str | float) -> np.ndarray:
    """(runs,) NaN where a run has no finite value, or diverged: it may have been good before."""
    found = numbers(df, column, when).to_numpy()
    has_diverged = df["outcome"].eq("diverged").to_numpy() if "outcome" in df else False
    return np.where(np.isfinite(found) & ~np.asarray(has_diverged, dtype=bool), found, np.nan)


def _reported(df: pd.DataFrame, by: str, report: str, when: str | float) -> np.ndarray:
    """(runs,) With 'best' that of the epoch chosen: its own best one would be chosen on test."""
    if _is_best(when) and df[by].dtype != "curve":
        raise bad_value("when", when, f"'last': {by} is no curve that has a best epoch")
    if not _is_best(when) or report not in df or df[report].dtype != "curve":
        return values_of(df, report, when)
    found = at_best(df[report], df[by]).to_numpy()
    return np.where(np.isfinite(found), found, np.nan)


# ---- Warnings ----------------------------------------------------------------------------


def warn(texts: Iterable[str]) -> None:
    for text in texts:
        warnings.warn(text, ChoiceWarning, stacklevel=3)  # the line that calls choose, say


def _same_split(by: str, report: str) -> list[str]:
    """Whoever reports what was fitted to the training data claims nothing about other data."""
    split = report.partition("/")[0]
    if "/" not in report or split == "train" or by.partition("/")[0] != split:
        return []
    chosen = "chosen" if by == report else f"chosen by {by}"
    text = f"{report}: {chosen} and reported on the same split: the figure is too good"
    return [f"{text}; evaluate a validation split, {SPLITS}"]


def _ties(chosen: Sequence[_Setting], rivals: Sequence[Sequence[_Setting]], sign: int) -> list[str]:
    """Where nothing speaks for the one that is chosen."""
    found = []
    for best, settings in zip(chosen, rivals, strict=True):
        equal = [one for one in settings if one.rank(sign) == best.rank(sign)]
        if len(equal) > 1 and len(best.values):
            some = "; ".join(label(one.keys) for one in equal[:MOST_SHOWN])
            more = "; …" * (len(equal) > MOST_SHOWN)
            found.append(
                f"{len(equal)} settings are equally good, the first is shown: {some}{more}"
            )
    return found


def _weak_means(df: pd.DataFrame, keys: Sequence[str], by: str, values: np.ndarray) -> list[str]:
    """What is wrong with the means over seeds of these settings."""
    there = np.isfinite(values)
    found = []
    if not there.all():
        which = [label(setting) for setting, _ in groups(df[~there], keys)]
        some = "; ".join(which[:MOST_SHOWN]) + "; …" * (len(which) > MOST_SHOWN)
        text = f"{_count(~there, 'has', 'have')} no finite {by}, or diverged"
        found.append(f"{text}; such settings come last: {some}" if keys else text)
    return found + not_done(df[there]) + seed_warnings(df[there], keys)


def not_done(df: pd.DataFrame) -> list[str]:
    """Runs that are on their way, or died on it, are compared with those that arrived."""
    going = (df["state"] != "done").to_numpy() if "state" in df else np.zeros(len(df), dtype=bool)
    text = f"{_count(going, 'is', 'are')} not done: what was reached so far counts"
    return [text] if going.any() else []


def _count(is_one: np.ndarray, verb: str, verbs: str) -> str:
    """'1 of 24 runs is'"""
    return f"{is_one.sum()} of {len(is_one)} runs {verb if is_one.sum() == 1 else verbs}"
