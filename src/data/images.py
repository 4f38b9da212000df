"""Splits of images: read one at a time by worker processes, or cached as bytes on the device."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from tqdm import tqdm

from src.data.augmentation import switched_on
from src.data.batch_augmentation import augmented_batches, not_in_batches
from src.data.splits import (
    Batch,
    Batches,
    Data,
    LoaderConfig,
    Preprocessing,
    Split,
    in_bytes,
    renumbered,
)
from src.data.splits_map import Range
from src.data.transforms import IMAGENET, ImageTransform, image_transforms
from src.data.workers import Examples, identity, loaded
from src.support import UserError, bad_value

NUM_SAMPLED = 16
READ_AT_ONCE = 256  # images, while they are cached
SECONDS_BETWEEN_LINES = 60.0  # of the log
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, one number a channel


@dataclass(frozen=True)
class DatasetSplit(Split):
    """Data read an example at a time: dataset[i] -> (PIL image, class number).

    The transforms turn the image into a float32 tensor of the model's input
    shape; `train_transform` may draw at random, from torch's, numpy's and
    Python's global generators alone, which are seeded for each example.
    """

    dataset: Dataset
    train_transform: Callable[[Any], Tensor]
    transform: Callable[[Any], Tensor]
    is_in_memory = False

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, order: Iterable[Tensor], loader: LoaderConfig) -> Batches:
        examples = Examples(self.dataset, self.transform)
        requests = ((0, indices) for indices in order)
        return loaded(examples, requests, loader.device, loader.num_workers)

    def augmented_batches(
        self, order: Iterable[tuple[int, Tensor]], loader: LoaderConfig, *, seed: int
    ) -> Batches:
        drawn_by = None if self.train_transform is self.transform else seed
        examples = Examples(self.dataset, self.train_transform, drawn_by)
        return loaded(examples, order, loader.device, loader.num_workers)

    def cache_size(self) -> int:
        return math.prod(self._cache_shape())

    def _cache_shape(self) -> tuple[int, ...]:
        """(n, channels, height, width)"""
        assert isinstance(self.transform, ImageTransform)  # else there is a cache_obstacle
        return len(self), *self.transform.shape

    def cache_obstacle(self, name: str) -> str | None:
        train = self.train_transform
        if not isinstance(self.transform, ImageTransform) or self.transform.on_tensor:
            return f"{name} has a transform of its own, whose pixels nobody knows"
        if train is self.transform:
            return None
        if not isinstance(train, ImageTransform) or train.augmentation is None:
            how = "which works one image at a time"
            return f"{name} has a transform of its own for training, {how}"
        return not_in_batches(*switched_on(train.augmentation))

    def cached_on_device(
        self, device: torch.device, *, num_workers: int = 0, name: str = "train"
    ) -> "PixelSplit":
        """Its images as evaluations see them, each read once."""
        shape, transform = self._cache_shape(), self.transform
        assert isinstance(transform, ImageTransform)
        try:
            pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch's of a full GPU is one as well
            size = in_bytes(math.prod(shape))
            expected = f"auto or false, as {size} of images do not fit on {device}"
            raise bad_value("data_on_device", True, expected) from error
        targets = torch.empty(len(self), dtype=torch.int64)
        logger.info("reading {:,} images of {} to cache them on {}", len(self), name, device)
        examples = Examples(self.dataset, transform)
        examples.normalize = identity  # batches of bytes
        order = ((0, indices) for indices in torch.arange(len(self)).split(READ_AT_ONCE))
        batches = loaded(examples, order, torch.device("cpu"), num_workers)
        for start, (images, numbers) in _with_progress(batches, len(self)):
            there = slice(start, start + len(numbers))
            pixels[there], targets[there] = images, numbers
        return PixelSplit(pixels, targets.to(device), transform.to_tensor.normalize)

    def with_classes(self, table: Sequence[int]) -> "DatasetSplit":
        dataset = self.dataset
        if -1 in table:
            _, kept = renumbered(labels_of(dataset), table)
            dataset = Subset(dataset, kept.tolist())
        return replace(self, dataset=Renumbered(dataset, tuple(table)))


def _with_progress(batches: Iterable[Batch], total: int) -> Iterator[tuple[int, Batch]]:
    """Each batch and how many examples came before: a bar on a terminal, lines in the log."""
    done, last_line = 0, perf_counter()
    with tqdm(total=total, unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            yield done, batch
            done += len(batch[1])
            bar.update(len(batch[1]))
            if perf_counter() - last_line > SECONDS_BETWEEN_LINES:
                logger.info("{:,} of {:,} images read", done, total)
                last_line = perf_counter()


@dataclass(frozen=True)
class PixelSplit(Split):
    """Small images as bytes, where the model lives: what DatasetSplit.cached_on_device() gives.

    pixels: (n, channels, height, width) uint8. targets: (n,) int64. normalize: of uint8 batches
    makes float32 ones.
    """

    pixels: Tensor
    targets: Tensor
    normalize: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Iterable[Tensor], loader: LoaderConfig) -> Batches:
        on_device = (i.to(self.pixels.device, non_blocking=True) for i in order)
        return ((self.normalize(self.pixels[i]), self.targets[i]) for i in on_device)

    def range_batches(self, ranges: Sequence[tuple[int, int]], loader: LoaderConfig) -> Batches:
        return ((self.normalize(self.pixels[i:j]), self.targets[i:j]) for i, j in ranges)

    def augmented_batches(
        self, order: Iterable[tuple[int, Tensor]], loader: LoaderConfig, *, seed: int
    ) -> Batches:
        if not loader.augmentation:
            return super().augmented_batches(order, loader, seed=seed)
        examples, how = (self.pixels, self.targets), loader.augmentation
        return augmented_batches(*examples, order, how, seed=seed, normalize=self.normalize)

    def with_classes(self, table: Sequence[int]) -> "PixelSplit":
        targets, kept = renumbered(self.targets, table)
        return replace(self, pixels=self.pixels[kept], targets=targets)


@dataclass(frozen=True)
class Renumbered(Dataset):
    """A dataset of (image, class) with other numbers for the classes."""

    dataset: Any
    table: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return image, self.table[int(label)]


def labels_of(dataset: Any) -> Tensor:
    """(n,) int64 class numbers, without reading the images where the dataset lists them."""
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    listed = getattr(dataset, "targets", None)
    if listed is not None and np.shape(listed) == (len(dataset),):
        return torch.as_tensor(listed)
    logger.info("reading {:,} examples for their classes", len(dataset))
    return torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])


# ---- From the parts of a data set of PIL images to its splits ----------------------------


def image_data(
    splits: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    name: str,
    class_names: Sequence[str] | None,
    n_classes: int | None = None,
    statistics: Statistics | None = None,
    resize: bool = False,
) -> Data:
    """Splits of PIL images, and the transforms that make of them what the model wants.

    splits: split -> dataset[i] gives (PIL image, class number). preprocessing: the requested input
    shape, mean and std; where there are none, `statistics`, ImageNet's where there are none.
    name: of the data set. n_classes: where the classes have no names. resize: also where all
    sampled images have the size of the input.
    """
    shapes = {split: _own_shape(dataset) for split, dataset in splits.items()}
    own_shape = shapes.get("train", next(iter(shapes.values())))
    shape = _input_shape(preprocessing, own_shape, name)
    if preprocessing.mean is None or preprocessing.std is None:
        mean, std = statistics or IMAGENET
        preprocessing = replace(preprocessing, mean=mean, std=std)
    preprocessing = replace(preprocessing, input_shape=shape)
    differ = any(own is None or own[1:] != shape[1:] for own in shapes.values())
    resize = resize or preprocessing.is_cropped or differ
    train_transform, transform = image_transforms(preprocessing, resize=resize)
    made = {k: DatasetSplit(dataset, train_transform, transform) for k, dataset in splits.items()}
    names = None if class_names is None else tuple(class_names)
    n_classes = n_classes if names is None else len(names)
    return Data(dict(made), shape, n_classes, names, preprocessing)


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
    """(channels, height, width); None where some of the sampled images differ in size."""
    sampled = np.unique(np.linspace(0, len(dataset) - 1, NUM_SAMPLED).astype(int))
    images = [dataset[int(index)][0] for index in sampled]
    if len({image.size for image in images}) > 1:
        return None
    width, height = images[0].size
    return (1 if all(image.mode == "L" for image in images) else 3), height, width


def _input_shape(
    preprocessing: Preprocessing, own: tuple[int, int, int] | None, dataset: str
) -> tuple[int, int, int]:
    shape = preprocessing.input_shape or own
    if shape is None:
        expected = f"[channels, height, width], as the images of {dataset} differ in size"
        raise bad_value("model_input_shape", None, expected)
    if len(shape) != 3:
        raise bad_value("model_input_shape", list(shape), "[channels, height, width] for images")
    return shape
