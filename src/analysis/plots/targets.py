"""to_target: how long settings take to reach a value of the metric."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from src.analysis.curves import CurveArray, direction_of
from src.analysis.plots.axes import key_axis, label_of, log_ticks, number_axis
from src.analysis.plots.keys import joined_along, line_look
from src.analysis.plots.marks import (
    LINES,
    POINTS,
    Levels,
    colours_of,
    levels,
    spans,
    styles_of,
)
from src.analysis.plots.names import literal, names_of
from src.analysis.plots.panels import (
    Grid,
    Panel,
    Wish,
    add_legends,
    grid_of,
    losses_note,
    name_axes,
)
from src.analysis.scores import Setting, curves_of, metrics_of
from src.analysis.settings import format_setting, format_value
from src.support import bad_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SETTINGS = 30  # a row each
LONGEST, SHORTEST = 34, 8  # characters of the values that name a row, and of each
WRAP = 44  # characters of a line of a row's name
LINE, ROW = 0.13, 0.19  # inches of such a line, and of a row of one
TIME_SPANS = 20  # from there on the axis of times is logarithmic
NEVER = "#eeeeee"


def to_target(
    df: pd.DataFrame,
    target: float,
    metric: str | None = None,
    *,
    key: str | None = None,
    row: str | None = None,
    col: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """Where on their index curves first reach the target: a row a setting, or against a key.

    Large: the median over seeds, of which those that never arrive count as infinite. Small: the
    seeds. On grey: never. Raises UserError for names that do not exist.
    """
    if isinstance(target, bool) or not isinstance(target, int | float) or not np.isfinite(target):
        raise bad_value("target", target, "a value of the metric that should be reached")
    metric = metrics_of(df, metric)[1]
    curves = curves_of(df, metric)
    times = first_reached(curves, target)
    found = levels(df, key) if key else None
    wish = Wish(row, col, colour, style, ax)
    styles = LINES if found and found.is_numeric else POINTS
    grid = grid_of(df, wish, used=[key] if key else [], styles=styles)
    if not found:  # rows are named: what nobody asked for tells nothing more
        grid.colours = grid.colours if colour else colours_of(None)
        grid.styles = grid.styles if style else styles_of(None, POINTS)
    scale = Scale.of(times, "y" if found else "x")
    index_name = cast(CurveArray, curves.array).names[1]
    reached = f"{label_of(index_name)}\nto {metric} {format_value(target)}"
    if found:
        _draw_along(grid, times, found, scale)
        name_axes(grid, found.key, reached)
    else:
        name_axes(grid, reached, _draw_rows(grid, times, scale))
    grid.each(scale.apply)
    notes = [*_notes(df, grid, times, found), losses_note(df, [metric], [row, col])]
    add_legends(grid, _handle(found), notes)
    return grid.figure


def first_reached(curves: pd.Series, target: float) -> np.ndarray:
    """(runs,) The first point of each index at which the target is reached.

    Infinite where it never is; NaN where there is no curve.
    """
    sign = direction_of(str(curves.name))
    found = np.full(len(curves), np.nan)
    for run, curve in enumerate(curves.array.curves()):  # type: ignore[attr-defined]
        if curve is not None and len(curve[0]):
            reached = np.flatnonzero(sign * curve[0] >= sign * target)
            found[run] = curve[1][reached[0]] if len(reached) else np.inf
    return found


@dataclass(frozen=True)
class Scale:
    """The axis of times, and where on it never is."""

    name: str  # x or y
    low: float
    never: float
    high: float
    is_logarithmic: bool
    has_never: bool

    @classmethod
    def of(cls, times: np.ndarray, name: str) -> "Scale":
        finite = times[np.isfinite(times)]
        is_log = spans(finite, TIME_SPANS)
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        if is_log:
            ratio = high / low
            low, never, end = low / ratio**0.06, high * ratio**0.12, high * ratio**0.18
        else:
            low, never, end = min(low, 0.0), high * 1.12 or 1.0, high * 1.18 or 1.1
        return cls(name, low, never, end, is_log, bool(np.isinf(times).any()))

    def place(self, times: Any) -> np.ndarray:
        return np.where(np.isinf(times), self.never, times)

    def apply(self, axis: "Axes") -> None:
        side = axis.xaxis if self.name == "x" else axis.yaxis
        if self.is_logarithmic:
            axis.set(**{f"{self.name}scale": "log"})
        else:
            number_axis(side, [self.low, self.high])
        high = self.high if self.has_never else 2 * self.high - self.never
        axis.set(**{f"{self.name}lim": (self.low, high)})
        if self.is_logarithmic:
            log_ticks(side)
        if self.has_never:
            self._grey(axis)

    def _grey(self, axis: "Axes") -> None:
        """With no numbers beside it: what never arrives has none."""
        from matplotlib.ticker import FixedFormatter, FixedLocator

        begin = (self.never**2 / self.high) if self.is_logarithmic else 2 * self.never - self.high
        over = axis.axvspan if self.name == "x" else axis.axhspan
        over(begin, self.high, color=NEVER, zorder=0, label="_never")
        side = axis.xaxis if self.name == "x" else axis.yaxis
        there = [at for at in side.get_majorticklocs() if self.low <= at < begin]
        names = side.get_major_formatter().format_ticks(there)  # it must know all of them
        side.set_major_locator(FixedLocator([*there, self.never]))
        side.set_major_formatter(FixedFormatter([*names, "never"]))


# ---- Against a key -----------------------------------------------------------------------


def _draw_along(grid: Grid, times: np.ndarray, found: Levels, scale: Scale) -> None:
    crowded = grid.is_crowded  # too many for their seeds
    for panel in grid.panels:
        places = key_axis(panel.axis, found)
        for settings in grid.series(panel.settings):
            for line in joined_along(settings, found):
                x = np.array([places[found.codes[setting.row]] for setting in line])
                colour, style = grid.look(line[0])
                look = {"color": colour, "linewidth": 1.0, "markersize": 3 if crowded else 5}
                look |= line_look(found, style)
                medians = [_median(times[setting.rows]) for setting in line]
                panel.axis.plot(x, scale.place(medians), label="_medians", **look)
                for at, setting in zip(x, line, strict=True) if not crowded else ():
                    _draw_seeds(panel, scale, at, times[setting.rows], colour)


def _median(times: np.ndarray) -> float:
    """Of the seeds that have curves; infinite where the half of them never arrive."""
    there = np.sort(times[~np.isnan(times)])
    middle = there[(len(there) - 1) // 2 : len(there) // 2 + 1]
    return float(middle.sum() / len(middle)) if len(there) else np.nan


def _draw_seeds(panel: Panel, scale: Scale, at: float, times: np.ndarray, colour: Any) -> None:
    if len(times) > 1:
        both = np.full(len(times), at), scale.place(times)
        x, y = both[::-1] if scale.name == "x" else both
        look: Any = {"marker": ".", "markersize": 4, "alpha": 0.5, "linestyle": "none"}
        panel.axis.plot(x, y, color=colour, label="_seeds", **look)


# ---- A row a setting ---------------------------------------------------------------------


def _draw_rows(grid: Grid, times: np.ndarray, scale: Scale) -> str:
    """The fastest at the top; the keys that name them."""
    order = _rows_of(grid, times)[:MOST_SETTINGS]
    keys = _telling(grid, order)
    names = _names(order, keys)
    place = {setting.row: at for at, row in enumerate(order) for setting in row}
    for panel in grid.panels:
        for setting in panel.settings:
            if setting.row in place:
                _draw_row(panel, grid, setting, (times, scale, place[setting.row]))
        _name_rows(panel, names)
    if grid.is_whole:
        _grow(grid, names)
    return ", ".join(keys)


def _telling(grid: Grid, order: Sequence[Sequence[Setting]]) -> list[str]:
    """The keys in which rows differ."""
    values = {key: {repr(row[0].values[key]) for row in order} for key in _keys_of_rows(grid)}
    return [key for key, different in values.items() if len(different) > 1]


def _names(order: Sequence[Sequence[Setting]], keys: Sequence[str]) -> list[str]:
    """Of each row its values, in lines."""
    most = max(SHORTEST, LONGEST // max(1, len(keys)))
    parts = []
    for key in keys:
        values = {repr(row[0].values[key]): row[0].values[key] for row in order}
        names = dict(zip(values, names_of(list(values.values()), most), strict=True))
        parts.append([names[repr(row[0].values[key])] for row in order])
    texts = [" ".join(of_row) for of_row in zip(*parts, strict=True)] or [""] * len(order)
    return [textwrap.fill(text, WRAP, break_long_words=False) for text in texts]


def _shared(grid: Grid, order: Sequence[Sequence[Setting]]) -> str:
    """'optim_alg=sgd': what no row needs to say of itself."""
    telling = _telling(grid, order)
    keys = [key for key in _keys_of_rows(grid) if key not in telling] if order else []
    return format_setting({key: order[0][0].values[key] for key in keys})


def _grow(grid: Grid, names: Sequence[str]) -> None:
    """By what the rows need more than there is."""
    lines = max((name.count("\n") + 1 for name in names), default=1)
    lowest = max(1, len({panel.axis.get_position().y0 for panel in grid.panels}))
    needed = len(names) * (ROW + LINE * (lines - 1)) - 8 * ROW
    grid.figure.set_figheight(grid.figure.get_figheight() + lowest * max(0.0, needed))


def _keys_of_rows(grid: Grid) -> list[str]:
    return [key for key in grid.keys if key not in grid.taken]


def _rows_of(grid: Grid, times: np.ndarray) -> list[list[Setting]]:
    """Settings that differ in their panel alone are one row; the fastest first."""
    keys = _keys_of_rows(grid)
    rows: dict[str, list[Setting]] = {}
    for setting in grid.settings:
        rows.setdefault(repr([setting.values[key] for key in keys]), []).append(setting)
    return sorted(rows.values(), key=lambda row: _order(row, times))


def _name_rows(panel: Panel, names: Sequence[str]) -> None:
    panel.axis.set_yticks(range(len(names)), list(map(literal, names)), fontsize=8)
    panel.axis.set_ylim(len(names) - 0.4, -0.6)


def _order(row: Sequence[Setting], times: np.ndarray) -> tuple[bool, float, float]:
    """By the median, then by the fastest seed; last are those without curves."""
    found = [times[setting.rows] for setting in row if not np.isnan(times[setting.rows]).all()]
    medians = [_median(seeds) for seeds in found]
    fastest = [float(np.nanmin(seeds)) for seeds in found]
    return not found, min(medians, default=np.inf), min(fastest, default=np.inf)


def _draw_row(
    panel: Panel, grid: Grid, setting: Setting, where: tuple[np.ndarray, Scale, int]
) -> None:
    times, scale, at = where
    colour, shape = grid.look(setting)
    median = scale.place([_median(times[setting.rows])])
    look: Any = {"linestyle": "none", "marker": shape, "markersize": 6, "color": colour}
    panel.axis.plot(median, [at], label="_medians", **look)
    _draw_seeds(panel, scale, at, times[setting.rows], colour)


# ------------------------------------------------------------------------------------------


def _handle(found: Levels | None) -> Any:
    from matplotlib.lines import Line2D

    def draw(colour: Any, style: Any) -> Any:
        look = line_look(found, style) if found else {"linestyle": "none", "marker": style}
        return Line2D([], [], markersize=5, color=colour, **look)

    return draw


def _notes(df: pd.DataFrame, grid: Grid, times: np.ndarray, found: Levels | None) -> list[str]:
    notes = []
    if max((len(setting.rows) for setting in grid.settings), default=0) > 1:
        notes.append("large: median over seeds, small: the seeds")
    if found and (keys := grid.unsaid()):
        notes.append(f"lines differ in {', '.join(keys)} as well")
    if not found and (more := len(_rows_of(grid, times)) - MOST_SETTINGS) > 0:
        notes.append(f"the fastest {MOST_SETTINGS}; {more} more are not shown")
    if not found and (same := _shared(grid, _rows_of(grid, times)[:MOST_SETTINGS])):
        notes.append(f"all rows: {same}")
    if "state" in df and (num := (np.isinf(times) & (df["state"] != "done")).sum()):
        notes.append(f"never: also {num} that have not ended")
    return notes
