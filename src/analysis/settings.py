"""Settings: the values of all keys in which runs differ, seeds apart; and select(), which filters.

Runs of one setting are repetitions of each other, told apart by their seeds.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from src.config import KEYS
from src.keys import INFERRED_KEYS
from src.ranking import NON_SEMANTIC_KEYS, SEEDS
from src.support import bad_value, closest, unknown_name

NO_KEYS = {"batch", "state", "outcome", "node", "seconds"}  # columns that are no configuration
LONGEST = 30  # characters of a value in a label
MOST_LISTED = 12  # values of a key that an error lists, where none of them is a name


# ---- Values ------------------------------------------------------------------------------


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


# ---- Settings ----------------------------------------------------------------------------


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

    def differs(values: pd.Series) -> bool:
        items = [None if is_null(value) else value for value in values.astype(object)]
        return any(item != items[0] for item in items) and bool(value_codes(values).max() > 0)

    # merge() forgets attrs, and a column that was measured is no setting
    known = KEYS if {"batch", "state"} <= set(df.columns) else df.columns
    keys = set(df.attrs.get("keys", known)) - {*SEEDS, *NO_KEYS, *INFERRED_KEYS, *NON_SEMANTIC_KEYS}
    there = [key for key in df.columns if key in keys and df[key].dtype != "curve"]
    return [key for key in there if differs(df[key])]


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


# ---- Filtering ---------------------------------------------------------------------------


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
        is_wanted &= df[key].map(_matcher(key, value, df)).astype(bool)
    return df[is_wanted]


def _matcher(key: str, value: Any, df: pd.DataFrame) -> Callable[[Any], bool]:
    if callable(value):
        return value
    options = list(value) if isinstance(value, list | tuple | set | range) else [value]
    for option in options:
        if isinstance(option, str) and not any(_matches(x, option) for x in df[key]):
            names = sorted({x for x in df[key] if isinstance(x, str)})
            near = closest(option, names)
            values = names or sorted({format_value(x) for x in df[key]})[:MOST_LISTED]
            expected = f"one of {', '.join(values)}"
            raise bad_value(key, option, expected + (f"; did you mean {near!r}?" if near else ""))
    return lambda x: any(_matches(x, option) for option in options)


def _matches(value: Any, option: Any) -> bool:
    if is_null(option) or is_null(value):
        return option is None and is_null(value)
    if isinstance(option, str) and isinstance(value, str):
        return value == option or value.startswith(option + "/")
    if is_number(value) and is_number(option):
        return math.isclose(value, option, rel_tol=1e-9)  # 0.3 is 0.1 + 0.2
    return bool(isinstance(value, bool) == isinstance(option, bool) and value == option)
