"""tradeoff: one metric against another, or against what it costs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.curves import COSTS, direction_of
from src.analysis.plots.axes import is_log_loss, label_of, number_axis
from src.analysis.plots.marks import POINTS, spans
from src.analysis.plots.panels import (
    Grid,
    Panel,
    Wish,
    add_legends,
    grid_of,
    losses_note,
    name_axes,
    seeds_note,
    unended_note,
)
from src.analysis.scores import Scores, scores_by
from src.metrics import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT = "#333333"
DENSE = 150  # points of a panel: beyond, they are small
COST_SPANS = 20  # from there on a cost is drawn on a logarithmic axis


def tradeoff(
    df: pd.DataFrame,
    x: str,
    y: str,
    *,
    when: str | float = "last",
    row: str | None = None,
    col: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """One metric against another, or against 'seconds': a point a setting, its mean over seeds.

    The line is the Pareto front of each panel: than its points, none is better in both. Raises
    UserError for names that do not exist, and for metrics of which nobody knows what is better.
    """
    first, second = _of_both(scores_by(df, x, when), scores_by(df, y, when))
    signs = direction_of(x), direction_of(y)
    wish = Wish(row, col, colour, style, ax)
    grid = grid_of(df, wish, fine=True, styles=POINTS)
    points = {s.row: (first.mean(s), second.mean(s)) for s in grid.settings}
    for panel in grid.panels:
        _draw_points(panel, points, grid)
        _draw_front(panel, [points[s.row] for s in panel.settings], signs)
    _scale(grid, (x, y), np.array(list(points.values())).reshape(-1, 2))
    name_axes(grid, label_of(x, when), label_of(y, when))
    notes = [*_notes(grid, second), unended_note(df), losses_note(df, [x, y], [row, col])]
    add_legends(grid, _handle, notes)
    return grid.figure


def _of_both(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Of the runs that have both: means of other runs would not belong together."""
    is_there = np.isfinite(a.values) & np.isfinite(b.values)
    is_diverged = a.is_diverged | b.is_diverged
    first, second = (
        replace(one, values=np.where(is_there, one.values, np.nan), is_diverged=is_diverged)
        for one in (a, b)
    )
    return first, second


def pareto(points: np.ndarray, signs: tuple[int, int]) -> np.ndarray:
    """(front, 2) Of points (n, 2), those than which none is better in one and as good in both.

    signs: 1 where more is better, -1 where less is. Ordered by the first.
    """
    found = points[np.isfinite(points).all(axis=1)]
    if not len(found):
        return found
    order = np.lexsort((-signs[1] * found[:, 1], -signs[0] * found[:, 0]))  # the best x first
    ordered = found[order]
    reached = np.maximum.accumulate(signs[1] * ordered[:, 1])
    is_new = np.concatenate([[True], reached[1:] > reached[:-1]])
    front = ordered[is_new]
    return front[np.argsort(front[:, 0], kind="stable")]


def _draw_points(panel: Panel, points: dict[int, tuple[float, float]], grid: Grid) -> None:
    size, alpha = (12, 0.55) if len(panel.settings) > DENSE else (30, 0.9)
    for settings in grid.series(panel.settings):
        colour, shape = grid.look(settings[0])
        at = np.array([points[setting.row] for setting in settings])
        look = {"marker": shape, "s": size, "alpha": alpha, "linewidths": 0}
        panel.axis.scatter(at[:, 0], at[:, 1], color=colour, zorder=3, **look)


def _draw_front(
    panel: Panel, points: Sequence[tuple[float, float]], signs: tuple[int, int]
) -> None:
    """A step: what one can have at least, of what was tried."""
    front = pareto(np.array(points, dtype=float).reshape(-1, 2), signs)
    if len(front):
        where = "post" if signs[0] < 0 else "pre"
        look: Any = {"color": FRONT, "linewidth": 1.0, "alpha": 0.7, "label": "_front"}
        look |= {"marker": "o", "markersize": 8, "fillstyle": "none"}
        style = f"steps-{where}"
        panel.axis.plot(front[:, 0], front[:, 1], drawstyle=style, **look)


def _scale(grid: Grid, columns: tuple[str, str], points: np.ndarray) -> None:
    points = points[np.isfinite(points).all(axis=1)]
    for panel in grid.panels:
        for column, values, name in zip(columns, points.T, "xy", strict=True):
            is_cost = metric_name(column) in COSTS and spans(values, COST_SPANS)
            if is_cost or is_log_loss(column, values):
                panel.axis.set(**{f"{name}scale": "log"})
            else:
                number_axis(getattr(panel.axis, f"{name}axis"), values)


def _handle(colour: Any, style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle="none", marker=style, markersize=6)


def _notes(grid: Grid, numbers: Scores) -> list[str]:
    notes = [f"points differ in {', '.join(keys)} as well" if (keys := grid.unsaid()) else ""]
    notes += [seeds_note(numbers.counts(grid.settings), ""), "line: Pareto front"]
    if num := sum(numbers.has_diverged(setting) for setting in grid.settings):
        notes.append(f"left out: {num} that diverged")
    return notes
