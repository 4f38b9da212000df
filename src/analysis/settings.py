"""What the runs of a big_df differ in: settings, and the seeds of each."""

import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from src.config import INFERRED_KEYS, KEYS
from src.ranking import NON_SEMANTIC_KEYS, SEEDS
from src.support import bad_value, unknown_name

FACTS = ("batch", "state", "outcome", "node", "seconds")  # that are no configuration
LONGEST = 30  # characters of a value in a label


def varying(df: pd.DataFrame) -> list[str]:
    """The keys in which runs differ, in the order of the columns: what makes a setting.

    Seeds are not among them, nor what is found or only says where and how to run. Of keys that
    always change together (a model and its length, say) only one is: names go before numbers.
    """
    chosen: dict[str, np.ndarray] = {}
    for key in sorted(differing(df), key=lambda key: not _is_named(df[key])):
        codes = _codes(df[key])
        if not any(_is_renaming(codes, others) for others in chosen.values()):
            chosen[key] = codes
    return [key for key in df.columns if key in chosen]


def differing(df: pd.DataFrame) -> list[str]:
    """As varying, with all keys that change together.

    Of a big_df the keys that were read count, of other tables all columns but those of curves.
    """
    out = {*SEEDS, *FACTS, *INFERRED_KEYS, *NON_SEMANTIC_KEYS}
    # merge() forgets them, and a column that was measured is no setting
    known = KEYS if {"batch", "state"} <= set(df.columns) else df.columns
    keys = set(df.attrs.get("keys", known)) - out
    there = [key for key in df.columns if key in keys and df[key].dtype != "curve"]
    return [key for key in there if _differ(df[key])]


def _differ(values: pd.Series) -> bool:
    items = [None if is_null(value) else value for value in values.astype(object)]
    return any(item != items[0] for item in items) and bool(_codes(values).max() > 0)


def _is_named(values: pd.Series) -> bool:
    return any(isinstance(value, str) for value in values)


def _is_renaming(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether each value of one goes with one value of the other."""
    num = len(np.unique(np.stack([a, b]), axis=1).T)
    return num == a.max(initial=-1) + 1 == b.max(initial=-1) + 1


def _codes(values: pd.Series) -> np.ndarray:
    """(rows,) Equal numbers for equal values; lists, mappings and null are values as well."""
    return pd.factorize(np.array([_key(v) for v in values] or [""], dtype=object)[: len(values)])[0]


def _key(value: Any) -> str:
    """1 and 1.0 are the same, 1 and True are not."""
    if is_null(value):
        return "null"
    if is_number(value):
        return repr(float(value))
    return json.dumps(_plain(value), sort_keys=True, default=str)


def is_null(value: Any) -> bool:
    """NaN stands for null in columns of numbers, pd.NA in those of pandas' own types."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def is_number(value: Any) -> bool:
    """true and false are none, nor is null."""
    return isinstance(value, Real) and not isinstance(value, bool) and not is_null(value)


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
    codes = np.stack([_codes(df[key]) for key in keys])
    _, first, group = np.unique(codes, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    counts = np.bincount(group.reshape(-1))
    rows = np.split(order, np.cumsum(counts)[:-1])
    found = [
        ({key: _plain(df[key].iloc[at]) for key in keys}, df.iloc[of_group])
        for at, of_group in zip(first, rows, strict=True)
    ]
    return sorted(found, key=lambda pair: [sort_key(value) for value in pair[0].values()])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def sort_key(value: Any) -> tuple[int, float, str]:
    """null, then numbers by size, then names."""
    if is_null(value):
        return (0, 0.0, "")
    if isinstance(value, Real):
        return (1, float(value), "")
    return (2, 0.0, shown(value))


def shown(value: Any) -> str:
    """A value in a label: '0.05', 'tiny/lenet', 'null'."""
    if is_null(value):
        return "null"
    if is_number(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    text = value if isinstance(value, str) else json.dumps(_plain(value), default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def label(values: Mapping[str, Any]) -> str:
    """'optim_alg=sgd base_lr=0.05'"""
    return " ".join(f"{key}={shown(value)}" for key, value in values.items())


# ---- Seeds -------------------------------------------------------------------------------


def seeds_of(df: pd.DataFrame) -> list[str]:
    """(rows,) What tells runs of one setting apart."""
    columns = [df[key] for key in SEEDS if key in df]
    return ["/".join(map(_key, seeds)) for seeds in zip(*columns, strict=True)] or [""] * len(df)


def seed_warnings(df: pd.DataFrame, keys: Iterable[str] | None = None) -> list[str]:
    """What is wrong with averages over the seeds of these runs; a line each.

    keys: that make a setting, `varying` where none are given.
    """
    found = []
    settings = groups(df, list(varying(df) if keys is None else keys))
    numbers = [len(set(seeds_of(rows))) for _, rows in settings]
    most = max(numbers, default=0)
    fewer = [(v, n) for (v, _), n in zip(settings, numbers, strict=True) if n < most]
    if fewer:
        some = "; ".join(f"{label(values)} ({n})" for values, n in fewer[:3])
        more = "; …" if len(fewer) > 3 else ""
        have = "has" if len(fewer) == 1 else "have"
        which = f"{len(fewer)} of {len(settings)} settings {have} fewer than {most}"
        found.append(f"seeds are missing: {which}: {some}{more}")
    twice = len(df) - sum(numbers)
    if twice:
        have = "run has" if twice == 1 else "runs have"
        found.append(f"{twice} {have} the setting and the seeds of another one")
    return found
