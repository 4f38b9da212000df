"""heat_map: a metric against two hyperparameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.curves import direction_of
from src.analysis.plots.axes import is_log_loss, label_of, log_ticks, name_ticks, size_of
from src.analysis.plots.marks import Levels, levels
from src.analysis.plots.names import literal, width_of
from src.analysis.plots.panels import (
    GREY,
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
from src.analysis.scores import Scores, Setting, metrics_of, scores_by
from src.support import bad_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CELLS = 12  # a side, where the frame of the best is thick
SIZES = (8, 7, 6, 5)  # points of numbers in cells, the first that fits
MARGIN = 1.15  # of a cell, beside the number
MAP, FRAME = "cividis", "#D55E00"  # no colour of the map is like the frame


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
    ax: "Axes | None" = None,
) -> "Figure":
    """The best of the other keys for each pair of values: better is brighter, the best framed.

    Means over seeds; a cross: diverged; hatched: nothing there. Which settings are best is judged
    as in against. robust: colours end at Tukey's fences (1.5 times the quartiles' distance from
    the quartiles), and the caption says which cells lie beyond; else they reach the worst of all.
    Raises UserError for names that do not exist.
    """
    if x == y:
        raise bad_value("y", y, "another key than that of x")
    keys = levels(df, x, "x"), levels(df, y, "y")
    judge, metric = metrics_of(df, metric)
    shown, judged = scores_by(df, metric, when), scores_by(df, judge, when)
    grid = grid_of(df, Wish(row, col, ax=ax), used=[x, y])
    by = judged, direction_of(judge)
    tables = [_table(panel.settings, keys, shown, by) for panel in grid.panels]
    scale = Scale.of([table.values for table in tables], metric, robust=robust)
    _colour(grid, tables, scale, label_of(metric, when))
    for panel, table in zip(grid.panels, tables, strict=True):
        name_ticks(panel.axis.xaxis, keys[0].names)
        name_ticks(panel.axis.yaxis, keys[1].names)
        _mark(panel, table)
    name_axes(grid, x, y)
    grid.each(lambda axis: axis.grid(False))
    notes = [*_notes(grid, tables, judge, shown), scale.note, unended_note(df)]
    add_legends(grid, notes=[*notes, losses_note(df, [judge, metric], [row, col])])
    if grid.is_whole:
        grid.figure.draw_without_rendering()  # now axes have their size
    pairs = list(zip(grid.panels, tables, strict=True))
    if size := min((_size_that_fits(*pair) for pair in pairs), default=0):
        for panel, table in pairs:
            _write_numbers(panel, table, size)
    return grid.figure


@dataclass(frozen=True)
class Table:
    """A number a cell, (values of y, values of x), and where it is missing as runs diverged."""

    values: np.ndarray
    is_broken: np.ndarray
    best: tuple[int, int] | None  # the cell that choose() would choose, where any has a value

    @property
    def is_empty(self) -> np.ndarray:
        return np.isnan(self.values) & ~self.is_broken


def _table(
    settings: Sequence[Setting],
    keys: tuple[Levels, Levels],
    shown: Scores,
    judge: tuple[Scores, int],
) -> Table:
    cells: dict[tuple[int, int], list[Setting]] = {}
    for setting in settings:
        across, up = (int(key.codes[setting.row]) for key in keys)
        cells.setdefault((up, across), []).append(setting)
    values = np.full((len(keys[1].values), len(keys[0].values)), np.nan)
    is_broken = np.zeros(values.shape, dtype=bool)
    best = {at: judge[0].best(inside, judge[1]) for at, inside in cells.items()}
    for at, setting in best.items():
        values[at] = shown.mean(setting)
        is_broken[at] = shown.has_diverged(setting)
    judged, sign = judge
    ranks = {at: judged.rank(setting, sign) for at, setting in best.items()}
    has_value = {at: rank for at, rank in ranks.items() if np.isfinite(rank[1])}
    return Table(values, is_broken, min(has_value, key=has_value.__getitem__, default=None))


@dataclass(frozen=True)
class Scale:
    """What the ends of the colours mean."""

    low: float
    high: float
    is_logarithmic: bool
    is_better_high: bool
    num_below: int  # cells beyond the ends
    num_above: int

    @classmethod
    def of(cls, tables: Sequence[np.ndarray], metric: str, *, robust: bool) -> "Scale":
        finite = np.concatenate([table[np.isfinite(table)] for table in tables])
        inside = finite[_within_fences(finite, metric)] if robust else finite
        low, high = (inside.min(), inside.max()) if len(inside) else (0.0, 1.0)
        if high - low <= 1e-9 * abs(high):  # one colour, and a bar that can be read
            low, high = low - 0.05 * abs(low or 1), high + 0.05 * abs(high or 1)
        beyond = int((finite < low).sum()), int((finite > high).sum())
        is_log = is_log_loss(metric, inside)
        return cls(float(low), float(high), is_log, direction_of(metric) > 0, *beyond)

    @property
    def note(self) -> str:
        """'colours end at 0.1: 2 cells are above'; '' where nothing lies beyond them."""
        ends = ((self.num_below, self.low, "below"), (self.num_above, self.high, "above"))
        texts = [
            f"{end:.3g}: {num} cell{'s are' if num > 1 else ' is'} {side}"
            for num, end, side in ends
            if num
        ]
        return f"colours end at {', at '.join(texts)}" if texts else ""


def _within_fences(values: np.ndarray, metric: str) -> np.ndarray:
    """(n,) All where the fences of Tukey (1977) would leave nothing between them."""
    is_log = is_log_loss(metric, values)
    numbers = np.log(values) if is_log else values
    if not len(numbers):
        return np.zeros(0, dtype=bool)
    first, third = np.quantile(numbers, [0.25, 0.75])
    fence = 1.5 * (third - first)
    is_inside = (numbers >= first - fence) & (numbers <= third + fence)
    return is_inside if fence > 0 else np.ones(len(numbers), dtype=bool)


def _colour(grid: Grid, tables: Sequence[Table], scale: Scale, label: str) -> None:
    """All panels by one scale, whose bar stands beside them."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if scale.is_logarithmic else Normalize)(scale.low, scale.high)
    colours = colormaps[MAP if scale.is_better_high else f"{MAP}_r"]
    for panel, table in zip(grid.panels, tables, strict=True):
        if table.values.size:
            panel.axis.imshow(table.values, norm=norm, cmap=colours, aspect="auto", origin="lower")
    if any(np.isfinite(table.values).any() for table in tables):
        axes = [panel.axis for panel in grid.panels]
        ends = {(True, False): "min", (False, True): "max", (True, True): "both"}
        extend = ends.get((scale.num_below > 0, scale.num_above > 0), "neither")
        mappable = ScalarMappable(norm, colours)
        bar = grid.figure.colorbar(mappable, ax=axes, pad=0.02, extend=extend)
        bar.set_label(literal(label))
        if scale.is_logarithmic:
            log_ticks(bar.ax.yaxis)


def _mark(panel: Panel, table: Table) -> None:
    """Frames the best cell, hatches the empty ones, crosses those that diverged."""
    axis = panel.axis
    middle: Any = {"ha": "center", "va": "center", "fontsize": 8}
    for up, across in np.argwhere(table.is_empty):
        _outline(panel, up, across, hatch="////", edgecolor="#bbbbbb", linewidth=0)
    for up, across in np.argwhere(table.is_broken):
        axis.text(across, up, "×", color=GREY, **middle)
    finite = np.isfinite(table.values)
    if table.best is not None:
        width = 2.5 if max(finite.shape) <= MOST_CELLS else 1.2
        _outline(panel, *table.best, edgecolor=FRAME, linewidth=width)


def _size_that_fits(panel: Panel, table: Table) -> int:
    """Points of the largest letters that all numbers fit in; 0 where none could be read."""
    finite = table.values[np.isfinite(table.values)]
    names = list(map(_formatter(finite), finite))
    num_up, num_across = table.values.shape
    width, height = size_of(panel.axis)
    for size in SIZES:
        widest = max((width_of(name, size) for name in names), default=0.0)
        fits = widest * MARGIN * num_across <= width and size / 72 * MARGIN * num_up <= height
        if fits:
            return size
    return 0


def _write_numbers(panel: Panel, table: Table, size: int) -> None:
    finite = np.isfinite(table.values)
    text = _formatter(table.values[finite])
    middle: Any = {"ha": "center", "va": "center", "fontsize": size}
    for up, across in np.argwhere(finite):
        value = table.values[up, across]
        ink = _ink(panel.axis.images[0], value)
        panel.axis.text(across, up, text(value), color=ink, **middle)


def _outline(panel: Panel, up: Any, across: Any, **look: Any) -> None:
    from matplotlib.patches import Rectangle

    panel.axis.add_patch(Rectangle((across - 0.5, up - 0.5), 1, 1, fill=False, **look))


def _formatter(values: np.ndarray) -> Any:
    """As many digits as tell the values apart, three at least."""
    span = float(np.ptp(values)) if len(values) else 0.0
    largest = float(np.abs(values).max(initial=0.0))
    digits = 3 if span == 0 or largest / span < 20 else 4
    return lambda value: f"{value:.{digits}g}"


def _ink(image: Any, value: float) -> str:
    """Dark on bright, bright on dark."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.45 else "white"


def _notes(grid: Grid, tables: Sequence[Table], judge: str, shown: Scores) -> list[str]:
    rest = ", ".join(grid.unsaid())
    notes = [
        f"best of {rest} by {judge}" if rest else "",
        seeds_note(shown.counts(grid.settings), ""),
    ]
    if any(table.best is not None for table in tables):
        notes.append("framed: the best")
    if any(table.is_broken.any() for table in tables):
        notes.append("×: diverged")
    if any(table.is_empty.any() for table in tables):
        notes.append("hatched: nothing there")
    return notes
