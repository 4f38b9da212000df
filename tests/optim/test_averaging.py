"""Averages against a slow reference, the closed form of the paper, and a resumed run."""

import io

import pytest
import torch
from torch import nn

from src.optim.averaging import build_averaged_models
from src.support.errors import UserError


class Net(nn.Module):
    """Batch norm, an integer buffer, a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def moved(model: nn.Module) -> nn.Module:
    """The model after a step of training: weights, running statistics and counters changed."""
    with torch.no_grad():
        model.train()(torch.randn(8, 4))
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def floats(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}


def ema_step(average, weights, t, decay):
    return decay * average + (1 - decay) * weights


def debiased_step(average, weights, t, decay):
    """(1 - decay) Σ decay^(t - i) w_i over (1 - decay^t): as Adam corrects its means."""
    before = average * (1 - decay ** (t - 1)) if t > 1 else 0 * average
    return (decay * before + (1 - decay) * weights) / (1 - decay**t)


def poly_step(average, weights, t, k):
    c = (k + 1) / (k + t)
    return (1 - c) * average + c * weights


@pytest.mark.parametrize(
    ("name", "step", "parameter"),
    [
        ("ema", ema_step, 0.99),
        ("ema_0.9", ema_step, 0.9),
        ("ema_0", ema_step, 0.0),
        ("ema_debiased", debiased_step, 0.99),
        ("ema_debiased_0.9", debiased_step, 0.9),
        ("ema_debiased_0", debiased_step, 0.0),
        ("poly", poly_step, 0.0),
        ("poly_8", poly_step, 8.0),
        ("poly_1.5", poly_step, 1.5),
    ],
)
def test_a_slow_reference_walks_beside_for_100_steps(name, step, parameter):
    torch.manual_seed(0)
    model = Net()
    average = build_averaged_models(name, model)["av"]
    reference = floats(model)
    for t in range(1, 101):
        weights = floats(moved(model))
        average.update()
        reference = {k: step(reference[k], weights[k], t, parameter) for k in reference}
        torch.testing.assert_close(floats(average.model), reference, rtol=1e-5, atol=1e-5)
    assert average.model.norm.num_batches_tracked == model.norm.num_batches_tracked == 100
    assert average.model.second.weight is average.model.first.weight


@pytest.mark.parametrize("k", [0, 1, 3])
def test_poly_weighs_step_i_by_a_polynomial_of_degree_k_in_i(k):
    """Unrolled (Shamir and Zhang 2013): weight of w_i proportional to i (i+1) … (i+k-1)."""
    model = nn.Linear(1, 1, bias=False)
    average = build_averaged_models(f"poly_{k}", model)["av"]
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
    i = torch.arange(1, 21).double()
    weights = torch.stack([i + j for j in range(k)]).prod(0) if k else torch.ones(20).double()
    expected = (weights * values).sum() / weights.sum()
    assert average.model.weight.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["poly_8", "ema_debiased_0.9"])
def test_the_first_update_of_these_is_exactly_the_weights(name):
    model = Net()
    average = build_averaged_models(name, model)["av"]
    moved(model)
    average.update()
    torch.testing.assert_close(average.model.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_debiased_average_weighs_the_steps_alone_and_never_the_initial_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1e6)
    average = build_averaged_models("ema_debiased_0.9", model)["av"]
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
    weights = 0.9 ** torch.arange(19, -1, -1).double()
    expected = (weights * values).sum() / weights.sum()
    assert average.model.weight.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_average_is_frozen_for_evaluation_and_leaves_the_model_alone():
    model = moved(Net())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    average = build_averaged_models("ema_0.5", model)["av"]
    assert not average.model.training
    assert model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    average.update()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in model.parameters())


def test_a_mask_of_infinities_stays_one():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    average = build_averaged_models("ema_0.9", model)["av"]
    average.update()
    assert torch.equal(average.model.mask, model.mask)


@pytest.mark.parametrize("name", ["poly_8", "ema_debiased_0.9"])
def test_a_resumed_average_goes_on_bit_for_bit(name):
    torch.manual_seed(0)
    model = Net()
    straight = build_averaged_models(name, model)["av"]
    for _ in range(3):
        moved(model)
        straight.update()
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = build_averaged_models(name, model)["av"]
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for average in (straight, resumed):
        average.update()
    torch.testing.assert_close(
        resumed.model.state_dict(), straight.model.state_dict(), rtol=0, atol=0
    )


def test_several_are_named_in_the_order_they_are_listed():
    model = Net()
    averages = build_averaged_models(["ema_0", "poly", "ema_0.5"], model)
    assert list(averages) == ["av", "av2", "av3"]
    start = model.first.bias.detach().clone()
    for _ in range(2):
        moved(model)
        for average in averages.values():
            average.update()
    torch.testing.assert_close(averages["av"].model.first.bias, model.first.bias.detach())
    assert not torch.equal(averages["av2"].model.first.bias, averages["av3"].model.first.bias)
    assert not torch.equal(averages["av3"].model.first.bias, start)
    assert build_averaged_models(None, model) == {}
    assert build_averaged_models([], model) == {}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ema0.99", "did you mean 'ema_0.99'?"),
        ("EMA-.9", "did you mean 'ema_.9'?"),
        ("poly8", "did you mean 'poly_8'?"),
        ("emma_0.9", "did you mean 'ema'"),
        ("ema_debiased0.9", "did you mean 'ema_debiased_0.9'?"),
        ("ema_debised_0.9", "did you mean 'ema_debiased'"),
        ("ema_debiased_1", "0 ≤ G < 1"),
        ("ema_1", "0 ≤ G < 1"),
        ("ema_-0.1", "0 ≤ G < 1"),
        ("ema_x", "0 ≤ G < 1"),
        ("ema_0.9_1", "0 ≤ G < 1"),
        ("poly_-1", "K ≥ 0"),
        ("poly_nan", "K ≥ 0"),
        ("", "expected one of"),
    ],
)
def test_what_is_no_average_is_reported(name, hint):
    with pytest.raises(UserError) as info:
        build_averaged_models([name], nn.Linear(1, 1))
    assert f"averaging: got {name!r}" in str(info.value)
    assert hint in str(info.value)
    assert f"did you mean {name!r}" not in str(info.value)


def test_an_average_of_ones_own_stands_beside_those_of_the_table():
    model, weights, mean, twofold = nn.Linear(1, 1, bias=False), [], 0.0, 0.0
    nn.init.zeros_(model.weight)
    own = "tests.own_parts"
    names = [f"{own}:tail", "src.optim.averaging:poly", "poly", f"{own}:Twofold"]
    averages = build_averaged_models(names, model)
    for value in range(8):
        nn.init.constant_(model.weight, value)
        weights.append(float(value))
        mean = (mean + value) / 2
        twofold = (twofold + mean) / 2
        for average in averages.values():
            average.update()
    found = [average.model.weight.item() for average in averages.values()]
    assert found == pytest.approx([sum(weights[4:]) / 4, *[sum(weights) / 8] * 2, twofold])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("tial", "tests.own_parts has no function 'tial'; did you mean '.*:tail'"),
        ("of_three", r"can be called as of_three\(\): missing a required argument"),
        ("nothing", "which gives a number, not None"),
        ("without_numbers", "which gives a number; at t=1 it gives 'half'"),
        ("AveragedModel", r"called as AveragedModel\(model\): missing .* argument: 'coefficient'"),
    ],
)
def test_what_is_no_average_of_ones_own_is_reported(function, message):
    with pytest.raises(UserError, match=f"^averaging: .*{message}"):
        build_averaged_models(["ema", f"tests.own_parts:{function}"], nn.Linear(1, 1))
