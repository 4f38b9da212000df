"""module.path:function: a fork's own data set, read by function(data_dir)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.config import import_function
from src.data.arrays import ArraySplit, split_arrays
from src.data.images import classes_of, cut, image_data
from src.data.slices import check_bases, resolve_all
from src.data.splits import Data, Preprocessing
from src.support import bad_value

KEY = "dataset"


def load(
    name: str,
    splits_map: Mapping[str, str],
    *,
    data_dir: Path,
    normalize: str | None = None,
    looks: Preprocessing | None = None,
) -> Data:
    """What the function gives: part -> (inputs, targets), or part -> a dataset of images.

    Arrays or tensors, (n, …) and (n,): whole numbers 0…C-1 are classes, others are regression;
    (n, C) zeros and ones are several labels an example. They are normalised as data_normalize
    says, by default not at all. Of a map-style dataset, dataset[i] is (PIL image, class number),
    and `classes` lists the classes. Slices of the parts are cut here. UserError for other things.
    """
    parts = import_function(name, KEY)(data_dir)
    if not isinstance(parts, Mapping) or not parts:
        raise bad_value(KEY, name, f"a function that gives part -> data, not {_told(parts)}")
    check_bases(splits_map, list(parts), name)
    if all(isinstance(part, Dataset) for part in parts.values()):
        looks = _pixels(looks or Preprocessing(), normalize)
        ranges = resolve_all(splits_map, {part: len(data) for part, data in parts.items()})
        return image_data(cut(parts, ranges), looks, name=name, class_names=classes_of(parts))
    arrays = {part: _arrays(name, part, given) for part, given in parts.items()}
    first = next(iter(arrays.values()))
    for part, split in arrays.items():
        if split.inputs.shape[1:] != first.inputs.shape[1:]:
            raise bad_value(KEY, name, f"inputs of one shape in all parts, also in {part!r}")
    splits = split_arrays(arrays, splits_map, normalize or "none")
    return Data(dict(splits), tuple(first.inputs.shape[1:]), _n_classes(name, arrays))


def look_up(name: str) -> Callable[..., Any]:
    """The function; UserError where there is none."""
    return import_function(name, KEY)


def _pixels(looks: Preprocessing, normalize: str | None) -> Preprocessing:
    if normalize not in (None, "none"):
        raise bad_value("data_normalize", normalize, "null or none for images")
    return replace(looks, mean=(0.0,), std=(1.0,)) if normalize == "none" else looks


def _arrays(name: str, part: str, given: Any) -> ArraySplit:
    """A copy of the inputs, as they are normalised in place."""
    if not isinstance(given, tuple) or len(given) != 2:
        expected = f"(inputs, targets) or a torch Dataset as part {part!r}, not {_told(given)}"
        raise bad_value(KEY, name, expected)
    inputs, targets = (torch.as_tensor(np.asarray(x) if _is_plain(x) else x) for x in given)
    if inputs.ndim < 2 or len(inputs) != len(targets) or targets.ndim not in (1, 2):
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise bad_value(KEY, name, f"inputs (n, …) and targets (n,) as part {part!r}, not {shapes}")
    return ArraySplit(inputs.to(torch.float32, copy=True), _typed(targets))


def _is_plain(values: Any) -> bool:
    return not isinstance(values, Tensor)


def _typed(targets: Tensor) -> Tensor:
    is_class = targets.ndim == 1 and not targets.is_floating_point()
    return targets.to(torch.int64 if is_class else torch.float32)


def _n_classes(name: str, arrays: Mapping[str, ArraySplit]) -> int | None:
    targets = [split.targets for split in arrays.values()]
    if targets[0].ndim == 2:
        return targets[0].shape[1]
    if targets[0].is_floating_point():
        return None
    if min(int(part.min()) for part in targets) < 0:
        raise bad_value(KEY, name, "classes numbered from 0 up")
    return max(int(part.max()) for part in targets) + 1


def _told(thing: Any) -> str:
    return type(thing).__name__
