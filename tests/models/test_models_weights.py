"""Where parameters start and which are trained: model_weights, model_head_init, model_freeze."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from src.models.registry import build_model, check_model
from src.models.weights import freeze, init_head
from src.optim.optimizers import build_optimizer
from src.runtime.checkpoints import CheckpointFiles
from src.support.errors import UserError
from train import experiment_generator, run_experiment

MODELS = ["linear", "linear/no_bias", "tiny/resnet_20", "tiny/lenet", "timm/test_resnet"]
HEADS = {"linear": ("",), "tiny/resnet_20": ("head",), "timm/test_resnet": ("fc",)}
HEADS |= {"timm/deit_tiny_distilled_patch16_224": ("head", "head_dist")}
IMAGE = (3, 32, 32)
SHAPE = (3, 8, 8)
BODY = r"body\..*"
WRN = {"model": "tiny/wrn_10_1", "model_input_shape": [1, 8, 8]}


# ---- model_weights and model_head_init --------------------------------------------------


@pytest.mark.parametrize(("model", "heads"), HEADS.items())
@pytest.mark.parametrize("how", ["zero", "rand"])
def test_head_init_touches_the_head_alone(config, model, heads, how):
    shape = (3, 224, 224) if "224" in model else IMAGE
    own = build_model(config(model), shape, 10).state_dict()
    changed = build_model(config(model, model_head_init=how), shape, 10).state_dict()
    for name, tensor in changed.items():
        if any(not head or name.startswith(f"{head}.") for head in heads):
            assert bool(tensor.any()) == (how == "rand"), name
            assert how == "zero" or not torch.equal(tensor, own[name]), name
        else:
            assert torch.equal(tensor, own[name]), name


def test_head_init_without_a_head_is_reported():
    with pytest.raises(UserError, match="model_head_init: got 'zero', expected null"):
        init_head(nn.ReLU(), (), "zero")


def saved(model: torch.nn.Module, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("file", ["w.pt", "w.pth", "w.safetensors"])
def test_weights_come_from_the_file(config, tmp_path, model, file):
    wanted = build_model(config(model), IMAGE, 10)
    path = saved(wanted, tmp_path / file)
    got = build_model(config(model, seed_model=5, model_weights=path), IMAGE, 10).state_dict()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("model", ["tiny/resnet_20", "timm/test_resnet"])
def test_a_head_of_another_shape_stays_new(config, tmp_path, model):
    of_file = build_model(config(model), IMAGE, 10)
    path = saved(of_file, tmp_path / "w.pt")
    fresh = build_model(config(model, seed_model=5), IMAGE, 3).state_dict()
    got = build_model(config(model, seed_model=5, model_weights=path), IMAGE, 3).state_dict()
    (head,) = HEADS[model]
    for name, tensor in got.items():
        source = fresh if name.startswith(head) else of_file.state_dict()
        assert torch.equal(tensor, source[name]), name


def without(state: dict, name: str) -> dict:
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "body.0.weight"), "1 missing: body.0.weight"),
        (lambda s: without(s, "head.bias"), "1 missing: head.bias"),
        (lambda s: s | {"extra": torch.ones(1)}, "1 unexpected: extra"),
        (
            lambda s: s | {"body.0.weight": torch.ones(6, 1, 5, 5)},
            "1 of another shape: body.0.weight (6, 1, 5, 5) instead of (6, 3, 5, 5)",
        ),
    ],
)
def test_of_a_checkpoint_of_other_code_what_fits_is_loaded_and_one_warning_names_the_rest(
    config, tmp_path, log_lines, change, message
):
    whole = build_model(config("tiny/lenet"), IMAGE, 10).state_dict()
    fresh = build_model(config("tiny/lenet", seed_model=5), IMAGE, 10).state_dict()
    path, changed = tmp_path / "w.pt", change(whole)
    torch.save(changed, path)
    settings = config("tiny/lenet", seed_model=5, model_weights=str(path))
    got = build_model(settings, IMAGE, 10).state_dict()
    for name, tensor in got.items():
        fits = name in changed and changed[name].shape == tensor.shape
        assert torch.equal(tensor, (whole if fits else fresh)[name]), name
    rest = "fits in part, and the rest of the model stays as it was initialised"
    assert log_lines == [f"model_weights: {str(path)!r} {rest}: {message}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {f"module.{k}": v for k, v in s.items()},
            "10 missing: body.0.weight, .*, …; 10 unexpected: module.body.0.weight, .*, …",
        ),
        (
            lambda s: dict(list(s.items())[:5]),
            "does not fit the model: 5 missing: body.7.bias, .*, …",
        ),
        (
            lambda s: s | {f"body.9{k}": torch.ones(1) for k in range(10)},
            "does not fit the model: 10 unexpected: body.90, .*, …",
        ),
        (lambda s: {"epoch": 3, "weights": s}, "names and tensors; the file holds epoch, weights"),
        (lambda s: [1], "names and tensors; the file holds <class 'list'>"),
    ],
)
def test_weights_of_another_model_are_refused(config, tmp_path, change, message):
    path = tmp_path / "w.pt"
    torch.save(change(build_model(config("tiny/lenet"), IMAGE, 10).state_dict()), path)
    with pytest.raises(UserError, match=f"^model_weights: .*{message}"):
        build_model(config("tiny/lenet", model_weights=str(path)), IMAGE, 10)


def test_a_file_with_nothing_but_another_head_is_reported(config, tmp_path):
    path = saved(build_model(config("linear"), IMAGE, 10), tmp_path / "w.pt")
    with pytest.raises(UserError, match="nothing but a head of another shape"):
        build_model(config("linear", model_weights=path), IMAGE, 3)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_and_missing_files_are_reported(config, tmp_path, name):
    settings = config("linear", model_weights=str(tmp_path / name))
    with pytest.raises(UserError, match=r"model_weights: .*, expected a file that exists"):
        build_model(settings, IMAGE, 10)
    (tmp_path / name).write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"model_weights: .*, expected a readable state dict"):
        build_model(settings, IMAGE, 10)


# ---- model_freeze ------------------------------------------------------------------------


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
def test_what_freezes_nothing_or_all_is_reported(config, patterns, message):
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


def test_a_batch_norm_of_which_a_part_learns_keeps_counting(config):
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


def test_a_resumed_run_ends_as_an_uninterrupted_one(digits, tmp_path):
    keys = WRN | {"model_freeze": [r"body\.[01]\..*"], "averaging": "ema_0.9"}
    straight = digits(**keys, output_dir=str(tmp_path / "straight"))
    *_, (_, expected) = experiment_generator(straight)
    run_experiment(digits(**keys, train_length=1))
    *_, (_, model) = experiment_generator(digits(**keys))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert "body.0.weight" in frozen(model)
    assert not frozen(model) & {"body.2.norm.weight", "head.weight"}
