"""torchvision's classifiers: names, inputs, heads, weights."""

import pytest
import torch
from torchvision import models

from src.config import make_config
from src.data.transforms import IMAGENET
from src.models.registry import build_model, model_preprocessing
from src.support.errors import UserError


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """cached(name) -> the state dict that torchvision finds in its cache as the weights of it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def write(name: str, tag: str) -> dict[str, torch.Tensor]:
        start = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = models.get_model(
            name, **start
        )  # with all that its weights have, auxiliary heads too
        file = models.get_model_weights(name)[tag].url.rpartition("/")[2]
        torch.save(model.state_dict(), folder / file)
        return model.state_dict()

    return write


@pytest.mark.parametrize(
    ("name", "side", "head"),
    [
        ("resnet18", 32, "fc"),
        ("squeezenet1_1", 64, "classifier.1"),
        ("mobilenet_v3_small", 32, "classifier.3"),
        ("vit_b_32", 64, "heads.head"),
        ("googlenet", 64, "fc"),
    ],
)
def test_networks_take_the_shape_of_the_data_and_their_head_is_known(config, name, side, head):
    model = build_model(
        config(f"torchvision/{name}", model_head_init="zero"), (3, side, side), 7
    ).eval()
    with torch.no_grad():
        assert torch.equal(model(torch.rand(2, 3, side, side)), torch.zeros(2, 7))
    zeros = [n for n, t in model.state_dict().items() if n.startswith(f"{head}.")]
    assert zeros == [f"{head}.weight", f"{head}.bias"]
    assert model.train()(torch.rand(2, 3, side, side)).shape == (2, 7)  # no auxiliary outputs


@pytest.mark.parametrize(
    ("name", "tag", "head"),
    [
        ("resnet18", "IMAGENET1K_V1", "fc."),
        ("googlenet", "IMAGENET1K_V1", "fc."),
        ("inception_v3", "IMAGENET1K_V1", "fc."),
    ],
)
@pytest.mark.parametrize("n_classes", [1000, 10])
def test_weights_come_from_the_cache_and_take_a_new_head(
    config, cached, name, tag, head, n_classes
):
    file = cached(name, tag)
    settings = config(f"torchvision/{name}.{tag}", model_pretrained=True)
    state = build_model(settings, (3, 96, 96), n_classes).state_dict()
    assert state[f"{head}weight"].shape[0] == n_classes
    for key, tensor in state.items():
        is_new = n_classes != 1000 and key.startswith(head)
        assert is_new or torch.equal(tensor, file[key]), key


def test_the_images_are_prepared_as_for_the_weights():
    prepared = model_preprocessing(
        make_config({"model": "torchvision/resnet50.IMAGENET1K_V2", "model_pretrained": True})
    )
    assert prepared.input_shape == (3, 224, 224)
    assert prepared.mean == (0.485, 0.456, 0.406)
    assert (prepared.interpolation, prepared.crop_pct) == ("bilinear", 224 / 232)
    assert model_preprocessing(make_config({"model": "torchvision/resnet50"})) is None


@torch.no_grad()
def test_a_network_that_moves_its_inputs_is_given_them_moved(config, cached):
    """So that it is the same network from a state, which does not hold what it does to inputs."""
    name, images = "googlenet.IMAGENET1K_V1", torch.rand(2, 3, 64, 64)
    weights = cached("googlenet", "IMAGENET1K_V1")
    settings = config(f"torchvision/{name}", model_pretrained=True)
    prepared, ours = model_preprocessing(settings), build_model(settings, (3, 64, 64), 1000).eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (prepared.mean, prepared.std))
    theirs = models.googlenet(init_weights=False, transform_input=True)
    theirs.load_state_dict(weights)
    usual_mean, usual_std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    found, expected = ours((images - mean) / std), theirs.eval()((images - usual_mean) / usual_std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not ours.transform_input


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("inception_v3", (3, 64, 64), r"of shape \(3, 64, 64\) \(.*\); model_input_shape resizes"),
        (
            "resnet5",
            (3, 32, 32),
            r"unknown 'torchvision/resnet5'; did you mean 'torchvision/resnet50'",
        ),
        (
            "resnet50.IMAGENET1K_V3",
            (3, 32, 32),
            r"there is: torchvision/resnet50.DEFAULT, .*, torchvision/resnet50.IMAGENET1K_V2$",
        ),
        ("resnet18", (1, 28, 28), r"expected a model for 1 channels; .* \[3, 28, 28\]"),
        (
            "vit_b_16",
            (3, 33, 33),
            r"expected a model for inputs of shape \(3, 33, 33\) \(.*divisible",
        ),
        ("vit_b_16", (3, 32, 64), r"expected a model .* \(it takes squares only\)"),
        ("resnet18", (64,), r"expected a model for inputs of shape \(64,\)"),
    ],
)
def test_wrong_names_and_shapes_are_reported(config, name, shape, message):
    with pytest.raises(UserError, match=f"^model: .*{message}"):
        build_model(config(f"torchvision/{name}"), shape, 10)


def test_weights_that_cannot_be_fetched_are_reported(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = config("torchvision/resnet18", model_pretrained=True)
    with pytest.raises(UserError, match=r"'torchvision/resnet18'.* a network.* model_weights"):
        build_model(settings, (3, 32, 32), 10)
