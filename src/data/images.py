"""Splits of images: read one at a time by worker processes, or cached as bytes on the device.

Worker processes survive the signals of the run, which stops them itself.
"""

import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm import tqdm

from src.data.arrays import ArraySplit
from src.data.batch_augmentation import not_in_batches
from src.data.order import example_seeds
from src.data.splits import (
    Batch,
    Batches,
    Data,
    LoaderConfig,
    Order,
    Preprocessing,
    Split,
    renumbered,
)
from src.data.splits_map import Range
from src.data.transforms import IMAGENET, ImageTransform, image_transforms, switched_on
from src.support import UserError, bad_value, processes, random_state

NUM_SAMPLED = 16
READ_AT_ONCE = 256  # images, while they are cached
SECONDS_BETWEEN_LINES = 60.0  # of the log
SECONDS_TO_OUTLIVE = 120  # that worker processes live on after SIGTERM: a step, and more
SOCKET = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # of multiprocessing, below the temporary folder
LONGEST_SOCKET = 107 if sys.platform.startswith("linux") else 103  # bytes of a path
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
        requests = ((0, indices) for indices in order)
        examples = Examples(self.dataset, self.transform)
        return loaded(examples, requests, loader.device, loader.num_workers)

    def augmented_batches(self, order: Order, loader: LoaderConfig, *, seed: int) -> Batches:
        drawn_by = None if self.train_transform is self.transform else seed
        examples = Examples(self.dataset, self.train_transform, drawn_by)
        return loaded(examples, order, loader.device, loader.num_workers)

    def cache_size(self) -> int:
        assert isinstance(self.transform, ImageTransform)  # else there is a cache_obstacle
        return len(self) * math.prod(self.transform.shape)

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
    ) -> ArraySplit:
        """Its images as evaluations see them, each read once: a bar on a terminal, lines in the
        log."""
        transform, total = self.transform, len(self)
        assert isinstance(transform, ImageTransform)
        try:
            pixels = torch.empty((total, *transform.shape), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch's of a full GPU is one as well
            size = processes.in_bytes(self.cache_size())
            expected = f"auto or false, as {size} of images do not fit on {device}"
            raise bad_value("data_on_device", True, expected) from error
        targets = torch.empty(total, dtype=torch.int64)
        logger.info("reading {:,} images of {} to cache them on {}", total, name, device)
        examples = Examples(self.dataset, transform)
        examples.normalize = identity  # batches of bytes
        order = ((0, indices) for indices in torch.arange(total).split(READ_AT_ONCE))
        done, last_line = 0, perf_counter()
        with tqdm(total=total, unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
            for images, numbers in loaded(examples, order, torch.device("cpu"), num_workers):
                there = slice(done, done + len(numbers))
                pixels[there], targets[there] = images, numbers
                done += len(numbers)
                bar.update(len(numbers))
                if perf_counter() - last_line > SECONDS_BETWEEN_LINES:
                    logger.info("{:,} of {:,} images read", done, total)
                    last_line = perf_counter()
        return ArraySplit(pixels, targets.to(device), transform.to_tensor.normalize)

    def with_classes(self, table: Sequence[int]) -> "DatasetSplit":
        dataset = self.dataset
        if -1 in table:
            _, kept = renumbered(labels_of(dataset), table)
            dataset = Subset(dataset, kept.tolist())
        return replace(self, dataset=Renumbered(dataset, tuple(table)))


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


# ---- Reading ----------------------------------------------------------------------------


class Examples(Dataset):
    """Batches of (pass, indices) in the form that a DataLoader asks for them.

    `normalize` makes of their inputs what the model wants, on its device. seed: of the
    augmentation, each example's own; None where nothing is drawn.
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Tensor], seed: int | None = None
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.read: Callable[[Any], Any] = transform
        self.batch_of: Callable[[Any], Tensor] = torch.stack
        self.normalize: Callable[[Tensor], Tensor] = identity
        if isinstance(transform, ImageTransform) and not transform.on_tensor:
            self.read, self.batch_of = transform.pixels, transform.batch_of
            self.normalize = transform.to_tensor.normalize

    def __getitems__(self, request: tuple[int, np.ndarray]) -> Batch:
        pass_number, indices = request
        is_drawn, examples = self.seed is not None, []
        seeds = example_seeds(self.seed or 0, pass_number, indices).tolist()
        # without workers this is the training process
        with random_state.isolate_rng() if is_drawn else nullcontext():
            for index, seed in zip((indices % len(self.dataset)).tolist(), seeds, strict=True):
                if is_drawn:
                    random_state.seed_everything(seed, cpu_only=True)
                try:
                    image, target = self.dataset[index]
                    examples.append((self.read(image), target))
                except Exception as error:
                    error.add_note(f"example {index} of {len(self.dataset):,}")
                    raise
        inputs, targets = zip(*examples, strict=True)
        return self.batch_of(inputs), torch.tensor(targets)


def loaded(examples: Examples, order: Order, device: torch.device, num_workers: int) -> Batches:
    """Batches in this order of (pass, indices), on the device; without workers read right here."""
    # A path that leaves no room for the sockets by which workers hand over what they have read:
    # they would fail in silence, and the run wait for ever.
    folder, most = tempfile.gettempdir(), LONGEST_SOCKET - len(SOCKET)
    if num_workers and len(os.fsencode(folder)) > most:
        expected = f"a path of at most {most} characters, as TMPDIR=/tmp, or num_workers: 0"
        raise bad_value("TMPDIR", folder, expected)
    on_gpu = device.type == "cuda"
    # as tensors the indices would travel to the workers in files of their own
    requests: Iterable[Any] = ((number, indices.numpy()) for number, indices in order)
    loader = DataLoader(
        examples,
        batch_sampler=requests,
        collate_fn=identity,
        num_workers=num_workers,
        pin_memory=on_gpu,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # else the loader draws from the model's own
    )
    # Signals come afterwards: a worker that is starting would die of SIGTERM, by torch's handler.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        batches: Iterator[Batch] = iter(loader)  # starts the workers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if on_gpu:
        batches = _copied_ahead(batches, device)
    for inputs, targets in batches:
        yield examples.normalize(inputs.to(device)), targets.to(device)


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Pinned batches on a GPU, each copied on a stream beside while the one before computes."""
    beside = torch.cuda.Stream(device)

    def copied(batch: Batch | None) -> list[Tensor]:
        with torch.cuda.stream(beside):
            return [part.to(device, non_blocking=True) for part in batch or ()]

    coming = copied(next(batches, None))
    while coming:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(beside)  # for this batch: the copy of the next has not begun
        inputs, targets = coming
        for part in (inputs, targets):
            part.record_stream(computing)  # else its memory would be free for copies too early
        coming = copied(next(batches, None))
        yield inputs, targets


def _outlive_signals(worker: int) -> None:
    """Slurm and Ctrl-C signal the whole group; the run needs its batches until it stops itself.

    TERM is also how a program that crashed ends its workers: it may wait a little for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_OUTLIVE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def identity(values: Any) -> Any:
    return values


# ---- From the parts of a data set of PIL images to its splits ----------------------------


def image_data(
    splits: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    name: str,
    class_names: Sequence[str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    resize: bool = False,
) -> Data:
    """Splits of PIL images, and the transforms that make of them what the model wants.

    splits: split -> dataset[i] gives (PIL image, class number). preprocessing: the requested input
    shape, mean and std; where there are none, `statistics` (both, one number a channel), ImageNet's
    where there are none.
    name: of the data set. resize: also where all sampled images have the size of the
    input.
    """
    sizes, modes = {}, {}
    for split, dataset in splits.items():
        sampled = np.unique(np.linspace(0, len(dataset) - 1, NUM_SAMPLED).astype(int))
        images = [dataset[int(index)][0] for index in sampled]
        sizes[split], modes[split] = ({getattr(i, key) for i in images} for key in ("size", "mode"))
    first = "train" if "train" in splits else next(iter(splits))
    shape = preprocessing.input_shape
    if shape is None and len(sizes[first]) == 1:
        ((width, height),) = sizes[first]
        shape = (1 if modes[first] == {"L"} else 3), height, width
    if shape is None:
        expected = f"[channels, height, width], as the images of {name} differ in size"
        raise bad_value("model_input_shape", None, expected)
    if len(shape) != 3:
        raise bad_value("model_input_shape", list(shape), "[channels, height, width] for images")
    if preprocessing.mean is None or preprocessing.std is None:
        mean, std = statistics or IMAGENET
        preprocessing = replace(preprocessing, mean=mean, std=std)
    preprocessing = replace(preprocessing, input_shape=shape)
    differ = any(of_split != {(shape[2], shape[1])} for of_split in sizes.values())
    resize = resize or preprocessing.is_cropped or differ
    train_transform, transform = image_transforms(preprocessing, resize=resize)
    made = {k: DatasetSplit(dataset, train_transform, transform) for k, dataset in splits.items()}
    return Data(dict(made), shape, len(class_names), tuple(class_names), preprocessing)


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
