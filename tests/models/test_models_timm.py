"""timm's networks: names, inputs, heads, weights."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2.functional import center_crop, normalize, resize, to_dtype, to_image

from src.models.registry import build_model, model_preprocessing
from src.support.errors import UserError

PALACE = 698  # of ImageNet's classes


def test_real_weights_recognise_a_palace(config, efficientnet):
    settings = config("timm/tf_efficientnet_lite0", model_weights=efficientnet)
    prepared = model_preprocessing(settings)
    photo = to_dtype(to_image(Image.fromarray(load_sample_image("china.jpg"))), torch.float32, True)
    side = prepared.input_shape[1]
    photo = center_crop(resize(photo, [int(side / prepared.crop_pct)]), [side, side])
    model = build_model(settings, prepared.input_shape, 1000).eval()
    with torch.no_grad():
        outputs = model(normalize(photo, prepared.mean, prepared.std)[None])
    assert outputs.argmax() == PALACE


def test_real_weights_take_a_new_head(config, efficientnet):
    file = torch.load(efficientnet, weights_only=True)
    settings = config("timm/tf_efficientnet_lite0", model_weights=efficientnet)
    state = build_model(settings, (3, 224, 224), 10).state_dict()
    assert state["classifier.weight"].shape == (10, 1280)
    for name, tensor in state.items():
        assert name.startswith("classifier.") or torch.equal(tensor, file[name]), name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("test_resnet", (1, 28, 28)),
        ("test_resnet.r160_in1k", (3, 32, 32)),
        ("test_vit", (1, 32, 32)),
        ("test_vit", (3, 160, 160)),
        ("test_vit", (3, 32, 64)),
        ("swin_tiny_patch4_window7_224", (3, 64, 64)),
        ("convmixer_768_32", (3, 64, 64)),
    ],
)
def test_networks_take_the_shape_of_the_data(config, name, shape):
    model = build_model(config(f"timm/{name}"), shape, 7).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "test_vit",
            (1, 28, 28),
            r"patches are \(16, 16\) .*model_input_shape: \[1, 32, 32\]",
        ),
        ("vgg11", (1, 8, 8), r"a model for images of shape \(1, 8, 8\) \(.*; model_input_shape"),
    ],
)
def test_images_that_it_would_not_see_or_not_take_are_reported(config, name, shape, message):
    with pytest.raises(UserError, match=f"^model: got 'timm/{name}', expected .*{message}"):
        build_model(config(f"timm/{name}"), shape, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", r"unknown 'timm/resnet5'; did you mean 'timm/resnet50'\? there is: .* in all"),
        ("resnet50.a1_in2k", r"did you mean 'timm/resnet50.a1_in1k'\? there is: timm/resnet50\."),
    ],
)
def test_wrong_names_are_reported(config, name, message):
    with pytest.raises(UserError, match=f"^model: .*{message}"):
        build_model(config(f"timm/{name}"), (3, 32, 32), 10)


def test_pretrained_without_a_network_says_what_to_do(config):
    settings = config("timm/resnet18", model_pretrained=True)
    with pytest.raises(UserError, match=r"'timm/resnet18'.* a network.* model_weights"):
        build_model(settings, (3, 32, 32), 10)


def test_pretrained_is_refused_where_timm_has_no_weights(config):
    settings = config("timm/botnet50ts_256", model_pretrained=True)
    with pytest.raises(UserError, match="timm has none for botnet50ts_256"):
        build_model(settings, (3, 256, 256), 10)


def test_pretrained_and_a_file_exclude_each_other(config):
    with pytest.raises(UserError, match=r"model_pretrained.*model_weights"):
        build_model(
            config("timm/resnet18", model_pretrained=True, model_weights="w.pt"), (3, 32, 32), 10
        )
