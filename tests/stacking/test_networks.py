"""Networks that are trained together, each as it is alone but for rounding."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from src.config import make_config
from src.logging import Stats
from src.runtime.signals import StopRequested
from src.stacking import stack_key, stacked_generator
from src.stacking.networks import StackedNetworks
from src.support import UserError
from tests.whole_runs import without_times
from train import experiment_generator, run_experiment

COMMON = {
    "dataset": "sklearn/digits",
    "data_splits_map": {"train": "train[:300]", "val": "train[300:400]", "test": "train[400:600]"},
    "model": "tests.stacking.test_networks:build",
    "batch_size": 50,
    "train_length": 3,
    "seed_model": 1,
    "seed_training": 3,
    "save_plot": False,
    "system_interval": 0,
    "engine": "stacked",
}
ROWS = [
    {"base_lr": 0.1, "averaging": ["ema", "poly"], "seed_model": 2, "lr_schedule": "cosine"},
    {"base_lr": 0.001, "optim_alg": "adamw", "averaging": ["poly", "ema"], "clip_norm": 0.5},
    {"base_lr": 0.05, "averaging": ["ema", "ema_0.5"], "clip_value": 0.01, "label_smoothing": 0.1},
    {"base_lr": 1e9, "averaging": ["ema", "poly"], "max_allowed_loss": 1e4},
]


def build(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """What depends on the mode, on statistics and on random numbers. (A bias before a batch norm
    has gradients of rounding alone, which Adam makes steps of.)"""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)) if len(input_shape) == 1 else nn.Identity(),
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(6 * 36, n_outputs),
    )


class Recurrent(nn.Module):
    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, n_outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(inputs.view(-1, 8, 8))[0][:, -1])


def build_recurrent(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return Recurrent(n_outputs)


def configs_of(folder: Path, rows=ROWS, **keys) -> list:
    return [
        make_config(COMMON | row | keys | {"output_dir": str(folder / str(number))})
        for number, row in enumerate(rows)
    ]


def train_together(configs) -> tuple:
    *_, last = [None, *stacked_generator(configs)]
    return last


def assert_same(mine, theirs, **tolerance) -> None:
    pd.testing.assert_frame_equal(without_times(mine), without_times(theirs), **tolerance)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory) -> list:
    """(stats, model) of each row in the ordinary path."""
    found = []
    for config in configs_of(tmp_path_factory.mktemp("alone"), engine="ordinary"):
        *_, last = experiment_generator(config)
        found.append(last)
    return found


def test_each_row_is_the_run_alone_but_for_rounding(ordinary, tmp_path):
    """Batch norm, dropout, other optimizers, averages, clipping; one diverges and leaves."""
    configs = configs_of(tmp_path)
    stats, models = train_together(configs)
    for number, (expected, model) in enumerate(ordinary):
        assert_same(stats[number], expected, rtol=1e-3)
        for name, mine in models[number].state_dict().items():
            torch.testing.assert_close(mine, model.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert [len(own) for own in stats] == [3, 3, 3, 1]
    logs = [(tmp_path / str(number) / "training.log").read_text() for number in range(4)]
    assert all(log.count("bits of a run may depend on its stack") == 1 for log in logs)


@pytest.mark.parametrize("rows", [[1], [2, 0]])
def test_other_stacks_agree(ordinary, tmp_path, rows):
    stats, _ = train_together(configs_of(tmp_path, [ROWS[row] for row in rows]))
    for number, row in enumerate(rows):
        assert_same(stats[number], ordinary[row][0], rtol=1e-3)


def test_micro_batches_and_metrics(tmp_path):
    keys = {"grad_accum_steps": 5, "metrics": ["top5_accuracy", "tests.own_metrics:agreement"]}
    keys |= {"model": "tiny/lenet", "eval_batch_size": 33}
    stats, _ = train_together(configs_of(tmp_path / "stack", ROWS[:2], **keys))
    for number, config in enumerate(
        configs_of(tmp_path / "alone", ROWS[:2], engine="ordinary", **keys)
    ):
        assert_same(stats[number], run_experiment(config), rtol=1e-3)


def test_a_stack_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """To the bit, as long as it is the same stack: dropout goes on where it was."""
    together = configs_of(tmp_path / "whole", ROWS[:3])
    expected, models = train_together(together)
    configs = configs_of(tmp_path / "stopped", ROWS[:3])
    whole, left = StackedNetworks.step, [8]

    def step(self, *arguments) -> None:
        whole(self, *arguments)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StackedNetworks, "step", step)
    with pytest.raises(StopRequested):
        train_together(configs)
    torch.manual_seed(99)  # what another process would begin with
    found, resumed = train_together(configs)
    for number in range(3):
        assert_same(found[number], expected[number], rtol=0)
        for mine, theirs in zip(
            resumed[number].state_dict().values(), models[number].state_dict().values(), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_rows_that_were_saved_at_different_steps_join(ordinary, tmp_path):
    configs = configs_of(tmp_path, ROWS[:3])
    for number, epochs in {2: 2, 0: 1}.items():
        generator = experiment_generator(configs[number])
        for _ in range(epochs):
            next(generator)
        generator.close()
    train_together(configs)
    for number in range(3):
        assert_same(Stats.read(tmp_path / str(number)), ordinary[number][0], rtol=1e-3)


def test_rows_that_have_left_keep_no_stack_alive(tmp_path):
    """Their weights are their own again."""
    _, models = train_together(configs_of(tmp_path))
    (weights,) = {p.untyped_storage().nbytes() for p in models[3][1].parameters() if p.ndim == 4}
    assert weights == 6 * 9 * 4


def test_a_layer_that_cannot_be_stacked_is_named(tmp_path):
    (config,) = configs_of(tmp_path, ROWS[:1], model="tests.stacking.test_networks:build_recurrent")
    with pytest.raises(UserError, match=r"cannot be stacked: cells \(LSTM\): .*lstm") as error:
        train_together([config])
    assert "\n" not in str(error.value)


def test_networks_may_differ_in_their_optimizers_linear_models_not():
    rows = [{"optim_alg": "sgd"}, {"optim_alg": "timm/lamb"}]
    for model, number in (("tiny/lenet", 1), ("linear", 2)):
        configs = [make_config(COMMON | row | {"model": model}) for row in rows]
        assert len({stack_key(config) for config in configs}) == number
