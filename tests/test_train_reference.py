"""The loop of train.py walked beside a plain one, with everything switched on."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from src.data.order import permutation
from src.data.registry import build_data
from src.data.splits import LoaderConfig
from src.losses import build_loss
from src.models.registry import build_model
from src.runtime.evaluation import Metrics, evaluate
from src.support.errors import UserError
from train import experiment_generator

CPU = torch.device("cpu")
CLASS_WEIGHTS = [0.1, 1, 2, 3, 4, 5, 0.5, 0.5, 0.5, 7]


@pytest.mark.parametrize(("grad_accum_steps", "clip_norm"), [(1, 0.2), (4, None)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_run_is_what_a_plain_loop_computes(digits, grad_accum_steps, clip_norm, drop_last):
    config = digits(
        optim_alg="sgd",
        base_lr=0.5,
        momentum=0.0,
        lr_schedule="cosine",
        warmup_steps=10,
        loss_class_weights=CLASS_WEIGHTS,
        clip_norm=clip_norm,
        averaging="ema_0.9",
        drop_last=drop_last,
        grad_accum_steps=grad_accum_steps,
    )
    *_, (stats, model) = experiment_generator(config)

    data = build_data(config, None)
    inputs, targets = data.splits["train"].inputs, data.splits["train"].targets
    plain = build_model(config, data.input_shape, 10)
    average = [p.detach().clone() for p in plain.parameters()]
    criterion = nn.CrossEntropyLoss(weight=torch.tensor(CLASS_WEIGHTS, dtype=torch.float32))
    steps_per_pass = 14 if drop_last else 15
    num_steps, step, losses = 2 * steps_per_pass, 0, []
    for pass_number in range(2):
        losses, weights = [], []
        for rows in permutation(2, pass_number, 1438).split(100)[:steps_per_pass]:
            rate = 0.25 * (1 + math.cos(math.pi * step / num_steps)) * min(1, (step + 1) / 10)
            loss = criterion(plain(inputs[rows]), targets[rows])
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            with torch.no_grad():
                for p, g, a in zip(plain.parameters(), gradients, average, strict=True):
                    p -= rate * g * min(1.0, (clip_norm or math.inf) / norm)
                    a.mul_(0.9).add_(0.1 * p)
            step += 1
            losses.append(loss.item())
            weights.append(criterion.weight[targets[rows]].sum().item())

    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)
    mean_loss = sum(x * w for x, w in zip(losses, weights, strict=True)) / sum(weights)
    assert stats["train/loss"].iloc[-1] == pytest.approx(mean_loss, rel=1e-4)
    assert stats["step"].iloc[-1] == num_steps
    test = data.splits["test"]
    for name, own in {"last": list(plain.parameters()), "av": average}.items():
        for p, value in zip(plain.parameters(), own, strict=True):
            p.data = value.detach()
        expected_loss = criterion(plain(test.inputs), test.targets).item()
        assert stats[f"test/{name}/loss"].iloc[-1] == pytest.approx(expected_loss, rel=1e-4)


def test_an_evaluation_uses_the_model_as_it_is_used_and_leaves_it_in_training(digits):
    data = build_data(digits(), None).splits["test"]
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    batches = data.evaluation_batches(LoaderConfig(100, CPU))
    loss = build_loss("log", n_classes=10)
    result = evaluate(model, batches, Metrics(loss, CPU), name="test", log_interval=None)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.eval()(data.inputs), data.targets)
    assert result["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_weights_of_classes_are_summed_as_finely_as_losses():
    sums = Metrics(build_loss("log", n_classes=2, class_weights=[0.1, 1.0]), CPU)
    sums.add_batch(torch.tensor(0.0), torch.zeros(1, 2), torch.tensor([0]))
    sums.sums["loss"][1] += 2.0**24  # where float32 has no 0.1 to add
    sums.add_batch(torch.tensor(1.0), torch.zeros(1, 2), torch.tensor([0]))
    assert sums.compute()["loss"] == pytest.approx(1 / (2**24 + 0.2), rel=1e-12)


def test_recent_averages_are_those_since_the_last_time_they_were_asked():
    sums = Metrics(build_loss("log", n_classes=2), CPU)
    right, wrong = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    target = torch.tensor([0])
    sums.add_batch(torch.tensor(1.0), right, target)
    assert sums.compute_since_last() == {"loss": 1.0, "accuracy": 1.0}
    sums.add_batch(torch.tensor(4.0), wrong, target)
    assert sums.compute_since_last() == {"loss": 4.0, "accuracy": 0.0}
    assert sums.compute() == {"loss": 2.5, "accuracy": 0.5}


def test_the_best_checkpoint_holds_the_best_epoch_and_starts_another_run(digits, tmp_path):
    config = digits(save_best_checkpoint=True, best_checkpoint_metric="train/loss", train_length=4)
    states = []
    for stats, model in experiment_generator(config):
        states.append({name: t.clone() for name, t in model.state_dict().items()})
        if len(stats) == 2:  # the caller spoils the model: what follows is worse
            with torch.no_grad():
                model.weight.copy_(1e3 * torch.randn_like(model.weight))
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    best = torch.load(path, weights_only=True)
    assert best["epoch"] == 2
    assert torch.equal(best["last"]["weight"], states[1]["weight"])
    again = digits(output_dir=None, model_weights=str(path), train_length=0)
    _, model = next(experiment_generator(again))
    assert torch.equal(model.weight, states[1]["weight"])


def test_what_the_caller_draws_and_logs_does_not_touch_the_run(digits, tmp_path):
    def run(name, *, disturbed):
        keys = {"model": "tiny/wrn_10_1_0.5", "train_length": 3, "batch_size": 300}
        folder = tmp_path / name
        generator = experiment_generator(digits(output_dir=str(folder), **keys))
        other = experiment_generator(digits(output_dir=str(tmp_path / "other"), **keys))
        for _, model in generator:
            if disturbed:
                model.eval()
                torch.rand(3)
                next(other)
        other.close()
        return model, (folder / "training.log").read_text().count(" | step ")

    alone, lines_alone = run("a", disturbed=False)
    disturbed, lines = run("b", disturbed=True)
    pairs = zip(alone.parameters(), disturbed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert lines == lines_alone


@pytest.fixture
def results(digits, tmp_path):
    """An unfinished run of one epoch with a checkpoint; its stats.csv."""
    generator = experiment_generator(digits(train_length=9, save_freq=1))
    next(generator)
    generator.close()
    return tmp_path / "run" / "stats.csv"


def test_a_mistake_on_restart_leaves_the_results_as_they_were(digits, results):
    before = results.read_bytes()
    for words in ("differs in .*model", "lenett"):
        with pytest.raises(UserError, match=words):
            next(experiment_generator(digits(model="tiny/lenett", save_freq=1)))
        assert results.read_bytes() == before
        shutil.rmtree(results.parent / "state", ignore_errors=True)


def test_a_run_that_starts_anew_leaves_no_checkpoints_of_the_old_one(digits, results):
    assert (results.parent / "checkpoints").exists()
    shutil.rmtree(results.parent / "state")
    next(experiment_generator(digits(model="tiny/lenet")))
    assert not (results.parent / "checkpoints").exists()


def test_a_folder_in_use_or_finished_is_refused_and_left_alone(digits, tmp_path):
    first = experiment_generator(digits(train_length=2))
    next(first)
    with pytest.raises(UserError, match="another process runs in"):
        next(experiment_generator(digits(batch_size=7)))
    for _ in first:
        pass

    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

    before = content()
    with pytest.raises(UserError, match="holds a finished run"):
        next(experiment_generator(digits(batch_size=7)))
    assert content() == before
