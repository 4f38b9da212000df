"""learning_curves: a line a setting, with its interval over seeds."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.curves import aligned
from src.analysis.plots.axes import fit_y, is_log_loss, label_of, log_y, number_axis
from src.analysis.plots.marks import LINES
from src.analysis.plots.panels import (
    CUT,
    Grid,
    Wish,
    add_legends,
    grid_of,
    losses_note,
    name_axes,
    seeds_note,
)
from src.analysis.scores import Setting, curves_of, mean_interval, metrics_of, scores_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curves(
    df: pd.DataFrame,
    metric: str | None = None,
    *,
    row: str | None = None,
    col: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """The metric against what the curves are indexed by: a line a setting, its mean over seeds.

    Shaded: 95 % interval of the mean. Dotted: the mean of those seeds that have a point, where
    others have none. A cross: a seed diverges. Raises UserError for names that do not exist.
    """
    metric = metrics_of(df, metric)[1]
    curves = curves_of(df, metric)
    grid = grid_of(df, Wish(row, col, colour, style, ax), fine=True, styles=LINES)
    is_broken = scores_by(df, metric).is_diverged
    drawn = {s.row: _average(curves.iloc[s.rows], is_broken[s.rows]) for s in grid.settings}
    is_ours = not any(grid.each(lambda axis: axis.has_data()))
    for panel in grid.panels:
        for setting in panel.settings:
            _draw(panel.axis, drawn[setting.row], grid, setting)
    _scale(grid, metric, list(drawn.values()))
    seeds = [value for average in drawn.values() for value in average.values.reshape(-1).tolist()]
    is_cut = is_ours and any(grid.each(lambda axis: fit_y(axis, seeds)))
    name_axes(grid, label_of(curves.array.names[1]), metric)  # type: ignore[attr-defined]
    notes = [*_notes(grid, list(drawn.values())), CUT if is_cut else ""]
    notes += [losses_note(df, [metric], [row, col])]
    add_legends(grid, _handle, notes)
    return grid.figure


@dataclass(frozen=True)
class Average:
    """The curves of a setting's seeds as one."""

    index: np.ndarray  # (n,)
    values: np.ndarray  # (seeds, n), NaN where a seed has no point
    ends: np.ndarray  # points of the index at which a seed diverges

    @property
    def mean(self) -> np.ndarray:
        """(n,) Of the seeds that have a point."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a point that none has
            return np.nanmean(self.values, axis=0) if len(self.values) else np.zeros(0)

    @property
    def is_whole(self) -> np.ndarray:
        """(n,) Whether all seeds have the point."""
        return np.isfinite(self.values).all(axis=0)


def _average(curves: pd.Series, is_broken: np.ndarray) -> Average:
    """is_broken: (seeds,) those that diverge."""
    index, values = aligned(curves)
    is_there = np.isfinite(values)
    ends = []
    for curve in curves[is_broken].array.curves():  # type: ignore[attr-defined]
        if curve is not None and len(curve[0]):
            finite = np.flatnonzero(np.isfinite(curve[0]))
            ends.append(float(curve[1][finite[-1] if len(finite) else 0]))
    is_measured = is_there.any(axis=0)  # lines are straight where nothing was evaluated
    values = np.where(is_there, values, np.nan)
    return Average(index[is_measured], values[:, is_measured], np.array(ends))


# ---- Lines -------------------------------------------------------------------------------


def _draw(axis: "Axes", average: Average, grid: Grid, setting: Setting) -> None:
    colour, style = grid.look(setting)
    width, alpha = (0.7, 0.4) if grid.is_crowded else (1.6, 1.0)
    mean, is_whole = average.mean, average.is_whole
    look = {"color": colour, "linewidth": width, "alpha": alpha}
    if len(mean):
        solid = np.where(is_whole, mean, np.nan)
        alone = np.flatnonzero(_is_alone(is_whole))
        (line,) = axis.plot(average.index, solid, linestyle=style, markevery=alone, **look)
        line.set(marker="o", markersize=4 if not grid.is_crowded else 2, label="_setting")
    if not is_whole.all():
        _draw_partial(axis, average, look)
    if not grid.is_crowded and len(average.values) > 1:
        _shade(axis, average, colour)
    _cross(axis, average, colour)


def _is_alone(is_there: np.ndarray) -> np.ndarray:
    """(n,) Points with no neighbour, which no line shows."""
    padded = np.concatenate([[False], is_there, [False]])
    return is_there & ~padded[:-2] & ~padded[2:]


def _draw_partial(axis: "Axes", average: Average, look: dict[str, Any]) -> None:
    """Dotted, from the last point that all seeds have."""
    is_whole = average.is_whole
    padded = np.concatenate([[True], is_whole, [True]])
    is_shown = ~is_whole | ~padded[:-2] | ~padded[2:]
    dotted = np.where(is_shown, average.mean, np.nan)
    alone = np.flatnonzero(_is_alone(is_shown))
    (line,) = axis.plot(average.index, dotted, linestyle=":", markevery=alone, **look)
    line.set(marker="o", markersize=3, fillstyle="none", label="_some seeds")


def _shade(axis: "Axes", average: Average, colour: Any) -> None:
    low = np.full(len(average.index), np.nan)
    high = low.copy()
    is_whole = average.is_whole
    if is_whole.any():
        mean, below, above = mean_interval(average.values[:, is_whole])
        is_one = np.isnan(below)  # all seeds are equal there: no width
        low[is_whole], high[is_whole] = np.where(is_one, mean, [below, above])
        axis.fill_between(average.index, low, high, color=colour, alpha=0.18, linewidth=0)


def _cross(axis: "Axes", average: Average, colour: Any) -> None:
    """Where seeds diverge: on the line, or at the lower edge where there is none."""
    look = {"linestyle": "none", "marker": "x", "markersize": 5, "color": colour, "zorder": 5}
    ends = np.unique(average.ends)
    on_line = ends[np.isin(ends, average.index)]
    if len(on_line):
        where = np.searchsorted(average.index, on_line)
        axis.plot(on_line, average.mean[where], label="_diverged", **look)
    others = np.setdiff1d(ends, on_line)
    if len(others):
        edge = axis.get_xaxis_transform()
        axis.plot(others, np.full(len(others), 0.03), transform=edge, label="_diverged", **look)


# ---- Around them -------------------------------------------------------------------------


def _scale(grid: Grid, metric: str, averages: list[Average]) -> None:
    index = np.concatenate([average.index for average in averages] or [np.zeros(0)])
    means = np.concatenate([average.mean for average in averages] or [np.zeros(0)])
    for panel in grid.panels:
        number_axis(panel.axis.xaxis, index)
        if is_log_loss(metric, means):
            log_y(panel.axis)


def _handle(colour: Any, style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, linewidth=1.8)


def _notes(grid: Grid, averages: list[Average]) -> list[str]:
    counts = [len(average.values) for average in averages]
    notes = [seeds_note(counts, "" if grid.is_crowded else "shade")]
    unsaid = grid.unsaid()
    if unsaid:
        notes.append(f"lines differ in {', '.join(unsaid)} as well")
    if any(not average.is_whole.all() for average in averages):
        notes.append("dotted: some seeds only")
    if any(len(average.ends) for average in averages):
        notes.append("x: a seed diverged")
    return notes
