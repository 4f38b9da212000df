import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from src.data.splits import Preprocessing
from src.models.registry import build_model, check_model, model_preprocessing, output_dim
from src.support.errors import UserError

SHAPE = (3, 32, 32)
MODELS = ["linear", "linear/no_bias", "tiny/resnet_20", "tiny/lenet", "timm/test_resnet"]
HEADS = {"linear": ("",), "tiny/resnet_20": ("head",), "timm/test_resnet": ("fc",)}
HEADS |= {"timm/deit_tiny_distilled_patch16_224": ("head", "head_dist")}


@pytest.mark.parametrize("model", MODELS)
def test_start_depends_on_seed_model_alone(config, model):
    torch.manual_seed(0)
    first = build_model(config(model), SHAPE, 10).state_dict()
    torch.manual_seed(1)
    again = build_model(config(model), SHAPE, 10).state_dict()
    other = build_model(config(model, seed_model=2), SHAPE, 10).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_random_state_alone(config):
    before = torch.get_rng_state()
    build_model(config("tiny/lenet", model_head_init="rand"), SHAPE, 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "n_classes", "expected"), [(None, 7, 7), (None, None, 1), (9, 7, 9), (3, None, 3)]
)
def test_output_dim(config, given, n_classes, expected):
    settings = config("linear", model_output_dim=given)
    assert output_dim(settings, n_classes) == expected
    outputs = build_model(settings, (4,), n_classes)(torch.rand(2, 4))
    assert outputs.shape == (2, expected)


def test_output_dim_below_the_classes_is_refused(config):
    with pytest.raises(UserError, match="model_output_dim: got 6, expected at least 7"):
        output_dim(config("linear", model_output_dim=6), 7)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("linaer", SHAPE, r"model: unknown 'linaer'; did you mean 'linear'\?"),
        ("linear/nobias", SHAPE, r"unknown 'linear/nobias'; did you mean 'linear/no_bias'\?"),
        ("tiny/lenet", (54,), r"model: got 'tiny/lenet', expected .* of shape \(54,\)"),
        ("timm/resnet18", (54,), r"model: got 'timm/resnet18', expected .* of shape \(54,\)"),
    ],
)
def test_models_that_do_not_exist_or_fit_are_told(config, model, shape, message):
    with pytest.raises(UserError, match=message):
        build_model(config(model), shape, 10)


@pytest.mark.parametrize("model", ["linear", "tiny/lenet", "tiny/wrn_16_4", "timm/resnet18"])
def test_names_are_checked_without_building(config, model):
    check_model(config(model, model_weights="nowhere.pt"))
    with pytest.raises(UserError, match=f"model: unknown '{model}x'"):
        check_model(config(f"{model}x"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny/wrn_17_4", "expected a depth of 6n"),
        ("tiny/lenet", "there are no pretrained weights for 'tiny/lenet'"),
        ("timm/test_byobnet.x", "unknown 'timm/test_byobnet.x'"),
        ("timm/resnet8", "unknown 'timm/resnet8'; did you mean 'timm/resnet18'"),
    ],
)
def test_what_is_wrong_with_a_model_shows_without_building(config, model, message):
    has_depth = "wrn" in model
    with pytest.raises(UserError, match=message):
        check_model(config(model, model_pretrained=not has_depth))


@pytest.mark.parametrize("model", ["linear", "tiny/lenet"])
def test_pretrained_is_refused_where_there_is_nothing(config, model):
    with pytest.raises(UserError, match=f"no pretrained weights for '{model}'"):
        build_model(config(model, model_pretrained=True), SHAPE, 10)


@pytest.mark.parametrize(("model", "heads"), HEADS.items())
@pytest.mark.parametrize("how", ["zero", "rand"])
def test_head_init_touches_the_head_alone(config, model, heads, how):
    shape = (3, 224, 224) if "224" in model else SHAPE
    own = build_model(config(model), shape, 10).state_dict()
    changed = build_model(config(model, model_head_init=how), shape, 10).state_dict()
    for name, tensor in changed.items():
        if any(not head or name.startswith(f"{head}.") for head in heads):
            assert bool(tensor.any()) == (how == "rand"), name
            assert how == "zero" or not torch.equal(tensor, own[name]), name
        else:
            assert torch.equal(tensor, own[name]), name


def saved(model: torch.nn.Module, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("file", ["w.pt", "w.pth", "w.safetensors"])
def test_weights_come_from_the_file(config, tmp_path, model, file):
    wanted = build_model(config(model), SHAPE, 10)
    path = saved(wanted, tmp_path / file)
    got = build_model(config(model, seed_model=5, model_weights=path), SHAPE, 10).state_dict()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("model", ["tiny/resnet_20", "timm/test_resnet"])
def test_a_head_of_another_shape_stays_new(config, tmp_path, model):
    of_file = build_model(config(model), SHAPE, 10)
    path = saved(of_file, tmp_path / "w.pt")
    fresh = build_model(config(model, seed_model=5), SHAPE, 3).state_dict()
    got = build_model(config(model, seed_model=5, model_weights=path), SHAPE, 3).state_dict()
    (head,) = HEADS[model]
    for name, tensor in got.items():
        source = fresh if name.startswith(head) else of_file.state_dict()
        assert torch.equal(tensor, source[name]), name


def without(state: dict, name: str) -> dict:
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "body.0.weight"), "does not fit the model: 1 missing: body.0.weight"),
        (lambda s: without(s, "head.bias"), "1 missing: head.bias"),
        (lambda s: s | {"extra": torch.ones(1)}, "1 unexpected: extra"),
        (
            lambda s: s | {"body.0.weight": torch.ones(6, 1, 5, 5)},
            r"1 of another shape: body.0.weight \(6, 1, 5, 5\) instead of \(6, 3, 5, 5\)",
        ),
        (
            lambda s: {f"module.{k}": v for k, v in s.items()},
            "10 missing: body.0.weight, .*, …; 10 unexpected: module.body.0.weight, .*, …",
        ),
        (lambda s: {"epoch": 3, "weights": s}, "names and tensors; the file holds epoch, weights"),
        (lambda s: [1], "names and tensors; the file holds <class 'list'>"),
    ],
)
def test_weights_that_do_not_fit_are_told(config, tmp_path, change, message):
    path = tmp_path / "w.pt"
    torch.save(change(build_model(config("tiny/lenet"), SHAPE, 10).state_dict()), path)
    with pytest.raises(UserError, match=f"^model_weights: .*{message}"):
        build_model(config("tiny/lenet", model_weights=str(path)), SHAPE, 10)


def test_a_file_with_nothing_but_another_head_is_told(config, tmp_path):
    path = saved(build_model(config("linear"), SHAPE, 10), tmp_path / "w.pt")
    with pytest.raises(UserError, match="nothing but a head of another shape"):
        build_model(config("linear", model_weights=path), SHAPE, 3)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_and_missing_files_are_told(config, tmp_path, name):
    settings = config("linear", model_weights=str(tmp_path / name))
    with pytest.raises(UserError, match=r"model_weights: .*, expected a file that exists"):
        build_model(settings, SHAPE, 10)
    (tmp_path / name).write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"model_weights: .*, expected a readable state dict"):
        build_model(settings, SHAPE, 10)


@pytest.mark.parametrize(
    ("model", "keys"),
    [("linear", {}), ("tiny/lenet", {"model_weights": "w.pt"}), ("timm/test_resnet", {})],
)
def test_models_without_a_past_take_the_data_as_they_are(config, model, keys):
    assert model_preprocessing(config(model, **keys)) is None


@pytest.mark.parametrize("keys", [{"model_pretrained": True}, {"model_weights": "w.pt"}])
def test_models_with_a_past_want_the_images_of_their_past(config, keys):
    half = (0.5, 0.5, 0.5)
    wanted = Preprocessing((3, 224, 224), half, half, interpolation="bicubic", crop_pct=0.875)
    assert model_preprocessing(config("timm/tf_efficientnet_lite0", **keys)) == wanted


def test_our_own_models_do_not_import_timm():
    script = (
        "import sys; from src.models.registry import *; from src.config.config import make_config\n"
        "for name in 'linear', 'tiny/lenet':\n"
        "    config = make_config({'model': name, 'seed_model': 1})\n"
        "    model_preprocessing(config), build_model(config, (1, 8, 8), 10)\n"
        "sys.exit(bool({'timm', 'torchvision'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root).returncode == 0
