"""What is done at random to training images, one at a time: timm's parts in timm's order."""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from src.data.splits import Augmentation
from src.support import UserError, bad_value, random_state

if TYPE_CHECKING:
    from PIL.Image import Image

SWITCHES = ("pad_crop", "crop_scale", "hflip", "vflip", "auto", "color_jitter", "erase")
EXAMPLES = "rand-m9-mstd0.5-inc1, original, v0, 3a or augmix-m3-w3"
MOVES = 0.45  # the farthest that a policy moves an image, over its side, as timm has it
AUGMIX_MOVES = 0.3  # the same of AugMix


def switched_on(asked: Augmentation) -> list[str]:
    """Which of SWITCHES are asked for; none leaves training images as those of evaluations."""
    return [name for name in SWITCHES if getattr(asked, name)]


def check_augmentation(asked: Augmentation) -> None:
    """UserError for what shows before there are images."""
    if asked.crop_scale is not None:
        expected = "two shares of the area, the smaller one first, at most 1, such as [0.08, 1]"
        _check_range("aug_crop_scale", asked.crop_scale, expected, most=1.0)
        if asked.pad_crop:
            raise UserError("aug_pad_crop, aug_crop_scale: two ways to crop; give one of them")
    expected = "two widths over heights, the smaller one first, such as [0.75, 1.33]"
    _check_range("aug_crop_ratio", asked.crop_ratio, expected)
    if asked.auto is not None:
        check_policy(asked.auto)


def _check_range(
    key: str, values: Sequence[float], expected: str, most: float = float("inf")
) -> None:
    if len(values) != 2 or not values[0] <= values[1] <= most:
        raise bad_value(key, list(values), expected)


def check_policy(name: str) -> None:
    """UserError for what is no policy of timm, and for parts of one that timm would pass over."""
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
    asked: Augmentation, size: tuple[int, int], *, mean: tuple[float, ...], interpolation: str
) -> list[Any]:
    """Of PIL images: of `size` (height, width), or of any where crop_scale is asked for."""
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision.transforms import (
        ColorJitter,
        RandomCrop,
        RandomHorizontalFlip,
        RandomVerticalFlip,
    )

    steps: list[Any] = []
    if asked.pad_crop:
        steps.append(RandomCrop(size, padding=asked.pad_crop))
    if asked.crop_scale:
        ranges = {"scale": asked.crop_scale, "ratio": asked.crop_ratio}
        steps.append(RandomResizedCropAndInterpolation(size, **ranges, interpolation=interpolation))
    if asked.hflip:
        steps.append(RandomHorizontalFlip(asked.hflip))
    if asked.vflip:
        steps.append(RandomVerticalFlip(asked.vflip))
    if asked.auto:
        steps.append(policy(asked.auto, size=size, mean=mean, interpolation=interpolation))
    if asked.color_jitter:
        steps.append(ColorJitter(*[asked.color_jitter] * 3))  # brightness, contrast, saturation
    return steps


def steps_on_tensors(asked: Augmentation) -> list[Any]:
    """Of normalised tensors (channels, height, width), on the CPU."""
    if not asked.erase:
        return []
    from timm.data.random_erasing import RandomErasing

    return [RandomErasing(asked.erase, mode=asked.erase_mode, device="cpu")]


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
    """timm's, which asks for no bits at times. That is a black image, but an error in Pillow 13."""
    from timm.data.auto_augment import posterize

    if not bits_to_keep:
        return image.point([0] * 256 * len(image.getbands()))
    return posterize(image, bits_to_keep)
