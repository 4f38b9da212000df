"""From the parts of a data set of PIL images to its splits, for all families of images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Subset

from src.data.slices import Range
from src.data.splits import Data, DatasetSplit, Preprocessing
from src.data.transforms import IMAGENET, image_transforms
from src.support import UserError, bad_value

IMAGES_LOOKED_AT = 16
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, one number a channel


def image_data(
    splits: Mapping[str, Any],
    looks: Preprocessing,
    *,
    name: str,
    class_names: Sequence[str] | None,
    n_classes: int | None = None,
    statistics: Statistics | None = None,
    resize: bool = False,
) -> Data:
    """Splits of PIL images, and the transforms that make of them what the model wants.

    splits: split -> dataset[i] gives (PIL image, class number). looks: the input shape, mean and
    std that are asked for, where they are; else `statistics`, ImageNet's where there are none.
    name: of the data set. n_classes: where the classes have no names. resize: also where all
    images looked at have the size of the input.
    """
    shapes = {split: _own_shape(dataset) for split, dataset in splits.items()}
    own_shape = shapes.get("train", next(iter(shapes.values())))
    shape = _input_shape(looks, own_shape, name)
    if looks.mean is None or looks.std is None:
        mean, std = statistics or IMAGENET
        looks = replace(looks, mean=mean, std=std)
    looks = replace(looks, input_shape=shape)
    differ = any(own is None or own[1:] != shape[1:] for own in shapes.values())
    resize = resize or looks.is_cropped or differ
    train_transform, transform = image_transforms(looks, resize=resize)
    made = {k: DatasetSplit(dataset, train_transform, transform) for k, dataset in splits.items()}
    names = None if class_names is None else tuple(class_names)
    n_classes = n_classes if names is None else len(names)
    return Data(dict(made), shape, n_classes, names, looks)


def cut(bases: Mapping[str, Any], ranges: Mapping[str, Sequence[Range]]) -> dict[str, Dataset]:
    """The splits, cut out of the parts of a data set."""
    splits: dict[str, Dataset] = {}
    for split, of_split in ranges.items():
        pieces = [Subset(bases[b], range(i, j)) for b, i, j in of_split]
        splits[split] = pieces[0] if len(pieces) == 1 else ConcatDataset(pieces)
    return splits


def classes_of(bases: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes, on which the parts must agree.

    A dataset lists them as `classes` (of several names of a class, the first is taken) or, as
    iNaturalist has it, as `all_categories`.
    """
    names = {}
    for base, dataset in bases.items():
        whole: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
        known = getattr(whole, "classes", None) or whole.all_categories  # iNaturalist
        names[base] = tuple(str(n[0] if isinstance(n, tuple) else n) for n in known)
    first, *others = names
    for other in others:
        if names[other] != names[first]:
            differ = sorted(set(names[first]) ^ set(names[other]))
            raise UserError(f"dataset: the classes of {first} and {other} differ by {differ}")
    return names[first]


def _own_shape(dataset: Any) -> tuple[int, int, int] | None:
    """(channels, height, width); None where some of the images looked at differ in size."""
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, IMAGES_LOOKED_AT).astype(int))
    images = [dataset[int(index)][0] for index in looked_at]
    if len({image.size for image in images}) > 1:
        return None
    width, height = images[0].size
    return (1 if all(image.mode == "L" for image in images) else 3), height, width


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
