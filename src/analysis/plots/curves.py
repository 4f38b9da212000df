"""Pictures of whole curves: the curves themselves, and when they first reach a target."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from src.analysis.curves import CurveArray, aligned, direction_of
from src.analysis.plots import panels
from src.analysis.plots.encoding import (
    LINES,
    POINTS,
    colours_of,
    levels,
    literal,
    names_of,
    spans,
    styles_of,
)
from src.analysis.plots.results import joined_along, line_look
from src.analysis.settings import (
    Setting,
    curves_of,
    format_setting,
    format_value,
    mean_interval,
    metrics_of,
    scores_by,
)
from src.metrics import DIRECTIONS, metric_name
from src.support import bad_value

# Of pictures of the time to a target
MOST_SETTINGS = 30  # a row each
LONGEST, SHORTEST = 34, 8  # characters of the values that name a row, and of each
WRAP = 44  # characters of a line of a row's name
LINE, ROW = 0.13, 0.19  # inches of such a line, and of a row of one
TIME_SPANS = 20  # from there on the axis of times is logarithmic
NEVER = "#eeeeee"


def learning_curves(
    df: pd.DataFrame,
    metric: str | None = None,
    *,
    row: str | None = None,
    col: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The metric against what the curves are indexed by: a line a setting, its mean over seeds.

    Shaded: 95 % interval of the mean; of two seeds each is a thin line. Dotted: the mean of those
    seeds that have a point, where others have none. A cross: a seed diverges. Raises UserError for
    names that do not exist.
    """
    metric = metrics_of(df, metric)[1]
    curves = curves_of(df, metric)
    spec = panels.PlotSpec(row, col, colour, style, ax)
    grid = panels.facet_grid(df, spec, fine=True, styles=LINES)
    if style is None and len(grid.settings) > panels.MANY:
        grid.styles = styles_of(None, LINES)  # nobody sees whether thin lines are dashed
    is_diverged = scores_by(df, metric).is_diverged
    drawn = {s.row: _average(curves.iloc[s.rows], is_diverged[s.rows]) for s in grid.settings}
    for panel in grid.panels:
        for setting in panel.settings:
            _draw_average(panel.axis, drawn[setting.row], grid, setting)
    averages = list(drawn.values())
    index = np.concatenate([np.zeros(0), *(average.index for average in averages)])
    means = np.concatenate([np.zeros(0), *(average.mean for average in averages)])
    seeds = np.concatenate([np.zeros(0), *(average.values.reshape(-1) for average in averages)])
    for panel in grid.panels:
        panels.number_axis(panel.axis.xaxis, index)
        if panels.is_log_loss(metric, means):
            panels.log_y(panel.axis)
    cut_note = grid.fit_y(seeds, DIRECTIONS.get(metric_name(metric), 0))
    grid.name_axes(_index_label(curves), metric)
    counts = [len(average.values) for average in averages]
    some_seeds = any(not average.is_complete.all() for average in averages)
    notes = [
        panels.seeds_note(counts, *(() if grid.is_crowded else ("shade", "thin"))),
        grid.unencoded_keys("lines differ in", "as well"),
        "dotted: some seeds only" if some_seeds else "",
        "x: a seed diverged" if any(len(average.ends) for average in averages) else "",
        cut_note,
        panels.losses_note(df, [metric], spec),
    ]
    look: Any = {"linewidth": 1.8}
    return grid.add_legends(lambda c, s: Line2D([], [], color=c, linestyle=s, **look), notes)


def _index_label(curves: pd.Series) -> str:
    return panels.label_of(cast(CurveArray, curves.array).names[1])


@dataclass(frozen=True)
class Average:
    """The curves of a setting's seeds as one."""

    index: np.ndarray  # (n,)
    values: np.ndarray  # (seeds, n), NaN where a seed has no point
    mean: np.ndarray  # (n,) of the seeds that have a point
    ends: np.ndarray  # points of the index at which a seed diverges

    @property
    def is_complete(self) -> np.ndarray:
        """(n,) Whether all seeds have the point."""
        return np.isfinite(self.values).all(axis=0)


def _average(curves: pd.Series, is_diverged: np.ndarray) -> Average:
    """is_diverged: (seeds,) those that diverge."""
    ends = []
    for curve in curves[is_diverged].array.curves():  # type: ignore[attr-defined]
        if curve is not None:
            finite = np.flatnonzero(np.isfinite(curve[0]))
            ends.append(float(curve[1][finite[-1] if len(finite) else 0]))
    index, values = aligned(curves)
    values = np.where(np.isfinite(values), values, np.nan)
    is_measured = ~np.isnan(values).all(axis=0)  # lines are straight where nothing was evaluated
    index, values = index[is_measured], values[:, is_measured]
    mean = np.nanmean(values, axis=0) if len(values) else np.zeros(0)
    return Average(index, values, mean, np.unique(ends))


def _draw_average(axis: Axes, average: Average, grid: panels.FacetGrid, setting: Setting) -> None:
    """The line, its shade where all seeds have points, and crosses where seeds diverge."""
    colour, style = grid.marks(setting)
    index, mean, is_complete = average.index, average.mean, average.is_complete
    width, alpha, size = (0.7, 0.4, 2) if grid.is_crowded else (1.6, 1.0, 4)
    look: dict[str, Any] = {"color": colour, "linewidth": width, "alpha": alpha, "marker": "o"}

    def draw(is_shown: np.ndarray, **more: Any) -> None:
        """Points without a neighbour, which no line shows, are markers."""
        padded = np.concatenate([[False], is_shown, [False]])
        alone = np.flatnonzero(is_shown & ~padded[:-2] & ~padded[2:])
        axis.plot(index, np.where(is_shown, mean, np.nan), markevery=alone, **look, **more)

    if len(mean):
        draw(is_complete, linestyle=style, markersize=size, label="_setting")
    if not is_complete.all():  # dotted, from the last point that all seeds have
        padded = np.concatenate([[True], is_complete, [True]])
        is_partial = ~is_complete | ~padded[:-2] | ~padded[2:]
        draw(is_partial, linestyle=":", markersize=3, fillstyle="none", label="_some seeds")
    if not grid.is_crowded and len(average.values) == 2:  # an interval of two says nothing
        axis.plot(index, average.values.T, color=colour, linewidth=0.6, alpha=0.7, label="_seed")
    elif is_complete.any() and not grid.is_crowded and len(average.values) > 2:
        interval = np.full((2, len(index)), np.nan)
        interval[:, is_complete] = mean_interval(average.values[:, is_complete])[1:]
        # all seeds are equal where there is none: no width
        low, high = np.where(is_complete & np.isnan(interval), mean, interval)
        axis.fill_between(index, low, high, color=colour, alpha=0.18, linewidth=0)

    look = {"linestyle": "none", "marker": "x", "markersize": 5, "color": colour, "zorder": 5}
    look["label"] = "_diverged"
    is_on_line = np.isin(average.ends, index)
    if len(on_line := average.ends[is_on_line]):
        axis.plot(on_line, mean[np.searchsorted(index, on_line)], **look)
    if len(others := average.ends[~is_on_line]):  # there is no line: at the lower edge
        edge = axis.get_xaxis_transform()
        axis.plot(others, np.full(len(others), 0.03), transform=edge, **look)


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
    ax: Axes | None = None,
) -> Figure:
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
    spec = panels.PlotSpec(row, col, colour, style, ax)
    styles = LINES if found and found.is_numeric else POINTS
    grid = panels.facet_grid(df, spec, used=[key] if key else [], styles=styles)
    time_axis = TimeAxis.of(times, "y" if found else "x")

    def draw(
        panel: panels.Panel, line: Sequence[Setting], at: Sequence[float], **look: Any
    ) -> None:
        """The medians of settings of one colour, which lie at these places of the other axis, and
        their seeds where there are few."""
        dye, mark = grid.marks(line[0])
        look |= line_look(found, mark) if found else {"linestyle": "none", "marker": mark}
        medians = [time_axis.median(setting) for setting in line]
        time_axis.plot(panel.axis, at, medians, color=dye, label="_medians", **look)
        look = {"marker": ".", "markersize": 4, "alpha": 0.5, "linestyle": "none"}
        for place, setting in zip(at, line, strict=True):
            if len(setting.rows) > 1 and not (found and grid.is_crowded):
                places = np.full(len(setting.rows), place)
                seeds = times[setting.rows]
                time_axis.plot(panel.axis, places, seeds, color=dye, label="_seeds", **look)

    reached = f"{_index_label(curves)}\nto {metric} {format_value(target)}"
    notes = []
    if any(len(setting.rows) > 1 for setting in grid.settings):
        notes.append("large: median over seeds, small: the seeds")
    if found:
        for panel in grid.panels:
            places = panels.key_axis(panel.axis, found)
            for settings in grid.series(panel.settings):
                for line in joined_along(settings, found):
                    at = [float(places[found.codes[setting.row]]) for setting in line]
                    draw(panel, line, at, linewidth=1.0, markersize=3 if grid.is_crowded else 5)
        grid.name_axes(found.key, reached)
        notes.append(grid.unencoded_keys("lines differ in", "as well"))
    else:
        # Rows have names: a colour that nobody requested would tell nothing more.
        grid.colours = grid.colours if colour else colours_of(None)
        grid.styles = grid.styles if style else styles_of(None, POINTS)
        rows, names, row_keys, row_notes = _rows(grid, time_axis)
        place = {setting.row: at for at, row in enumerate(rows) for setting in row}
        for panel in grid.panels:
            for setting in panel.settings:
                if setting.row in place:
                    draw(panel, [setting], [place[setting.row]], markersize=6)
            panel.axis.set_yticks(range(len(rows)), list(map(literal, names)), fontsize=8)
            panel.axis.set_ylim(len(rows) - 0.4, -0.6)
        if grid.is_whole:  # the figure grows by what the rows need more than there is
            lines = max((name.count("\n") + 1 for name in names), default=1)
            num_panels = max(1, len({panel.axis.get_position().y0 for panel in grid.panels}))
            needed = len(rows) * (ROW + LINE * (lines - 1)) - 8 * ROW
            height = grid.figure.get_figheight() + num_panels * max(0.0, needed)
            grid.figure.set_figheight(height)
        grid.name_axes(reached, row_keys)
        notes += row_notes
    for panel in grid.panels:
        time_axis.apply(panel.axis)
    if "state" in df and (num := (np.isinf(times) & (df["state"] != "done")).sum()):
        notes.append(f"never: also {num} that have not ended")
    notes.append(panels.losses_note(df, [metric], spec))

    def handle(dye: Any, mark: Any) -> Line2D:
        look = line_look(found, mark) if found else {"linestyle": "none", "marker": mark}
        return Line2D([], [], markersize=5, color=dye, **look)

    return grid.add_legends(handle, notes)


def first_reached(curves: pd.Series, target: float) -> np.ndarray:
    """(runs,) The first point of each index at which the target is reached.

    Infinite where it never is; NaN where there is no curve.
    """
    sign = direction_of(str(curves.name))
    found = np.full(len(curves), np.nan)
    for run, curve in enumerate(curves.array.curves()):  # type: ignore[attr-defined]
        if curve is not None:
            reached = np.flatnonzero(sign * curve[0] >= sign * target)
            found[run] = curve[1][reached[0]] if len(reached) else np.inf
    return found


@dataclass(frozen=True)
class TimeAxis:
    """The axis of the times of all runs, and where on it never is."""

    name: str  # x or y
    times: np.ndarray  # (runs,) as first_reached gives them
    low: float
    never: float
    high: float
    is_logarithmic: bool
    has_never: bool

    @classmethod
    def of(cls, times: np.ndarray, name: str) -> "TimeAxis":
        finite = times[np.isfinite(times)]
        is_log = spans(finite, TIME_SPANS)
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        if is_log:
            ratio = high / low
            low, never, end = low / ratio**0.06, high * ratio**0.12, high * ratio**0.18
        else:
            low, never, end = min(low, 0.0), high * 1.12 or 1.0, high * 1.18 or 1.1
        return cls(name, times, low, never, end, is_log, bool(np.isinf(times).any()))

    def plot(self, axis: Axes, places: Any, times: Any, **look: Any) -> None:
        """places: on the other axis."""
        both = places, np.where(np.isinf(times), self.never, times)
        axis.plot(*(both[::-1] if self.name == "x" else both), **look)

    def median(self, setting: Setting) -> float:
        """Of the seeds that have curves; infinite where the half of them never arrive."""
        there = self.times[setting.rows]
        there = there[~np.isnan(there)]
        return float(np.median(there)) if len(there) else np.nan

    def apply(self, axis: Axes) -> None:
        """Set its scale, limits and ticks; never is grey, and its tick has no number."""
        side: Any = axis.xaxis if self.name == "x" else axis.yaxis
        if self.is_logarithmic:
            axis.set(**{f"{self.name}scale": "log"})
        else:
            panels.number_axis(side, [self.low, self.high])
        high = self.high if self.has_never else 2 * self.high - self.never
        axis.set(**{f"{self.name}lim": (self.low, high)})
        if self.is_logarithmic:
            panels.log_ticks(side)
        if self.has_never:
            begin = 2 * self.never - self.high
            if self.is_logarithmic:
                begin = self.never**2 / self.high
            over = axis.axvspan if self.name == "x" else axis.axhspan
            over(begin, self.high, color=NEVER, zorder=0, label="_never")
            there = [at for at in side.get_majorticklocs() if self.low <= at < begin]
            names = side.get_major_formatter().format_ticks(there)  # it must know all of them
            side.set_major_locator(FixedLocator([*there, self.never]))
            side.set_major_formatter(FixedFormatter([*names, "never"]))


def _rows(
    grid: panels.FacetGrid, time_axis: TimeAxis
) -> tuple[list[list[Setting]], list[str], str, list[str]]:
    """(rows of settings, the fastest first; their names; the keys that name them; notes).

    Settings that differ in their panel alone are one row.
    """

    def order(row: Sequence[Setting]) -> tuple[bool, float, float]:
        """By the median, then by the fastest seed; last are those without curves."""
        times = np.concatenate([time_axis.times[setting.rows] for setting in row])
        medians = [time_axis.median(setting) for setting in row]
        fastest, median = np.fmin.reduce(times), np.fmin.reduce(medians)
        return bool(np.isnan(fastest)), *np.nan_to_num([median, fastest], nan=np.inf, posinf=np.inf)

    keys = [key for key in grid.keys if key not in grid.taken]
    by_values = panels.grouped(grid.settings, lambda s: repr([s.values[key] for key in keys]))
    all_rows = sorted(by_values.values(), key=order)
    rows = all_rows[:MOST_SETTINGS]
    values = {key: [row[0].values[key] for row in rows] for key in keys}
    telling = [key for key in keys if len(set(map(repr, values[key]))) > 1]

    most = max(SHORTEST, LONGEST // max(1, len(telling)))
    parts = []
    for key in telling:
        different = {repr(value): value for value in values[key]}
        names = dict(zip(different, names_of(list(different.values()), most), strict=True))
        parts.append([names[repr(value)] for value in values[key]])
    texts = [" ".join(of_row) for of_row in zip(*parts, strict=True)] or [""] * len(rows)
    texts = [textwrap.fill(text, WRAP, break_long_words=False) for text in texts]

    notes = []
    if more := len(all_rows) - len(rows):
        notes.append(f"the fastest {MOST_SETTINGS}; {more} more are not shown")
    if same := format_setting({key: values[key][0] for key in keys if rows and key not in telling}):
        notes.append(f"all rows: {same}")
    return rows, texts, ", ".join(telling), notes
