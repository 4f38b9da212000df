"""Optimizers by name: what they do in a step, and the errors where they cannot be built."""

import pytest
import torch
from torch import nn

from src.config import Config
from src.optim.optimizers import build_optimizer
from src.support.errors import UserError

OWN = "tests.own_parts"


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    model(torch.randn(5, 2, 4, 4)).square().mean().backward()
    return model


def stepped(optimizer, model, num_steps=3) -> list[torch.Tensor]:
    for _ in range(num_steps):
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize(
    ("keys", "optimizer", "arguments"),
    [
        (
            {"optim_alg": "sgd", "momentum": 0.8},
            torch.optim.SGD,
            {"momentum": 0.8, "nesterov": True},
        ),
        ({"optim_alg": "sgd", "momentum": 0}, torch.optim.SGD, {}),
        ({"optim_alg": "adam", "momentum": 0.8}, torch.optim.Adam, {"betas": (0.8, 0.999)}),
        (
            {"optim_alg": "adamw", "momentum": "0.8,0.9", "ada_eps": 1e-3},
            torch.optim.AdamW,
            {"betas": (0.8, 0.9), "eps": 1e-3},
        ),
        ({"optim_alg": "amsgrad"}, torch.optim.Adam, {"amsgrad": True}),
        (
            {"optim_alg": "amsgradw", "optim_args": {"maximize": True}},
            torch.optim.AdamW,
            {"amsgrad": True, "maximize": True},
        ),
    ],
)
def test_steps_are_those_of_the_plain_optimizer_of_torch(keys, optimizer, arguments, device):
    """weight_decay concerns weights; the fused kernels do what the loops in Python do."""
    config = Config(base_lr=0.03, weight_decay=0.1, weight_decay_biases=0.01, **keys)
    model, reference = model_with_gradients().to(device), model_with_gradients().to(device)
    groups = [
        {"params": [reference[0].weight, reference[3].weight], "weight_decay": 0.1},
        {"params": [reference[0].bias, reference[3].bias], "weight_decay": 0.01},
    ]
    plain = optimizer(groups, lr=0.03, foreach=False, **arguments)
    torch.testing.assert_close(
        stepped(build_optimizer(config, model), model), stepped(plain, reference)
    )


def test_torchs_kernel_is_fused_unless_asked_otherwise():
    model = model_with_gradients()
    assert build_optimizer(Config(optim_alg="adam"), model).defaults["fused"] is True
    config = Config(optim_alg="adam", optim_args={"foreach": True})
    assert not build_optimizer(config, model).defaults["fused"]


TIMM = "lamb lion adan muon adafactor adamp rmsproptf madgrad novograd lookahead_adam mars".split()  # noqa: SIM905


@pytest.mark.parametrize("name", TIMM)
def test_optimizers_of_timm_learn_with_our_learning_rate_and_decay(name):
    torch.manual_seed(0)
    inputs, model = torch.randn(64, 4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    targets = inputs.sum(1, keepdim=True)
    config = Config(optim_alg=f"timm/{name}", base_lr=0.01, weight_decay=0.1)
    optimizer = build_optimizer(config, model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("name", "momentum", "expected"),
    [
        ("momentum", 0.7, {"momentum": 0.7, "nesterov": False}),
        ("sgd", "0.7", {"momentum": 0.7, "nesterov": True}),
        ("lion", 0.8, {"betas": (0.8, 0.99)}),
        ("lion", "0.8,0.95", {"betas": (0.8, 0.95)}),
        ("adan", 0.9, {"betas": (0.98, 0.92, 0.99)}),
        ("adan", "0.9,0.8,0.7", {"betas": (0.9, 0.8, 0.7)}),
        ("muon", 0.9, {"momentum": 0.9, "betas": (0.9, 0.95)}),
        ("adagrad", 0.9, {"eps": 1e-8}),
    ],
)
def test_momentum_reaches_the_optimizers_of_timm(name, momentum, expected):
    config = Config(optim_alg=f"timm/{name}", momentum=momentum)
    (group,) = build_optimizer(config, model_with_gradients()).param_groups
    assert {key: group[key] for key in expected} == expected


def test_optim_args_reach_the_optimizer_and_come_first():
    config = Config(optim_alg="timm/lamb", optim_args={"eps": 1e-5, "betas": (0.5, 0.6)})
    group = build_optimizer(config, model_with_gradients()).param_groups[0]
    assert (group["eps"], tuple(group["betas"])) == (1e-5, (0.5, 0.6))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optim_alg": "adm"}, "optim_alg: unknown 'adm'; did you mean 'adam'"),
        ({"optim_alg": "timm/lionn"}, "did you mean 'timm/lion'"),
        ({"optim_alg": "timm/foo_adam"}, "unknown 'timm/foo_adam'"),
        ({"optim_alg": "timm/adahessian"}, "second derivatives"),
        ({"momentum": "0.9,0.99"}, "momentum: got '0.9,0.99', expected a number, from 0"),
        ({"momentum": 1.5}, "momentum: got 1.5"),
        ({"optim_alg": "adam", "momentum": "0.9,x"}, "a number or 2 with commas between"),
        ({"optim_alg": "adam", "momentum": "0.9,0.9,0.9"}, "momentum: got"),
        ({"optim_alg": "timm/adan", "momentum": "0.9,0.9"}, "a number or 3 with commas"),
        ({"optim_args": {"nestrov": True}}, "optim_args: unknown 'nestrov'; did you mean 'nest"),
        ({"optim_alg": "timm/lion", "optim_args": {"eps": 1e-8}}, "optim_args: unknown 'eps'"),
        ({"optim_alg": "adam", "optim_args": {"betas": [0.9]}}, "optim_alg 'adam': "),
        ({"optim_args": {"fused": True, "foreach": True}}, "optim_alg 'sgd': "),
        ({"optim_args": {"dampening": 0.5}}, "optim_alg 'sgd': Nesterov momentum requires"),
        ({"optim_alg": f"{OWN}:Normalised"}, f"did you mean '{OWN}:Normalized'?"),
        ({"optim_alg": f"{OWN}:tail"}, f"optim_alg '{OWN}:tail': tail() got an unexpected"),
        ({"optim_alg": f"{OWN}:nothing"}, "gives a torch.optim.Optimizer, not NoneType"),
        (
            {"optim_alg": f"{OWN}:Normalized", "optim_args": {"flor": 1.0}},
            "optim_args: unknown 'flor'; did you mean 'floor'? there is: floor, momentum",
        ),
    ],
)
def test_what_cannot_be_built_is_reported(keys, message):
    with pytest.raises(UserError) as info:
        build_optimizer(Config(**keys), model_with_gradients())
    assert message in str(info.value)


@pytest.mark.parametrize(
    ("frozen", "message"), [(".*", "model_freeze: got '.*', expected"), ([], "model: got 'linear'")]
)
def test_an_optimizer_without_a_parameter_is_reported(frozen, message):
    config = Config(model="linear", model_freeze=frozen)
    with pytest.raises(UserError) as info:
        build_optimizer(config, nn.Linear(1, 1).requires_grad_(False))
    assert message in str(info.value)
    assert "a parameter that requires gradients; the model has none" in str(info.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"optim_alg": "sgd", "momentum": 0.8},
        {
            "optim_alg": "adamw",
            "momentum": "0.8,0.9",
            "ada_eps": 1e-3,
            "optim_args": {"foreach": True},
        },
    ],
)
def test_a_class_of_ones_own_is_given_what_those_of_the_table_are(keys):
    name = {"sgd": "SGD", "adamw": "AdamW"}[keys["optim_alg"]]
    named = keys | {"optim_alg": f"src.optim.optimizers:{name}"}
    model = model_with_gradients()
    of_table, own = (build_optimizer(Config(**k), model).state_dict() for k in (keys, named))
    assert of_table == own


def test_an_optimizer_of_ones_own_steps_with_the_arguments_that_it_names():
    keys = {"optim_alg": f"{OWN}:Normalized", "momentum": 0.0, "optim_args": {"floor": 0.0}}
    model = model_with_gradients()
    before = [p.detach().clone() for p in model.parameters()]
    after = stepped(build_optimizer(Config(base_lr=0.1, **keys), model), model, num_steps=1)
    moved = [float((a - b).norm()) for a, b in zip(after, before, strict=True)]
    assert moved == pytest.approx([0.1] * 4, rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they may run here")
def test_optimizers_of_other_packages_tell_what_they_miss():
    with pytest.raises(UserError, match="optim_alg: got 'timm/fusedlamb', expected one that runs"):
        build_optimizer(Config(optim_alg="timm/fusedlamb"), model_with_gradients())
