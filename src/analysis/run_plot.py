"""The learning curves of one run; matplotlib is imported when they are drawn."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from loguru import logger

from src.support import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by colour-blind readers
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def learning_curves(stats: pd.DataFrame) -> "Figure":
    """Loss and, where there is one, accuracy against the epoch, a line a split and model."""
    from matplotlib.figure import Figure

    measures = [m for m in ("loss", "accuracy") if f"train/{m}" in stats]
    figure = Figure(figsize=(4.8 * len(measures), 3.6), layout="constrained")
    for axis, measure in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True
    ):
        _draw(axis, stats, measure)
    return figure


def _draw(axis: "Axes", stats: pd.DataFrame, measure: str) -> None:
    from matplotlib.ticker import MaxNLocator

    columns = [c for c in stats.columns if c.endswith(f"/{measure}")]
    for number, column in enumerate(columns):
        marker = "o" if len(stats) < 3 else None  # a line of one point cannot be seen
        colour = COLOURS[number % len(COLOURS)]
        label = column.removesuffix(f"/{measure}")
        axis.plot(stats["epoch"], stats[column], marker=marker, color=colour, label=label)
    losses = stats[columns].to_numpy()
    positive = losses[np.isfinite(losses) & (losses > 0)]
    if measure == "loss" and len(positive) and positive.max() > 20 * positive.min():
        axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.set_ylabel(measure)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def save_learning_curves(stats: pd.DataFrame, path: Path) -> None:
    """learning_curves as a PNG; an error is logged, as a picture is no reason to lose a run."""
    picture = io.BytesIO()
    try:
        learning_curves(stats).savefig(picture, format="png", dpi=120)
        write_atomically(path, picture.getvalue())
    except Exception as error:
        logger.warning("no learning curves: {}: {}", type(error).__name__, error)
