"""A number for each class, and the curves.png of a run that measures more than a loss."""

import numpy as np
import pandas as pd
import pytest
from figures import batch, drawn

from src.analysis import run_plot
from src.analysis.plots import per_class
from src.support.errors import UserError

COLUMN = "test/last/class_accuracy"


def frame_of(arrays, **keys) -> pd.DataFrame:
    rows = [({"base_lr": lr, "seed_model": s, **keys}, [0.5]) for lr in (1, 2) for s in (1, 2)]
    frame = batch(rows)
    frame[COLUMN] = pd.Series(arrays, dtype=object)
    return frame


@pytest.fixture
def arrays() -> list[np.ndarray]:
    """(2 epochs, 3 classes) of four runs: class 1 is the hardest, class 0 the easiest."""
    last = [[0.8, 0.2, 0.5], [0.9, 0.3, 0.5], [1.0, 0.4, np.nan], [1.0, 0.2, np.nan]]
    return [np.array([[0.0, 0.0, 0.0], values]) for values in last]


def points(figure) -> list[list[float]]:
    return [line.get_xdata().tolist() for line in figure.axes[0].lines]


def test_a_point_is_the_mean_over_seeds_in_the_last_epoch_the_lowest_class_below(arrays):
    figure = drawn(per_class(frame_of(arrays, data_class_names=["cat", "dog", "$cow"])))
    np.testing.assert_allclose(points(figure), [[0.25, 0.5, 0.85], [0.3, np.nan, 1.0]])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["dog", r"\$cow", "cat"]


def test_runs_without_the_array_have_no_say(arrays):
    figure = drawn(per_class(frame_of([*arrays[:3], None])))
    np.testing.assert_allclose(points(figure)[1], [0.4, np.nan, 1.0])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["1", "2", "0"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("test/last/class_acc", f"did you mean '{COLUMN}'"),
        ("base_lr", "base_lr holds no numbers for each class"),
        ("test/last/confusion", "confusion holds no numbers for each class"),
    ],
)
def test_a_column_that_has_none_is_refused(arrays, column, message):
    frame = frame_of(arrays)
    frame["test/last/confusion"] = pd.Series([np.zeros((1, 2, 2))] * 4, dtype=object)
    with pytest.raises(UserError, match=message):
        per_class(frame, column)


def test_the_curves_of_a_run_show_whatever_it_measured():
    stats = pd.DataFrame({"epoch": [1, 2], "train/loss": [2.0, 1.0], "train/time": [1.0, 1.0]})
    for column in ("train/norm", "test/last/loss", "test/last/top5_accuracy", "train/late"):
        stats[column] = [0.25, 0.5]
    stats["system/cpu_mean"] = 1.0
    figure = run_plot._draw(stats, "run")
    drawn_lines = {
        axis.get_ylabel(): [line.get_label().split()[0] for line in axis.lines]
        for axis in figure.axes
    }
    assert drawn_lines == {
        "loss": ["train", "test/last"],
        "norm": ["train"],
        "top5_accuracy": ["test/last"],
        "late": ["train"],
    }
