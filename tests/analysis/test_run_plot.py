"""curves.png of a run: its title, and the values in its legends."""

import math

import pandas as pd

from src.analysis.run_plot import _draw


def test_the_title_is_the_run_and_the_legends_tell_the_last_and_the_best_values():
    stats = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train/loss": [0.5, 0.4, 0.3],
            "test/last/loss": [0.6, 0.2, math.nan],
            "test/last/accuracy": [0.7, 0.9, 0.8],
            "test/last/my_distance": [3.0, 1.0, 2.0],  # which direction is better is not known
        }
    )
    figure = _draw(stats, "007_$x$+base_lr=0.1+" + "long_" * 50)
    title = figure.get_suptitle()
    assert title.replace("\n", "") == "007_$x$+base_lr=0.1+" + "long_" * 50
    assert max(map(len, title.split("\n"))) <= 150
    labels = [text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()]
    assert labels == [
        "train  0.3",
        "test/last  nan, best 0.2 in epoch 2",
        "test/last  0.8, best 0.9 in epoch 2",
        "test/last  2",
    ]
    figure.canvas.draw()
