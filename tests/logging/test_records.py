"""The bar on a terminal, and stats.csv: its columns, and numbers of any kind as plain ones."""

import json
import math
import os
import re
import sys
import time
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from src.logging.records import Log, Progress, Stats, summarize_run
from src.support.errors import UserError


def recorded(value):
    return Stats(["test"], ["last"], ["loss"]).add(1, 10, {"test/last": {"mine": value}})[
        "test/last/mine"
    ]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (0.5, 0.5),
        (3, 3),
        (True, 1),
        (np.mean([0.25, 0.75]), 0.5),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), 1),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (Fraction(1, 2), 0.5),
        (-np.inf, -float("inf")),
    ],
)
def test_any_number_is_recorded_as_a_plain_one(value, plain):
    found = recorded(value)
    assert found == plain
    assert type(found) is type(plain if not isinstance(plain, bool) else 1)


@pytest.mark.parametrize("value", [[0.5], "0.5", None, 1j, {"a": 1}])
def test_what_is_no_number_raises_and_names_its_column(value):
    with pytest.raises(UserError, match=r"^test/last/mine: got .*, expected a number"):
        recorded(value)


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, 2]),
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_any_array_is_recorded_as_a_plain_one(value):
    stats = Stats(["test"], ["last"], ["loss"])
    assert "test/last/mine" not in stats.add(1, 10, {"test/last": {"mine": value}})
    assert stats.arrays["test/last/mine"].tolist() == [1.0, 2.0]
    assert stats.arrays["test/last/mine"].dtype == np.float64


def test_an_array_of_no_numbers_is_refused():
    with pytest.raises(UserError, match=r"test/last/mine: got .*, expected an array of numbers"):
        recorded(np.array(["high"]))


def test_stats_keep_their_columns_however_few_are_filled(tmp_path):
    stats = Stats(["test"], ["last", "av"], ["loss"])
    stats.add(1, 10, {"train": {"loss": 0.25}})
    frame = stats.frame()
    assert list(frame)[3:7] == [
        "train/loss",
        "train/time",
        "train/data_time",
        "train/seen_examples",
    ]
    assert "test/av/loss" in frame
    assert not [c for c in frame if "accuracy" in c]
    (tmp_path / "stats.csv").write_text(frame.to_csv())
    pd.testing.assert_frame_equal(Stats.read(tmp_path), frame, check_dtype=False)
    assert summarize_run(None, frame).splitlines()[0].split() == ["train/loss", "0.2500"]


def test_a_summary_names_the_best_epoch_of_each_metric_beside_the_last(tmp_path):
    stats = Stats(["test"], ["last"], ["loss", "accuracy"])
    for epoch, (loss, accuracy) in enumerate([(0.5, 0.6), (0.3, 0.8), (math.nan, 0.7)], 1):
        values = {"loss": loss, "accuracy": accuracy, "my_distance": 2.0}
        stats.add(epoch, 10 * epoch, {"test/last": values})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").touch()
    lines = [line.split() for line in summarize_run(str(tmp_path), stats.frame()).splitlines()]
    assert lines[0] == ["last", "best", "in", "epoch"]
    assert ["test/last/loss", "nan", "0.3000", "2"] in lines
    assert ["test/last/accuracy", "0.7000", "0.8000", "2"] in lines
    assert ["test/last/my_distance", "2.0000"] in lines  # which direction is better is not known
    assert ["best", "weights", f"{tmp_path}/checkpoints/best.pt"] in lines


def test_a_summary_for_programs_is_json_without_nan():
    stats = Stats(["test"], ["last"], ["loss"])
    for epoch, loss in enumerate([0.5, math.inf], 1):
        stats.add(epoch, 10 * epoch, {"test/last": {"loss": loss, "my_distance": 2.0}})
    assert json.loads(summarize_run(None, stats.frame(), as_json=True)) == {
        "output_dir": None,
        "last": {
            **{"epoch": 2, "step": 20, "train/loss": None},
            **{"test/last/loss": None, "test/last/my_distance": 2.0},
        },
        "best": {"test/last/loss": {"value": 0.5, "epoch": 1}},
    }


def train_twenty_steps() -> None:
    log, progress = Log(None, to_terminal=False), Progress()
    progress.start(20)
    for step in range(1, 21):
        time.sleep(0.02)
        progress.line(step, 1, step * 10, {"loss": 0.5, "accuracy": 0.25})
        progress.note_evaluation(
            {f"{split}/{model}": {"loss": 0.5} for split in ("val", "test") for model in "ab"}
        )
    progress.close()
    log.close()


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(monkeypatch, capsys):
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    termios = pytest.importorskip("termios")
    train_twenty_steps()
    assert capsys.readouterr() == ("", "")
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    with os.fdopen(child, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        train_twenty_steps()
        os.set_blocking(parent, False)
        shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert re.search(r"epoch 1 \|.+\| loss 0.500  acc 0.250  00:00 left  val/b 0.500  ", shown)
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", shown))
