"""Where the splits live: arrays and texts where the model does, small images too if asked to."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Literal

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from src.data.batch_augmentation import IN_BATCHES, only_one_by_one
from src.data.batches import Batch, Loading, on_device, pixel_batches
from src.data.splits import Augmentation, DatasetSplit, PixelSplit, Split
from src.data.transforms import ImageTransform
from src.support import bad_value, processes

KEY = "data_on_device"
SHARE = 4  # of the free memory that images may take: one part of so many
READ_AT_ONCE = 256
SECONDS_BETWEEN_LINES = 60.0  # of the log


def is_to_hold(
    asked: Literal["auto"] | bool, splits: Mapping[str, Split], device: torch.device
) -> bool:
    """Whether the images among the splits are held on the device.

    asked: data_on_device. Its `auto` looks at the free memory: the answer is to be kept for a
    run that goes on later. UserError where it is true and they can't be held.
    """
    images = {name: split for name, split in splits.items() if isinstance(split, DatasetSplit)}
    if not images or not asked:
        return bool(asked)
    obstacles = [found for name in images if (found := _obstacle(name, images[name]))]
    if asked != "auto":
        if obstacles:
            raise bad_value(KEY, asked, f"auto or false, as {obstacles[0]}")
        return True
    obstacles = obstacles or _lack_of_memory(images, device)
    if obstacles:
        logger.info("images are read one at a time, not held on {}: {}", device, obstacles[0])
    return not obstacles


def refuse_to_hold(asked: Augmentation) -> None:
    """UserError for an augmentation that can't be done in batches."""
    if names := only_one_by_one(asked):
        raise bad_value(KEY, True, f"auto or false, as {_said_of(names[0])}")


def placed(
    splits: Mapping[str, Split], device: torch.device, *, is_held: bool, num_workers: int
) -> dict[str, Split]:
    """The splits, each where it lives. num_workers: that read the images that are held."""
    found: dict[str, Split] = {}
    for name, split in splits.items():
        if is_held and isinstance(split, DatasetSplit):
            found[name] = held(split, device, num_workers=num_workers, name=name)
        else:
            found[name] = on_device(split, device)
    return found


def held(
    split: DatasetSplit, device: torch.device, *, num_workers: int = 0, name: str = "train"
) -> PixelSplit:
    """Its images as evaluations see them, each read once, and how training changes them."""
    train = split.train_transform
    pixels = _room_for(_shape(split), device)
    targets = torch.empty(len(split), dtype=torch.int64)
    logger.info("reading {:,} images of {} to hold them on {}", len(split), name, device)
    loading = Loading(READ_AT_ONCE, torch.device("cpu"), num_workers)
    for start, (images, numbers) in _with_progress(pixel_batches(split, loading), len(split)):
        there = slice(start, start + len(numbers))
        pixels[there], targets[there] = images, numbers
    asked = train.augmentation if isinstance(train, ImageTransform) else None
    return PixelSplit(pixels, targets.to(device), _transform(split).to_tensor.normalize, asked)


def _transform(split: DatasetSplit) -> ImageTransform:
    """Of evaluations; is_to_hold has seen that it is one."""
    assert isinstance(split.transform, ImageTransform)
    return split.transform


def _shape(split: DatasetSplit) -> tuple[int, ...]:
    """(n, channels, height, width)"""
    return len(split), *_transform(split).shape


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


def _room_for(shape: tuple[int, ...], device: torch.device) -> Tensor:
    try:
        return torch.empty(shape, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # torch's of a full GPU is one as well
        expected = f"auto or false, as {_size(math.prod(shape))} of images do not fit on {device}"
        raise bad_value(KEY, True, expected) from error


# ---- What keeps images from being held ---------------------------------------------------


def _obstacle(name: str, split: DatasetSplit) -> str | None:
    train, evaluation = split.train_transform, split.transform
    if not isinstance(evaluation, ImageTransform) or evaluation.on_tensor:
        return f"{name} has a transform of its own, whose pixels nobody knows"
    if train is evaluation:
        return None
    if not isinstance(train, ImageTransform) or train.augmentation is None:
        return f"{name} has a transform of its own for training, which works one image at a time"
    names = only_one_by_one(train.augmentation)
    return _said_of(names[0]) if names else None


def _said_of(name: str) -> str:
    in_batches = ", ".join(f"aug_{other}" for other in IN_BATCHES)
    return f"aug_{name} works one image at a time, unlike {in_batches}"


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((memory.free for memory in processes.memories()), default=None)


def _lack_of_memory(images: Mapping[str, DatasetSplit], device: torch.device) -> list[str]:
    needed = sum(math.prod(_shape(split)) for split in images.values())
    free = free_memory(device)
    if free is not None and needed * SHARE <= free:
        return []
    known = "unknown" if free is None else _size(free)
    return [f"they take {_size(needed)}, more than 1/{SHARE} of the free memory, {known}"]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
