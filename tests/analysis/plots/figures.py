"""Small batches, and what stands in the figures that are drawn of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.table import Table
from matplotlib.text import Text

from src.analysis.curves import CurveArray

METRIC = "test/last/accuracy"
LOSS = "test/last/loss"


def curve(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, dtype=float), np.arange(1, len(values) + 1)


def batch(
    rows: Sequence[tuple[dict[str, Any], Any]], metric: str = METRIC, *, num_seeds: int = 0
) -> pd.DataFrame:
    """rows: (keys, values of the curve or None). num_seeds: each again, a hundredth higher."""
    if num_seeds:
        rows = [
            ({**keys, "seed_model": seed}, values and [v + 0.01 * seed for v in values])
            for keys, values in rows
            for seed in range(num_seeds)
        ]
    curves = [None if values is None else curve(*values) for _, values in rows]
    frame = pd.DataFrame([keys for keys, _ in rows])
    frame[metric] = CurveArray.of(curves, metric, "train/seen_examples")
    frame["seconds"] = np.arange(1.0, len(rows) + 1)
    frame["state"], frame["batch"] = "done", "26-11-23-x"
    return frame


def drawn(figure: Figure) -> Figure:
    """As it is saved: where warnings of the layout come up."""
    FigureCanvasAgg(figure).draw()
    return figure


def lines(figure: Figure, panel: int = 0, *, label: str = "_setting") -> list[Any]:
    return [line for line in figure.axes[panel].lines if line.get_label().startswith(label)]


def entries(figure: Figure) -> dict[str, list[str]]:
    return {
        legend.get_title().get_text(): [text.get_text() for text in legend.get_texts()]
        for legend in figure.legends
    }


def panels(figure: Figure) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in figure.axes}


def texts(figure: Figure) -> str:
    cells = [cell.get_text() for t in figure.findobj(Table) for cell in t.get_celld().values()]
    return "\n".join(text.get_text() for text in [*figure.findobj(Text), *cells])


def bars(figure: Figure, panel: int = 0) -> list[tuple[list[float], list[float], Any]]:
    """(x, means, segments of the intervals) of each series."""
    return [
        (*(part.tolist() for part in bar[0].get_data()), bar[2][0].get_segments())
        for bar in figure.axes[panel].containers
    ]


def sweep() -> pd.DataFrame:
    """Two models, three learning rates, two seeds; sgd's best is 0.1, adam's 1.0."""
    ends = {("sgd", 0.01): 0.5, ("sgd", 0.1): 0.8, ("sgd", 1.0): 0.6}
    ends |= {("adam", 0.01): 0.1, ("adam", 0.1): 0.2, ("adam", 1.0): 0.7}
    rows = [({"optim_alg": a, "base_lr": lr}, [0.1, end]) for (a, lr), end in ends.items()]
    return batch(rows, num_seeds=2)
