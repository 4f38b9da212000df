"""Rows of a big_df by what their keys are: select(df, model='tiny', base_lr=between(1e-3, 0.1))."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from src.analysis.settings import is_null, is_number, shown
from src.support import bad_value, closest, unknown_name

MOST_SHOWN = 12  # values, where none of them is a name


def between(low: float, high: float) -> Callable[[Any], bool]:
    """A number from low to high, both included."""

    def test(value: Any) -> bool:
        return is_number(value) and low <= value <= high

    return test


def select(df: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows in which each key has the value wanted.

    A value: equal to it; of names with families, 'tiny' means all of tiny/…. None: missing.
    A list, tuple or set: any of them. A function, such as between(…): those for which it is true.
    Raises UserError for a key that is no column, and for a name that no row has.
    """
    is_wanted = pd.Series(True, index=df.index)
    for key, value in wanted.items():
        if key not in df:
            raise unknown_name("select", key, df.columns)
        if df[key].dtype == "curve":
            raise bad_value("select", key, "a column without curves; draw numbers from them first")
        is_wanted &= df[key].map(_test(key, value, df)).astype(bool)
    return df[is_wanted]


def _test(key: str, value: Any, df: pd.DataFrame) -> Callable[[Any], bool]:
    if callable(value):
        return value
    options = list(value) if isinstance(value, list | tuple | set | range) else [value]
    for option in options:
        if isinstance(option, str) and not any(_fits(x, option) for x in df[key]):
            known = sorted({x for x in df[key] if isinstance(x, str)})
            near = closest(option, known)
            values = known or sorted({shown(x) for x in df[key]})[:MOST_SHOWN]
            there_are = f"one of {', '.join(values)}"
            raise bad_value(key, option, there_are + (f"; did you mean {near!r}?" if near else ""))
    return lambda x: any(_fits(x, option) for option in options)


def _fits(value: Any, option: Any) -> bool:
    if option is None or is_null(value):
        return option is None and is_null(value)
    if isinstance(option, str) and isinstance(value, str):
        return value == option or value.startswith(option + "/")
    if is_number(value) and is_number(option):
        return math.isclose(value, option, rel_tol=1e-9)  # 0.3 is 0.1 + 0.2
    return bool(isinstance(value, bool) == isinstance(option, bool) and value == option)
