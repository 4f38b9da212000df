"""From the parts of a data set of PIL images to its splits, for all families of images."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Subset

from src.data.slices import Range, resolve
from src.data.splits import Data, DatasetSplit, Preprocessing
from src.data.transforms import IMAGENET, image_transforms
from src.names import UserError, bad_value

IMAGES_LOOKED_AT = 16
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, one number a channel


def image_data(
    bases: Mapping[str, Any],
    splits_map: Mapping[str, str],
    looks: Preprocessing,
    *,
    name: str,
    statistics: Statistics | None = None,
    resize: bool = False,
) -> Data:
    """PIL images, and the transforms that make of them what the model wants.

    bases: part -> dataset[i] gives (PIL image, class number); its `classes` or, as iNaturalist
    has it, `all_categories` lists the classes. looks: the input shape, mean and std that are asked
    for, where they are; else `statistics`, ImageNet's where there are none. name: of the data set.
    resize: also where all images looked at have the size of the input.
    """
    sizes = {base: len(dataset) for base, dataset in bases.items()}
    ranges = {split: resolve(spelling, sizes) for split, spelling in splits_map.items()}
    own_shape = _own_shape(bases[ranges["train"][0].base])
    shape = _input_shape(looks, own_shape, name)
    if looks.mean is not None and looks.std is not None:
        statistics = (looks.mean, looks.std)
    train_transform, transform = image_transforms(
        shape,
        statistics or IMAGENET,
        resize=resize or own_shape is None or own_shape[1:] != shape[1:],
        interpolation=looks.interpolation,
        crop_pct=looks.crop_pct,
    )
    splits = {
        split: DatasetSplit(_cut(bases, wanted), train_transform, transform)
        for split, wanted in ranges.items()
    }
    return Data(dict(splits), shape, _n_classes(bases))


def _cut(bases: Mapping[str, Any], ranges: Iterable[Range]) -> Dataset:
    parts = [Subset(bases[base], range(start, stop)) for base, start, stop in ranges]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def _own_shape(dataset: Any) -> tuple[int, int, int] | None:
    """(channels, height, width); None where some of the images looked at differ in size."""
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, IMAGES_LOOKED_AT).astype(int))
    images = [dataset[int(index)][0] for index in looked_at]
    if len({image.size for image in images}) > 1:
        return None
    width, height = images[0].size
    return (1 if images[0].mode == "L" else 3), height, width


def _input_shape(
    looks: Preprocessing, own: tuple[int, int, int] | None, dataset: str
) -> tuple[int, int, int]:
    shape = looks.input_shape or own
    if shape is None:
        expected = f"[channels, height, width], as the images of {dataset} differ in size"
        raise bad_value("model_input_shape", None, expected)
    if len(shape) != 3:
        raise bad_value("model_input_shape", list(shape), "[channels, height, width] for images")
    return shape


def _n_classes(bases: Mapping[str, Any]) -> int:
    """The number of classes, on which the parts must agree."""
    names = {}
    for base, dataset in bases.items():
        whole: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
        names[base] = getattr(whole, "classes", None) or whole.all_categories  # iNaturalist
    first, *others = names
    for other in others:
        if names[other] != names[first]:
            differ = sorted(set(names[first]) ^ set(names[other]), key=str)
            raise UserError(f"dataset: the classes of {first} and {other} differ by {differ}")
    return len(names[first])
