"""Colours, styles and legends: how values of keys look in pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.plots.names import literal, names_of
from src.analysis.run_plot import COLOURS
from src.analysis.settings import LONGEST, groups, is_null, is_number, varying
from src.support import bad_value, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = "#999999"  # null among numbers
LINES = ["-", (0, (5, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1, 1))]
POINTS = ["o", "s", "^", "D", "v", "P", "*"]
MAP = "viridis"  # its order is seen by colour-blind readers and in grey
MAP_END = 0.93  # beyond, it is too bright for lines on white
MOST_ENTRIES = 12  # of a legend
MOST_STYLES = 4
LOG_FROM = 10  # an axis of positive numbers that span more is logarithmic


# ---- Values of a key ---------------------------------------------------------------------


@dataclass(frozen=True)
class Levels:
    """The values of a key in their order, and which of them each run has."""

    key: str
    values: list[Any]
    codes: np.ndarray  # (runs,)

    @property
    def names(self) -> list[str]:
        """Short, and different where the values are."""
        return self.short_names(LONGEST)

    def short_names(self, most: int) -> list[str]:
        """Of at most so many characters."""
        return names_of(self.values, most)

    @property
    def is_numeric(self) -> bool:
        return bool(self.values) and all(_has_place(value) for value in self.values)

    @property
    def is_logarithmic(self) -> bool:
        return self.is_numeric and spans(self.values, LOG_FROM)


def _has_place(value: Any) -> bool:
    """On an axis."""
    return is_number(value) and math.isfinite(value)


def spans(values: Any, factor: float) -> bool:
    """Whether all are positive, and the largest is more than factor times the smallest."""
    numbers = np.asarray(values, dtype=float)
    return bool(len(numbers) and numbers.min() > 0 and numbers.max() > factor * numbers.min())


def levels(df: pd.DataFrame, key: str, role: str = "key") -> Levels:
    """role: the argument that named the key. Raises UserError where it can be no such key."""
    if key not in df:
        raise unknown_name(role, key, map(str, df.columns))
    if df[key].dtype == "curve":
        raise bad_value(role, key, "a key of the configuration: this is a column of curves")
    table = df[[key]].reset_index(drop=True)
    codes = np.zeros(len(df), dtype=int)
    found = groups(table, [key])
    for code, (_, rows) in enumerate(found):
        codes[rows.index] = code
    return Levels(key, [values[key] for values, _ in found], codes)


# ---- Values as marks ---------------------------------------------------------------------


@dataclass(frozen=True)
class Marks:
    """What each value of a key looks like; without a key all look alike."""

    levels: Levels | None
    marks: list[Any]
    has_bar: bool = False  # colours are too many to be listed

    def of(self, row: int) -> Any:
        """Of the run in that row."""
        return self.marks[self.levels.codes[row]] if self.levels else self.marks[0]

    def code(self, row: int) -> int:
        return int(self.levels.codes[row]) if self.levels else 0

    @property
    def key(self) -> str | None:
        return self.levels.key if self.levels else None


def colours_of(found: Levels | None) -> Marks:
    """Few names in colours that are far apart; numbers, and more names, along a map."""
    if found is None or len(found.values) < 2:
        return Marks(None, COLOURS[1:2])
    are_numbers = sum(_has_place(value) for value in found.values) == len(found.values) - (
        is_null(found.values[0])
    )
    if not are_numbers and len(found.values) <= len(COLOURS):
        return Marks(found, COLOURS[: len(found.values)])
    has_bar = are_numbers and len(found.values) > MOST_ENTRIES
    return Marks(found, _along_map(found.values, is_measured=has_bar), has_bar)


def _along_map(values: Sequence[Any], *, is_measured: bool) -> list[Any]:
    """By their order, or where measured by their size; null is grey."""
    from matplotlib import colormaps

    there = [value for value in values if not is_null(value)]
    if is_measured:
        norm = norm_of(there)
        places = [float(norm(value)) for value in there]
    else:
        places = list(np.linspace(0, 1, len(there)))
    along = [colormaps[MAP](MAP_END * place) for place in places]
    return [MISSING] * (len(values) - len(there)) + along


def norm_of(values: Sequence[float]) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    kind = LogNorm if spans(values, LOG_FROM) else Normalize
    return kind(min(values), max(values))


def styles_of(found: Levels | None, styles: Sequence[Any]) -> Marks:
    """Raises UserError where there are more values than styles."""
    if found is None or len(found.values) < 2:
        return Marks(None, [styles[0]])
    if len(found.values) > len(styles):
        expected = f"a key with at most {len(styles)} values, not {len(found.values)}"
        raise bad_value("style", found.key, expected)
    return Marks(found, list(styles[: len(found.values)]))


def choose(
    df: pd.DataFrame, colour: str | None, style: str | None, *, used: Sequence[str], fine: bool
) -> tuple[Levels | None, Levels | None]:
    """(what colours mean, what styles mean): as asked, else of the varying keys not yet used.

    fine: the keys with the most values first (a line a setting leaves the least unsaid), else
    names before numbers (which are rather optimised than compared).
    """
    by_colour = levels(df, colour, "colour") if colour else None
    by_style = levels(df, style, "style") if style else None
    said = [levels(df, key) for key in used] + [f for f in (by_colour, by_style) if f]
    free = [levels(df, key) for key in varying(df)]
    free = [found for found in free if not any(_same_split(found, other) for other in said)]
    free.sort(key=lambda found: -len(found.values) if fine else found.is_numeric)
    if by_colour is None:
        by_colour = next(iter(free), None)
    if by_style is None:
        can = (f for f in free if f is not by_colour and len(f.values) <= MOST_STYLES)
        by_style = next(can, None)
    return by_colour, by_style


def _same_split(a: Levels, b: Levels) -> bool:
    """Whether each value of one goes with one value of the other."""
    pairs = len(set(zip(a.codes.tolist(), b.codes.tolist(), strict=True)))
    return pairs == len(a.values) == len(b.values)


# ---- Legends -----------------------------------------------------------------------------


def legend_entries(marks: Marks, draw: Any) -> tuple[list[Any], list[str]]:
    """(handles, names), of at most MOST_ENTRIES values; draw(mark) makes a handle."""
    found = marks.levels
    if found is None:
        return [], []
    if marks.has_bar:  # the bar says the others
        listed = [i for i, value in enumerate(found.values) if is_null(value)]
    else:
        listed = list(range(len(found.values)))
    if len(listed) > MOST_ENTRIES:
        listed = [int(i) for i in np.linspace(0, len(listed) - 1, MOST_ENTRIES - 1)]
    all_names = found.names
    handles = [draw(marks.marks[i]) for i in listed]
    names = [literal(all_names[i]) for i in listed]
    left_out = len(found.values) - len(listed)
    if left_out and not marks.has_bar:
        handles.append(draw("none"))
        names.append(f"… and {left_out} more")
    return handles, names


def colour_bar(marks: Marks, axes: "Sequence[Axes]") -> None:
    """Beside the axes."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    assert marks.levels is not None
    there = [value for value in marks.levels.values if not is_null(value)]
    used = ListedColormap(colormaps[MAP](np.linspace(0, MAP_END, 256)))
    bar = axes[0].figure.colorbar(
        ScalarMappable(norm_of(there), used), ax=list(axes), pad=0.02, aspect=30
    )
    bar.set_label(literal(marks.levels.key))
