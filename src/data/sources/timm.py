"""timm/torch/NAME, timm/folder/PATH and timm/tar/PATH: image sets as timm's dataset factory names
them, torchvision's classes behind it.

timm's factory takes any name of a split, and gives the test set for those it does not
know; so it is only ever asked for 'train' and one other, and slices are cut here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from torch.utils.data import Subset

from src.data.images import classes_of, cut, image_data
from src.data.slices import bases_used, check_bases, resolve_all
from src.data.sources.fetch import alone, missing, read_timeout
from src.data.sources.tars import TarImages
from src.data.splits import Data, Preprocessing
from src.data.transforms import STATISTICS
from src.support import bad_value, one_line, pick, unknown_name

# what torchvision raises on files that are missing or broken
FAILED = (OSError, RuntimeError, ValueError, EOFError, LookupError, AssertionError)


@dataclass(frozen=True)
class TorchSet:
    """Where a set of torchvision stands below data_dir, and its parts."""

    root: str
    files: str
    bases: tuple[str, str] = ("train", "test")


TORCH_SETS = {
    "cifar10": TorchSet(".", "cifar-10-batches-py"),
    "cifar100": TorchSet(".", "cifar-100-python"),
    "mnist": TorchSet(".", "MNIST/raw"),
    "kmnist": TorchSet(".", "KMNIST/raw"),
    "fashion_mnist": TorchSet(".", "FashionMNIST/raw"),
    "qmnist": TorchSet(".", "QMNIST/raw"),
    "imagenet": TorchSet("imagenet", ".", ("train", "val")),  # never downloaded
    "places365": TorchSet("places365", ".", ("train", "val")),
    "inaturalist": TorchSet("inaturalist", ".", ("train", "val")),  # of 2021
}
# what timm reads as a stream, and what there is instead
STREAMS = {"wds": "timm/tar/PATH or timm/folder/PATH", "hfids": "timm/hfds/NAME"}
# part -> the folders, or the tars, that may hold it; the first that is there
FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def load(
    name: str,
    splits_map: Mapping[str, str],
    *,
    data_dir: Path,
    download: bool = True,
    looks: Preprocessing | None = None,
) -> Data:
    """PIL images, and the transforms that make of them what the model wants.

    looks: the input shape, mean and std that are asked for, where they are.
    """
    check_name(name, splits_map)
    source, _, rest = name.partition("/")
    if source in LAYOUTS:
        bases = _open_files(name, splits_map, data_dir)
    else:
        bases = _open_torch(rest, splits_map, data_dir, download)
    known = STATISTICS.get(name.removeprefix("torch/"))
    return image_data(
        cut(bases, resolve_all(splits_map, {base: len(data) for base, data in bases.items()})),
        looks or Preprocessing(),
        name=f"timm/{name}",
        class_names=classes_of(bases),
        statistics=known,
        resize=source in LAYOUTS,
    )


def name_elsewhere(name: str) -> str | None:
    """'hfds/beans' -> 'hf/beans': of what other families read, as the libraries do behind timm."""
    source, _, rest = name.partition("/")
    family = {"hfds": "hf", "tfds": "tfds"}.get(source)
    return family and f"{family}/{rest}"


def check_name(name: str, splits_map: Mapping[str, str]) -> None:
    """UserError for a source, a data set or a part that there is not; folders aren't looked at."""
    source, _, rest = name.partition("/")
    if source == "torch":
        check_bases(splits_map, pick(TORCH_SETS, rest, "dataset").bases, f"timm/{name}")
    elif source in STREAMS:
        expected = f"{STREAMS[source]}, as a stream has no exact order, nor goes on in the middle"
        raise bad_value("dataset", f"timm/{name}", expected)
    elif source not in LAYOUTS:
        known = ["torch/NAME", "folder/PATH", "tar/PATH", "tfds/NAME", "hfds/NAME"]
        raise unknown_name("dataset", f"timm/{name}", [f"timm/{one}" for one in known])


def _open_files(name: str, splits_map: Mapping[str, str], data_dir: Path) -> dict[str, Any]:
    """The parts of data_dir/PATH, of name folder/PATH or tar/PATH.

    Shuffled once and for all, since a slice of images sorted by class would lack classes.
    """
    source, _, path = name.partition("/")
    folder, dataset = data_dir / path, f"timm/{name}"
    find, read, files = LAYOUTS[source]
    try:
        found = {base: [find(folder, part) for part in parts] for base, parts in FOLDERS.items()}
    except OSError as error:  # a name that no file system takes
        expected = f"a {source} that can be read ({error.strerror})"
        raise bad_value("dataset", dataset, expected) from None
    known = {base: next(filter(None, places)) for base, places in found.items() if any(places)}
    if not known:
        raise missing(dataset, f"has no {source} train", folder, files)
    check_bases(splits_map, known, dataset)
    bases = {}
    for base in bases_used(splits_map):
        try:
            images = read(known[base])
        except FAILED as error:
            files = files.replace("train", known[base].stem)
            raise missing(dataset, f"cannot be read ({one_line(error)})", folder, files) from error
        order = np.random.RandomState(0).permutation(len(images))  # numbers that never change
        bases[base] = Subset(images, order.tolist())
    return bases


def _folder_of(folder: Path, part: str) -> Path | None:
    return folder / part if (folder / part).is_dir() else None


def _tar_of(folder: Path, part: str) -> Path | None:
    """Of one tar, or of a folder of tars."""
    if (folder / f"{part}.tar").is_file():
        return folder / f"{part}.tar"
    return folder / part if any((folder / part).glob("*.tar")) else None


def _images_of_folder(folder: Path) -> Any:
    """torchvision's, as timm's own gives another image for one that it cannot read."""
    from timm.data import create_dataset

    return create_dataset("torch/folder", str(folder), search_split=False)


# source -> what finds a part, what opens it, and how its files are laid out
LAYOUTS: dict[str, tuple[Callable[[Path, str], Path | None], Callable[[Path], Any], str]] = {
    "folder": (_folder_of, _images_of_folder, "train/CLASS/IMAGE.jpg"),
    "tar": (_tar_of, TarImages, "train.tar with CLASS/IMAGE.jpg, or train/CLASS.tar"),
}


def _open_torch(
    name: str, splits_map: Mapping[str, str], data_dir: Path, download: bool
) -> dict[str, Any]:
    """The parts of a set of torchvision, fetched where they are missing or broken."""
    known = TORCH_SETS[name]
    used, root = bases_used(splits_map), data_dir / known.root
    files = root / known.files
    parts = _read_parts(name, used, root)
    if isinstance(parts, dict):
        return parts
    dataset = f"timm/torch/{name}"
    if not download:
        raise missing(
            dataset, f"cannot be read ({parts}) and data_download is false", root, known.files
        )
    with alone(data_dir / f".{name}.lock", f"fetches {dataset}"):
        parts = _read_parts(name, used, root)  # another process may have fetched them
        if not isinstance(parts, dict):
            logger.warning("{} in {} cannot be read ({}): fetching it", dataset, root, parts)
            for broken in _broken_idx_files(files):
                broken.unlink()
            parts = _read_parts(name, used, root, download=True)
    if not isinstance(parts, dict):
        raise missing(dataset, f"could not be fetched ({parts})", root, known.files)
    return parts


def _read_parts(
    name: str, used: Iterable[str], root: Path, download: bool = False
) -> dict[str, Any] | str:
    """The data sets of the parts, or why they cannot be read."""
    from timm.data import create_dataset

    try:
        with read_timeout():
            return {
                b: create_dataset(f"torch/{name}", str(root), b, download=download) for b in used
            }
    except FAILED as error:
        return one_line(error)


def _broken_idx_files(folder: Path) -> list[Path]:
    """Files of the MNIST family whose size is not what their header says.

    torchvision fetches files that are missing, but none that it left half unpacked. Format:
    two zero bytes, type, number of dimensions, the dimensions (big-endian int32), values.
    """
    broken = []
    for file in [*folder.glob("*-ubyte"), *folder.glob("*-int")]:
        with open(file, "rb") as f:
            header = f.read(16)
        item_size = {0x08: 1, 0x0C: 4}.get(header[2]) if len(header) > 3 else None
        end = 4 + 4 * header[3] if item_size else 16
        shape = [int.from_bytes(header[i : i + 4]) for i in range(4, end, 4)]
        if item_size is None or file.stat().st_size != end + item_size * prod(shape):
            broken.append(file)
    return broken
