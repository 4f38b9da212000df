"""Weight decay of weights and of whatever has `bias` in its name; layers that learn slower."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from src.config import Config
from src.models.linear import Linear
from src.models.tiny import build as tiny
from src.optim.optimizers import build_optimizer, param_groups
from src.support.errors import UserError
from train import experiment_generator


def test_biases_decay_on_their_own_and_everything_else_as_weights():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GRU(4, 2))
    weights, biases = param_groups(model, weight_decay=0.1, weight_decay_biases=0.2)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in weights["params"]] == [
        *("0.weight", "1.weight", "2.weight_ih_l0", "2.weight_hh_l0")
    ]
    assert [names[id(p)] for p in biases["params"]] == [
        *("0.bias", "1.bias", "2.bias_ih_l0", "2.bias_hh_l0")
    ]
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.1, 0.2)


def test_frozen_parameters_are_left_out_and_no_group_is_empty():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    (group,) = param_groups(model, weight_decay=0.1, weight_decay_biases=0.2)
    assert group["params"] == [model[0].weight]


def test_a_shared_parameter_is_stepped_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    weights, biases = param_groups(model, weight_decay=0.0, weight_decay_biases=0.1)
    assert (len(weights["params"]), len(biases["params"])) == (1, 2)


def test_one_group_holds_all_where_both_decay_alike():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    (group,) = param_groups(model, weight_decay=0.1, weight_decay_biases=0.1)
    assert group["params"] == list(model.parameters())
    assert group["weight_decay"] == 0.1


# ---- Layers ------------------------------------------------------------------------------


def scales(model: nn.Module, layer_decay: float = 0.5) -> dict[str, float]:
    """Parameter -> lr_scale, of those that are in a group."""
    groups = param_groups(model, weight_decay=0, weight_decay_biases=0, layer_decay=layer_decay)
    found = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


def by_start(found: dict[str, float], num_parts: int) -> dict[str, float]:
    """The scale of the parameters whose names start with the same parts."""
    starts: dict[str, float] = {}
    for name, scale in found.items():
        start = ".".join(name.split(".")[:num_parts])
        assert starts.setdefault(start, scale) == scale, name
    return starts


def test_layers_of_timms_vit():
    expected = dict.fromkeys(("cls_token", "pos_embed", "patch_embed.proj"), 1 / 128)
    expected |= {"blocks.0": 1 / 64, "blocks.1": 1 / 32, "blocks.2": 1 / 16, "blocks.3": 1 / 8}
    expected |= {"blocks.4": 1 / 4, "blocks.5": 1 / 2, "norm.weight": 1 / 2, "norm.bias": 1 / 2}
    expected |= {"head.weight": 1.0, "head.bias": 1.0}
    assert by_start(scales(timm.create_model("test_vit")), 2) == expected


def test_layers_of_timms_resnet():
    expected = {"conv1": 1 / 32, "bn1": 1 / 32, "layer1": 1 / 16, "layer2": 1 / 8}
    expected |= {"layer3": 1 / 4, "layer4": 1 / 2, "fc": 1.0}
    assert by_start(scales(timm.create_model("test_resnet")), 1) == expected


def test_layers_of_a_network_that_does_not_say_them():
    """Its children in order, lists opened; norms and bare parameters go with what was before."""
    model = nn.Module()
    model.mean = nn.Parameter(torch.zeros(2))
    model.table = nn.Embedding(3, 2)
    model.norm = nn.LayerNorm(2)
    model.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.GRU(2, 2)])
    model.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 1, 2), 2, None, False)
    model.head = nn.Linear(2, 2)
    layers = {"mean": 0, "table": 0, "norm": 0, "blocks.0": 1, "blocks.1": 2}
    layers |= {"encoder.layers.0": 3, "encoder.layers.1": 4, "head": 5}
    found = scales(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, scale in found.items():
        (layer,) = (number for start, number in layers.items() if name.startswith(start))
        assert scale == 0.5 ** (5 - layer), name


def test_a_head_that_is_the_embedding_is_no_layer_of_its_own():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    assert scales(model) == {"0.weight": 0.5, "1.weight": 1, "1.bias": 1}


@pytest.mark.parametrize(
    ("model", "num_layers", "expected"),
    [
        (tiny("resnet_20", (3, 8, 8), 10)[0], 11, {"body.1.bias": 0, "body.3.branch.0.weight": 1}),
        (models.resnet18(), 10, {"bn1.bias": 0, "layer1.1.conv2.weight": 2, "fc.bias": 9}),
        (models.swin_t(), 17, {"features.0.2.bias": 0, "features.1.1.norm1.bias": 2}),
        (models.maxvit_t(input_size=(224, 224)), 8, {"stem.1.0.weight": 1, "classifier.2.bias": 5}),
        (models.vit_b_32(), 14, {"class_token": 0, "conv_proj.bias": 0, "encoder.ln.bias": 12}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_of_tiny_and_torchvisions_networks(model, num_layers, expected):
    found = scales(model)
    assert sorted(set(found.values())) == [0.5 ** (num_layers - 1 - i) for i in range(num_layers)]
    for name, layer in expected.items():
        assert found[name] == 0.5 ** (num_layers - 1 - layer), name


def test_layers_and_biases_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3), nn.Linear(3, 4, bias=False))
    model[0].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    groups = param_groups(model, weight_decay=0.1, weight_decay_biases=0.2, layer_decay=0.5)
    weight, bias = model[2].weight, model[0].bias
    assert groups == [
        {"params": [weight], "weight_decay": 0.1, "lr_scale": 1.0},
        {"params": [bias], "weight_decay": 0.2, "lr_scale": 0.25},
    ]
    weight.requires_grad_(False)
    assert scales(model) == {"0.bias": 0.25}  # frozen layers count


def test_a_shared_parameter_is_in_the_first_of_its_layers():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert scales(model) == {"0.weight": 0.5, "0.bias": 0.5, "1.bias": 1.0}


@pytest.mark.parametrize("layer_decay", [None, 1, 1.0])
def test_without_layer_decay_there_are_no_layers(layer_decay):
    keys = {"weight_decay": 0.1, "weight_decay_biases": 0.1, "layer_decay": layer_decay}
    for model in (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), Linear(3, 2)):
        assert [group.keys() for group in param_groups(model, **keys)] == [
            {"params", "weight_decay"}
        ]


def test_a_model_without_layers_is_reported():
    with pytest.raises(UserError, match=r"layer_decay: got 0\.5, expected null, .* group_matcher"):
        scales(Linear(3, 2))


@pytest.mark.parametrize("name", ["sgd", "adamw", "timm/lion", "timm/lookahead_adam", "timm/muon"])
def test_every_optimizer_keeps_the_scales_in_its_state(name):
    config = Config(optim_alg=name, base_lr=0.1, layer_decay=0.5, weight_decay=0.1)
    model = tiny("lenet", (1, 8, 8), 3)[0]
    first, other = (build_optimizer(config, model) for _ in range(2))
    wanted = {0.5**i for i in range(5)}
    assert {group["lr_scale"] for group in first.param_groups} == wanted
    state = first.state_dict()
    for group in other.param_groups:
        group["lr_scale"] = 0.0
    other.load_state_dict(state)
    assert {group["lr_scale"] for group in other.param_groups} == wanted


# ---- In training -------------------------------------------------------------------------

LENET = {"model": "tiny/lenet", "model_input_shape": [1, 8, 8], "layer_decay": 0.5}


def weights_after(config) -> dict[str, torch.Tensor]:
    *_, (_, model) = experiment_generator(config)
    return {name: t.clone() for name, t in model.state_dict().items()}


def test_a_step_of_a_layer_is_its_scale_times_the_step_without(digits):
    plain = {"optim_alg": "sgd", "momentum": 0, "base_lr": 0.1, "train_length_unit": "step"}
    plain |= LENET | {"layer_decay": None, "output_dir": None}
    start = weights_after(digits(**plain | {"train_length": 0}))
    whole = weights_after(digits(**plain | {"train_length": 1}))
    config = digits(**plain | {"train_length": 1, "layer_decay": 0.5})
    *_, (stats, model) = experiment_generator(config)
    assert stats["train/learning_rate"].tolist()[-1] == 0.1
    for name, scale in scales(model).items():
        step, full = model.state_dict()[name] - start[name], whole[name] - start[name]
        assert full.abs().max() > 0, name
        torch.testing.assert_close(step, scale * full, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "timm/lion"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(digits, tmp_path, name):
    keys = LENET | {"optim_alg": name, "base_lr": 1e-3, "weight_decay": 0.1}
    straight = weights_after(digits(**keys, output_dir=str(tmp_path / "straight")))
    weights_after(digits(**keys, train_length=1))
    continued = weights_after(digits(**keys))
    assert all(torch.equal(continued[name], tensor) for name, tensor in straight.items())
