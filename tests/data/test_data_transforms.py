"""PIL images become the tensors that torchvision and timm would make of them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose, Normalize, ToTensor

from src.config import make_config
from src.data.registry import build_data
from src.data.splits import Preprocessing
from src.data.transforms import STATISTICS, image_transforms
from src.support.errors import UserError
from tests.data.sources.written_sets import write_mnist

MEAN, STD = STATISTICS["cifar10"]


def picture(mode: str, width: int = 40, height: int = 30) -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(("mode", "mean", "std"), [("L", (0.3,), (0.2,)), ("RGB", MEAN, STD)])
def test_pixels_are_normalised_as_torchvision_does(mode, mean, std):
    image = picture(mode)
    shape = (len(mean), 30, 40)
    for transform in image_transforms(Preprocessing(shape, mean, std), resize=False):
        got = transform(image)
        assert got.shape == shape
        assert got.is_contiguous()
        torch.testing.assert_close(got, Compose([ToTensor(), Normalize(mean, std)])(image))
        assert torch.equal(pickle.loads(pickle.dumps(transform))(image), got)  # noqa: S301


@pytest.mark.parametrize(("mode", "mean", "std"), [("L", (0.3,), (0.2,)), ("RGB", MEAN, STD)])
def test_a_batch_of_bytes_becomes_what_its_images_become(mode, mean, std):
    images = [picture(mode), picture(mode).rotate(180), picture(mode).rotate(180).transpose(0)]
    _, transform = image_transforms(Preprocessing((len(mean), 30, 40), mean, std), resize=False)
    pixels = transform.batch_of([transform.pixels(image) for image in images])
    batch = transform.to_tensor.normalize(pixels)
    assert batch.is_contiguous()
    assert torch.equal(batch, torch.stack([transform(image) for image in images]))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_a_byte_are_refused_not_cut_off(mode):
    pixels = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(np.full((30, 40), 1000, pixels))
    assert image.mode == mode
    _, transform = image_transforms(Preprocessing((1, 30, 40), (0.5,), (0.5,)), resize=False)
    with pytest.raises(UserError, match=f"dataset: an image has mode '{mode}', expected images"):
        transform(image)


def test_an_image_of_another_size_is_refused_though_it_has_as_many_pixels():
    _, transform = image_transforms(Preprocessing((3, 30, 40), MEAN, STD), resize=False)
    with pytest.raises(ValueError, match="an image of 30 x 40 pixels among those of 40 x 30"):
        transform.pixels(picture("RGB", width=30, height=40))


@pytest.mark.parametrize("size", [(24, 24), (16, 32)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_images_are_resized_as_timm_does_for_evaluation(size, crop_pct):
    preprocessing = Preprocessing((3, *size), MEAN, STD, "bicubic", crop_pct)
    _, got = image_transforms(preprocessing, resize=True)
    timm = create_transform(
        (3, *size),
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=crop_pct,
        use_prefetcher=False,
    )
    height, width = size
    for image in (picture("RGB"), picture("RGB", width, height)):  # the other has the size
        torch.testing.assert_close(got(image), timm(image))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("crop_pct", "size"), [(0.8, 24), (1.0, 24), (0.875, 28)])
def test_the_keys_of_the_crop_do_what_timm_does_for_evaluation(
    tmp_path, interpolation, crop_pct, size
):
    """Also where the images have the size of the input."""
    write_mnist(tmp_path)
    keys = {"dataset": "timm/torch/fashion_mnist", "data_dir": str(tmp_path)}
    keys |= {"data_crop_pct": crop_pct, "data_interpolation": interpolation}
    shape = [1, size, size]
    test = build_data(make_config(keys | {"model_input_shape": shape}), None).splits["test"]
    image, _ = test.dataset[0]
    timm = create_transform(
        shape,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=(0.2860,),
        std=(0.3530,),
        use_prefetcher=False,
    )
    torch.testing.assert_close(test.transform(image), timm(image))


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1), ("P", 3), ("RGBA", 3)])
def test_channels_are_those_of_the_model(mode, channels):
    image = picture("RGB").convert(mode)
    preprocessing = Preprocessing((channels, 30, 40), (0.0,), (1.0,))
    transform, _ = image_transforms(preprocessing, resize=False)
    expected = ToTensor()(image.convert("L" if channels == 1 else "RGB"))
    torch.testing.assert_close(transform(image), expected)


def test_statistics_fit_the_channels():
    preprocessing = Preprocessing((1, 30, 40), (0.1, 0.2, 0.6), (0.2, 0.2, 0.2))
    grey, _ = image_transforms(preprocessing, resize=False)
    torch.testing.assert_close(grey(picture("L")), Normalize(0.3, 0.2)(ToTensor()(picture("L"))))
    with pytest.raises(UserError, match="data_mean, data_std: got"):
        image_transforms(Preprocessing((3, 30, 40), (0.1, 0.2), (1.0,)), resize=False)
    with pytest.raises(UserError, match="model_input_shape: got"):
        image_transforms(Preprocessing((4, 30, 40), (0.1,), (1.0,)), resize=False)


def test_a_squashed_image_keeps_its_edges():
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 4, 20))  # a tenth on the left is white
    preprocessing = Preprocessing((1, 20, 20), (0.0,), (1.0,), "nearest")
    _, cropped = image_transforms(preprocessing, resize=True)
    _, squashed = image_transforms(replace(preprocessing, is_squashed=True), resize=True)
    assert cropped(image).max() == 0
    assert squashed(image)[0, :, :2].min() == 1
