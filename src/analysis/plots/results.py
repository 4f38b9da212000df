"""Pictures of one number for each setting: against one hyperparameter, two, or another metric."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from src.analysis.curves import COSTS, direction_of
from src.analysis.plots import panels
from src.analysis.plots.encoding import LINES, POINTS, Levels, levels, literal, spans, width_of
from src.analysis.run_plot import COLOURS
from src.analysis.settings import Scores, Setting, mean_interval, metrics_of, scores_by
from src.metrics import metric_name
from src.support import bad_value

DODGE = 0.12  # between series beside each other over a name
DENSE = 150  # points of a trade-off: beyond, they are small
COST_SPANS = 20  # from there on a cost is drawn on a logarithmic axis
FRONT = "#333333"
# Of heat maps
MOST_CELLS = 12  # a side, where the frame of the best is thick
SIZES = (8, 7, 6, 5)  # points of numbers in cells, the first that fits
MARGIN = 1.15  # of a cell, beside the number
MAP, FRAME = "cividis", "#D55E00"  # no colour of the map is like the frame


# ---- Against a key -----------------------------------------------------------------------


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
    ax: Axes | None = None,
) -> Figure:
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
    is_best = which == "best"
    sign = direction_of(judge) if is_best else 1
    spec = panels.PlotSpec(row, col, colour, style, ax)
    grid = panels.facet_grid(df, spec, used=[key], styles=LINES if found.is_numeric else POINTS)
    places = grid.each(lambda axis: panels.key_axis(axis, found))[0]
    means: list[float] = []
    seeds: list[float] = []
    for panel in grid.panels:
        series = grid.series(panel.settings)
        for number, settings in enumerate(series):
            lines, at = joined_along(settings, found), places
            if is_best:
                of_values = panels.grouped(settings, lambda s: int(found.codes[s.row]))
                lines = [[judged.best(of_values[code], sign) for code in sorted(of_values)]]
                seeds += [value for best in lines[0] for value in shown.of(best).tolist()]
            if is_best and not found.is_numeric:
                at = places + DODGE * (number - (len(series) - 1) / 2)
            for line in lines:
                means += _draw_means(panel, line, shown, (found, at), grid, is_best=is_best)
    if panels.is_log_loss(metric, means):
        grid.each(panels.log_y)
    cut_note = grid.fit_y(seeds)
    grid.name_axes(key, panels.label_of(metric, when))
    rest = ("best of", f"by {judge}") if is_best else ("points differ in", "as well")
    notes = [
        grid.unencoded_keys(*rest),
        panels.seeds_note(shown.counts(grid.settings), "bars" if is_best else ""),
        "x: diverged" if any(map(shown.has_diverged, grid.settings)) else "",
        cut_note,
        panels.unended_note(df),
        panels.losses_note(df, [judge, metric], spec),
    ]

    def handle(colour: Any, style: Any) -> Line2D:
        look = {"color": colour, "markersize": 4.5, "linewidth": 1.6, **line_look(found, style)}
        return Line2D([], [], **(look | ({"marker": ""} if found.is_numeric else {})))

    grid.add_legends(handle, notes)
    return grid.figure


def _draw_means(
    panel: panels.Panel,
    settings: Sequence[Setting],
    shown: Scores,
    axis: tuple[Levels, np.ndarray],  # a key, and the place of each of its values
    grid: panels.FacetGrid,
    *,
    is_best: bool,  # of the settings with the same value: with its interval, and larger
) -> list[float]:
    """One line, and a cross at the lower edge where a seed diverged; the means."""
    found, places = axis
    colour, style = grid.marks(settings[0])
    x = np.array([places[found.codes[setting.row]] for setting in settings])
    look: dict[str, Any] = {"color": colour, **line_look(found, style)}
    # where points are dense, large ones would hide how the line is dashed
    look["markersize"] = (4.5 if is_best else 3) if len(found.values) <= panels.MANY else 1.2
    if is_best:
        parts = [mean_interval(shown.of(setting)) for setting in settings]
        means, low, high = (np.array(part, dtype=float) for part in zip(*parts, strict=True))
        bars = np.nan_to_num(np.stack([means - low, high - means])).clip(0)
        panel.axis.errorbar(x, means, bars, linewidth=1.5, elinewidth=1, **look)
    else:
        means = np.array([shown.mean(setting) for setting in settings])
        alpha = 0.35 if len(panel.settings) > 4 * panels.MANY else 0.8
        panel.axis.plot(x, means, linewidth=0.7, alpha=alpha, **look)
    crossed = x[[shown.has_diverged(setting) for setting in settings]]
    if len(crossed):  # those of colours above each other
        height = 0.025 + 0.04 * (grid.colours.code(settings[0].row) % len(COLOURS))
        look = {"linestyle": "none", "marker": "x", "markersize": 5, "color": colour}
        look |= {"transform": panel.axis.get_xaxis_transform(), "label": "_diverged"}
        panel.axis.plot(crossed, np.full(len(crossed), height), **look)
    return means.tolist()


def line_look(found: Levels, style: Any) -> dict[str, Any]:
    """Numbers are joined in the style; between names is nothing, and the style is a shape."""
    if found.is_numeric:
        return {"linestyle": style, "marker": "o"}
    return {"linestyle": "none", "marker": style}


def joined_along(settings: Iterable[Setting], found: Levels) -> list[list[Setting]]:
    """Those that differ in the key alone, in its order."""

    def rest(setting: Setting) -> Hashable:
        return repr({name: value for name, value in setting.values.items() if name != found.key})

    lines = panels.grouped(settings, rest).values()
    return [sorted(line, key=lambda s: int(found.codes[s.row])) for line in lines]


# ---- Two keys ----------------------------------------------------------------------------


def heat_map(
    df: pd.DataFrame,
    x: str,
    y: str,
    metric: str | None = None,
    *,
    when: str | float = "last",
    robust: bool = True,
    row: str | None = None,
    col: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The best of the other keys for each pair of values: better is brighter, the best framed.

    Means over seeds; a cross: diverged; hatched: nothing there. Which settings are best is judged
    as in against. robust: colours end at Tukey's fences (1.5 times the quartiles' distance from
    the quartiles), and the caption says which cells lie beyond; else they reach the worst of all.
    Raises UserError for names that do not exist.
    """
    if x == y:
        raise bad_value("y", y, "another key than that of x")
    across, up = levels(df, x, "x"), levels(df, y, "y")
    judge, metric = metrics_of(df, metric)
    shown, judged = scores_by(df, metric, when), scores_by(df, judge, when)
    spec = panels.PlotSpec(row, col, ax=ax)
    grid = panels.facet_grid(df, spec, used=[x, y])
    best = partial(judged.best, sign=direction_of(judge))
    rank = partial(judged.rank, sign=direction_of(judge))
    tables = [_cells(panel.settings, (up, across), shown, best, rank) for panel in grid.panels]
    finite = np.concatenate([table.values[np.isfinite(table.values)] for table in tables])
    norm, num_below, num_above = _norm(finite, metric, robust=robust)
    colours = colormaps[MAP if direction_of(metric) > 0 else f"{MAP}_r"]
    for panel, table in zip(grid.panels, tables, strict=True):
        if table.values.size:
            panel.axis.imshow(table.values, norm=norm, cmap=colours, aspect="auto", origin="lower")
    if len(finite):
        ends = {(True, False): "min", (False, True): "max", (True, True): "both"}
        bar = grid.figure.colorbar(
            ScalarMappable(norm, colours),
            ax=[panel.axis for panel in grid.panels],
            pad=0.02,
            extend=ends.get((num_below > 0, num_above > 0), "neither"),
        )
        bar.set_label(literal(panels.label_of(metric, when)))
        if isinstance(norm, LogNorm):
            panels.log_ticks(bar.ax.yaxis)
    for panel, table in zip(grid.panels, tables, strict=True):
        panels.name_ticks(panel.axis.xaxis, across.names)
        panels.name_ticks(panel.axis.yaxis, up.names)
        _mark(panel.axis, table)
    grid.name_axes(x, y)
    grid.each(lambda axis: axis.grid(False))

    notes = [
        grid.unencoded_keys("best of", f"by {judge}"),
        panels.seeds_note(shown.counts(grid.settings)),
        "framed: the best" if any(table.best is not None for table in tables) else "",
        "×: diverged" if any(table.is_diverged.any() for table in tables) else "",
        "hatched: nothing there" if any(table.is_empty.any() for table in tables) else "",
    ]
    sides = ((num_below, norm.vmin, "below"), (num_above, norm.vmax, "above"))
    beyond = [f"{end:.3g}: {n} cell{'s are' if n > 1 else ' is'} {s}" for n, end, s in sides if n]
    notes.append(f"colours end at {', at '.join(beyond)}" if beyond else "")
    notes += [panels.unended_note(df), panels.losses_note(df, [judge, metric], spec)]
    grid.add_legends(notes=notes)
    if grid.is_whole:
        grid.figure.draw_without_rendering()  # now axes have their size
    _write_numbers(grid, tables)
    return grid.figure


@dataclass(frozen=True)
class Cells:
    """A number for each pair of values, (values of y, values of x)."""

    values: np.ndarray
    is_diverged: np.ndarray  # where the number is missing as runs diverged
    best: tuple[int, int] | None  # the cell that choose() would choose, where any has a value

    @property
    def is_empty(self) -> np.ndarray:
        return np.isnan(self.values) & ~self.is_diverged


def _cells(
    settings: Sequence[Setting],
    keys: tuple[Levels, Levels],
    shown: Scores,
    best: Callable[[Sequence[Setting]], Setting],
    rank: Callable[[Setting], tuple[float, float]],
) -> Cells:
    shape = tuple(len(key.values) for key in keys)
    values, is_diverged, ranks = np.full(shape, np.nan), np.zeros(shape, dtype=bool), {}
    cells = panels.grouped(settings, lambda s: tuple(int(key.codes[s.row]) for key in keys))
    for at, inside in cells.items():
        setting = best(inside)
        values[at], is_diverged[at] = shown.mean(setting), shown.has_diverged(setting)
        if np.isfinite(rank(setting)[1]):
            ranks[at] = rank(setting)
    return Cells(values, is_diverged, min(ranks, key=ranks.__getitem__, default=None))


def _norm(finite: np.ndarray, metric: str, *, robust: bool) -> tuple[Normalize, int, int]:
    """(the scale of the colours, how many values lie below it, and above).

    robust: it ends at the fences of Tukey (1977), but where they leave nothing between them.
    """
    inside = finite
    if robust and len(finite):
        numbers = np.log(finite) if panels.is_log_loss(metric, finite) else finite
        first, third = np.quantile(numbers, [0.25, 0.75])
        fence = 1.5 * (third - first)
        if fence > 0:
            inside = finite[(numbers >= first - fence) & (numbers <= third + fence)]
    low, high = (inside.min(), inside.max()) if len(inside) else (0.0, 1.0)
    if high - low <= 1e-9 * abs(high):  # one colour, and a bar that can be read
        low, high = low - 0.05 * abs(low or 1), high + 0.05 * abs(high or 1)
    kind = LogNorm if panels.is_log_loss(metric, inside) else Normalize
    return kind(float(low), float(high)), int((finite < low).sum()), int((finite > high).sum())


def _mark(axis: Axes, table: Cells) -> None:
    """Frames the best cell, hatches the empty ones, crosses those that diverged."""

    def outline(up: int, across: int, **look: Any) -> None:
        axis.add_patch(Rectangle((across - 0.5, up - 0.5), 1, 1, fill=False, **look))

    for up, across in np.argwhere(table.is_empty):
        outline(up, across, hatch="////", edgecolor="#bbbbbb", linewidth=0)
    for up, across in np.argwhere(table.is_diverged):
        axis.text(across, up, "×", color=panels.GREY, ha="center", va="center", fontsize=8)
    if table.best is not None:
        width = 2.5 if max(table.values.shape) <= MOST_CELLS else 1.2
        outline(*table.best, edgecolor=FRAME, linewidth=width)


def _write_numbers(grid: panels.FacetGrid, tables: Sequence[Cells]) -> None:
    """In the largest letters in which all fit, or none; enough digits to tell them apart."""
    texts: list[dict[tuple[int, int], str]] = []
    for table in tables:
        finite = table.values[np.isfinite(table.values)]
        span = float(np.ptp(finite)) if len(finite) else 0.0
        digits = 3 if span == 0 or np.abs(finite).max() / span < 20 else 4
        cells = map(tuple, np.argwhere(np.isfinite(table.values)))
        texts.append({at: f"{table.values[at]:.{digits}g}" for at in cells})

    def fits(size: int) -> bool:
        for panel, table, of_table in zip(grid.panels, tables, texts, strict=True):
            num_up, num_across = table.values.shape
            width, height = panels.size_of(panel.axis)
            widest = max((width_of(text, size) for text in of_table.values()), default=0.0)
            if widest * MARGIN * num_across > width or size / 72 * MARGIN * num_up > height:
                return False
        return True

    size = next(filter(fits, SIZES), None)
    for panel, table, of_table in zip(grid.panels, tables, texts, strict=True):
        for (up, across), text in of_table.items() if size else ():
            image = panel.axis.images[0]
            red, green, blue, _ = image.cmap(image.norm(table.values[up, across]))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 else "white"
            look: Any = {"color": ink, "ha": "center", "va": "center", "fontsize": size}
            panel.axis.text(across, up, text, **look)


# ---- Two metrics -------------------------------------------------------------------------


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
    ax: Axes | None = None,
) -> Figure:
    """One metric against another, or against 'seconds': a point a setting, its mean over seeds.

    The line is the Pareto front of each panel: than its points, none is better in both. Raises
    UserError for names that do not exist, and for metrics of which nobody knows what is better.
    """
    both = [scores_by(df, column, when) for column in (x, y)]
    # of the runs that have both numbers: means of other runs would not belong together
    is_there = np.isfinite(both[0].values) & np.isfinite(both[1].values)
    is_diverged = both[0].is_diverged | both[1].is_diverged
    both = [
        replace(one, values=np.where(is_there, one.values, np.nan), is_diverged=is_diverged)
        for one in both
    ]
    signs = direction_of(x), direction_of(y)
    spec = panels.PlotSpec(row, col, colour, style, ax)
    grid = panels.facet_grid(df, spec, fine=True, styles=POINTS)
    means = {s.row: [scores.mean(s) for scores in both] for s in grid.settings}
    points = np.array(list(means.values()), dtype=float).reshape(-1, 2)
    finite = points[np.isfinite(points).all(axis=1)]
    for panel in grid.panels:
        size, alpha = (12, 0.55) if len(panel.settings) > DENSE else (30, 0.9)
        look: Any = {"s": size, "alpha": alpha, "linewidths": 0, "zorder": 3}
        for settings in grid.series(panel.settings):
            dye, shape = grid.marks(settings[0])
            at = np.array([means[setting.row] for setting in settings])
            panel.axis.scatter(at[:, 0], at[:, 1], color=dye, marker=shape, **look)
        front = pareto(np.array([means[s.row] for s in panel.settings]).reshape(-1, 2), signs)
        if len(front):  # a step: what one can have at least, of what was tried
            look = {"color": FRONT, "linewidth": 1.0, "alpha": 0.7, "label": "_front"}
            look |= {"marker": "o", "markersize": 8, "fillstyle": "none"}
            where = "steps-post" if signs[0] < 0 else "steps-pre"
            panel.axis.plot(front[:, 0], front[:, 1], drawstyle=where, **look)
        for column, values, name in zip((x, y), finite.T, "xy", strict=True):
            is_cost = metric_name(column) in COSTS and spans(values, COST_SPANS)
            if is_cost or panels.is_log_loss(column, values):
                panel.axis.set(**{f"{name}scale": "log"})
            else:
                panels.number_axis(getattr(panel.axis, f"{name}axis"), values)
    grid.name_axes(panels.label_of(x, when), panels.label_of(y, when))
    num_diverged = sum(map(both[1].has_diverged, grid.settings))
    notes = [
        grid.unencoded_keys("points differ in", "as well"),
        panels.seeds_note(both[1].counts(grid.settings)),
        "line: Pareto front",
        f"left out: {num_diverged} that diverged" if num_diverged else "",
        panels.unended_note(df),
        panels.losses_note(df, [x, y], spec),
    ]
    look = {"linestyle": "none", "markersize": 6}
    grid.add_legends(lambda dye, shape: Line2D([], [], color=dye, marker=shape, **look), notes)
    return grid.figure


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
    front = ordered[np.concatenate([[True], reached[1:] > reached[:-1]])]
    return front[np.argsort(front[:, 0], kind="stable")]
