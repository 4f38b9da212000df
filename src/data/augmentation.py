"""Augmentation of training images, one at a time: timm's transforms in timm's order."""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from src.data.splits import Augmentation
from src.support import UserError, bad_value, random_state

if TYPE_CHECKING:
    from PIL.Image import Image

SWITCHES = ("pad_crop", "crop_scale", "hflip", "vflip", "auto", "color_jitter", "noise", "erase")
EXAMPLES = "rand-m9-mstd0.5-inc1, original, v0, 3a or augmix-m3-w3"
MOVES = 0.45  # the farthest that a policy moves an image, over its side, as timm has it
AUGMIX_MOVES = 0.3  # the same of AugMix


def switched_on(augmentation: Augmentation) -> list[str]:
    """Which of SWITCHES are on; with none, training examples are as those of evaluations."""
    return [name for name in SWITCHES if getattr(augmentation, name)]


def check_augmentation(augmentation: Augmentation) -> None:
    """UserError for mistakes that show without images."""
    if augmentation.crop_scale is not None:
        expected = "two fractions of the area, the smaller one first, at most 1, such as [0.08, 1]"
        _check_range("aug_crop_scale", augmentation.crop_scale, expected, most=1.0)
        if augmentation.pad_crop:
            raise UserError("aug_pad_crop, aug_crop_scale: two ways to crop; give one of them")
    expected = "two widths over heights, the smaller one first, such as [0.75, 1.33]"
    _check_range("aug_crop_ratio", augmentation.crop_ratio, expected)
    if augmentation.auto is not None:
        check_policy(augmentation.auto)


def _check_range(
    key: str, values: Sequence[float], expected: str, most: float = float("inf")
) -> None:
    if len(values) != 2 or not values[0] <= values[1] <= most:
        raise bad_value(key, list(values), expected)


def check_policy(name: str) -> None:
    """UserError for names that timm does not know, and for parts that timm would ignore."""
    first, *parts = name.split("-")
    names = [re.match(r"t|[a-z]*", part)[0] for part in parts]  # type: ignore[index]
    for part, own_name in zip(parts, names, strict=True):
        if not (_is_set(part) if (first, own_name) == ("rand", "t") else _is_number(part)):
            expected = f"a policy of timm, such as {EXAMPLES}; there is no part {part!r}"
            raise bad_value("aug_auto", name, expected)
        if names.count(own_name) > 1:
            raise bad_value("aug_auto", name, f"a single part {own_name!r}")
    from PIL.Image import new

    try:  # once, as some numbers fail only then
        with random_state.isolate_rng():
            policy(name, size=(8, 8), mean=(0.5,), interpolation="bilinear")(new("L", (8, 8)))
    except (AssertionError, ValueError) as error:
        reason = f" ({error})" if str(error) else ""
        raise bad_value("aug_auto", name, f"a policy of timm, such as {EXAMPLES}{reason}") from None


def _is_number(part: str) -> bool:
    """'mstd0.5'"""
    return re.fullmatch(r"[a-z]+\d+(\.\d+)?", part) is not None


def _is_set(part: str) -> bool:
    """'tweights', one of timm's sets of operations; it gives the usual one for other names."""
    from timm.data.auto_augment import rand_augment_choices

    return rand_augment_choices(part[1:]) is not rand_augment_choices("")


def steps_on_images(
    augmentation: Augmentation,
    size: tuple[int, int],
    *,
    mean: tuple[float, ...],
    interpolation: str,
) -> list[Any]:
    """Transforms of PIL images of `size` (height, width), or of any size with crop_scale."""
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision.transforms import (
        ColorJitter,
        RandomCrop,
        RandomHorizontalFlip,
        RandomVerticalFlip,
    )

    steps: list[Any] = []
    if augmentation.pad_crop:
        steps.append(RandomCrop(size, padding=augmentation.pad_crop))
    if augmentation.crop_scale:
        ranges = {"scale": augmentation.crop_scale, "ratio": augmentation.crop_ratio}
        steps.append(RandomResizedCropAndInterpolation(size, **ranges, interpolation=interpolation))
    if augmentation.hflip:
        steps.append(RandomHorizontalFlip(augmentation.hflip))
    if augmentation.vflip:
        steps.append(RandomVerticalFlip(augmentation.vflip))
    if augmentation.auto:
        steps.append(policy(augmentation.auto, size=size, mean=mean, interpolation=interpolation))
    if augmentation.color_jitter:
        steps.append(
            ColorJitter(*[augmentation.color_jitter] * 3)
        )  # brightness, contrast, saturation
    return steps


def steps_on_tensors(augmentation: Augmentation) -> list[Any]:
    """Transforms of normalised tensors (channels, height, width), on the CPU."""
    steps: list[Any] = []
    if augmentation.noise:
        from torchvision.transforms.v2 import GaussianNoise

        steps.append(GaussianNoise(sigma=augmentation.noise, clip=False))
    if augmentation.erase:
        from timm.data.random_erasing import RandomErasing

        mode = augmentation.erase_mode
        steps.append(RandomErasing(augmentation.erase, mode=mode, device="cpu"))
    return steps


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
