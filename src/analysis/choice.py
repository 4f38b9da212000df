"""The best setting of a grid, chosen by validation, and a table of all of them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.curves import at_best, direction_of, main_metrics, numbers
from src.analysis.intervals import mean_interval
from src.analysis.settings import (
    groups,
    label,
    seed_warnings,
    seeds_of,
    shown,
    sort_key,
    varying,
)
from src.metrics import LOSS_KEYS, OF_LOSS, metric_name
from src.ranking import Run, Standing, rank
from src.support import UserError, bad_value

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
    """The setting that is best by its mean of `by` over seeds, and its mean of `report`.

    per: keys; a choice for each combination of their values. when: as in numbers(); with 'best',
    `report` is read in the epoch that is best by `by`. num_seeds of num_expected seeds have a
    value, num_diverged diverged; std, low, high: of `report`, the standard deviation over the
    seeds and the 95 % interval of the mean (Student's t). src/ranking.py says which is best.
    """
    check_runs(df, "df")
    by, report = by or main_metrics(df)[0], report or main_metrics(df)[1]
    values = np.stack([values_of(df, by, when), _reported(df, by, report, when)], axis=1)
    sign = direction_of(by)
    first = [per] if isinstance(per, str) else list(dict.fromkeys(per))
    keys = first + [key for key in varying(df) if key not in first]
    rivals: dict[tuple, list[_Setting]] = {}  # of each combination, the best one first
    for one in _settings(df, keys, values, sign):
        rivals.setdefault(tuple(sort_key(one.keys[key]) for key in first), []).append(one)
    ordered = [rivals[combination] for combination in sorted(rivals)]
    is_choice = _is_best(when) or any(len(settings) > 1 for settings in ordered)
    texts = _same_split(by, report) if is_choice else []
    texts += [f"{text}: not comparable" for text in unlike_losses(df, [by], first)]
    texts += _ties(ordered, sign)
    warn(texts + _weak_means(df, keys, by, values[:, 0]))
    chosen = [settings[0] for settings in ordered]
    mean, std, low, high = _over_seeds(chosen)
    columns = {by: mean[:, 0], report: mean[:, 1]}
    columns |= {"std": std[:, 1], "low": low[:, 1], "high": high[:, 1]}
    return _frame(chosen, keys, columns)


def table(
    df: pd.DataFrame,
    metrics: str | Sequence[str] | None = None,
    *,
    keys: str | Sequence[str] | None = None,
    when: str | float = "last",
) -> pd.DataFrame:
    """A row a setting, the best by the first metric on top, those that lack seeds at the bottom.

    Columns: the keys (those that vary, where none are given); num_seeds, that have a value of
    the first metric, num_expected, that the setting with the most seeds has, and num_diverged;
    of each metric the mean over these seeds, 'metric std', 'metric low' and 'metric high' (the
    95 % interval of the mean, Student's t). src/ranking.py says which is best.
    """
    check_runs(df, "df")
    names = [metrics] if isinstance(metrics, str) else list(metrics or main_metrics(df))
    names = list(dict.fromkeys(names))
    values = np.stack([values_of(df, name, when) for name in names], axis=1)
    keys = [keys] if isinstance(keys, str) else varying(df) if keys is None else list(keys)
    settings = _settings(df, keys, values, direction_of(names[0]))
    texts = [f"{text}: not comparable" for text in unlike_losses(df, names)]
    warn(texts + _weak_means(df, keys, names[0], values[:, 0]))
    mean, std, low, high = _over_seeds(settings)
    columns: dict[str, np.ndarray] = {}
    for i, name in enumerate(names):
        columns |= {name: mean[:, i], f"{name} std": std[:, i]}
        columns |= {f"{name} low": low[:, i], f"{name} high": high[:, i]}
    return _frame(settings, keys, columns)


@dataclass(frozen=True)
class _Setting:
    """What the runs of one setting have in common, and what they reached."""

    keys: dict[str, Any]
    values: np.ndarray  # (seeds that have a first metric, metrics)
    standing: Standing  # by the first metric


def _settings(
    df: pd.DataFrame, keys: Sequence[str], values: np.ndarray, sign: int
) -> list[_Setting]:
    """The best by the first metric first. values: (runs, metrics)."""
    runs = df.reset_index(drop=True)  # two batches may have runs of the same name
    seeds, is_diverged = seeds_of(runs), diverged(runs).tolist()
    of_settings = groups(runs, keys)
    ranked = rank(
        [
            [Run(seeds[i], float(values[i, 0]), is_diverged[i]) for i in rows.index]
            for _, rows in of_settings
        ],
        sign,
    )
    found = []
    for standing in ranked:
        of_setting, rows = of_settings[standing.index]
        means = [values[rows.index[list(came)]].mean(axis=0) for came in standing.runs]
        table = np.array(means).reshape(len(means), values.shape[1])
        found.append(_Setting(of_setting, table, standing))
    return found


def _over_seeds(settings: Sequence[_Setting]) -> np.ndarray:
    """(4, settings, metrics): means, standard deviations, lower and upper ends."""
    found = np.full((4, len(settings), settings[0].values.shape[1]), np.nan)
    nums = np.array([len(one.values) for one in settings])
    for num in np.unique(nums[nums > 0]):
        same = np.flatnonzero(nums == num)
        values = np.stack([settings[i].values for i in same.tolist()], axis=1)
        found[[[0], [2], [3]], same] = mean_interval(values)
        found[1, same] = values.std(axis=0, ddof=1) if num > 1 else np.nan
    return found


def _frame(
    settings: Sequence[_Setting], keys: Sequence[str], columns: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    found: dict[str, Any] = {key: [one.keys[key] for one in settings] for key in keys}
    for count in ("num_seeds", "num_expected", "num_diverged"):
        found[count] = [getattr(one.standing, count) for one in settings]
    return pd.DataFrame(found | dict(columns))


# ---- The numbers of runs -----------------------------------------------------------------


def check_runs(df: pd.DataFrame, name: str) -> None:
    if not len(df):
        raise UserError(f"{name}: there are no runs in it")


def _is_best(when: str | float) -> bool:
    return str(when).strip() == "best"


def values_of(df: pd.DataFrame, column: str, when: str | float) -> np.ndarray:
    """(runs,) NaN where a run has no finite value, diverged or failed: it may have been good."""
    found = numbers(df, column, when).to_numpy()
    has_failed = df["state"].eq("failed").to_numpy() if "state" in df else np.zeros(len(df))
    is_out = diverged(df) | np.asarray(has_failed, dtype=bool)
    return np.where(np.isfinite(found) & ~is_out, found, np.nan)


def diverged(df: pd.DataFrame) -> np.ndarray:
    """(runs,) Whether they ended so."""
    if "outcome" not in df:
        return np.zeros(len(df), dtype=bool)
    return df["outcome"].eq("diverged").to_numpy(dtype=bool, na_value=False)


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


def unlike_losses(
    df: pd.DataFrame, metrics: Iterable[str], apart: Iterable[str | None] = ()
) -> list[str]:
    """'test/last/loss: runs differ in label_smoothing (0, 0.1)' of losses that mean other things.

    apart: keys; only runs that agree in them are compared.
    """
    losses = [name for name in dict.fromkeys(metrics) if metric_name(name) in OF_LOSS]
    keys = [key for key in LOSS_KEYS if key in df and losses and len(groups(df, [key])) > 1]
    if not keys:
        return []
    within = groups(df, [key for key in apart if key])
    differing = [key for key in keys if any(len(groups(rows, [key])) > 1 for _, rows in within)]
    if not differing:
        return []
    some = [f"{key} ({_some(df, key)})" for key in differing]
    return [f"{', '.join(losses)}: runs differ in {', '.join(some)}"]


def _some(df: pd.DataFrame, key: str) -> str:
    values = [shown(setting[key]) for setting, _ in groups(df, [key])]
    return ", ".join(values[:MOST_SHOWN]) + ", …" * (len(values) > MOST_SHOWN)


def _ties(rivals: Sequence[Sequence[_Setting]], sign: int) -> list[str]:
    """Where nothing speaks for the one that is chosen, the first of them."""
    found = []
    for settings in rivals:
        best = settings[0].standing
        equal = [one for one in settings if one.standing.order(sign) == best.order(sign)]
        if len(equal) > 1 and best.num_seeds:
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
        text = f"{_count(~there, 'has', 'have')} no finite {by}, diverged or failed"
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
