"""From one PIL image to the float32 tensor that a model takes: preprocessing, and what is done at
random to training images, by timm's transforms in timm's order."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import floor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from src.data.splits import Augmentation, Preprocessing
from src.support import UserError, bad_value, random_state

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Tensor]
MODES = {1: "L", 3: "RGB"}
MORE_THAN_A_BYTE = ("I", "F")  # whole numbers, also of 16 bits, and floats

# Mean and standard deviation of the pixels of the training set, a channel. Those of
# fashion_mnist were computed from its files, the others are the values in common use:
# cifar as in weiaicunzai/pytorch-cifar100 and kuangliu/pytorch-cifar (issue 19), mnist as
# in pytorch/examples.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "qmnist": ((0.1307,), (0.3081,)),  # the same digits as mnist
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "kmnist": ((0.1918,), (0.3483,)),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's, since AlexNet

SWITCHES = ("pad_crop", "crop_scale", "hflip", "vflip", "auto", "color_jitter", "noise", "erase")
EXAMPLES = "rand-m9-mstd0.5-inc1, original, v0, 3a or augmix-m3-w3"
MOVES = 0.45  # the farthest that a policy moves an image, over its side, as timm has it
AUGMIX_MOVES = 0.3  # the same of AugMix


@dataclass(frozen=True)
class ToMode:
    """Give a PIL image its number of channels: 'L' or 'RGB'."""

    mode: str

    def __call__(self, image: "Image") -> "Image":
        if image.mode.startswith(MORE_THAN_A_BYTE):  # which Pillow would cut off at 255
            expected = "images of a byte a pixel and channel; make them so first"
            raise UserError(f"dataset: an image has mode {image.mode!r}, expected {expected}")
        return image if image.mode == self.mode else image.convert(self.mode)


@dataclass(frozen=True)
class Fit:
    """Give a PIL image its size. Most of a folder's often have it: the steps would only cost."""

    steps: Callable[["Image"], "Image"]
    size_kept: tuple[int, int] | None  # (width, height) that the steps would leave as it is

    def __call__(self, image: "Image") -> "Image":
        return image if image.size == self.size_kept else self.steps(image)


class ToNormalizedTensor:
    """PIL image -> (pixels / 255 - mean) / std, float32 (channels, height, width)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        means, stds = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (mean, std))
        self.scale = (1 / (255 * stds)).float()  # (channels, 1, 1)
        self.shift = (-means / stds).float()

    def __call__(self, image: "Image") -> Tensor:
        pixels = torch.from_numpy(np.array(image))  # (h, w) or (h, w, 3)
        return self.normalize(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (…, channels, height, width), an image or a batch, on any device."""
        device = pixels.device  # a blocking copy would wait for the step before
        scale, shift = (part.to(device, non_blocking=True) for part in (self.scale, self.shift))
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(scale).add_(shift)


@dataclass(frozen=True)
class ImageTransform:
    """PIL image -> float32 (channels, height, width): work on the image, then on the tensor.

    Where there is none on the tensor, images can stay bytes that make a batch together and are
    normalised where the model lives: less work an image, a quarter of the memory to copy.
    augmentation: all that distinguishes it from the transform of evaluations; None: not known.
    """

    on_image: Callable[["Image"], "Image"]
    to_tensor: ToNormalizedTensor
    shape: tuple[int, ...]  # (channels, height, width)
    on_tensor: Sequence[Callable[[Tensor], Tensor]] = ()
    augmentation: Augmentation | None = None

    def __call__(self, image: "Image") -> Tensor:
        tensor = self.to_tensor(self.on_image(image))
        for step in self.on_tensor:
            tensor = step(tensor)
        return tensor

    def pixels(self, image: "Image") -> bytes:
        """height * width * channels bytes, not yet normalised."""
        image = self.on_image(image)
        _, height, width = self.shape
        if image.size != (width, height):
            found = "{} x {}".format(*image.size)
            raise ValueError(f"an image of {found} pixels among those of {width} x {height}")
        return image.tobytes()

    def batch_of(self, images: Sequence[bytes]) -> Tensor:
        """uint8 (n, channels, height, width)."""
        channels, height, width = self.shape
        pixels = torch.frombuffer(bytearray().join(images), dtype=torch.uint8)
        return pixels.view(-1, height, width, channels).permute(0, 3, 1, 2)


def image_transforms(preprocessing: Preprocessing, *, resize: bool) -> tuple[Transform, Transform]:
    """The transforms for training and for evaluation, from PIL image to float32 input_shape.

    preprocessing: with shape, mean and std (of pixels in 0 … 1, one number or one a channel).
    resize: whether the images may have another size than the shape; then as timm evaluates: the
    image covers the size over crop_pct, its centre is cut out. The two are the same object where
    preprocessing.augmentation is off.
    """
    shape = preprocessing.input_shape or (0, 0, 0)
    channels, height, width = shape
    if channels not in MODES:
        raise bad_value("model_input_shape", list(shape), "1 or 3 channels first")
    from torchvision.transforms import CenterCrop, Compose, Resize

    mean = fit_channels(preprocessing.mean or (), channels)
    std = fit_channels(preprocessing.std or (), channels)
    to_mode, to_tensor = ToMode(MODES[channels]), ToNormalizedTensor(mean, std)
    interpolation, crop_pct = preprocessing.interpolation, preprocessing.crop_pct
    fit: list[Any] = []
    if resize:
        from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode

        size = floor(height / crop_pct), floor(width / crop_pct)
        if preprocessing.is_squashed:
            cover = Resize(size, interpolation=str_to_interp_mode(interpolation))
        elif height == width:
            cover = Resize(size[0], interpolation=str_to_interp_mode(interpolation))
        else:
            cover = ResizeKeepRatio(size, interpolation=interpolation)
        steps = Compose([cover, CenterCrop((height, width))])
        fit = [Fit(steps, (width, height) if size == (height, width) else None)]
    transform = ImageTransform(Compose([to_mode, *fit]), to_tensor, shape)
    augmentation = preprocessing.augmentation
    if not switched_on(augmentation):
        return transform, transform
    fit = [] if augmentation.crop_scale else fit  # that crop is resized itself
    on_images, on_tensors = random_steps(
        augmentation, (height, width), mean=mean, interpolation=interpolation
    )
    on_image = Compose([to_mode, *fit, *on_images])
    return ImageTransform(on_image, to_tensor, shape, on_tensors, augmentation), transform


def fit_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number a channel: a single one is repeated, those of colours are averaged for grey."""
    if len(values) == channels:
        return tuple(values)
    if len(values) == 1:
        return tuple(values) * channels
    if channels == 1:
        return (sum(values) / len(values),)
    raise bad_value("data_mean, data_std", list(values), f"1 or {channels} numbers")


# ---- At random ---------------------------------------------------------------------------


def switched_on(augmentation: Augmentation) -> list[str]:
    """Which of SWITCHES are on; with none, training examples are as those of evaluations."""
    return [name for name in SWITCHES if getattr(augmentation, name)]


def check_augmentation(augmentation: Augmentation) -> None:
    """UserError for mistakes that show without images."""
    scale, ratio = augmentation.crop_scale, augmentation.crop_ratio
    if scale is not None and (len(scale) != 2 or not scale[0] <= scale[1] <= 1):
        expected = "two fractions of the area, the smaller one first, at most 1, such as [0.08, 1]"
        raise bad_value("aug_crop_scale", list(scale), expected)
    if scale is not None and augmentation.pad_crop:
        raise UserError("aug_pad_crop, aug_crop_scale: two ways to crop; give one of them")
    if len(ratio) != 2 or not ratio[0] <= ratio[1]:
        expected = "two widths over heights, the smaller one first, such as [0.75, 1.33]"
        raise bad_value("aug_crop_ratio", list(ratio), expected)
    if augmentation.auto is not None:
        check_policy(augmentation.auto)


def check_policy(name: str) -> None:
    """UserError for names that timm does not know, and for parts that timm would ignore."""
    from PIL.Image import new
    from timm.data.auto_augment import rand_augment_choices

    first, *parts = name.split("-")
    names = [re.match(r"t|[a-z]*", part)[0] for part in parts]  # type: ignore[index]
    for part, own_name in zip(parts, names, strict=True):
        if (first, own_name) == ("rand", "t"):  # 'tweights', one of timm's sets of operations
            # it gives the usual one for other names
            is_known = rand_augment_choices(part[1:]) is not rand_augment_choices("")
        else:  # 'mstd0.5'
            is_known = re.fullmatch(r"[a-z]+\d+(\.\d+)?", part) is not None
        if not is_known:
            expected = f"a policy of timm, such as {EXAMPLES}; there is no part {part!r}"
            raise bad_value("aug_auto", name, expected)
        if names.count(own_name) > 1:
            raise bad_value("aug_auto", name, f"a single part {own_name!r}")
    try:  # once, as some numbers fail only then
        with random_state.isolate_rng():
            policy(name, size=(8, 8), mean=(0.5,), interpolation="bilinear")(new("L", (8, 8)))
    except (AssertionError, ValueError) as error:
        reason = f" ({error})" if str(error) else ""
        raise bad_value("aug_auto", name, f"a policy of timm, such as {EXAMPLES}{reason}") from None


def random_steps(
    augmentation: Augmentation,
    size: tuple[int, int],
    *,
    mean: tuple[float, ...],
    interpolation: str,
) -> tuple[list[Any], list[Any]]:
    """Transforms of PIL images of `size` (height, width), or of any size with crop_scale; and of
    normalised tensors (channels, height, width), on the CPU."""
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms

    images: list[Any] = []
    if augmentation.pad_crop:
        images.append(transforms.RandomCrop(size, padding=augmentation.pad_crop))
    if augmentation.crop_scale:
        how = {"ratio": augmentation.crop_ratio, "interpolation": interpolation}
        images.append(RandomResizedCropAndInterpolation(size, augmentation.crop_scale, **how))
    if augmentation.hflip:
        images.append(transforms.RandomHorizontalFlip(augmentation.hflip))
    if augmentation.vflip:
        images.append(transforms.RandomVerticalFlip(augmentation.vflip))
    if augmentation.auto:
        images.append(policy(augmentation.auto, size=size, mean=mean, interpolation=interpolation))
    if augmentation.color_jitter:
        jitter = augmentation.color_jitter  # of brightness, contrast, saturation
        images.append(transforms.ColorJitter(jitter, jitter, jitter))
    tensors: list[Any] = []
    if augmentation.noise:
        from torchvision.transforms.v2 import GaussianNoise

        tensors.append(GaussianNoise(sigma=augmentation.noise, clip=False))
    if augmentation.erase:
        from timm.data.random_erasing import RandomErasing

        mode = augmentation.erase_mode
        tensors.append(RandomErasing(augmentation.erase, mode=mode, device="cpu"))
    return images, tensors


def policy(
    name: str, *, size: tuple[int, int], mean: tuple[float, ...], interpolation: str
) -> Callable[[Any], Any]:
    """timm's policy of that name, as timm's create_transform makes it, from image to image.

    mean: of the pixels between 0 and 1, one number a channel, with which holes are filled.
    """
    from timm.data.auto_augment import (
        augment_and_mix_transform,
        auto_augment_transform,
        posterize,
        rand_augment_transform,
    )
    from timm.data.transforms import str_to_pil_interp

    # Pillow turns and shears by none better than bicubic
    mode = "bicubic" if interpolation == "lanczos" else interpolation
    settings: dict[str, Any] = {
        "translate_const": int(min(size) * MOVES),
        "img_mean": tuple(max(0, min(255, round(255 * value))) for value in mean),
        "interpolation": str_to_pil_interp(mode),
    }
    if name.startswith("rand"):
        made: Any = rand_augment_transform(name, settings)
    elif name.startswith("augmix"):
        made = augment_and_mix_transform(name, settings | {"translate_pct": AUGMIX_MOVES})
    else:
        made = auto_augment_transform(name, settings)
    for operation in made.ops if hasattr(made, "ops") else chain(*made.policy):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return made


def _posterize(image: "Image", bits_to_keep: int, **_: Any) -> "Image":
    """timm's, which may keep 0 bits. That is a black image, but an error in Pillow 13."""
    from timm.data.auto_augment import posterize

    if not bits_to_keep:
        return image.point([0] * 256 * len(image.getbands()))
    return posterize(image, bits_to_keep)
