"""Two kinds of runs, compared seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.choice import MOST_SHOWN, check_runs, not_done, values_of, warn
from src.analysis.curves import direction_of, main_metrics
from src.analysis.intervals import mean_interval
from src.analysis.settings import groups, label, shown, varying
from src.ranking import SEEDS
from src.support import UserError

WIDTH = 80  # of a terminal


@dataclass(frozen=True)
class Paired:
    """What a is better than b by, over pairs of runs that share seeds and setting."""

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

    def __str__(self) -> str:
        largest = np.nanmax(np.abs([self.difference, self.low, self.high]))
        has_interval = np.isfinite(self.low)
        places = 4 if largest == 0 else int(np.clip(2 - np.floor(np.log10(largest)), 0, 8))
        interval = f" [{self.low:+.{places}f}, {self.high:+.{places}f}] (95 %)"
        compared = f"{self.mean_a:.{places}f} against {self.mean_b:.{places}f}"
        line = f"{self.metric}: {compared}, {self.difference:+.{places}f}"
        pairs = f"{self.num_pairs} pair{'s' * (self.num_pairs > 1)} of the same seeds"
        counts = f"{pairs}: {self.num_better} better, {self.num_equal} equal; "
        return f"{line}{interval * bool(has_interval)}\n{counts}{self._keys(WIDTH - len(counts))}"

    __repr__ = __str__  # what a notebook shows

    def _keys(self, width: int) -> str:
        """As many as the line takes, one at least; names before numbers."""
        pairs = sorted(self.differing.items(), key=lambda item: not isinstance(item[1][0], str))
        texts = [f"{key}={shown(a)} against {shown(b)}" for key, (a, b) in pairs]
        line = ", ".join(texts) or "no key differs"
        while len(line) > width and len(texts) > 1:
            texts.pop()
            line = ", ".join([*texts, "…"])
        return line


def paired(
    a: pd.DataFrame, b: pd.DataFrame, metric: str | None = None, *, when: str | float = "last"
) -> Paired:
    """Runs of a against those of b that have the same seeds and values of all keys that vary.

    Keys that vary neither in a nor in b but between them are what is compared. Raises UserError
    where there are no pairs, and where a run has several partners.
    """
    check_runs(a, "a")
    check_runs(b, "b")
    metric = metric or main_metrics(a)[1]
    pairs = _pairs(a, b)
    sides = a.iloc[pairs[:, 0]], b.iloc[pairs[:, 1]]
    values = np.stack([values_of(side, metric, when) for side in sides], axis=1)
    sign = direction_of(metric)
    there = np.isfinite(values).all(axis=1)
    if not there.any():
        raise UserError(f"{metric}: in none of {len(there)} pairs do both runs have a value")
    states = pd.concat([side[there].filter(items=["state"]) for side in sides])
    warn(_left_out(len(a), len(b), there) + not_done(states))
    difference = values[there, 0] - values[there, 1]
    mean, low, high = map(float, mean_interval(difference))
    return Paired(
        metric=metric,
        num_pairs=len(difference),
        mean_a=float(values[there, 0].mean()),
        mean_b=float(values[there, 1].mean()),
        difference=mean,
        low=low,
        high=high,
        num_better=int((sign * difference > 0).sum()),
        num_equal=int((difference == 0).sum()),
        differing=_differing(sides[0][there], sides[1][there]),
    )


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
                has = f"{len(partners)} runs with {label(values) or 'the same keys'}"
                raise UserError(f"{name}: {has}; select one of them")
        pairs.append((in_a[0], in_b[0] - len(a)))
    if not pairs:
        raise UserError(f"no run of a has a partner in b: {_disagreement(runs, len(a), keys)}")
    return np.array(pairs)


def _stacked(a: pd.DataFrame, b: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The runs of a, then those of b, numbered; a key that one of them does not have is null."""
    both = [df.reindex(columns=list(keys)).astype(object) for df in (a, b)]
    return pd.concat(both, ignore_index=True)


def _disagreement(runs: pd.DataFrame, num_a: int, keys: Sequence[str]) -> str:
    """The keys of which a and b share no value; all, where each has some in common."""
    found = {}
    for key in keys:
        sides = [(values[key], rows.index < num_a) for values, rows in groups(runs, [key])]
        is_apart = all(is_in_a.all() or not is_in_a.any() for _, is_in_a in sides)
        of_a = _some([value for value, is_in_a in sides if is_in_a.any()])
        of_b = _some([value for value, is_in_a in sides if not is_in_a.all()])
        found[key] = is_apart, f"{key} is {of_a} in a, {of_b} in b"
    apart = [text for is_apart, text in found.values() if is_apart]
    return "; ".join(apart or [text for _, text in found.values()])


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(shown, values[:MOST_SHOWN])) + ", …" * (len(values) > MOST_SHOWN)


def _left_out(num_a: int, num_b: int, there: np.ndarray) -> list[str]:
    """there: (pairs,) whether both have a value."""
    without = [f"{num - len(there)} of the {num} runs of" for num in (num_a, num_b)]
    alone = f"{without[0]} a and {without[1]} b have no partner"
    empty = f"{(~there).sum()} of {len(there)} pairs lack a value"
    is_said = {alone: len(there) < max(num_a, num_b), empty: not there.all()}
    texts = [text for text, is_so in is_said.items() if is_so]
    return [f"left out: {', '.join(texts)}"] if texts else []


def _differing(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, tuple[Any, Any]]:
    """The keys with one value in a and another one in b."""
    curves = {key for df in (a, b) for key in df.columns if df[key].dtype == "curve"}
    keys = [key for key in dict.fromkeys([*a.columns, *b.columns]) if key not in curves]
    runs, ends = _stacked(a, b, keys), [0, len(a)]
    found = {}
    for key in keys:
        parts = [runs.iloc[ends][[key]], runs.iloc[: len(a)][[key]], runs.iloc[len(a) :][[key]]]
        if [bool(varying(part)) for part in parts] == [True, False, False]:
            found[key] = (runs[key].iloc[0], runs[key].iloc[len(a)])
    return found
