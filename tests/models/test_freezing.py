"""model_freeze: what keeps its values, and its statistics."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from src.models.registry import build_model, check_model
from src.models.weights import freeze
from src.optim.optimizers import build_optimizer
from src.runtime.checkpoints import CheckpointFiles
from src.support.errors import UserError
from train import experiment_generator, run_experiment

SHAPE = (3, 8, 8)
BODY = r"body\..*"
WRN = {"model": "tiny/wrn_10_1", "model_input_shape": [1, 8, 8]}


def frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


LAYERS = ("body.0", "body.2", "body.5", "body.7", "head")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], ()),
        (BODY, [f"{layer}.{kind}" for layer in LAYERS[:-1] for kind in ("weight", "bias")]),
        ([r"body\.0\.weight", "head.bias"], ("body.0.weight", "head.bias")),
        (r"(?!head\.|body\.[257]).*", ("body.0.weight", "body.0.bias")),
        (r".*\.bias", [f"{layer}.bias" for layer in LAYERS]),
    ],
)
def test_patterns_match_whole_names(config, patterns, expected):
    model = build_model(config("tiny/lenet", model_freeze=patterns), SHAPE, 10)
    assert frozen(model) == set(expected)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("body", r"model_freeze: got 'body', expected a match among the parameters, body\.0\.weig"),
        ([BODY, "haed.weight"], r"got 'haed.weight', .*, …; the closest is 'head.weight'$"),
        (".*", r"model_freeze: '\.\*' leaves no parameter to train"),
        ([BODY, r"head\..*"], "leaves no parameter to train"),
        ("body.(", r"model_freeze: got 'body.\(', expected a regular expression \(.*\)$"),
    ],
)
def test_what_freezes_nothing_or_all_is_told(config, patterns, message):
    with pytest.raises(UserError, match=message):
        build_model(config("tiny/lenet", model_freeze=patterns), SHAPE, 10)


def test_a_shared_parameter_is_known_by_each_of_its_names():
    model = nn.Module()
    model.table, model.other = nn.Embedding(5, 3), nn.Linear(3, 3)
    model.head = nn.Linear(3, 5)
    model.head.weight = model.table.weight
    freeze(model, [r"head\.weight"])
    assert frozen(model) == {"table.weight"}


def test_what_is_no_pattern_shows_without_building(config):
    check_model(config("tiny/lenet", model_freeze="no such name"))
    with pytest.raises(UserError, match="expected a regular expression"):
        check_model(config("tiny/lenet", model_freeze=[BODY, "("]))


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_frozen_batch_norm_keeps_its_statistics_in_training(config, is_copied):
    """Also in the copies that averages are made of."""
    pattern = r"body\.(1|2)\..*norm.*|body\.1\.branch\.1\..*"
    model = build_model(config("tiny/wrn_10_1", model_freeze=pattern), SHAPE, 10)
    model = copy.deepcopy(model) if is_copied else model
    before, inputs = statistics(model), torch.rand(6, *SHAPE)
    model.train()
    outputs = model(inputs)
    changed = {n.rpartition(".")[0] for n, t in statistics(model).items() if (t != before[n]).any()}
    assert changed == {"body.2.branch.1", "body.3.norm", "body.3.branch.1", "body.4"}
    norm = model.get_submodule("body.1.norm")
    features = torch.randn(5, 16, 4, 4)
    expected = norm.eval()(features)
    assert torch.equal(norm.train()(features), expected)  # by the statistics, not the batch's
    outputs.sum().backward()
    assert norm.weight.grad is None


def test_a_batch_norm_of_which_a_part_learns_goes_on_counting(config):
    pattern = r"body\.1\.norm\.bias"
    model = build_model(config("tiny/wrn_10_1", model_freeze=pattern), SHAPE, 10)
    before = statistics(model)
    model.train()(torch.rand(6, *SHAPE))
    assert all((t != before[name]).any() for name, t in statistics(model).items())


def test_what_is_frozen_is_no_matter_to_the_optimizer(config):
    settings = config("tiny/lenet", model_freeze=BODY, weight_decay=0.1)
    model = build_model(settings, SHAPE, 10)
    optimizer = build_optimizer(settings, model)
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in stepped} == {id(p) for p in model.head.parameters()}


@pytest.mark.parametrize("averaging", [None, ["ema_0.9", "poly_8"]])
def test_training_leaves_it_bit_for_bit_the_same(digits, tmp_path, averaging):
    keys = WRN | {"model_freeze": BODY, "weight_decay": 0.1, "averaging": averaging}
    keys |= {"clip_norm": 1.0, "grad_accum_steps": 2}
    config = digits(**keys)
    start = build_model(config, (1, 8, 8), 10).state_dict()
    *_, (_, model) = experiment_generator(config)
    state = CheckpointFiles(Path(config.output_dir) / "state").newest()["parts"]
    averages = [state[name]["model"] for name in ("av", "av2") if averaging]
    for weights in (model.state_dict(), *averages):
        for name, tensor in weights.items():
            if name.startswith("head."):
                assert not torch.equal(tensor, start[name]), name
            else:
                assert torch.equal(tensor, start[name]), name


def test_a_run_that_goes_on_ends_as_one_that_went_through(digits, tmp_path):
    keys = WRN | {"model_freeze": [r"body\.[01]\..*"], "averaging": "ema_0.9"}
    straight = digits(**keys, output_dir=str(tmp_path / "straight"))
    *_, (_, expected) = experiment_generator(straight)
    run_experiment(digits(**keys, train_length=1))
    *_, (_, model) = experiment_generator(digits(**keys))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert "body.0.weight" in frozen(model)
    assert not frozen(model) & {"body.2.norm.weight", "head.weight"}
