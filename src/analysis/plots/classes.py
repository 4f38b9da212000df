"""The picture of a number for each class, such as the accuracy of each."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from src.analysis.plots import panels
from src.analysis.plots.encoding import POINTS, cut, literal
from src.support import UserError, unknown_name

LONGEST = 24  # characters of the name of a class
LINE = 0.17  # inches a class
MOST_NAMED = 60  # classes, beyond which they are numbered
NAMES = "data_class_names"


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
    rows = [setting.row for setting in grid.settings]
    mean_of = {row: mean.to_numpy()[order] for row, mean in zip(rows, means, strict=True)}
    for panel in grid.panels:
        for setting in panel.settings:
            dye, marker = grid.marks(setting)
            look: Any = {"color": dye, "marker": marker, "linestyle": "none", "alpha": 0.8}
            panel.axis.plot(mean_of[setting.row], np.arange(num), markersize=4, **look)
        if num <= MOST_NAMED:
            panel.axis.set_yticks(np.arange(num), _names(df, order), fontsize=8)
    if ax is None:
        grid.figure.set_figheight(max(grid.figure.get_figheight(), 1 + LINE * min(num, MOST_NAMED)))
    grid.name_axes(panels.label_of(column), "class")
    counts = [len(setting.rows) for setting in grid.settings]
    notes = [grid.unencoded_keys("points differ in", "as well"), panels.seeds_note(counts, "")]
    grid.add_legends(
        lambda dye, marker: Line2D([], [], color=dye, marker=marker, linestyle="none"), notes
    )
    return grid.figure


def _names(df: pd.DataFrame, order: np.ndarray) -> list[str]:
    """Of the classes, where all runs have the same ones; else their numbers."""
    known = [names for names in df.get(NAMES, []) if isinstance(names, list)]
    if known and len(known[0]) == len(order) and all(names == known[0] for names in known):
        return [literal(cut(str(known[0][i]), LONGEST)) for i in order]
    return [str(i) for i in order]
