"""A column of curves in a dataframe: each cell is a pandas Series, made when it is looked at.

10,000 runs with ten curves each would be 100,000 Series of a kilobyte and some microseconds
each; here a cell is two views of the arrays that were read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray, ExtensionDtype, register_extension_dtype


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What a cell holds."""

    values: np.ndarray  # (n,) floats
    index: np.ndarray  # (n,) of the field asked for

    def __str__(self) -> str:
        """'20 points to 0.9666' in a printed table."""
        if not len(self.values):
            return "0 points"
        last = self.values[-1]
        shown = f"{last:.4g}" if isinstance(last, float) else str(last)
        return f"{len(self.values)} points to {shown}"


@register_extension_dtype
class CurveDtype(ExtensionDtype):
    """The type of such a column; a missing curve is None."""

    name = "curve"
    na_value = None

    @property
    def type(self) -> Any:
        return pd.Series

    @classmethod
    def construct_array_type(cls) -> Any:
        return CurveArray


class CurveArray(ExtensionArray):
    """cells: (rows,) objects, each a Curve or None. name, index_name: of the Series they become."""

    def __init__(self, cells: np.ndarray, name: str = "", index_name: str = "") -> None:
        self.cells, self.name, self.index_name = cells, name, index_name

    @classmethod
    def of(cls, curves: Sequence[Curve | None], name: str, index_name: str) -> "CurveArray":
        cells = np.empty(len(curves), dtype=object)
        for row, curve in enumerate(curves):  # numpy would take equal lengths for a table
            cells[row] = curve
        return cls(cells, name, index_name)

    # ---- What pandas asks for ------------------------------------------------------------

    @property
    def dtype(self) -> CurveDtype:
        return CurveDtype()

    @property
    def nbytes(self) -> int:
        curves = [c for c in self.cells if c is not None]
        return self.cells.nbytes + sum(c.values.nbytes + c.index.nbytes for c in curves)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: Any) -> Any:
        if pd.api.types.is_integer(key):
            return self._series(self.cells[key])
        return self._like(self.cells[pd.api.indexers.check_array_indexer(self, key)])

    def __eq__(self, other: object) -> Any:
        if isinstance(other, CurveArray):
            pairs = zip(self.cells, other.cells, strict=True)
            return np.array([a is not None and a is b for a, b in pairs], dtype=bool)
        return np.zeros(len(self), dtype=bool)

    def isna(self) -> np.ndarray:
        return np.array([cell is None for cell in self.cells], dtype=bool)

    def take(
        self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None
    ) -> "CurveArray":
        if not allow_fill:
            return self._like(np.take(self.cells, indices))
        wanted = np.asarray(indices, dtype=np.intp)
        if len(wanted) and wanted.min() < -1:
            raise ValueError("take: with allow_fill, indices begin at -1")
        cells = np.full(len(wanted), None, dtype=object)
        cells[wanted >= 0] = self.cells[wanted[wanted >= 0]]
        return self._like(cells)

    def copy(self) -> "CurveArray":
        return self._like(self.cells.copy())

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        if pd.api.types.is_object_dtype(dtype):
            return self._objects()
        return super().astype(dtype, copy=copy)

    def to_numpy(self, dtype: Any = None, copy: bool = False, na_value: Any = None) -> np.ndarray:
        return self._objects()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """For printing: a Series in a cell of a table would be printed whole."""
        return self.cells.copy()

    @classmethod
    def _from_sequence(
        cls, scalars: Iterable[Any], *, dtype: Any = None, copy: bool = False
    ) -> "CurveArray":
        """Of Series, as pandas collects them."""
        series = list(scalars)
        known = [s for s in series if isinstance(s, pd.Series)]
        names = (str(known[0].name), str(known[0].index.name)) if known else ("", "")
        curves = [
            Curve(s.to_numpy(), s.index.to_numpy()) if isinstance(s, pd.Series) else None
            for s in series
        ]
        return cls.of(curves, *names)

    def _cast_pointwise_result(self, values: Any) -> Any:
        """What map() gives: numbers of curves are numbers."""
        items = list(values)
        if all(item is None or isinstance(item, pd.Series) for item in items):
            return self._from_sequence(items)
        return pd.Series(items, dtype=object).infer_objects().array

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence["CurveArray"]) -> "CurveArray":
        named = next((array for array in to_concat if array.name), to_concat[0])
        return named._like(np.concatenate([array.cells for array in to_concat]))

    # --------------------------------------------------------------------------------------

    def _like(self, cells: np.ndarray) -> "CurveArray":
        return CurveArray(cells, self.name, self.index_name)

    def _series(self, curve: Curve | None) -> pd.Series | None:
        if curve is None:
            return None
        index = pd.Index(curve.index, name=self.index_name)
        return pd.Series(curve.values, index=index, name=self.name)

    def _objects(self) -> np.ndarray:
        """(rows,) objects: Series and None."""
        found = np.empty(len(self), dtype=object)
        for row, curve in enumerate(self.cells):
            found[row] = self._series(curve)
        return found


# ---- Numbers drawn from curves -----------------------------------------------------------


def last(curves: pd.Series, k: int = 1) -> pd.Series:
    """Of each curve the mean of its last k values; NaN where there is none."""
    return _numbers(curves, lambda c: float(np.mean(c.values[-k:])) if len(c.values) else np.nan)


def at(curves: pd.Series, where: float) -> pd.Series:
    """The value at that point of the index, or at the last one before it; NaN before the first."""

    def value(curve: Curve) -> float:
        position = int(np.searchsorted(curve.index, where, side="right")) - 1
        return float(curve.values[position]) if position >= 0 else np.nan

    return _numbers(curves, value)


def best(curves: pd.Series, *, is_higher_better: bool) -> pd.Series:
    """The best finite value of each curve; NaN where there is none."""

    def value(curve: Curve) -> float:
        finite = curve.values[np.isfinite(curve.values)]
        if not len(finite):
            return np.nan
        return float(finite.max() if is_higher_better else finite.min())

    return _numbers(curves, value)


def _numbers(curves: pd.Series, number: Callable[[Curve], float]) -> pd.Series:
    cells = curves.array.cells  # type: ignore[attr-defined]
    numbers = [np.nan if cell is None else number(cell) for cell in cells]
    return pd.Series(numbers, index=curves.index, name=curves.name, dtype=float)
