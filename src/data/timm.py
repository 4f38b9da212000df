"""timm/torch/NAME and timm/folder/PATH: image sets through timm's dataset factory, torchvision's
classes behind it.

timm's factory takes any name of a split, and gives the test set for those it does not
know; so it is only ever asked for 'train' and one other, and slices are cut here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from torch.utils.data import Subset

from src.data.fetch import alone, missing, one_line, read_timeout
from src.data.images import classes_of, cut, image_data
from src.data.slices import bases_used, check_bases
from src.data.splits import Data, Preprocessing
from src.data.transforms import STATISTICS
from src.names import pick, unknown_name

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
# part -> the folders that may hold it, the first that is there
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
    if source == "folder":
        bases = _open_folder(rest, splits_map, data_dir)
    else:
        bases = _open_torch(rest, splits_map, data_dir, download)
    known = STATISTICS.get(name.removeprefix("torch/"))
    return image_data(
        cut(bases, splits_map),
        looks or Preprocessing(),
        name=f"timm/{name}",
        class_names=classes_of(bases),
        statistics=known,
        resize=source == "folder",
    )


def check_name(name: str, splits_map: Mapping[str, str]) -> None:
    """UserError for a source, a data set or a part that there is not; folders aren't looked at."""
    source, _, rest = name.partition("/")
    if source == "torch":
        check_bases(splits_map, pick(TORCH_SETS, rest, "dataset").bases, f"timm/{name}")
    elif source != "folder":
        raise unknown_name("dataset", f"timm/{name}", ["timm/torch/NAME", "timm/folder/PATH"])


def _open_folder(path: str, splits_map: Mapping[str, str], data_dir: Path) -> dict[str, Any]:
    """The parts of data_dir/path, each a folder with one folder a class, sorted by name.

    Shuffled once and for all, since a slice of images sorted by class would lack classes.
    """
    folder, dataset = data_dir / path, f"timm/folder/{path}"
    known = {
        base: next(folder / name for name in names if (folder / name).is_dir())
        for base, names in FOLDERS.items()
        if any((folder / name).is_dir() for name in names)
    }
    if "train" not in known:
        raise missing(dataset, "has no folder train", folder, "train/CLASS/IMAGE.jpg")
    check_bases(splits_map, known, dataset)
    from timm.data import create_dataset

    bases = {}
    for base in bases_used(splits_map):
        try:  # torchvision's, as timm's own gives another image for one that it cannot read
            images = create_dataset("torch/folder", str(known[base]), search_split=False)
        except FAILED as error:
            files = f"{known[base].name}/CLASS/IMAGE.jpg"
            raise missing(dataset, f"cannot be read ({one_line(error)})", folder, files) from error
        order = np.random.RandomState(0).permutation(len(images))  # numbers that never change
        bases[base] = Subset(images, order.tolist())
    return bases


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
