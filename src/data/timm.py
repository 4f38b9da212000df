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
from torch.utils.data import ConcatDataset, Dataset, Subset

from src.data.fetch import alone, missing, one_line, read_timeout
from src.data.slices import Range, bases_used, check_bases, resolve
from src.data.splits import Data, DatasetSplit, Preprocessing
from src.data.transforms import IMAGENET, STATISTICS, image_transforms
from src.names import UserError, bad_value, pick, unknown_name

# what torchvision raises on files that are missing or broken
FAILED = (OSError, RuntimeError, ValueError, EOFError, LookupError, AssertionError)
IMAGES_LOOKED_AT = 16


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
    looks = looks or Preprocessing()
    source, _, rest = name.partition("/")
    if source == "folder":
        bases = _open_folder(rest, splits_map, data_dir)
    else:
        bases = _open_torch(rest, splits_map, data_dir, download)
    sizes = {base: len(dataset) for base, dataset in bases.items()}
    ranges = {split: resolve(spelling, sizes) for split, spelling in splits_map.items()}
    own_shape = _own_shape(bases[ranges["train"][0].base])
    shape = _input_shape(looks, own_shape, f"timm/{name}")
    statistics = STATISTICS.get(name.removeprefix("torch/"), IMAGENET)
    if looks.mean is not None and looks.std is not None:
        statistics = (looks.mean, looks.std)
    train_transform, transform = image_transforms(
        shape,
        statistics,
        resize=source == "folder" or own_shape is None or own_shape[1:] != shape[1:],
        interpolation=looks.interpolation,
        crop_pct=looks.crop_pct,
    )
    splits = {
        split: DatasetSplit(_cut(bases, wanted), train_transform, transform)
        for split, wanted in ranges.items()
    }
    return Data(dict(splits), shape, _n_classes(bases))


def check_name(name: str, splits_map: Mapping[str, str]) -> None:
    """UserError for a source, a data set or a part that there is not; folders aren't looked at."""
    source, _, rest = name.partition("/")
    if source == "torch":
        check_bases(splits_map, pick(TORCH_SETS, rest, "dataset").bases, f"timm/{name}")
    elif source != "folder":
        raise unknown_name("dataset", f"timm/{name}", ["timm/torch/NAME", "timm/folder/PATH"])


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
