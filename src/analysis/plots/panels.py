"""What the pictures of a big_df share: a grid of panels, legends and notes around it.

seaborn is not used: it takes the interval of each point by itself, point after point in Python,
its legends list every value, and its facets cannot be drawn into an axis that is there.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.choice import ChoiceWarning, unlike_losses
from src.analysis.plots.marks import (
    LINES,
    MOST_STYLES,
    Levels,
    Marks,
    choose,
    colour_bar,
    colours_of,
    legend_entries,
    levels,
    styles_of,
)
from src.analysis.plots.names import cut, literal, width_of
from src.analysis.scores import INTERVAL, Setting, settings_of
from src.analysis.settings import LONGEST
from src.support import UserError, bad_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.8, 3.3  # inches of a lone panel
SMALL = (2.9, 2.3)  # and of one among others
WRAP = 4  # columns of panels, where rows are free
MOST_COLUMNS, MOST_ROWS = 8, 12
MOST_PANELS = 48
MANY = 24  # lines of a panel: beyond, they are thin and without intervals
GREY = "#666666"
CUT = "longer ones leave the picture"  # intervals, in captions
LEGEND: Any = {"frameon": False, "handlelength": 2.6, "borderaxespad": 0.2, "alignment": "left"}
NONE: tuple[list[Any], list[str]] = ([], [])  # of a legend
CAPTION, ENTRY = 0.155, 0.2  # inches of a line below the panels, and of one of a legend
TITLE, SHORTEST = 9, 6  # points of a panel's title; letters of a value in it, at least
BAR, HANDLE, TICKS = 0.9, 0.7, 0.9  # inches: a bar of colours, a legend but its names, the y axis


# ---- A grid of panels --------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the caller of a picture asked for: keys, and an axis to draw into."""

    row: str | None = None
    col: str | None = None
    colour: str | None = None
    style: str | None = None
    ax: "Axes | None" = None


@dataclass
class Panel:
    axis: "Axes"
    settings: list[Setting]


@dataclass
class Grid:
    """Panels of one figure, and what colours and styles mean in all of them."""

    figure: Any
    panels: list[Panel]
    settings: list[Setting]
    colours: Marks
    styles: Marks
    taken: list[str]  # keys that axes and panels stand for
    is_whole: bool  # the figure is ours: its legends and notes stand around the panels

    @property
    def is_crowded(self) -> bool:
        return max((len(panel.settings) for panel in self.panels), default=0) > MANY

    def each(self, change: Callable[["Axes"], Any]) -> list[Any]:
        """What it answers for the axis of each panel."""
        return [change(panel.axis) for panel in self.panels]

    def look(self, setting: Setting) -> tuple[Any, Any]:
        return self.colours.of(setting.row), self.styles.of(setting.row)

    def series(self, settings: Iterable[Setting]) -> list[list[Setting]]:
        """Those of one colour and style together."""
        found: dict[tuple[int, int], list[Setting]] = {}
        for setting in settings:
            code = (self.colours.code(setting.row), self.styles.code(setting.row))
            found.setdefault(code, []).append(setting)
        return list(found.values())

    def unsaid(self) -> list[str]:
        """The varying keys that the picture does not tell apart."""
        said = {*self.taken, self.colours.key, self.styles.key}
        return [key for key in self.keys if key not in said]

    @property
    def keys(self) -> list[str]:
        """In which settings differ."""
        return list(self.settings[0].values) if self.settings else []


def grid_of(
    df: pd.DataFrame,
    wish: Wish,
    *,
    used: Sequence[str] = (),
    fine: bool = False,
    styles: Sequence[Any] = (),
) -> Grid:
    """used: keys that the axes stand for. fine: see choose. styles: none: nor any colours.

    Raises UserError where a key does not exist or has too many values, or ax leaves no room.
    """
    row = levels(df, wish.row, "row") if wish.row else None
    col = levels(df, wish.col, "col") if wish.col else None
    for found, role in ((row, "row"), (col, "col")):
        if found and wish.ax is not None:
            raise UserError(f"{role}: got {found.key!r} beside ax, which is one panel")
    taken = [*used, *(found.key for found in (row, col) if found)]
    looks = choose(df, wish.colour, wish.style, used=taken, fine=fine) if styles else (None, None)
    settings = settings_of(df, [*taken, *(found.key for found in looks if found)])
    if styles[:1] == LINES[:1] and wish.style is None and fine and len(settings) > MANY:
        looks = (looks[0], None)  # nobody sees whether thin lines are dashed
    figure, panels = _panels(settings, row, col, wish.ax)
    _name_panels(figure, panels, (row, col), looks[0])
    marks = colours_of(looks[0]), styles_of(looks[1], styles or ("-",))
    return Grid(figure, panels, settings, *marks, taken, is_whole=wish.ax is None)


def _panels(
    settings: list[Setting], row: Levels | None, col: Levels | None, ax: "Axes | None"
) -> tuple[Any, list[Panel]]:
    num_rows, num_cols = _shape(row, col)
    if ax is not None:
        figure, axes = ax.figure.figure, np.array([ax])
    else:
        figure, axes = _new_axes(num_rows, num_cols)
    cells = [(r, c) for r in range(_num(row)) for c in range(_num(col))]
    panels = []
    for axis, (r, c) in zip(axes, cells, strict=False):
        inside = [s for s in settings if _is_in(s, row, r) and _is_in(s, col, c)]
        panels.append(Panel(axis, inside))
        if not inside:
            _say(axis, "no runs")
    for axis in axes[len(cells) :]:
        axis.remove()
    return figure, panels


def _name_panels(
    figure: Any, panels: Sequence[Panel], facets: Sequence[Levels | None], legend: Levels | None
) -> None:
    """legend: what colours mean, which takes room beside the panels."""
    some = [found for found in facets if found and found.values]
    if not some:
        return
    names = [] if legend is None or legend.is_numeric else legend.names
    beside = max([BAR, *(HANDLE + width_of(name, 10) for name in names)])
    num_cols = panels[0].axis.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    room = (figure.get_figwidth() - TICKS - beside) / num_cols
    lines = product(*(_titles(found, room) for found in some))
    for panel, titles in zip(panels, lines, strict=True):
        panel.axis.set_title(literal("\n".join(titles)), fontsize=TITLE)


def _titles(found: Levels, room: float) -> list[str]:
    """'model=tiny/lenet' of each value, as long as has room in so many inches."""
    titles: list[str] = []
    for most in range(LONGEST, SHORTEST - 1, -2):
        titles = [f"{cut(found.key, most)}={name}" for name in found.short_names(most)]
        if max(width_of(title, TITLE) for title in titles) <= room:
            break
    return titles


def _say(axis: "Axes", text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color=GREY)


def _num(found: Levels | None) -> int:
    return max(1, len(found.values)) if found else 1


def _is_in(setting: Setting, found: Levels | None, code: int) -> bool:
    return found is None or found.codes[setting.row] == code


def _shape(row: Levels | None, col: Levels | None) -> tuple[int, int]:
    """Of the grid; columns alone are wrapped."""
    num_rows, num_cols = _num(row), _num(col)
    if col and row is None and num_cols <= MOST_PANELS:
        return -(-num_cols // WRAP), min(num_cols, WRAP)
    for found, role, most in ((col, "col", MOST_COLUMNS), (row, "row", MOST_ROWS)):
        if found and len(found.values) > most:
            most = MOST_PANELS if row is None else most
            expected = f"a key with at most {most} values, not {len(found.values)}; select() some"
            raise bad_value(role, found.key, expected)
    return num_rows, num_cols


def _new_axes(num_rows: int, num_cols: int) -> tuple[Any, np.ndarray]:
    from src.analysis.plots.picture import new_picture

    if num_rows * num_cols == 1:
        figure = new_picture(WIDTH, HEIGHT)
    else:
        figure = new_picture(SMALL[0] * max(num_cols, 1.5), SMALL[1] * num_rows + 0.5)
    axes = figure.subplots(num_rows, num_cols, sharex=True, sharey=True, squeeze=False)
    return figure, axes.reshape(-1)


def name_axes(grid: Grid, x: str, y: str) -> None:
    """On the outermost panels."""
    for panel in grid.panels:
        place = panel.axis.get_subplotspec()
        if _is_lowest(panel, grid):
            panel.axis.set_xlabel(literal(x))
            panel.axis.tick_params(labelbottom=True)
        if not grid.is_whole or place is None or place.is_first_col():
            panel.axis.set_ylabel(literal(y))
        panel.axis.grid(alpha=0.25, linewidth=0.6)
        panel.axis.set_axisbelow(True)
        if panel.settings and not np.isfinite(panel.axis.dataLim.get_points()).all():
            _say(panel.axis, "no values")


def _is_lowest(panel: Panel, grid: Grid) -> bool:
    """Whether no panel stands under it."""
    place = panel.axis.get_subplotspec()
    if not grid.is_whole or place is None:
        return True
    others = [other.axis.get_subplotspec() for other in grid.panels]
    return not any(
        o.colspan.start == place.colspan.start and o.rowspan.start > place.rowspan.start
        for o in others
        if o
    )


# ---- Around the panels -------------------------------------------------------------------


def add_legends(
    grid: Grid, draw: Callable[..., Any] | None = None, notes: Sequence[str] = ()
) -> None:
    """Colours on the right, styles below, and what the picture shows; draw(colour, style)."""
    if grid.colours.has_bar and draw:
        colour_bar(grid.colours, [panel.axis for panel in grid.panels])
    if draw:
        neutral = "#333333" if grid.colours.levels else grid.colours.marks[0]
        plain = grid.styles.marks[0]
        both = dict(zip(map(str, grid.colours.marks), grid.styles.marks, strict=False))
        twins = both if grid.colours.key == grid.styles.key else {}  # one legend says both
        by_colour = legend_entries(grid.colours, lambda c: draw(c, twins.get(str(c), plain)))
        by_style = legend_entries(grid.styles, lambda s: draw(neutral, s)) if not twins else NONE
    else:
        by_colour = by_style = NONE
    if grid.is_whole:
        _around(grid, by_colour, by_style, "; ".join(note for note in notes if note))
    else:
        _beside(grid, by_colour, by_style)


def _around(grid: Grid, by_colour: Any, by_style: Any, note: str) -> None:
    """The figure grows by what stands below the panels."""
    figure = grid.figure
    lines = textwrap.wrap(note, int(figure.get_figwidth() * 13))
    columns = max(1, min(MOST_STYLES, 40 // max(map(len, by_style[1]), default=40)))
    num_rows = -(-len(by_style[0]) // columns)
    caption = CAPTION * (len(lines) + 0.5 * bool(lines))
    below = caption + ENTRY * (num_rows + 1.5) * bool(num_rows)
    figure.set_figheight(figure.get_figheight() + below)
    inch = 1 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0.0, below * inch, 1.0, 1.0 - below * inch))
    look: Any = {"fontsize": 8.5, "color": GREY, "ha": "center", "va": "bottom"}
    figure.text(0.5, 0.3 * CAPTION * inch, literal("\n".join(lines)), **look)
    if by_colour[0]:
        figure.legend(*by_colour, title=_title(grid.colours), loc="outside right upper", **LEGEND)
    if by_style[0]:
        look = {**LEGEND, "bbox_to_anchor": (0.5, caption * inch), "ncols": columns}
        figure.legend(*by_style, title=_title(grid.styles), loc="lower center", **look)


def _beside(grid: Grid, by_colour: Any, by_style: Any) -> None:
    """Right of the one axis, colours above styles."""
    from matplotlib.legend import Legend

    axis: Any = grid.panels[0].axis
    for title, (handles, names), corner, height in (
        (_title(grid.colours), by_colour, "upper left", 1.0),
        (_title(grid.styles), by_style, "lower left", 0.0),
    ):
        if handles:
            look: Any = {**LEGEND, "loc": corner, "bbox_to_anchor": (1.0, height)}
            legend = Legend(axis, handles, names, title=title, fontsize=8, title_fontsize=8, **look)
            axis.add_artist(legend)
            legend.set_clip_on(False)  # else the layout leaves no room for it


def _title(marks: Marks) -> str:
    return literal(marks.key or "")


def unended_note(df: pd.DataFrame) -> str:
    """'not done: 2 failed, 1 running': their numbers may change, or are missing."""
    states = df["state"][df["state"] != "done"].value_counts() if "state" in df else pd.Series()
    counts = ", ".join(f"{num} {state}" for state, num in states.items())
    return f"not done: {counts}" if counts else ""


def losses_note(df: pd.DataFrame, metrics: Iterable[str], apart: Iterable[str | None] = ()) -> str:
    """Of losses that are not comparable, warned of as well. apart: keys, as in unlike_losses."""
    texts = [f"not comparable: {text}" for text in unlike_losses(df, metrics, apart)]
    for text in texts:
        warnings.warn(text, ChoiceWarning, stacklevel=3)  # the line that asks for the picture
    return "; ".join(texts)


def seeds_note(counts: Iterable[int], mark: str) -> str:
    """'mean over 2 seeds, shade: 95 % Student's t interval of the mean'; counts: of settings."""
    there = [count for count in counts if count]
    if max(there, default=0) < 2:
        return ""
    low, high = min(there), max(there)
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    return f"mean over {seeds}" + (f", {mark}: {INTERVAL}" if mark else "")
