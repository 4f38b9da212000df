"""The learning curves of one run, curves.png; matplotlib is imported when they are drawn."""

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from loguru import logger

from src.metrics import DIRECTIONS, is_result, metric_name
from src.support import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BESIDE = 3  # metrics
# The colours of names in all pictures. Okabe and Ito (2008): distinct for colour-blind readers.
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def save_learning_curves(stats: pd.DataFrame, path: Path) -> None:
    """Write a PNG; an error is logged, as a picture is no reason to lose a run."""
    picture = io.BytesIO()
    try:
        _draw(stats, path.absolute().parent.name).savefig(picture, format="png", dpi=120)
        write_atomically(path, picture.getvalue())
    except Exception as error:
        logger.warning("no learning curves: {}: {}", type(error).__name__, error)


def _draw(stats: pd.DataFrame, title: str) -> "Figure":
    """Each metric against the epoch, loss and accuracy first: a line for each split and model,
    with its last and its best value."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = dict.fromkeys(metric_name(column) for column in stats.columns if is_result(column))
    metrics = [name for name in found if name != "perplexity"]  # it is e to the loss
    width = min(len(metrics), MOST_BESIDE)
    height = -(-len(metrics) // width)
    figure = Figure(figsize=(4.8 * width, 3.6 * height), layout="constrained")
    for place, metric in enumerate(metrics, start=1):
        axis = figure.add_subplot(height, width, place)
        columns = [column for column in stats.columns if column.endswith(f"/{metric}")]
        marker = "o" if len(stats) < 3 else None  # a line of one point cannot be seen
        for i, column in enumerate(columns):
            look: Any = {"color": COLOURS[i % len(COLOURS)], "marker": marker}
            label = f"{column.removesuffix(f'/{metric}')}  {_ends(stats, column)}"
            axis.plot(stats["epoch"], stats[column], label=label, **look)
        values = stats[columns].to_numpy()
        positive = values[np.isfinite(values) & (values > 0)]
        if metric == "loss" and len(positive) and positive.max() > 20 * positive.min():
            axis.set_yscale("log")
        axis.set_xlabel("epoch")
        axis.set_ylabel(metric)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(title, 50 * width)), fontsize=11, parse_math=False)
    return figure


def _ends(stats: pd.DataFrame, column: str) -> str:
    """'0.154, best 0.151 in epoch 21'; the last value alone where it is the best, or no direction
    is known."""
    values = stats[column].to_numpy(dtype=float)
    words = f"{values[-1]:.3g}"
    if (sign := DIRECTIONS.get(metric_name(column))) and np.isfinite(values).any():
        best = np.nanargmax(np.where(np.isfinite(values), sign * values, -np.inf))
        if values[best] != values[-1]:
            words += f", best {values[best]:.3g} in epoch {stats['epoch'].iloc[best]}"
    return words
