"""A batch on a page; and whatever the batch, each picture is drawn without a warning."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures import METRIC, batch, drawn, texts
from matplotlib.figure import Figure

from src.analysis.plots import against, heat_map, learning_curves, summary, to_target, tradeoff
from src.support.errors import UserError

# ---- A page ------------------------------------------------------------------------------


def test_a_page_says_what_ran_and_what_is_best(frame):
    frame["state"] = ["failed", "running", *["done"] * 10]
    figure = drawn(summary(frame))
    assert figure.get_figheight() > figure.get_figwidth()
    said = texts(figure)
    assert "26-11-23-x\n12 runs: 10 done, 1 failed, 1 running; test/last/accuracy" in said
    assert "0.805 (0.7415 to 0.8685)" in said
    assert "95 % Student's t interval of the mean" in said
    assert "best 5" in said


@pytest.mark.parametrize("num_keys", [0, 1, 2, 6])
def test_a_page_has_the_panels_that_its_keys_ask_for(num_keys):
    keys = ["base_lr", "momentum", "weight_decay", "clip_norm", "batch_size", "train_length"]
    keys = keys[:num_keys]
    grid = [
        dict(zip(keys, np.binary_repr(i, num_keys or 1), strict=False)) for i in range(2**num_keys)
    ]
    rows = [({k: float(v) for k, v in g.items()}, [i / 99]) for i, g in enumerate(grid)]
    figure = drawn(summary(batch(rows or [({}, [0.5])], num_seeds=2)))
    labels = [axis.get_xlabel() for axis in figure.axes]
    num_against = min(num_keys, 4)
    num_cells = int(num_keys > 1)
    assert sum(label in keys for label in labels) == num_against + num_cells
    assert labels.count("time (s)") == int(num_keys > 0)


def test_a_page_of_runs_that_have_not_begun():
    frame = batch([({"base_lr": lr}, None) for lr in (1, 2)])
    frame["state"] = "unstarted"
    assert "no run has a value yet" in texts(drawn(summary(frame)))
    without = frame.drop(columns=METRIC)
    assert "no run has been evaluated yet" in texts(drawn(summary(without)))


# ---- Whatever comes ----------------------------------------------------------------------

PICTURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "learning_curves": learning_curves,
    "against": lambda df: against(df, "base_lr"),
    "against every": lambda df: against(df, "base_lr", which="every"),
    "against names": lambda df: against(df, "optim_alg"),
    "heat_map": lambda df: heat_map(df, "base_lr", "optim_alg"),
    "tradeoff": lambda df: tradeoff(df, "seconds", METRIC),
    "to_target": lambda df: to_target(df, 0.5),
    "to_target key": lambda df: to_target(df, 0.5, key="base_lr", row="optim_alg"),
    "summary": summary,
}
SGD = {"optim_alg": "sgd", "base_lr": 0.1}
ADAM = {"optim_alg": "adam", "base_lr": 0.2}
BATCHES: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "one run": [(SGD, [0.1, 0.5])],
    "one point": [(SGD, [0.5])],
    "unstarted": [(SGD, None), (ADAM, None)],
    "no points": [(SGD, []), (ADAM, [])],
    "some unstarted": [(SGD, [0.1, 0.6]), (ADAM, None)],
    "all diverged": [(SGD, [np.nan]), (ADAM, [0.5, np.inf])],
    "all equal": [(SGD, [0.5, 0.5]), (ADAM, [0.5, 0.5])],
    "zero": [({"optim_alg": "sgd", "base_lr": lr}, [0.0]) for lr in (0.0, -1.0, 100.0)],
    "null": [({"optim_alg": None, "base_lr": lr}, [0.1]) for lr in (None, 1.0, np.inf)],
    "long names": [({"optim_alg": 30 * c, "base_lr": 1}, [0.3]) for c in ("long", "name")],
    "lists": [({"optim_alg": [i, "x"], "base_lr": {"a": i}}, [0.3]) for i in range(3)],
    "true": [({"optim_alg": "sgd", "base_lr": value}, [0.3]) for value in (True, False)],
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", BATCHES)
def test_whatever_comes_is_drawn_without_a_warning(name, picture):
    drawn(PICTURES[picture](batch(BATCHES[name])))


@pytest.mark.parametrize("picture", PICTURES)
def test_nothing_is_drawn_as_nothing(picture):
    figure = drawn(PICTURES[picture](batch(BATCHES["one run"]).iloc[:0]))
    assert "no runs" in texts(figure)


def test_names_that_do_not_exist_are_answered_with_the_closest(frame):
    for role in ("row", "col", "colour", "style"):
        with pytest.raises(UserError, match=f"{role}: unknown 'optim_algo'; did you mean"):
            against(frame, "base_lr", **{role: "optim_algo"})
    with pytest.raises(UserError, match="key: unknown 'lr'"):
        against(frame, "lr")
    with pytest.raises(UserError, match="metric: unknown 'test/last/acuracy'; did you mean"):
        learning_curves(frame, "test/last/acuracy")
    with pytest.raises(UserError, match="y: got 'base_lr', expected another key"):
        heat_map(frame, "base_lr", "base_lr")
    with pytest.raises(UserError, match=f"colour: got '{METRIC}', expected a key of the conf"):
        against(frame, "base_lr", colour=METRIC)
    with pytest.raises(UserError, match="metric: got 'seconds', expected a column of curves"):
        learning_curves(frame, "seconds")
    many = batch([({"model": f"m{i}"}, [0.5]) for i in range(5)])
    with pytest.raises(UserError, match="style: got 'model', expected a key with at most 4"):
        learning_curves(many, style="model")


def test_a_figure_shows_itself_and_stays_with_its_owner(frame):
    from matplotlib import pyplot

    assert learning_curves(frame)._repr_png_().startswith(b"\x89PNG")
    assert not pyplot.get_fignums()


def test_matplotlib_is_imported_when_something_is_drawn():
    script = "import sys, src.analysis.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
