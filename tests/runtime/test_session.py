"""The Session refuses to be called in the wrong order; the fields of a Learner are its state."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import train
from src.losses import build_loss
from src.runtime import session
from src.runtime.session import Session
from src.runtime.train_state import stateful_fields
from src.support import UserError
from train import run_experiment

CPU = torch.device("cpu")


def test_a_call_that_comes_too_early_or_twice_says_the_order(digits):
    with Session(digits()) as run:
        with pytest.raises(RuntimeError, match=r"^run.place\(\) after nothing: the order is run"):
            run.place(nn.Linear(64, 10))
        run.load_data()
        with pytest.raises(RuntimeError, match=r"run.load_data\(\) after run.load_data\(\)"):
            run.load_data()


def test_an_epoch_that_is_not_finished_is_told(digits):
    with Session(digits()) as run:
        run.load_data()
        model = run.place(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        loss = train.build_loss("log", n_classes=10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = run.precision.scaler()
        run.restore(train.Learner(model, loss, {}, optimizer, scaler), {"last": model})
        epochs = run.epochs()
        next(epochs)
        with pytest.raises(RuntimeError, match=r"^epoch.finish\(results\) comes at the end"):
            next(epochs)


def test_what_training_draws_is_a_function_of_seed_training(digits, monkeypatch):
    drawn = []
    monkeypatch.setattr(train, "train_step", lambda run, *_: drawn.append(torch.rand(()).item()))
    for seed in (2, 2, 3):
        monkeypatch.setattr(session, "has_diverged", lambda loss, limit: False)
        run_experiment(digits(seed_training=seed, train_length=1, output_dir=None))
    firsts = drawn[:: len(drawn) // 3]
    assert firsts[0] == firsts[1] != firsts[2]


def test_an_optimizer_of_another_model_is_refused(digits, monkeypatch):
    build = train.build_optimizer
    stranger = nn.Linear(64, 10)
    monkeypatch.setattr(train, "build_optimizer", lambda config, _: build(config, stranger))
    with pytest.raises(UserError, match=r"^optimizer: .* or build the optimizer after"):
        run_experiment(digits())


@pytest.mark.parametrize("normalizer", [8, torch.tensor(8.0)])
def test_the_loss_is_divided_by_its_normalizer_where_it_lives(digits, normalizer):
    with Session(digits()) as run:
        scale = run.loss_scale(normalizer, CPU)
    assert (scale.dtype, scale.item()) == (torch.float32, 1 / 8)


@dataclass
class Everything:
    model: nn.Module
    teachers: list[nn.Module]
    averages: dict[str, Any]
    scaler: Any
    decay: float = 0.9


def test_each_field_with_a_state_is_state_and_nothing_else():
    parts = [nn.Linear(1, 1) for _ in range(4)]
    off = torch.amp.GradScaler("cpu", enabled=False)
    learner = Everything(parts[0], parts[1:3], {"av": parts[3]}, off)
    found = stateful_fields(learner)
    assert list(found) == ["model", "teachers0", "teachers1", "av"]
    assert list(found.values()) == parts
    with pytest.raises(UserError, match="two of its parts are called model"):
        stateful_fields(Everything(parts[0], [], {"model": parts[1]}, off))
    half = SimpleNamespace(state_dict=dict)
    for lost in (torch.zeros(3), half):
        with pytest.raises(UserError, match=r"learner: teachers1 would not be saved: .* buffer"):
            stateful_fields(Everything(parts[0], [parts[1], lost], {}, off))


def test_what_the_optimizer_steps_beside_the_model_is_clipped_and_cleared_too():
    """Gradients that stay would add up, and a resumed run would not have them."""
    model, head = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.add_param_group({"params": [*head.parameters()]})
    learner = train.Learner(model, build_loss("log", n_classes=2), {}, optimizer, None)
    assert [*map(id, learner.parameters)] == [*map(id, [*model.parameters(), *head.parameters()])]


def test_what_is_built_in_set_up_is_seeded(digits, monkeypatch):
    drawn, build = [], train.build_optimizer

    def drawing(*arguments):
        drawn.append(torch.rand(3).tolist())
        return build(*arguments)

    monkeypatch.setattr(train, "build_optimizer", drawing)
    for seed in (1, 1, 2):
        run_experiment(digits(seed_model=seed, train_length=0, output_dir=None))
    assert drawn[0] == drawn[1] != drawn[2]
