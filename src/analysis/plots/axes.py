"""Axes of pictures: labels, scales and ticks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from src.analysis.plots.marks import Levels, spans
from src.analysis.plots.names import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICK, LETTER = 0.2, 0.085  # inches that a tick's name needs, and each of its letters
FEW = 9  # values that are ticks
LOSS_SPANS = 20  # from there on a loss is drawn on a logarithmic axis
LOSSES = ("loss", "error", "perplexity")
INDEX_LABELS = {"train/seen_examples": "examples seen", "time": "time (s)", "seconds": "time (s)"}


def label_of(column: str, when: str | float = "last") -> str:
    """'train/seen_examples' -> 'examples seen'; when: as in numbers, said where it is another."""
    name = INDEX_LABELS.get(column, column)
    if when == "last" or column == "seconds":
        return name
    return f"{name} ({when})" if isinstance(when, str) else f"{name} (at {when:g})"


def is_log_loss(metric: str, values: Any) -> bool:
    """Whether it is a loss that spans so much that a linear axis shows the worst alone."""
    numbers = np.asarray(values, dtype=float)
    is_loss = metric.rpartition("/")[2] in LOSSES
    return is_loss and spans(numbers[np.isfinite(numbers)], LOSS_SPANS)


def fit_y(axis: "Axes", values: Any) -> bool:
    """Keep the y axis near the values of seeds; whether something drawn leaves it then.

    The interval of two seeds is 12.7 times as long as their distance: whole, it would be all that
    one sees. When all is drawn, and the scale is set.
    """
    numbers, is_log = np.asarray(values, dtype=float), axis.get_yscale() == "log"
    numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (not is_log))]
    if not len(numbers) or np.ptp(numbers) == 0:
        return False
    low, high = np.log([numbers.min(), numbers.max()]) if is_log else (numbers.min(), numbers.max())
    ends = np.array([low - (high - low) / 4, high + (high - low) / 4])
    nearest, furthest = np.exp(ends) if is_log else ends
    bottom, top = axis.get_ylim()
    bottom, top = max(bottom, nearest), min(top, furthest)
    axis.set_ylim(bottom, top)
    return bool(axis.dataLim.y0 < bottom or axis.dataLim.y1 > top)


def log_y(axis: "Axes") -> None:
    axis.set_yscale("log")
    log_ticks(axis.yaxis)


def log_ticks(axis: Any) -> None:
    """0.1, 0.2, 0.5 of an axis.yaxis, say; only the tens of a long one.

    When all is drawn: how long it is then decides.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if low > 0 and high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def number_axis(axis: Any, values: Any) -> None:
    """Ticks of an x or y axis, axis.xaxis say, of whole or large numbers."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return
    if (numbers == np.trunc(numbers)).all():
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if np.abs(numbers).max() >= 10_000:
        axis.set_major_formatter(EngFormatter(sep=""))


def key_axis(axis: "Axes", found: Levels) -> np.ndarray:
    """(values,) Where each value of the key stands on the x axis; few are the ticks themselves.

    A few numbers that lie too close for that, 0, 1e-4 and 0.1 say, stand side by side as names do.
    """
    from matplotlib.ticker import NullLocator

    places = np.arange(len(found.values), dtype=float)
    is_few = len(places) <= FEW
    if found.is_numeric:
        numbers = np.array(found.values, dtype=float)
        is_log = found.is_logarithmic
        has_room = _gap(axis, np.log(numbers) if is_log else numbers) >= TICK
        if is_log:
            axis.set_xscale("log")
        if has_room or is_log or not is_few:
            places = numbers
        if not (is_few and has_room) and (is_log or not is_few):
            return places
        axis.xaxis.set_minor_locator(NullLocator())
    gap = _gap(axis, np.log(places) if axis.get_xscale() == "log" else places)
    _name_ticks(axis.xaxis, places, found.names, gap=gap)
    if not found.is_numeric:
        axis.set_xlim(-0.6, max(len(places) - 0.4, 0.6))
    return places


def _gap(axis: "Axes", places: np.ndarray) -> float:
    """Inches between the nearest two of them."""
    width = 0.62 * size_of(axis)[0]  # the legend takes some
    span = float(np.ptp(places)) if len(places) > 1 else 0.0
    return width * float(np.diff(places).min()) / span if span > 0 else width


def _name_ticks(
    axis: Any, places: Sequence[float] | np.ndarray, names: Sequence[str], *, gap: float
) -> None:
    """As many as have room in gaps of that many inches, slanted where they are long."""
    step = max(1, int(np.ceil(TICK / gap)))
    some = list(names)[::step]
    axis.set_ticks(list(places)[::step], list(map(literal, some)))
    longest = max(map(len, some), default=0) * LETTER
    if axis.axis_name == "x" and longest > 0.95 * gap * step:
        axis.set_tick_params(rotation=35)
        for tick in axis.get_ticklabels():
            tick.set(ha="right", rotation_mode="anchor")


def size_of(axis: "Axes") -> tuple[float, float]:
    """(width, height) in inches, about: legends still want their room."""
    box, figure = axis.get_position(), axis.figure
    inches = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    return box.width * inches[0], box.height * inches[1]


def name_ticks(axis: Any, names: Sequence[str]) -> None:
    """0, 1, … of an axis."""
    inches = size_of(axis.axes)[0 if axis.axis_name == "x" else 1]
    _name_ticks(axis, range(len(names)), names, gap=inches / max(1, len(names)))
