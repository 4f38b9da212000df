"""module.path:function: a fork's own data set, read by function(data_dir).

The function returns part -> (inputs, targets), or part -> a dataset of images.

Arrays or tensors, (n, …) and (n,): whole numbers 0…C-1 are classes, others are regression; targets
(n, C) of zeros and ones are several labels an example. They are normalised as data_normalize says,
by default not at all. Of a map-style dataset, dataset[i] is (PIL image, class number), and
`classes` lists the classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.config import Config, import_function
from src.data.arrays import ArraySplit, split_arrays
from src.data.images import classes_of, cut, image_data
from src.data.source import Source, pixel_preprocessing, shaped
from src.data.splits import Data, Preprocessing
from src.data.splits_map import check_bases, resolve_all
from src.support import bad_value

KEY = "dataset"
PARAMETERS = ("data_dir",)


def check(config: Config, source: Source) -> None:
    import_function(source.name, KEY, PARAMETERS)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    """The parts that the function returns, cut into splits; UserError for other things."""
    name, normalize = source.name, config.data_normalize
    parts = import_function(name, KEY, PARAMETERS)(Path(config.data_dir))
    if not isinstance(parts, Mapping) or not parts:
        expected = f"a function that gives part -> data, not {type(parts).__name__}"
        raise bad_value(KEY, name, expected)
    check_bases(source.splits_map, list(parts), name)

    if all(isinstance(part, Dataset) for part in parts.values()):
        if normalize not in (None, "none"):
            raise bad_value("data_normalize", normalize, "null or none for images")
        preprocessing = pixel_preprocessing(config, preprocessing)
        ranges = resolve_all(source.splits_map, {part: len(data) for part, data in parts.items()})
        names = classes_of(parts)
        return image_data(cut(parts, ranges), preprocessing, name=name, class_names=names)

    arrays = {part: _array_split(name, part, content) for part, content in parts.items()}
    shape = next(iter(arrays.values())).inputs.shape[1:]
    for part, split in arrays.items():
        if split.inputs.shape[1:] != shape:
            raise bad_value(KEY, name, f"inputs of one shape in all parts, also in {part!r}")
    targets, n_classes = [split.targets for split in arrays.values()], None
    if targets[0].ndim == 2:
        n_classes = targets[0].shape[1]
    elif not targets[0].is_floating_point():
        if min(int(numbers.min()) for numbers in targets) < 0:
            raise bad_value(KEY, name, "classes numbered from 0 up")
        n_classes = max(int(numbers.max()) for numbers in targets) + 1
    splits = split_arrays(arrays, source.splits_map, normalize or "none")
    data = Data(dict(splits), tuple(shape), n_classes)
    return shaped(config, source, data, preprocessing)


def _array_split(name: str, part: str, content: Any) -> ArraySplit:
    """With a copy of the inputs, as they are normalised in place."""
    if not isinstance(content, tuple) or len(content) != 2:
        kind = type(content).__name__
        expected = f"(inputs, targets) or a torch Dataset as part {part!r}, not {kind}"
        raise bad_value(KEY, name, expected)
    inputs, targets = (
        values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
        for values in content
    )
    if inputs.ndim < 2 or len(inputs) != len(targets) or targets.ndim not in (1, 2):
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise bad_value(KEY, name, f"inputs (n, …) and targets (n,) as part {part!r}, not {shapes}")
    is_class = targets.ndim == 1 and not targets.is_floating_point()
    targets = targets.to(torch.int64 if is_class else torch.float32)
    return ArraySplit(inputs.to(torch.float32, copy=True), targets)
