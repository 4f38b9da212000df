"""against: a metric against a hyperparameter."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.curves import direction_of
from src.analysis.plots.axes import fit_y, is_log_loss, key_axis, label_of, log_y
from src.analysis.plots.marks import LINES, POINTS, Levels, levels
from src.analysis.plots.panels import (
    CUT,
    MANY,
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
from src.analysis.run_plot import COLOURS
from src.analysis.scores import Scores, Setting, mean_interval, metrics_of, scores_by
from src.support import bad_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DODGE = 0.12  # between series beside each other over a name


def against(
    df: pd.DataFrame,
    key: str,
    metric: str | None = None,
    *,
    when: str | float = "last",
    which: str = "best",
    row: str | None = None,
    col: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    ax: "Axes | None" = None,
) -> "Figure":
    """The metric against a key. which: 'best' of the other keys (a point a value), or 'every'.

    Of best settings the mean over seeds and its 95 % interval; without a metric they are chosen
    by the split that chooses and shown on the one that reports (main_metrics). A cross at the
    edge: all diverged there. when: see numbers. Raises UserError for names that do not exist.
    """
    if which not in ("best", "every"):
        raise bad_value("which", which, "'best' or 'every'")
    found = levels(df, key)
    judge, metric = metrics_of(df, metric)
    shown, judged = scores_by(df, metric, when), scores_by(df, judge, when)
    sign = direction_of(judge) if which == "best" else 1
    wish = Wish(row, col, colour, style, ax)
    grid = grid_of(df, wish, used=[key], styles=LINES if found.is_numeric else POINTS)
    places = grid.each(lambda axis: key_axis(axis, found))[0]
    drawn: list[float] = []
    seeds: list[float] = []
    is_ours = not any(grid.each(lambda axis: axis.has_data()))
    for panel in grid.panels:
        series = grid.series(panel.settings)
        for number, settings in enumerate(series):
            if which == "every":
                drawn += _draw_every(panel, settings, shown, (found, places), grid)
                continue
            best = [judged.best(group, sign) for group in _by_level(settings, found)]
            beside = 0 if found.is_numeric else DODGE * (number - (len(series) - 1) / 2)
            drawn += _draw_best(panel, best, shown, (found, places + beside), grid)
            seeds += [value for setting in best for value in shown.of(setting).tolist()]
    if is_log_loss(metric, drawn):
        grid.each(log_y)
    is_cut = is_ours and any(grid.each(lambda axis: fit_y(axis, seeds)))
    name_axes(grid, key, label_of(metric, when))
    notes = [*_notes(grid, which, judge, shown), CUT if is_cut else "", unended_note(df)]
    add_legends(grid, _handle(found), [*notes, losses_note(df, [judge, metric], [row, col])])
    return grid.figure


def _by_level(settings: Iterable[Setting], found: Levels) -> list[list[Setting]]:
    groups: dict[int, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(int(found.codes[setting.row]), []).append(setting)
    return [groups[code] for code in sorted(groups)]


Axis = tuple[Levels, np.ndarray]  # a key, and the place of each of its values


def _draw_best(
    panel: Panel, settings: Sequence[Setting], shown: Scores, axis: Axis, grid: Grid
) -> list[float]:
    """With intervals; the means."""
    found, places = axis
    colour, style = grid.look(settings[0])
    x = np.array([places[found.codes[setting.row]] for setting in settings])
    parts = [mean_interval(shown.of(setting)) for setting in settings]
    means, low, high = (np.array(part, dtype=float) for part in zip(*parts, strict=True))
    bars = np.nan_to_num(np.stack([means - low, high - means])).clip(0)
    look = {"color": colour, "markersize": _size(4.5, found), "linewidth": 1.5, "elinewidth": 1}
    panel.axis.errorbar(x, means, bars, **line_look(found, style), **look)
    is_broken = [shown.has_diverged(setting) for setting in settings]
    _mark_broken(panel, x[is_broken], colour, grid.colours.code(settings[0].row))
    return means.tolist()


def line_look(found: Levels, style: Any) -> dict[str, Any]:
    """Numbers are joined in the style; between names is nothing, and the style is a shape."""
    if found.is_numeric:
        return {"linestyle": style, "marker": "o"}
    return {"linestyle": "none", "marker": style}


def _size(usual: float, found: Levels) -> float:
    """Of points: where they are dense, they would hide how the line is dashed."""
    return usual if len(found.values) <= MANY else 1.2


def _draw_every(
    panel: Panel, settings: Sequence[Setting], shown: Scores, axis: Axis, grid: Grid
) -> list[float]:
    """Settings that differ in nothing else are joined."""
    found, places = axis
    colour, style = grid.look(settings[0])
    drawn = []
    alpha = 0.35 if len(panel.settings) > 4 * MANY else 0.8
    look = {"color": colour, "alpha": alpha, "markersize": _size(3, found), "linewidth": 0.7}
    for joined in joined_along(settings, found):
        x = np.array([places[found.codes[setting.row]] for setting in joined])
        means = [shown.mean(setting) for setting in joined]
        panel.axis.plot(x, means, **line_look(found, style), **look)
        is_broken = [shown.has_diverged(setting) for setting in joined]
        _mark_broken(panel, x[is_broken], colour, grid.colours.code(settings[0].row))
        drawn += means
    return drawn


def joined_along(settings: Iterable[Setting], found: Levels) -> list[list[Setting]]:
    """Those that differ in the key alone, in its order."""
    lines: dict[str, list[Setting]] = {}
    for setting in settings:
        rest = {name: value for name, value in setting.values.items() if name != found.key}
        lines.setdefault(repr(rest), []).append(setting)
    return [[group[0] for group in _by_level(line, found)] for line in lines.values()]


def _mark_broken(panel: Panel, x: np.ndarray, colour: Any, number: int) -> None:
    """At the lower edge, those of colours above each other."""
    if len(x):
        look = {"linestyle": "none", "marker": "x", "markersize": 5, "color": colour}
        edge = panel.axis.get_xaxis_transform()
        panel.axis.plot(
            x,
            np.full(len(x), 0.025 + 0.04 * (number % len(COLOURS))),
            transform=edge,
            label="_diverged",
            **look,
        )


def _handle(found: Levels) -> Any:
    from matplotlib.lines import Line2D

    def draw(colour: Any, style: Any) -> Any:
        look = {"color": colour, "markersize": 4.5, "linewidth": 1.6, **line_look(found, style)}
        return Line2D([], [], **(look | ({"marker": ""} if found.is_numeric else {})))

    return draw


def _notes(grid: Grid, which: str, judge: str, shown: Scores) -> list[str]:
    rest, counts = ", ".join(grid.unsaid()), shown.counts(grid.settings)
    notes = []
    if which == "best":
        notes.append(f"best of {rest} by {judge}" if rest else "")
        notes.append(seeds_note(counts, "bars"))
    else:
        notes.append(f"points differ in {rest} as well" if rest else "")
        notes.append(seeds_note(counts, ""))
    if any(shown.has_diverged(setting) for setting in grid.settings):
        notes.append("x: diverged")
    return notes
