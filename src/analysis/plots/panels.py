"""Figures of panels: what all pictures share, from the PlotSpec to the axes, legends and captions.

Drawn with matplotlib alone. seaborn 0.13 was tried: it calls a function for each point of a curve
to get the interval of Student (2 s for 20 curves of 50 points, here 0.1 s), and its figures with
`row` or `col` cannot be drawn into an axis of a larger figure.
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from src.analysis.choice import ChoiceWarning, unlike_losses
from src.analysis.plots import encoding
from src.analysis.plots.encoding import (
    MOST_STYLES,
    Encoding,
    Levels,
    levels,
    literal,
    spans,
    width_of,
)
from src.analysis.settings import (
    INTERVAL,
    LONGEST,
    Setting,
    is_same_grouping,
    settings_of,
    varying,
)
from src.support import UserError, bad_value

WIDTH, HEIGHT = 4.8, 3.3  # inches of a lone panel
SMALL = (2.9, 2.3)  # and of one among others
WRAP = 4  # columns of panels, where rows are free
MOST_COLUMNS, MOST_ROWS, MOST_PANELS = 8, 12, 48
CONTEST = 4  # times the distance of the best from the median are shown, the rest is far off
MANY = 24  # lines of a panel: beyond, they are thin and without intervals
GREY = "#666666"
LEGEND: Any = {"frameon": False, "handlelength": 2.6, "borderaxespad": 0.2, "alignment": "left"}
CAPTION, ENTRY = 0.155, 0.2  # inches of a line below the panels, and of one of a legend
TITLE, SHORTEST = 9, 6  # points of a panel's title; letters of a value in it, at least
BAR, HANDLE, TICKS = 0.9, 0.7, 0.9  # inches: a bar of colours, a legend but its names, the y axis
TICK, LETTER = 0.2, 0.085  # inches that a tick's name needs, and each of its letters
FEW = 9  # values that are ticks
LOSS_SPANS = 20  # from there on a loss is drawn on a logarithmic axis
LOSSES = ("loss", "error", "perplexity")
INDEX_LABELS = {"train/seen_examples": "examples seen", "time": "time (s)", "seconds": "time (s)"}


class NotebookFigure(Figure):
    """A figure that a notebook shows once, as a value: made without pyplot, which would keep it."""

    def __init__(self, width: float, height: float) -> None:
        """width, height: inches. Letters are legible where it is shown 80 mm wide."""
        super().__init__(figsize=(width, height), dpi=110, layout="constrained")

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", bbox_inches="tight")
        return picture.getvalue()


@dataclass(frozen=True)
class PlotSpec:
    """What the caller of a picture requests: keys, and an axis to draw into."""

    row: str | None = None
    col: str | None = None
    colour: str | None = None
    style: str | None = None
    ax: Axes | None = None


@dataclass
class Panel:
    axis: Axes
    settings: list[Setting]


def grouped(settings: Iterable[Setting], key: Callable[[Setting], Hashable]) -> dict[Any, Any]:
    """key(setting) -> the settings that have it."""
    found: dict[Hashable, list[Setting]] = {}
    for setting in settings:
        found.setdefault(key(setting), []).append(setting)
    return found


@dataclass
class FacetGrid:
    """The panels of one figure, and what colours and styles mean in all of them."""

    figure: Any
    panels: list[Panel]
    settings: list[Setting]
    colours: Encoding
    styles: Encoding
    taken: list[str]  # keys that axes and panels stand for
    is_whole: bool  # the figure is ours: its legends and notes stand around the panels
    is_shared: bool  # something else is drawn into the axis already

    @property
    def is_crowded(self) -> bool:
        return max((len(panel.settings) for panel in self.panels), default=0) > MANY

    def marks(self, setting: Setting) -> tuple[Any, Any]:
        """(colour, style)"""
        colours, styles = self.colours, self.styles
        return colours.marks[colours.code(setting.row)], styles.marks[styles.code(setting.row)]

    def series(self, settings: Iterable[Setting]) -> list[list[Setting]]:
        """Those of one colour and style together."""
        codes = (self.colours.code, self.styles.code)
        return list(grouped(settings, lambda s: tuple(code(s.row) for code in codes)).values())

    @property
    def keys(self) -> list[str]:
        """In which settings differ."""
        return list(self.settings[0].values) if self.settings else []

    def unencoded_keys(self, before: str, after: str) -> str:
        """'lines differ in base_lr, momentum as well': the keys in which settings differ that the
        picture does not tell apart, between these words; '' where there are none."""
        encoded = {*self.taken, self.colours.key, self.styles.key}
        keys = ", ".join(key for key in self.keys if key not in encoded)
        return f"{before} {keys} {after}" if keys else ""

    def fit_y(self, values: Any, sign: int) -> str:
        """Keep y axes near the values of seeds, when all is drawn; a note where something leaves.

        What is far worse than the median leaves, so that the contest is seen. sign: 1 where more is
        better, -1 where less is, 0 where that is not known.
        """
        axis = self.panels[0].axis
        numbers, is_log = _finite(values), axis.get_yscale() == "log"
        numbers = numbers[(numbers > 0) | (not is_log)]
        if self.is_shared or not len(numbers) or np.ptp(numbers) == 0:
            return ""
        scale = axis.yaxis.get_transform()
        numbers = np.sort(scale.transform(numbers))
        low, high = numbers[0], numbers[-1]
        margin = (high - low) / 4
        room = CONTEST * abs(np.median(numbers) - (high if sign > 0 else low))
        if sign and 0 < room < (high - low) / 2:
            margin = room / 8
            low, high = (high - room, high) if sign > 0 else (low, low + room)
        nearest, furthest = scale.inverted().transform(np.array([low - margin, high + margin]))
        is_cut = False
        for panel in self.panels:
            bottom, top = panel.axis.get_ylim()
            bottom, top = max(bottom, nearest), min(top, furthest)
            panel.axis.set_ylim(bottom, top)
            is_cut |= bool(panel.axis.dataLim.y0 < bottom or panel.axis.dataLim.y1 > top)
        return "some leave the picture" if is_cut else ""

    def name_axes(self, x: str, y: str) -> None:
        """On the outermost panels."""
        places = [panel.axis.get_subplotspec() for panel in self.panels]
        for panel, place in zip(self.panels, places, strict=True):
            is_left = is_lowest = True
            if self.is_whole and place:
                column = [p for p in places if p and p.colspan.start == place.colspan.start]
                is_lowest = all(p.rowspan.start <= place.rowspan.start for p in column)
                is_left = place.is_first_col()
            if is_lowest:
                panel.axis.set_xlabel(literal(x))
                panel.axis.tick_params(labelbottom=True)
            if is_left:
                panel.axis.set_ylabel(literal(y))
            panel.axis.grid(alpha=0.25, linewidth=0.6)
            panel.axis.set_axisbelow(True)
            if panel.settings and not np.isfinite(panel.axis.dataLim.get_points()).all():
                _write(panel.axis, "no values")

    def add_legends(
        self, handle: Callable[..., Any] | None = None, notes: Sequence[str] = ()
    ) -> Figure:
        """Colours on the right, styles below, and the notes as a caption. handle(colour, style)."""
        colours, styles = self.colours, self.styles
        by_colour: tuple[list[Any], list[str]] = ([], [])
        by_style, entries = by_colour, encoding.legend_entries
        if handle:
            if colours.has_bar:
                encoding.add_colour_bar(colours, [panel.axis for panel in self.panels])
            neutral = "#333333" if colours.levels else colours.marks[0]
            plain = styles.marks[0]
            twins = {}  # colour -> style, where both stand for one key: one legend shows both
            if colours.key == styles.key:
                twins = dict(zip(map(str, colours.marks), styles.marks, strict=False))
            else:
                by_style = entries(styles, lambda style: handle(neutral, style))
            by_colour = entries(colours, lambda dye: handle(dye, twins.get(str(dye), plain)))
        titles = [literal(which.key or "") for which in (colours, styles)]
        figure, look = self.figure, LEGEND.copy()
        if not self.is_whole:  # right of the one axis, colours above styles
            axis: Any = self.panels[0].axis
            corners = (("upper left", (1.0, 1.0)), ("lower left", (1.0, 0.0)))
            for title, named, (corner, place) in zip(
                titles, (by_colour, by_style), corners, strict=True
            ):
                if named[0]:
                    look |= {"loc": corner, "bbox_to_anchor": place, "title": title}
                    legend = Legend(axis, *named, fontsize=8, title_fontsize=8, **look)
                    axis.add_artist(legend)
                    legend.set_clip_on(False)  # else the layout leaves no room for it
            return figure

        # The figure grows by what stands below the panels.
        lines = textwrap.wrap("; ".join(filter(None, notes)), int(figure.get_figwidth() * 13))
        columns = max(1, min(MOST_STYLES, 40 // max(map(len, by_style[1]), default=40)))
        num_rows = -(-len(by_style[0]) // columns)
        caption = CAPTION * (len(lines) + 0.5 * bool(lines))
        below = caption + ENTRY * (num_rows + 1.5) * bool(num_rows)
        figure.set_figheight(figure.get_figheight() + below)
        inch = 1 / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0.0, below * inch, 1.0, 1.0 - below * inch))
        text: Any = {"fontsize": 8.5, "color": GREY, "ha": "center", "va": "bottom"}
        figure.text(0.5, 0.3 * CAPTION * inch, literal("\n".join(lines)), **text)
        if by_colour[0]:
            figure.legend(*by_colour, title=titles[0], loc="outside right upper", **look)
        if by_style[0]:
            look |= {"bbox_to_anchor": (0.5, caption * inch), "ncols": columns}
            figure.legend(*by_style, title=titles[1], loc="lower center", **look)
        return figure


def facet_grid(
    df: pd.DataFrame,
    spec: PlotSpec,
    *,
    used: Sequence[str] = (),
    fine: bool = False,
    styles: Sequence[Any] = (),
) -> FacetGrid:
    """used: keys that the axes stand for. Without styles, no colours.

    Colours and styles tell the keys apart that are requested, else those of the varying keys that
    are not yet used. fine: the keys with the most values first (so a line a setting leaves the
    fewest unencoded), else names before numbers (which are rather optimised than compared).
    Raises UserError where a key does not exist or has too many values, or ax leaves no room.
    """
    row = levels(df, spec.row, "row") if spec.row else None
    col = levels(df, spec.col, "col") if spec.col else None
    facets = [found for found in (row, col) if found]
    if facets and spec.ax is not None:
        role = "row" if row else "col"
        raise UserError(f"{role}: got {facets[0].key!r} beside ax, which is one panel")
    taken = [*used, *(found.key for found in facets)]
    by_colour = levels(df, spec.colour, "colour") if styles and spec.colour else None
    by_style = levels(df, spec.style, "style") if styles and spec.style else None
    if styles:
        known = [levels(df, key) for key in taken] + [f for f in (by_colour, by_style) if f]
        free = [levels(df, key) for key in varying(df)]
        free = [f for f in free if not any(is_same_grouping(f.codes, k.codes) for k in known)]
        free.sort(key=lambda found: -len(found.values) if fine else found.is_numeric)
        by_colour = by_colour or next(iter(free), None)
        few = (f for f in free if f is not by_colour and len(f.values) <= MOST_STYLES)
        by_style = by_style or next(few, None)
    encoded = [found.key for found in (by_colour, by_style) if found]
    settings = settings_of(df, [*taken, *encoded])

    num_rows, num_cols = (max(1, len(found.values)) if found else 1 for found in (row, col))
    cells = list(product(range(num_rows), range(num_cols)))
    if col and row is None and num_cols <= MOST_PANELS:  # columns alone are wrapped
        num_rows, num_cols = -(-num_cols // WRAP), min(num_cols, WRAP)
    else:
        for found, role, most in ((col, "col", MOST_COLUMNS), (row, "row", MOST_ROWS)):
            if found and len(found.values) > most:
                most = MOST_PANELS if row is None else most
                expected = f"a key with at most {most} values, not {len(found.values)}"
                raise bad_value(role, found.key, f"{expected}; select() some")
    if spec.ax is not None:
        figure, axes = spec.ax.figure.figure, np.array([spec.ax])
    else:
        is_one = num_rows * num_cols == 1
        size = (SMALL[0] * max(num_cols, 1.5), SMALL[1] * num_rows + 0.5)
        figure = NotebookFigure(*(WIDTH, HEIGHT) if is_one else size)
        axes = figure.subplots(num_rows, num_cols, sharex=True, sharey=True, squeeze=False)
    panels = []
    for axis, places in zip(axes.flat, cells, strict=False):
        both = [(found, at) for found, at in zip((row, col), places, strict=True) if found]
        inside = [s for s in settings if all(found.codes[s.row] == at for found, at in both)]
        panels.append(Panel(axis, inside))
        if not inside:
            _write(axis, "no runs")
    for axis in axes.flat[len(cells) :]:
        axis.remove()
    if facets := [found for found in facets if found.values]:
        _add_titles(figure, panels, facets, by_colour)
    return FacetGrid(
        figure,
        panels,
        settings,
        encoding.colours_of(by_colour),
        encoding.styles_of(by_style, styles or ("-",)),
        taken,
        is_whole=spec.ax is None,
        is_shared=spec.ax is not None and spec.ax.has_data(),
    )


def _add_titles(
    figure: Any, panels: Sequence[Panel], facets: Sequence[Levels], legend: Levels | None
) -> None:
    """'model=tiny/lenet', as long as has room. legend: of colours, beside the panels."""
    names = [] if legend is None or legend.is_numeric else legend.names
    beside = max([BAR, *(HANDLE + width_of(name, 10) for name in names)])
    num_cols = panels[0].axis.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    room = (figure.get_figwidth() - TICKS - beside) / num_cols
    lines = []
    for found in facets:
        for most in range(LONGEST, SHORTEST - 1, -2):
            key, values = encoding.cut(found.key, most), encoding.names_of(found.values, most)
            titles = [f"{key}={value}" for value in values]
            if max(width_of(title, TITLE) for title in titles) <= room:
                break
        lines.append(titles)
    for panel, of_panel in zip(panels, product(*lines), strict=True):
        panel.axis.set_title(literal("\n".join(of_panel)), fontsize=TITLE)


def _write(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color=GREY)


def _finite(values: Any) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    return numbers[np.isfinite(numbers)]


# ---- Axes --------------------------------------------------------------------------------


def label_of(column: str, when: str | float = "last") -> str:
    """'train/seen_examples' -> 'examples seen'; `when`, as in numbers(), where it is unusual."""
    name = INDEX_LABELS.get(column, column)
    if when == "last" or column == "seconds":
        return name
    return f"{name} ({when})" if isinstance(when, str) else f"{name} (at {when:g})"


def is_log_loss(metric: str, values: Any) -> bool:
    """Whether it is a loss that spans so much that a linear axis shows the worst alone."""
    is_loss = metric.rpartition("/")[2] in LOSSES
    return is_loss and spans(_finite(values), LOSS_SPANS)


def log_y(axis: Axes) -> None:
    axis.set_yscale("log")
    log_ticks(axis.yaxis)


def log_ticks(axis: Any) -> None:
    """0.1, 0.2, 0.5 of an axis.yaxis, say; only the tens of a long one. Call it when all is drawn.

    matplotlib's LogFormatter would write 10^-1, and label its minor ticks, which are too many.
    """
    low, high = axis.get_view_interval()
    if low > 0 and high < 1000 * low:
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def number_axis(axis: Any, values: Any) -> None:
    """Ticks of an x or y axis, axis.xaxis say, of whole or large numbers."""
    numbers = _finite(values)
    if len(numbers) and (numbers == np.trunc(numbers)).all():
        axis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if np.abs(numbers).max(initial=0) >= 10_000:
        axis.set_major_formatter(ticker.EngFormatter(sep=""))


def key_axis(axis: Axes, found: Levels) -> np.ndarray:
    """(values,) Where each value of the key stands on the x axis; few are the ticks themselves.

    A few numbers that lie too close for that, 0, 1e-4 and 0.1 say, stand side by side as names do.
    """

    def gap(places: np.ndarray) -> float:
        """Inches between the nearest two of them."""
        width = 0.62 * size_of(axis)[0]  # the legend takes some
        span = float(np.ptp(places)) if len(places) > 1 else 0.0
        return width * float(np.diff(places).min()) / span if span > 0 else width

    places = np.arange(len(found.values), dtype=float)
    is_few = len(places) <= FEW
    is_log = found.is_numeric and spans(found.values, encoding.LOG_FROM)
    if found.is_numeric:
        numbers = np.array(found.values, dtype=float)
        has_room = gap(np.log(numbers) if is_log else numbers) >= TICK
        if is_log:
            axis.set_xscale("log")
        if has_room or is_log or not is_few:
            places = numbers
        if not (is_few and has_room) and (is_log or not is_few):
            return places
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    _name_ticks(axis.xaxis, places, found.names, gap=gap(np.log(places) if is_log else places))
    if not found.is_numeric:
        axis.set_xlim(-0.6, max(len(places) - 0.4, 0.6))
    return places


def size_of(axis: Axes) -> tuple[float, float]:
    """(width, height) in inches, about: legends still want their room."""
    box, figure = axis.get_position(), axis.figure
    inches = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    return box.width * inches[0], box.height * inches[1]


def name_ticks(axis: Any, names: Sequence[str]) -> None:
    """0, 1, … of an axis."""
    inches = size_of(axis.axes)[0 if axis.axis_name == "x" else 1]
    _name_ticks(axis, np.arange(len(names)), names, gap=inches / max(1, len(names)))


def _name_ticks(axis: Any, places: np.ndarray, names: Sequence[str], *, gap: float) -> None:
    """As many as have room in gaps of that many inches, slanted where they are long."""
    step = max(1, int(np.ceil(TICK / gap)))
    some = list(names)[::step]
    axis.set_ticks(list(places)[::step], list(map(literal, some)))
    longest = max(map(len, some), default=0) * LETTER
    if axis.axis_name == "x" and longest > 0.95 * gap * step:
        axis.set_tick_params(rotation=35)
        for tick in axis.get_ticklabels():
            tick.set(ha="right", rotation_mode="anchor")


# ---- Notes -------------------------------------------------------------------------------


def unended_note(df: pd.DataFrame) -> str:
    """'not done: 2 failed, 1 running': their numbers may change, or are missing."""
    states = df["state"][df["state"] != "done"].value_counts() if "state" in df else pd.Series()
    counts = ", ".join(f"{num} {state}" for state, num in states.items())
    return f"not done: {counts}" if counts else ""


def losses_note(df: pd.DataFrame, metrics: Iterable[str], spec: PlotSpec) -> str:
    """Losses that are not comparable in one panel, which are warned of as well."""
    texts = [f"not comparable: {t}" for t in unlike_losses(df, metrics, [spec.row, spec.col])]
    for text in texts:
        warnings.warn(text, ChoiceWarning, stacklevel=3)  # the line that asks for the picture
    return "; ".join(texts)


def seeds_note(counts: Sequence[int], mark: str = "", of_two: str = "") -> str:
    """'mean over 3 seeds, shade: 95 % Student's t interval of the mean'; counts: of settings.

    of_two: what shows the seeds where there are two, which have no useful interval.
    """
    low, high = min(filter(None, counts), default=0), max(counts, default=0)
    if high < 2:
        return ""
    seeds = f"{high} seeds" if low == high else f"{low} to {high} seeds"
    parts = [f"mean over {seeds}"]
    parts += [f"{of_two}: each of two seeds"] * (2 in counts and bool(of_two))
    return ", ".join([*parts, *[f"{mark}: {INTERVAL}"] * (high > 2 and bool(mark))])
