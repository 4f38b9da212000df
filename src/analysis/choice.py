"""The best setting of a grid, chosen by validation; a table of all settings; paired comparisons."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.curves import at_best, direction_of, main_metrics
from src.analysis.settings import (
    diverged,
    format_setting,
    format_some,
    format_value,
    groups,
    mean_interval,
    scores_of,
    seeds_of,
    sort_key,
    varying,
)
from src.metrics import LOSS_KEYS, LOSS_METRICS, metric_name
from src.ranking import SEEDS, Run, Standing, rank
from src.support import UserError, bad_value

SPLITS = "data_splits_map: {train: 'train[:90%]', val: 'train[90%:]', test: test}"
PARTS = ("std", "low", "high")  # of a mean over seeds
TERMINAL = 80  # characters of a line


class ChoiceWarning(UserWarning):
    """The figures are there, but they may not mean what they seem to."""


def choose(
    df: pd.DataFrame,
    by: str | None = None,
    report: str | None = None,
    *,
    per: Sequence[str] = (),
    when: str | float = "last",
) -> pd.DataFrame:
    """The setting that is best by its mean of `by` over seeds, and its mean of `report`.

    per: keys; there is a choice for each combination of their values. when: as in numbers(); with
    'best', `report` is read in the epoch that is best by `by`. Of num_expected seeds num_seeds
    have a value and num_diverged diverged. std, low and high are those of `report`: the standard
    deviation over seeds and the 95 % interval of the mean (Student's t).
    """
    _check_not_empty(df, "df")
    by, report = by or main_metrics(df)[0], report or main_metrics(df)[1]
    is_best_epoch = str(when).strip() == "best"
    scores = scores_of(df, by, when)
    if is_best_epoch and df[by].dtype != "curve":
        raise bad_value("when", when, f"'last': {by} is no curve that has a best epoch")
    if is_best_epoch and report in df and df[report].dtype == "curve":
        found = at_best(df[report], df[by])  # its own best epoch would be chosen on test
        reported = np.where(np.isfinite(found), found, np.nan)
    else:
        reported = scores_of(df, report, when)
    first = [per] if isinstance(per, str) else list(dict.fromkeys(per))
    keys = first + [key for key in varying(df) if key not in first]
    rivals: dict[tuple, list[_Ranked]] = {}  # of each combination, the best setting first
    sign = direction_of(by)
    for setting in _ranked_settings(df, keys, np.stack([scores, reported], axis=1), sign):
        combination = tuple(sort_key(setting.keys[key]) for key in first)
        rivals.setdefault(combination, []).append(setting)
    ordered = [rivals[combination] for combination in sorted(rivals)]

    texts, split = [], report.partition("/")[0]
    is_choice = is_best_epoch or any(len(settings) > 1 for settings in ordered)
    if is_choice and split not in ("train", report) and by.partition("/")[0] == split:
        chosen_by = "chosen" if by == report else f"chosen by {by}"
        text = f"{report}: {chosen_by} and reported on the same split: the figure is too good"
        texts.append(f"{text}; evaluate a validation split, {SPLITS}")
    texts += [f"{text}: not comparable" for text in unlike_losses(df, [by], first)]
    for best, *others in ordered:  # of equally good ones the first is chosen for no reason
        order = best.standing.order(sign)
        equal = [best, *(other for other in others if other.standing.order(sign) == order)]
        if len(equal) > 1 and best.standing.num_seeds:
            some = format_some([format_setting(setting.keys) for setting in equal])
            texts.append(f"{len(equal)} settings are equally good, the first is shown: {some}")
    _warn(texts + _weak_means(df, keys, by, scores))
    chosen = _summary([settings[0] for settings in ordered], keys, [by, report])
    if by != report:
        chosen = chosen.drop(columns=[f"{by} {part}" for part in PARTS])
    return chosen.rename(columns={f"{report} {part}": part for part in PARTS})


def table(
    df: pd.DataFrame,
    metrics: str | Sequence[str] | None = None,
    *,
    keys: str | Sequence[str] | None = None,
    when: str | float = "last",
) -> pd.DataFrame:
    """One row a setting, the best by the first metric on top, those that lack seeds at the bottom.

    Columns: the keys (those that vary, where none are given); num_seeds, that have a value of
    the first metric, num_expected, that the setting with the most seeds has, and num_diverged;
    of each metric the mean over these seeds, 'metric std', 'metric low' and 'metric high' (the
    95 % interval of the mean, Student's t).
    """
    _check_not_empty(df, "df")
    names = [metrics] if isinstance(metrics, str) else list(metrics or main_metrics(df))
    names = list(dict.fromkeys(names))
    values = np.stack([scores_of(df, name, when) for name in names], axis=1)
    keys = [keys] if isinstance(keys, str) else varying(df) if keys is None else list(keys)
    settings = _ranked_settings(df, keys, values, direction_of(names[0]))
    texts = [f"{text}: not comparable" for text in unlike_losses(df, names)]
    _warn(texts + _weak_means(df, keys, names[0], values[:, 0]))
    return _summary(settings, keys, names)


@dataclass(frozen=True)
class _Ranked:
    """A setting, and what its runs reached."""

    keys: dict[str, Any]
    values: np.ndarray  # (seeds that have a value of the first metric, metrics)
    standing: Standing  # by the first metric


def _ranked_settings(
    df: pd.DataFrame, keys: Sequence[str], values: np.ndarray, sign: int
) -> list[_Ranked]:
    """The best setting by the first metric comes first. values: (runs, metrics)."""
    runs = df.reset_index(drop=True)  # two batches may have runs of the same name
    settings = groups(runs, keys)
    scored = list(map(Run, seeds_of(runs), values[:, 0].tolist(), diverged(runs).tolist()))
    found = []
    for standing in rank([[scored[i] for i in rows.index] for _, rows in settings], sign):
        of_keys, rows = settings[standing.index]
        means = [values[rows.index[list(of_seed)]].mean(axis=0) for of_seed in standing.runs]
        of_seeds = np.array(means).reshape(len(means), values.shape[1])
        found.append(_Ranked(of_keys, of_seeds, standing))
    return found


def _summary(
    settings: Sequence[_Ranked], keys: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """One row for each setting: keys, counts of seeds, and each metric over the seeds."""
    columns: dict[str, Any] = {key: [setting.keys[key] for setting in settings] for key in keys}
    for count in ("num_seeds", "num_expected", "num_diverged"):
        columns[count] = [getattr(setting.standing, count) for setting in settings]
    found = np.full((4, len(settings), len(metrics)), np.nan)  # the mean and its PARTS
    counts = np.array([len(setting.values) for setting in settings])
    for count in np.unique(counts[counts > 0]):  # many settings at once
        same = np.flatnonzero(counts == count)
        values = np.stack([settings[i].values for i in same.tolist()], axis=1)
        found[[[0], [2], [3]], same] = mean_interval(values)
        found[1, same] = values.std(axis=0, ddof=1) if count > 1 else np.nan
    for i, name in enumerate(metrics):
        names = name, *(f"{name} {part}" for part in PARTS)
        columns |= dict(zip(names, found[:, :, i], strict=True))
    return pd.DataFrame(columns)


# ---- Two kinds of runs, seed by seed -----------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """By how much runs of a are better than runs of b that share seeds and setting."""

    metric: str
    num_pairs: int
    mean_a: float
    mean_b: float
    difference: float  # mean of a - b
    low: float  # 95 % interval of that mean, Student's t; NaN of one pair and of equal ones
    high: float
    num_better: int  # pairs in which a is the better one
    num_equal: int
    differing: dict[str, tuple[Any, Any]]  # key -> (its value in a, in b)

    @property
    def verdict(self) -> str:
        """'a' or 'b' where the interval says which is better, else 'undecided': more seeds tell."""
        if not (self.low > 0 or self.high < 0):  # NaN: one pair, or all of them equal
            return "undecided"
        return "a" if self.difference * direction_of(self.metric) > 0 else "b"

    def __str__(self) -> str:
        """Two lines; of the keys as many as the second takes, names before numbers."""
        largest = np.nanmax(np.abs([self.difference, self.low, self.high]))
        places = 4 if largest == 0 else int(np.clip(2 - np.floor(np.log10(largest)), 0, 8))
        first = f"{self.metric}: {self.mean_a:.{places}f} against {self.mean_b:.{places}f}, "
        first += f"{self.difference:+.{places}f}"
        if np.isfinite(self.low):
            first += f" [{self.low:+.{places}f}, {self.high:+.{places}f}] (95 %)"
        counts = f"{self.num_pairs} pair{'s' * (self.num_pairs > 1)} of the same seeds: "
        counts += f"{self.num_better} better, {self.num_equal} equal; "
        items = sorted(self.differing.items(), key=lambda item: not isinstance(item[1][0], str))
        keys = [f"{key}={format_value(a)} against {format_value(b)}" for key, (a, b) in items]
        shown = len(keys)
        while shown > 1 and len(counts + format_some(keys, shown, ", ")) > TERMINAL:
            shown -= 1
        return f"{first}\n{counts}{format_some(keys, shown, ', ') or 'no key differs'}"

    __repr__ = __str__  # what a notebook shows


def paired(
    a: pd.DataFrame, b: pd.DataFrame, metric: str | None = None, *, when: str | float = "last"
) -> Paired:
    """Compare runs of a with those of b that have the same seeds and values of all varying keys.

    Keys that vary neither in a nor in b but between them are what is compared. Raises UserError
    where there are no pairs, and where a run has several partners.
    """
    _check_not_empty(a, "a")
    _check_not_empty(b, "b")
    metric = metric or main_metrics(a)[1]
    pairs = _pairs(a, b)
    sides = a.iloc[pairs[:, 0]], b.iloc[pairs[:, 1]]
    values = np.stack([scores_of(side, metric, when) for side in sides], axis=1)
    there = np.isfinite(values).all(axis=1)
    if not there.any():
        raise UserError(f"{metric}: in none of {len(there)} pairs do both runs have a value")
    texts = []
    if len(there) < max(len(a), len(b)):
        without = [f"{num - len(there)} of the {num} runs of" for num in (len(a), len(b))]
        texts.append(f"{without[0]} a and {without[1]} b have no partner")
    if not there.all():
        texts.append(f"{(~there).sum()} of {len(there)} pairs lack a value")
    a, b = (side[there] for side in sides)
    states = pd.concat([side.filter(items=["state"]) for side in (a, b)])
    _warn([f"left out: {', '.join(texts)}"] * bool(texts) + _not_done(states))

    differing = {}  # the keys with one value in a and another one in b
    curves = {key for df in (a, b) for key in df.columns if df[key].dtype == "curve"}
    runs = _stacked(a, b, [key for key in [*a.columns, *b.columns] if key not in curves])
    for key in runs:
        of_a, of_b = runs[: len(a)][[key]], runs[len(a) :][[key]]
        if varying(runs.loc[[0, len(a)], [key]]) and not varying(of_a) and not varying(of_b):
            differing[key] = (runs[key].iloc[0], runs[key].iloc[len(a)])
    difference = values[there, 0] - values[there, 1]
    mean, low, high = map(float, mean_interval(difference))
    is_better = direction_of(metric) * difference > 0
    mean_a, mean_b = values[there].mean(axis=0).tolist()
    counts = int(is_better.sum()), int((difference == 0).sum())
    return Paired(metric, len(difference), mean_a, mean_b, mean, low, high, *counts, differing)


def _pairs(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """(pairs, 2) Positions in a and in b."""
    seeds = [key for key in SEEDS if key in a or key in b]
    keys = list(dict.fromkeys([*varying(a), *varying(b), *seeds]))
    runs, pairs = _stacked(a, b, keys), []
    for values, rows in groups(runs, keys):
        in_a, in_b = rows.index[rows.index < len(a)], rows.index[rows.index >= len(a)]
        if not len(in_a) or not len(in_b):
            continue
        for name, partners in (("a", in_a), ("b", in_b)):
            if len(partners) > 1:
                has = f"{len(partners)} runs with {format_setting(values) or 'the same keys'}"
                raise UserError(f"{name}: {has}; select one of them")
        pairs.append((in_a[0], in_b[0] - len(a)))
    if pairs:
        return np.array(pairs)
    apart, all_keys = [], []  # keys of which a and b share no value, or else some
    for key in keys:
        sides = [groups(side, [key]) for side in (runs[: len(a)], runs[len(a) :])]
        of_a, of_b = (
            format_some([format_value(values[key]) for values, _ in side], 3, ", ")
            for side in sides
        )
        all_keys.append(f"{key} is {of_a} in a, {of_b} in b")
        if len(groups(runs, [key])) == sum(map(len, sides)):
            apart.append(all_keys[-1])
    hint = ""
    if drawn := [key for key in SEEDS if any(text.startswith(f"{key} ") for text in apart)]:
        hint = f"; where {' and '.join(drawn)} stands in the job file, both have the same"
    raise UserError(f"no run of a has a partner in b: {'; '.join(apart or all_keys)}{hint}")


def _stacked(a: pd.DataFrame, b: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The runs of a, then those of b, numbered; a key that one of them does not have is null."""
    both = [df.reindex(columns=list(dict.fromkeys(keys))).astype(object) for df in (a, b)]
    return pd.concat(both, ignore_index=True)


# ---- Warnings ----------------------------------------------------------------------------


def _check_not_empty(df: pd.DataFrame, name: str) -> None:
    if not len(df):
        raise UserError(f"{name}: there are no runs in it")


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        warnings.warn(text, ChoiceWarning, stacklevel=3)  # the line that calls choose, say


def unlike_losses(
    df: pd.DataFrame, metrics: Iterable[str], apart: Iterable[str | None] = ()
) -> list[str]:
    """'test/last/loss: runs differ in label_smoothing (0, 0.1)', of losses on different scales.

    apart: keys; only runs that agree in them are compared.
    """
    losses = [name for name in dict.fromkeys(metrics) if metric_name(name) in LOSS_METRICS]
    keys = [key for key in LOSS_KEYS if key in df and losses and len(groups(df, [key])) > 1]
    if not keys:
        return []
    within = groups(df, [key for key in apart if key])
    texts = []
    for key in keys:
        if any(len(groups(rows, [key])) > 1 for _, rows in within):
            values = [format_value(setting[key]) for setting, _ in groups(df, [key])]
            texts.append(f"{key} ({format_some(values, 3, ', ')})")
    return [f"{', '.join(losses)}: runs differ in {', '.join(texts)}"] if texts else []


def _weak_means(df: pd.DataFrame, keys: Sequence[str], by: str, values: np.ndarray) -> list[str]:
    """What is wrong with the means over seeds of these settings; a line each."""
    there, found = np.isfinite(values), []
    if num_lacking := int((~there).sum()):
        verb = "has" if num_lacking == 1 else "have"
        text = f"{num_lacking} of {len(df)} runs {verb} no finite {by}, diverged or failed"
        some = format_some([format_setting(setting) for setting, _ in groups(df[~there], keys)])
        found.append(f"{text}; such settings come last: {some}" if keys else text)
    found += _not_done(df[there])
    settings = groups(df[there], keys)
    counts = [len(set(seeds_of(rows))) for _, rows in settings]
    most = max(counts, default=0)
    pairs = zip(settings, counts, strict=True)
    if fewer := [f"{format_setting(values)} ({n})" for (values, _), n in pairs if n < most]:
        which = f"{len(fewer)} of {len(settings)} settings {'has' if len(fewer) == 1 else 'have'}"
        found.append(f"seeds are missing: {which} fewer than {most}: {format_some(fewer)}")
    if twice := int(there.sum()) - sum(counts):
        have = "run has" if twice == 1 else "runs have"
        found.append(f"{twice} {have} the setting and the seeds of another one")
    return found


def _not_done(df: pd.DataFrame) -> list[str]:
    """Runs that have not ended, or were interrupted, are compared with those that are done."""
    num = int((df["state"] != "done").sum()) if "state" in df else 0
    text = f"{num} of {len(df)} runs {'is' if num == 1 else 'are'} not done"
    return [f"{text}: what was reached so far counts"] if num else []
