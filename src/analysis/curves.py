"""A column of curves in a dataframe: each cell is a pandas Series, made when it is looked at.

10,000 runs with ten curves each would be 100,000 Series of a kilobyte and some microseconds
each; here all curves of a column lie one after the other, and a cell is where its own begins. No
library has that: cells of nested-pandas 0.7 are dataframes, of which `df[curve] - 0.5` and
`np.log(df[curve])` raise, and it needs pyarrow.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.mixins import NDArrayOperatorsMixin
from pandas.api.extensions import ExtensionArray, ExtensionDtype, register_extension_dtype

from src.metrics import DIRECTIONS, direction, main_columns, metric_name
from src.support import UserError, bad_value, unknown_name

COSTS = {"seconds", "time", "data_time", "seen_examples", "step", "epoch"}
Curve = tuple[np.ndarray, np.ndarray]  # (n,) values, (n,) of the index


@register_extension_dtype
class CurveDtype(ExtensionDtype):
    """The type of such a column; a curve without points is missing."""

    name = "curve"
    na_value = None

    type: Any = pd.Series

    @classmethod
    def construct_array_type(cls) -> Any:
        return CurveArray


class CurveArray(NDArrayOperatorsMixin, ExtensionArray):
    """Curves that lie in two flat arrays, which are never written to."""

    def __init__(
        self, values: np.ndarray, index: np.ndarray, cells: np.ndarray, names: tuple[str, str]
    ) -> None:
        """cells: (rows, 2), where each curve begins and ends; -1 and -1 where there is none.

        names: of the Series that cells become, and of their index.
        """
        self.values, self.index, self.cells, self.names = values, index, cells, names

    @classmethod
    def of(cls, curves: Sequence[Curve | None], name: str, index_name: str) -> "CurveArray":
        found = [(np.zeros(0), np.zeros(0)) if curve is None else curve for curve in curves]
        lengths = np.array([len(values) for values, _ in found], dtype=np.int64)
        ends = np.cumsum(lengths)
        cells = np.stack([ends - lengths, ends], axis=1)
        cells[np.array([curve is None for curve in curves], dtype=bool)] = -1
        values, index = (_joined([curve[part] for curve in found]) for part in (0, 1))
        return cls(values, index, cells, (name, index_name))

    def curves(self) -> Iterator[Curve | None]:
        """Of each row, as views; None where a curve is missing."""
        for begin, end in self.cells.tolist():
            yield None if begin == end else (self.values[begin:end], self.index[begin:end])

    # What pandas asks for.

    @property
    def dtype(self) -> CurveDtype:
        return CurveDtype()

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.index.nbytes + self.cells.nbytes

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: Any) -> Any:
        if pd.api.types.is_integer(key):
            return next(iter(self._like(self.cells[key][None])))
        return self._like(self.cells[pd.api.indexers.check_array_indexer(self, key)])

    def __iter__(self) -> Iterator[pd.Series]:
        """A missing curve is an empty Series."""
        name, index_name = self.names
        for curve in self.curves():
            values, index = curve or (self.values[:0], self.index[:0])
            yield pd.Series(values, index=pd.Index(index, name=index_name), name=name)

    def __setitem__(self, key: Any, value: Any) -> None:
        """None, a Series for all of these rows, or one for each; nothing is written over."""
        key = pd.api.indexers.check_array_indexer(self, key)
        if value is None or value is pd.NA or (isinstance(value, float) and value != value):
            self.cells[key] = -1
            return
        is_one = isinstance(value, pd.Series) and value.dtype != "curve"
        many = [value] if is_one else getattr(value, "array", value)
        new = many if isinstance(many, CurveArray) else self._from_sequence(many)
        cells = np.where(new.cells < 0, -1, new.cells + len(self.values))
        self.values = _joined([self.values, new.values])
        self.index = _joined([self.index, new.index])
        self.cells[key] = cells[0] if is_one else cells

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, CurveArray):
            return np.zeros(len(self), dtype=bool)
        pairs = zip(self._texts(), other._texts(), strict=True)
        return np.array([a is not None and a == b for a, b in pairs], dtype=bool)

    def __ne__(self, other: object) -> Any:
        return ~(self == other)

    def isna(self) -> np.ndarray:
        return self.cells[:, 0] == self.cells[:, 1]

    def take(
        self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None
    ) -> "CurveArray":
        cells = pd.api.extensions.take(self.cells, np.asarray(indices, np.intp), 0, allow_fill, -1)
        return self._like(cells)

    def duplicated(self, keep: Any = "first") -> np.ndarray:
        """Which curves are equal to another one, as drop_duplicates asks."""
        return pd.Series(_objects(self._texts(), len(self))).duplicated(keep).to_numpy()

    def _values_for_argsort(self) -> np.ndarray:
        raise UserError(f"{self.names[0]}: curves have no order; draw numbers from them: last(…)")

    def copy(self) -> "CurveArray":
        return self._like(self.cells.copy())

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        is_object = pd.api.types.is_object_dtype(dtype)
        return self.to_numpy() if is_object else super().astype(dtype, copy=copy)

    def to_numpy(self, dtype: Any = None, copy: bool = False, na_value: Any = None) -> np.ndarray:
        return _objects(self, len(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """For printing, '20 points to 0.9666': a Series in a cell would be printed whole."""

        def text(curve: Curve | None) -> str:
            if curve is None:
                return ""
            num, last = len(curve[0]), curve[0][-1]
            shown = f"{last:.4g}" if isinstance(last, float) else str(last)
            return f"{num} point{'s' * (num > 1)} to {shown}"

        return _objects(map(text, self.curves()), len(self))

    @classmethod
    def _from_sequence(
        cls, scalars: Iterable[Any], *, dtype: Any = None, copy: bool = False
    ) -> "CurveArray":
        """Of Series, as pandas collects them."""
        series = [s if isinstance(s, pd.Series) else None for s in scalars]
        first = next((s for s in series if s is not None), None)
        names = ("", "") if first is None else (str(first.name), str(first.index.name))
        curves = [None if s is None else (s.to_numpy(), s.index.to_numpy()) for s in series]
        return cls.of(curves, *names)

    def _cast_pointwise_result(self, values: Any) -> Any:
        """What map() gives: numbers of curves are numbers."""
        items = list(values)
        if all(item is None or isinstance(item, pd.Series) for item in items):
            return self._from_sequence(items)
        return pd.Series(items, dtype=object).infer_objects().array

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence["CurveArray"]) -> "CurveArray":
        named = next((array for array in to_concat if array.names[0]), to_concat[0])
        if all(a.values is named.values and a.index is named.index for a in to_concat):
            return named._like(np.concatenate([a.cells for a in to_concat]))
        moved, begin = [], 0
        for array in to_concat:
            moved.append(np.where(array.cells < 0, -1, array.cells + begin))
            begin += len(array.values)
        values = np.concatenate([array.values for array in to_concat])
        index = np.concatenate([array.index for array in to_concat])
        return cls(values, index, np.concatenate(moved), named.names)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Arithmetic and functions of numpy, curve by curve.

        With a number, an array of a number a run, or another column of curves, whose curves are
        matched point by point by their index as pandas does. Missing where a curve is missing.
        """
        if method != "__call__" or options or ufunc.nout > 1:
            return NotImplemented
        if any(isinstance(x, pd.Series | pd.Index | pd.DataFrame) for x in inputs):
            return NotImplemented  # pandas unpacks them and asks again
        operands = [
            x if isinstance(x, CurveArray) or np.ndim(x) == 0 else np.asarray(x, dtype=float)
            for x in inputs
        ]
        for x in operands:
            if np.ndim(x) and np.shape(x) != (len(self),):
                kind = "curves" if isinstance(x, CurveArray) else "numbers"
                raise ValueError(f"{len(self)} curves and {len(x)} {kind} do not match")
        columns = [x for x in operands if isinstance(x, CurveArray)]
        names = (self.names[0] * all(c.names[0] == self.names[0] for c in columns), self.names[1])
        there = ~np.any([column.isna() for column in columns], axis=0)
        (_, index, lengths), *others = [column._flat(there) for column in columns]
        if not all(np.array_equal(n, lengths) and np.array_equal(x, index) for _, x, n in others):
            rows = zip(*(x if np.ndim(x) else repeat(x) for x in operands), strict=False)
            pairs = [ufunc(*row) if both else None for row, both in zip(rows, there, strict=False)]
            curves = [None if s is None else (s.to_numpy(), s.index.to_numpy()) for s in pairs]
            return CurveArray.of(curves, *names)

        def flat(operand: Any) -> Any:
            if isinstance(operand, CurveArray):
                return operand._flat(there)[0]
            return np.repeat(operand[there], lengths) if np.ndim(operand) else operand

        with np.errstate(divide="ignore", invalid="ignore"):  # as pandas does
            found = ufunc(*map(flat, operands))  # 10,000 curves at once take milliseconds
        cells = np.full((len(self), 2), -1)
        ends = np.cumsum(lengths)
        cells[there] = np.stack([ends - lengths, ends], axis=1)
        return CurveArray(found, index, cells, names)

    def _flat(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((points,) values, (points,) index, (rows,) lengths) of some curves."""
        begins, ends = self.cells[rows].T
        lengths = ends - begins
        shift = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        places = shift + np.arange(lengths.sum())
        return self.values[places], self.index[places], lengths

    def _like(self, cells: np.ndarray) -> "CurveArray":
        return CurveArray(self.values, self.index, cells, self.names)

    def _texts(self) -> list[str | None]:
        """Equal texts for equal curves; None where a curve is missing, which equals no other."""
        curves = self.curves()
        return [None if c is None else f"{c[1].tolist()}{c[0].tolist()}" for c in curves]


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One after the other; empty ones do not decide about the type."""
    return np.concatenate([a for a in arrays if len(a)] or [np.zeros(0)])


def _objects(items: Iterable[Any], num: int) -> np.ndarray:
    """(num,) objects; numpy would take Series of one length for a table."""
    found = np.empty(num, dtype=object)
    for row, item in enumerate(items):
        found[row] = item
    return found


# ---- Numbers drawn from curves -----------------------------------------------------------


def last(curves: pd.Series, k: int = 1) -> pd.Series:
    """The mean of the last k values of each curve; NaN where there is none."""
    if k < 1:
        raise bad_value("k", k, "a number of values from 1 up")
    return _numbers(curves, lambda values, _: np.mean(values[-k:]))


def at(curves: pd.Series, where: float) -> pd.Series:
    """The value at that point of the index, or at the last one before it; NaN before the first."""
    if not isinstance(where, Real):
        raise bad_value("where", where, "a point of the index, a number")

    def value(values: np.ndarray, index: np.ndarray) -> float:
        position = np.searchsorted(index, where, side="right") - 1
        return values[position] if position >= 0 else np.nan

    return _numbers(curves, value)


def best(curves: pd.Series) -> pd.Series:
    """The best finite value of each curve; NaN where there is none."""
    sign = direction_of(str(curves.name))

    def value(values: np.ndarray, _: np.ndarray) -> float:
        finite = sign * values[np.isfinite(values)]
        return sign * finite.max() if len(finite) else np.nan

    return _numbers(curves, value)


def at_best(curves: pd.Series, of: pd.Series) -> pd.Series:
    """The value of each curve where the curve of the other column is best, first of all.

    The test accuracy of the epoch with the best validation accuracy, say.
    """
    sign = direction_of(str(of.name))
    found = np.full(len(curves), np.nan)
    for row, (curve, judge) in enumerate(zip(_cells(curves), _cells(of), strict=True)):
        if curve is not None and judge is not None:
            usable = np.where(np.isfinite(judge[0]), sign * judge[0], -np.inf)
            if usable.max() > -np.inf:
                found[row] = curve[0][usable.argmax()]
    return pd.Series(found, index=curves.index, name=curves.name)


def numbers(df: pd.DataFrame, column: str, when: str | float = "last") -> pd.Series:
    """One number for each run: of a curve as `when` says, of another column its value.

    when: 'last', 'last 5' (the mean of the last five values), 'best', or a point of the index.
    Raises UserError where there is no such column, or it holds no numbers.
    """
    if column not in df:
        raise unknown_name("column", column, df.columns)
    if df[column].dtype != "curve":
        if df[column].map(lambda x: isinstance(x, str | list | dict | np.ndarray)).any():
            raise UserError(f"column: {column} holds no numbers")
        return df[column].astype(float)
    if not isinstance(when, str):
        return at(df[column], when)
    words = when.split()
    if words == ["best"]:
        return best(df[column])
    if words[:1] == ["last"] and len(words) < 3 and (words[1:] or ["1"])[0].isdigit():
        return last(df[column], int((words[1:] or ["1"])[0]))
    raise bad_value("when", when, "'last', 'last 5', 'best', or a point of the curves' index")


def direction_of(column: str) -> int:
    """1 where a higher value is better, -1 where a lower one is. Raises UserError if unknown."""
    if metric_name(column) in COSTS:
        return -1
    if metric_name(column) not in DIRECTIONS:
        names = ", ".join(DIRECTIONS)
        raise UserError(f"{column}: which way is better is known of {names} (src/metrics.py)")
    return direction(column)


def main_metrics(df: pd.DataFrame) -> tuple[str, str]:
    """(the column of curves to choose by, the one to report), as main_columns() picks them.

    Raises UserError where no other split than train was evaluated.
    """
    columns = [str(name) for name in df.columns if df[name].dtype == "curve"]
    if found := main_columns(columns):
        return found
    there_are = ", ".join(columns) or "no curves at all yet"
    raise UserError(f"metric: neither test/last/accuracy nor test/last/loss; there are {there_are}")


def _cells(curves: pd.Series) -> Iterator[Curve | None]:
    array = curves.array
    if not isinstance(array, CurveArray) or array.values.dtype.kind not in "fiub":
        raise UserError(f"{curves.name}: no column of curves of numbers")
    return array.curves()


def _numbers(curves: pd.Series, number: Callable[[np.ndarray, np.ndarray], float]) -> pd.Series:
    found = [np.nan if curve is None else number(*curve) for curve in _cells(curves)]
    return pd.Series(found, index=curves.index, name=curves.name, dtype=float)


def aligned(curves: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """((n,) index, (curves, n) values) of several curves; NaN before and after a curve's own.

    The index holds all points of all curves; between its own points a curve is straight. Curves
    that are missing or without points are left out.
    """
    there = [curve for curve in _cells(curves) if curve is not None]
    if not there:
        return np.zeros(0), np.zeros((0, 0))
    first = there[0][1]
    if all(np.array_equal(index, first) for _, index in there):
        return first, np.stack([values for values, _ in there])
    union = np.unique(np.concatenate([index for _, index in there]))
    values = [np.interp(union, x, y, left=np.nan, right=np.nan) for y, x in there]
    return union, np.stack(values)
