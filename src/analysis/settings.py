"""Settings: runs that differ in their seeds alone; select(), which filters; and scores.

The values of all keys in which runs differ, seeds apart, are their setting. A score is one number
for each run, averaged over the seeds of a setting. Which setting is best is decided by
src/ranking.py, here as everywhere.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import numpy as np
import pandas as pd

from src.analysis.curves import CurveArray, main_metrics, numbers
from src.config import KEYS
from src.keys import INFERRED_KEYS
from src.ranking import NON_SEMANTIC_KEYS, SEEDS, Run, Standing, rank
from src.support import bad_value, closest, unknown_name

NO_KEYS = {"batch", "state", "outcome", "node", "seconds"}  # columns that are no configuration
LONGEST = 30  # characters of a value in a label
LEVEL = 0.95
INTERVAL = "95 % Student's t interval of the mean"  # in captions


def is_null(value: Any) -> bool:
    """NaN stands for null in columns of numbers, pd.NA in those of pandas' own types."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def is_number(value: Any) -> bool:
    """Booleans and null are no numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and not is_null(value)


def plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def canonical(value: Any) -> str:
    """Equal texts for equal values: 1 and 1.0 are the same, 1 and True are not."""
    if is_null(value):
        return "null"
    if is_number(value):
        return repr(float(value))
    return json.dumps(plain(value), sort_keys=True, default=str)


def value_codes(values: pd.Series) -> np.ndarray:
    """(rows,) Equal numbers for equal values; lists, mappings and null are values as well."""
    texts = np.array([canonical(v) for v in values] or [""], dtype=object)[: len(values)]
    return pd.factorize(texts)[0]


def sort_key(value: Any) -> tuple[int, float, str]:
    """Null comes first, then numbers by size, then names."""
    if is_null(value):
        return (0, 0.0, "")
    if isinstance(value, Real):
        return (1, float(value), "")
    return (2, 0.0, format_value(value))


def format_value(value: Any) -> str:
    """A value in a label: '0.05', 'tiny/lenet', 'null'."""
    if is_null(value):
        return "null"
    if is_number(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    text = value if isinstance(value, str) else json.dumps(plain(value), default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def format_setting(values: Mapping[str, Any]) -> str:
    """'optim_alg=sgd base_lr=0.05'"""
    return " ".join(f"{key}={format_value(value)}" for key, value in values.items())


def format_some(texts: Sequence[str], most: int = 3, separator: str = "; ") -> str:
    """The first few texts, and an ellipsis where there are more."""
    return separator.join(texts[:most]) + f"{separator}…" * (len(texts) > most)


def varying(df: pd.DataFrame) -> list[str]:
    """The keys in which runs differ, in the order of the columns: their values are the setting.

    Left out are seeds, inferred keys and keys that only say where and how to run. Of keys that
    always change together (a model and its length, say) one is kept, names before numbers.
    """
    chosen: dict[str, np.ndarray] = {}
    has_names = {key: any(isinstance(v, str) for v in df[key]) for key in differing(df)}
    for key in sorted(has_names, key=lambda key: not has_names[key]):
        codes = value_codes(df[key])
        if not any(is_same_grouping(codes, others) for others in chosen.values()):
            chosen[key] = codes
    return [key for key in df.columns if key in chosen]


def differing(df: pd.DataFrame) -> list[str]:
    """As varying(), but with all keys that change together.

    Of a big_df only configuration keys count, of other tables all columns but curves.
    """
    # merge() forgets attrs, and a column that was measured is no setting
    known = KEYS if {"batch", "state"} <= set(df.columns) else df.columns
    keys = set(df.attrs.get("keys", known)) - {*SEEDS, *NO_KEYS, *INFERRED_KEYS, *NON_SEMANTIC_KEYS}
    found = []
    for key in df.columns:
        if key in keys and df[key].dtype != "curve":
            items = [None if is_null(value) else value for value in df[key].astype(object)]
            # most keys do not differ, and == is faster than texts of all values
            if any(item != items[0] for item in items) and value_codes(df[key]).max() > 0:
                found.append(key)
    return found


def is_same_grouping(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether each code of one goes with one code of the other."""
    num_pairs = len(np.unique(a * (b.max(initial=0) + 1) + b))
    return num_pairs == len(np.unique(a)) == len(np.unique(b))


def groups(df: pd.DataFrame, keys: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """(the values of the keys, the rows that have them), ordered by the values.

    Raises UserError for a key that is no column.
    """
    for key in keys:
        if key not in df:
            raise unknown_name("key", key, df.columns)
        if df[key].dtype == "curve":
            raise bad_value("key", key, "a column of the configuration, not of curves")
    if not len(df) or not keys:
        return [({}, df)] if len(df) else []
    found = [
        ({key: plain(rows[key].iloc[0]) for key in keys}, rows)
        for _, rows in df.groupby([value_codes(df[key]) for key in keys])
    ]
    return sorted(found, key=lambda pair: [sort_key(value) for value in pair[0].values()])


def seeds_of(df: pd.DataFrame) -> list[str]:
    """(rows,) A text that tells runs of one setting apart."""
    columns = [df[key] for key in SEEDS if key in df]
    seeds = ["/".join(map(canonical, of_run)) for of_run in zip(*columns, strict=True)]
    return seeds or [""] * len(df)


def between(low: float, high: float) -> Callable[[Any], bool]:
    """For select(): numbers from low to high, both included."""
    return lambda value: is_number(value) and low <= value <= high


def select(df: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows in which each key has the wanted value: select(df, model='tiny', base_lr=[1, 2]).

    A value matches what is equal to it; a name also its family ('tiny' all of tiny/…); None what
    is missing; a list, tuple or set any of its items; a function, such as between(…), those for
    which it is true. Raises UserError for a key that is no column and a name that no row has.
    """
    is_wanted = pd.Series(True, index=df.index)
    for key, value in wanted.items():
        if key not in df:
            raise unknown_name("select", key, df.columns)
        if df[key].dtype == "curve":
            raise bad_value("select", key, "a column without curves; draw numbers from them first")
        if callable(value):
            is_wanted &= df[key].map(value).astype(bool)
            continue
        options = list(value) if isinstance(value, list | tuple | set | range) else [value]
        for option in options:
            if isinstance(option, str) and not any(_matches(x, option) for x in df[key]):
                names = sorted({x for x in df[key] if isinstance(x, str)})
                values = names or sorted({format_value(x) for x in df[key]})[:12]
                hint = f"; did you mean {near!r}?" if (near := closest(option, names)) else ""
                raise bad_value(key, option, f"one of {', '.join(values)}{hint}")
        is_wanted &= np.array(
            [any(_matches(x, option) for option in options) for x in df[key]], bool
        )
    return df[is_wanted]


def _matches(value: Any, option: Any) -> bool:
    if is_null(option) or is_null(value):
        return option is None and is_null(value)
    if isinstance(option, str) and isinstance(value, str):
        return value == option or value.startswith(option + "/")
    if is_number(value) and is_number(option):
        return math.isclose(value, option, rel_tol=1e-9)  # 0.3 is 0.1 + 0.2
    return bool(isinstance(value, bool) == isinstance(option, bool) and value == option)


# ---- Scores ------------------------------------------------------------------------------


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
        is_empty = {s.row: not self.of(s).size for s in settings}  # neither a score nor diverged
        return min(settings, key=lambda s: (*self.rank(s, sign), is_empty[s.row]))


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
