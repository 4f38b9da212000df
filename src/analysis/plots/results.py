"""Pictures of one number a setting: against one key, two, or another metric; and for each class."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
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
from src.analysis.plots.encoding import (
    LINES,
    POINTS,
    Levels,
    cut,
    levels,
    literal,
    spans,
    width_of,
)
from src.analysis.run_plot import COLOURS
from src.analysis.settings import Setting, mean_interval, metrics_of, scores_by
from src.metrics import metric_name
from src.support import UserError, bad_value, unknown_name

DODGE = 0.12  # between series beside each other over a name
DENSE = 150  # points of a trade-off: beyond, they are small
COST_SPANS = 20  # from there on a cost is drawn on a logarithmic axis
FRONT = "#333333"
# Of heat maps
MOST_CELLS = 12  # a side, where the frame of the best is thick
SIZES = (8, 7, 6, 5)  # points of numbers in cells, the first that fits
MARGIN = 1.15  # of a cell, beside the number
MAP, FRAME = "cividis", "#D55E00"  # no colour of the map is like the frame
# Of classes
LONGEST_CLASS = 24  # characters of a name
CLASS = 0.17  # inches a class
MOST_NAMED = 60  # classes, beyond which they are numbered


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
    places = [panels.key_axis(panel.axis, found) for panel in grid.panels]  # the same in all
    means: list[float] = []
    seeds: list[float] = []
    drawn: list[tuple[panels.Panel, np.ndarray, np.ndarray, Any]] = []  # x, means, colour

    def draw(panel: panels.Panel, line: Sequence[Setting], at: np.ndarray) -> None:
        """One line, and a cross at the lower edge where a seed diverged."""
        dye, mark = grid.marks(line[0])
        x = np.array([at[found.codes[setting.row]] for setting in line])
        look: dict[str, Any] = {"color": dye, **line_look(found, mark)}
        # where points are dense, large ones would hide how the line is dashed
        is_dense = len(found.values) > panels.MANY
        look["markersize"] = 1.2 if is_dense else 4.5 if is_best else 3
        if is_best:
            parts = [mean_interval(shown.of(setting)) for setting in line]
            middle, low, high = (np.array(part, dtype=float) for part in zip(*parts, strict=True))
            bars = np.nan_to_num(np.stack([middle - low, high - middle])).clip(0)
            for place, setting in enumerate(line):  # an interval of two seeds says nothing
                if len(ends := shown.of(setting)) == 2:
                    bars[:, place] = abs(ends[0] - ends[1]) / 2
            panel.axis.errorbar(x, middle, bars, linewidth=1.5, elinewidth=1, **look)
        else:
            middle = np.array([shown.mean(setting) for setting in line])
            alpha = 0.35 if len(panel.settings) > 4 * panels.MANY else 0.8
            panel.axis.plot(x, middle, linewidth=0.7, alpha=alpha, **look)
        means.extend(middle.tolist())
        drawn.append((panel, x, middle, dye))
        crossed = x[[shown.has_diverged(setting) for setting in line]]
        if len(crossed):  # those of colours above each other
            height = 0.025 + 0.04 * (grid.colours.code(line[0].row) % len(COLOURS))
            look = {"linestyle": "none", "marker": "x", "markersize": 5, "color": dye}
            look |= {"transform": panel.axis.get_xaxis_transform(), "label": "_diverged"}
            panel.axis.plot(crossed, np.full(len(crossed), height), **look)

    for panel in grid.panels:
        series = grid.series(panel.settings)
        for number, settings in enumerate(series):
            if not is_best:
                for line in joined_along(settings, found):
                    draw(panel, line, places[0])
                continue
            of_values = panels.grouped(settings, lambda s: int(found.codes[s.row]))
            line = [judged.best(of_values[code], sign) for code in sorted(of_values)]
            seeds += [value for best in line for value in shown.of(best).tolist()]
            beside = 0 if found.is_numeric else DODGE * (number - (len(series) - 1) / 2)
            draw(panel, line, places[0] + beside)
    if panels.is_log_loss(metric, means):
        for panel in grid.panels:
            panels.log_y(panel.axis)
    cut_note = grid.fit_y(seeds, sign if is_best else 0)
    for panel, x, middle, dye in drawn:
        bottom, top = panel.axis.get_ylim()
        for far, mark, height in ((middle < bottom, "v", 0.02), (middle > top, "^", 0.98)):
            if far.any():
                look = {"color": dye, "transform": panel.axis.get_xaxis_transform()}
                look |= {"linestyle": "none", "marker": mark, "markersize": 6, "label": "_far"}
                panel.axis.plot(x[far], np.full(far.sum(), height), **look)
    grid.name_axes(key, panels.label_of(metric, when))
    rest = ("best of", f"by {judge}") if is_best else ("points differ in", "as well")
    notes = [
        grid.unencoded_keys(*rest),
        panels.seeds_note(shown.counts(grid.settings), *(("bars", "bars") if is_best else ())),
        "x: diverged" if any(map(shown.has_diverged, grid.settings)) else "",
        cut_note,
        panels.unended_note(df),
        panels.losses_note(df, [judge, metric], spec),
    ]

    def handle(dye: Any, mark: Any) -> Line2D:
        look = {"color": dye, "markersize": 4.5, "linewidth": 1.6, **line_look(found, mark)}
        return Line2D([], [], **(look | ({"marker": ""} if found.is_numeric else {})))

    return grid.add_legends(handle, notes)


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
    sign, tables = direction_of(judge), []
    for panel in grid.panels:
        values = np.full((len(up.values), len(across.values)), np.nan)
        is_diverged, ranks = np.zeros(values.shape, dtype=bool), {}
        cells = panels.grouped(panel.settings, lambda s: (up.codes[s.row], across.codes[s.row]))
        for at, inside in cells.items():
            setting = judged.best(inside, sign)
            values[at], is_diverged[at] = shown.mean(setting), shown.has_diverged(setting)
            if np.isfinite(judged.rank(setting, sign)[1]):
                ranks[at] = judged.rank(setting, sign)
        best = min(ranks, key=ranks.__getitem__, default=None)
        tables.append(Cells(panel.axis, values, is_diverged, best))
    finite = np.concatenate([table.values[np.isfinite(table.values)] for table in tables])
    norm, num_below, num_above = _norm(finite, metric, robust=robust)
    colours = colormaps[MAP if direction_of(metric) > 0 else f"{MAP}_r"]
    for table in tables:
        if table.values.size:
            table.axis.imshow(table.values, norm=norm, cmap=colours, aspect="auto", origin="lower")
    if len(finite):
        ends = {(True, False): "min", (False, True): "max", (True, True): "both"}
        look: Any = {"pad": 0.02, "ax": [panel.axis for panel in grid.panels]}
        look["extend"] = ends.get((num_below > 0, num_above > 0), "neither")
        bar = grid.figure.colorbar(ScalarMappable(norm, colours), **look)
        bar.set_label(literal(panels.label_of(metric, when)))
        if isinstance(norm, LogNorm):
            panels.log_ticks(bar.ax.yaxis)
    for table in tables:
        panels.name_ticks(table.axis.xaxis, across.names)
        panels.name_ticks(table.axis.yaxis, up.names)
        frames = [
            ((r, c), {"hatch": "////", "edgecolor": "#bbbbbb", "linewidth": 0})
            for r, c in np.argwhere(table.is_empty)
        ]
        if table.best is not None:
            width = 2.5 if max(table.values.shape) <= MOST_CELLS else 1.2
            frames.append((table.best, {"edgecolor": FRAME, "linewidth": width}))
        for (r, c), look in frames:
            table.axis.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, fill=False, **look))
        for r, c in np.argwhere(table.is_diverged):
            look = {"color": panels.GREY, "ha": "center", "va": "center", "fontsize": 8}
            table.axis.text(c, r, "×", **look)
    grid.name_axes(x, y)
    for panel in grid.panels:
        panel.axis.grid(False)

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
    _write_numbers(tables)
    return grid.figure


@dataclass(frozen=True)
class Cells:
    """A number for each pair of values, (values of y, values of x)."""

    axis: Axes
    values: np.ndarray
    is_diverged: np.ndarray  # where the number is missing as runs diverged
    best: tuple[int, int] | None  # the cell that choose() would choose, where any has a value

    @property
    def is_empty(self) -> np.ndarray:
        return np.isnan(self.values) & ~self.is_diverged


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


def _write_numbers(tables: Sequence[Cells]) -> None:
    """In the largest letters in which all fit, or none; enough digits to tell them apart."""
    texts: list[dict[tuple[int, int], str]] = []
    for table in tables:
        finite = table.values[np.isfinite(table.values)]
        span = float(np.ptp(finite)) if len(finite) else 0.0
        digits = 3 if span == 0 or np.abs(finite).max() / span < 20 else 4
        cells = map(tuple, np.argwhere(np.isfinite(table.values)))
        texts.append({at: f"{table.values[at]:.{digits}g}" for at in cells})

    def fits(size: int) -> bool:
        for table, of_table in zip(tables, texts, strict=True):
            num_up, num_across = table.values.shape
            width, height = panels.size_of(table.axis)
            widest = max((width_of(text, size) for text in of_table.values()), default=0.0)
            if widest * MARGIN * num_across > width or size / 72 * MARGIN * num_up > height:
                return False
        return True

    size = next(filter(fits, SIZES), None)
    for table, of_table in zip(tables, texts, strict=True):
        for (up, across), text in of_table.items() if size else ():
            image = table.axis.images[0]
            red, green, blue, _ = image.cmap(image.norm(table.values[up, across]))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 else "white"
            look: Any = {"color": ink, "ha": "center", "va": "center", "fontsize": size}
            table.axis.text(across, up, text, **look)


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
    return grid.add_legends(lambda c, m: Line2D([], [], color=c, marker=m, **look), notes)


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


def per_class(
    df: pd.DataFrame,
    column: str = "test/last/class_accuracy",
    *,
    row: str | None = None,
    col: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A point a class and setting: the last epoch's value, its mean over seeds, the lowest below.

    column: of arrays, (epochs, classes) a run. Raises UserError for a column that holds none.
    """
    if column not in df:
        raise unknown_name("column", column, df.columns)
    cells = df[column].tolist()
    shapes = {x.shape[1:] for x in cells if isinstance(x, np.ndarray)}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 1:
        raise UserError(f"column: {column} holds no numbers for each class, of as many in each run")
    last = [np.full(shape, np.nan) if x is None or not len(x) else x[-1] for x in cells]
    values, num = np.stack(last), shape[0]  # (runs, classes)

    grid = panels.facet_grid(df, panels.PlotSpec(row, col, colour, style, ax), styles=POINTS)
    means = [pd.DataFrame(values[setting.rows]).mean() for setting in grid.settings]  # not of NaN
    order = pd.concat(means, axis=1).mean(axis=1).argsort(kind="stable").to_numpy()
    pairs = zip(grid.settings, means, strict=True)
    mean_of = {setting.row: mean.to_numpy()[order] for setting, mean in pairs}
    known = [names for names in df.get("data_class_names", []) if isinstance(names, list)]
    labels = [str(i) for i in order]  # names, where all runs have the same ones
    if known and len(known[0]) == num and all(names == known[0] for names in known):
        labels = [literal(cut(str(known[0][i]), LONGEST_CLASS)) for i in order]
    for panel in grid.panels:
        for setting in panel.settings:
            dye, marker = grid.marks(setting)
            look: Any = {"color": dye, "marker": marker, "linestyle": "none", "alpha": 0.8}
            panel.axis.plot(mean_of[setting.row], np.arange(num), markersize=4, **look)
        if num <= MOST_NAMED:
            panel.axis.set_yticks(np.arange(num), labels, fontsize=8)
    if ax is None:
        grid.figure.set_figheight(
            max(grid.figure.get_figheight(), 1 + CLASS * min(num, MOST_NAMED))
        )
    grid.name_axes(panels.label_of(column), "class")
    counts = [len(setting.rows) for setting in grid.settings]
    notes = [grid.unencoded_keys("points differ in", "as well"), panels.seeds_note(counts, "")]
    look = {"linestyle": "none"}
    return grid.add_legends(lambda c, m: Line2D([], [], color=c, marker=m, **look), notes)
