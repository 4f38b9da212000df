"""From the configuration to the model: names, number of outputs, seeds, preprocessing."""

import ast
from pathlib import Path

import pytest
import torch

from src.data.splits import Preprocessing
from src.models.registry import build_model, check_model, model_preprocessing, output_dim
from src.support.errors import UserError

ROOT = Path(__file__).parents[2]
SHAPE = (3, 32, 32)
MODELS = ["linear", "linear/no_bias", "tiny/resnet_20", "tiny/lenet", "timm/test_resnet"]


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
def test_models_that_do_not_exist_or_fit_are_reported(config, model, shape, message):
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
        ("linear", "there are no pretrained weights for 'linear'"),
        ("timm/test_byobnet.x", "unknown 'timm/test_byobnet.x'"),
        ("timm/resnet8", "unknown 'timm/resnet8'; did you mean 'timm/resnet18'"),
    ],
)
def test_what_is_wrong_with_a_model_shows_without_building(config, model, message):
    has_depth = "wrn" in model
    with pytest.raises(UserError, match=message):
        check_model(config(model, model_pretrained=not has_depth))


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


@pytest.mark.parametrize("path", (ROOT / "src/models").glob("*.py"), ids=lambda path: path.name)
def test_libraries_of_networks_are_imported_when_they_are_asked_for(path):
    """timm alone takes two seconds, which a linear model need not wait for."""
    top = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    names = {getattr(n, "module", None) or alias.name for n in top for alias in n.names}
    libraries = {"timm", "torchvision", "open_clip", "transformers", "safetensors"}
    assert not libraries & {name.partition(".")[0] for name in names}
