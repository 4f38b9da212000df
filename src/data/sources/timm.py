"""timm/torch/NAME, timm/folder/PATH and timm/tar/PATH: image sets as timm's dataset factory names
them.

torch/NAME     a set of torchvision, below data_dir
folder/PATH    train/CLASS/IMAGE.jpg, val/… (or validation/…), test/…
tar/PATH       train.tar with CLASS/IMAGE.jpg, or train/CLASS.tar; the other parts likewise

timm's factory takes any name of a split, and gives the test set for those it does not know; so it
only ever reads parts that exist, and slices are cut here.
"""

import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from loguru import logger
from torch.utils.data import Dataset, Subset

from src.config import Config
from src.data.images import classes_of, cut, image_data
from src.data.source import Source, check_pixel_keys, pixel_preprocessing
from src.data.sources.fetch import alone, missing, read_timeout
from src.data.splits import Data, Preprocessing
from src.data.splits_map import bases_used, check_bases, resolve_all
from src.data.transforms import STATISTICS
from src.support import bad_value, one_line, pick, unknown_name

# what torchvision raises on files that are missing or broken
FAILED = (OSError, RuntimeError, ValueError, EOFError, LookupError, AssertionError)


class TorchSet(NamedTuple):
    """Where the files of a set of torchvision lie below data_dir, and its parts."""

    files: str
    root: str = "."
    bases: tuple[str, str] = ("train", "test")


TORCH_SETS = {
    "cifar10": TorchSet("cifar-10-batches-py"),
    "cifar100": TorchSet("cifar-100-python"),
    "mnist": TorchSet("MNIST/raw"),
    "kmnist": TorchSet("KMNIST/raw"),
    "fashion_mnist": TorchSet("FashionMNIST/raw"),
    "qmnist": TorchSet("QMNIST/raw"),
    "imagenet": TorchSet(".", "imagenet", ("train", "val")),  # never downloaded
    "places365": TorchSet(".", "places365", ("train", "val")),
    "inaturalist": TorchSet(".", "inaturalist", ("train", "val")),  # of 2021
}
# how the files of a source are laid out
LAYOUTS = {
    "folder": "train/CLASS/IMAGE.jpg",
    "tar": "train.tar with CLASS/IMAGE.jpg, or train/CLASS.tar",
}
# what timm reads as a stream, and what there is instead
STREAMS = {"wds": "timm/tar/PATH or timm/folder/PATH", "hfids": "timm/hfds/NAME"}
# part -> the folders, or the tars, that may hold it; the first that is there
FOLDERS = {"train": ["train"], "val": ["val", "validation"], "test": ["test"]}


def check(config: Config, source: Source) -> None:
    check_name(source.name, source.splits_map)
    check_pixel_keys(config)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    return load(
        source.name,
        source.splits_map,
        data_dir=Path(config.data_dir),
        download=config.data_download,
        preprocessing=pixel_preprocessing(config, preprocessing),
    )


def load(
    name: str,
    splits_map: Mapping[str, str],
    *,
    data_dir: Path,
    download: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Data:
    """PIL images, and the transforms that make of them what the model wants.

    preprocessing: the input shape, mean and std that are requested, if any.
    """
    check_name(name, splits_map)
    source, _, rest = name.partition("/")
    if source == "torch":
        bases = _open_torch(rest, splits_map, data_dir, download=download)
    else:
        bases = _open_files(source, data_dir / rest, splits_map, f"timm/{name}")
    return image_data(
        cut(bases, resolve_all(splits_map, {base: len(data) for base, data in bases.items()})),
        preprocessing or Preprocessing(),
        name=f"timm/{name}",
        class_names=classes_of(bases),
        statistics=STATISTICS.get(rest) if source == "torch" else None,
        resize=source != "torch",
    )


def name_elsewhere(name: str) -> str | None:
    """'hfds/beans' -> 'hf/beans': of what other families read, as the libraries do behind timm."""
    source, _, rest = name.partition("/")
    family = {"hfds": "hf", "tfds": "tfds"}.get(source)
    return family and f"{family}/{rest}"


def check_name(name: str, splits_map: Mapping[str, str]) -> None:
    """UserError for a source, a data set or a part that does not exist; folders aren't read."""
    source, _, rest = name.partition("/")
    if source == "torch":
        check_bases(splits_map, pick(TORCH_SETS, rest, "dataset").bases, f"timm/{name}")
    elif source in STREAMS:
        expected = f"{STREAMS[source]}, as a stream has no exact order, nor resumes in the middle"
        raise bad_value("dataset", f"timm/{name}", expected)
    elif source not in LAYOUTS:
        known = ["torch/NAME", "folder/PATH", "tar/PATH", "tfds/NAME", "hfds/NAME"]
        raise unknown_name("dataset", f"timm/{name}", [f"timm/{one}" for one in known])


# ---- Folders and tars --------------------------------------------------------------------


def _open_files(
    source: str, folder: Path, splits_map: Mapping[str, str], dataset: str
) -> dict[str, Any]:
    """The parts of a folder, each shuffled once and for all, since a slice of images sorted by
    class would lack classes."""
    found: dict[str, Path] = {}
    try:
        for base, names in FOLDERS.items():
            endings = [""] if source == "folder" else [".tar", ""]
            for path in (folder / f"{name}{ending}" for name in names for ending in endings):
                is_tar = path.suffix == ".tar" and path.is_file()
                if (path.is_dir() if source == "folder" else is_tar) or (
                    source == "tar" and any(path.glob("*.tar"))
                ):
                    found.setdefault(base, path)
    except OSError as error:  # a name that no file system takes
        expected = f"a {source} that can be read ({error.strerror})"
        raise bad_value("dataset", dataset, expected) from None
    if not found:
        raise missing(dataset, f"has no {source} train", folder, LAYOUTS[source])
    check_bases(splits_map, found, dataset)
    bases = {}
    for base in bases_used(splits_map):
        try:
            images: Any = TarImages(found[base]) if source == "tar" else _folder_of(found[base])
        except FAILED as error:
            files = LAYOUTS[source].replace("train", found[base].stem)
            raise missing(dataset, f"cannot be read ({one_line(error)})", folder, files) from error
        order = np.random.RandomState(0).permutation(len(images))  # numbers that never change
        bases[base] = Subset(images, order.tolist())
    return bases


def _folder_of(place: Path) -> Any:
    """torchvision's, as timm's own gives another image for one that it cannot read."""
    from timm.data import create_dataset

    return create_dataset("torch/folder", str(place), search_split=False)


class TarImages(Dataset):
    """(PIL image, class number) of the images in one tar, or in all those of a folder.

    The class is the innermost folder, a tar being one to what is in it, also in another tar;
    classes are sorted with their numbers as numbers. ValueError for what is no whole tar.

    timm's reader has the same classes in the same order, but isn't used: it keeps the file open,
    so that worker processes read it at each other's positions, gives another image for one that it
    cannot read, and finds the images by reading all of the file.
    """

    def __init__(self, place: Path) -> None:
        from timm.utils.misc import natural_key

        self.files = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        found = []
        for number, path in enumerate(self.files):
            prefix = PurePosixPath(path.stem if place.is_dir() else "")
            try:
                with tarfile.open(path, "r:") as tar:
                    found += [(*image, number) for image in _images_in(tar, prefix)]
            except tarfile.TarError as error:
                raise ValueError(f"{path}: {error}") from error
        if not found:
            raise ValueError(f"there are no images in {place}")
        found.sort()
        names, offsets, sizes, numbers = zip(*found, strict=True)
        labels = [PurePosixPath(name).parent.name for name in names]
        if "" in labels:
            raise ValueError(f"{names[labels.index('')]} in {place} is in no folder of a class")
        self.classes = sorted(set(labels), key=lambda name: (natural_key(name), name))
        class_numbers = {name: number for number, name in enumerate(self.classes)}
        self.targets = np.array([class_numbers[label] for label in labels])
        self.places = np.array([numbers, offsets, sizes]).T  # file, first byte, bytes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        number, offset, size = self.places[index].tolist()
        with open(self.files[number], "rb") as file:  # each time: processes share nothing
            file.seek(offset)
            content = file.read(size)
        try:
            image = Image.open(BytesIO(content)).convert("RGB")
        except Exception as error:
            error.add_note(f"in the {size} bytes from {offset} of {self.files[number]}")
            raise
        return image, int(self.targets[index])


def _images_in(
    tar: tarfile.TarFile, prefix: PurePosixPath, start: int = 0
) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and number of bytes of each image, also of those in tars in the tar."""
    from timm.data.readers.img_extensions import is_img_extension

    for member in tar:
        name, first = prefix / member.name, start + member.offset_data
        if member.isfile() and is_img_extension(name.suffix.lower()):
            yield str(name), first, member.size
        elif member.isfile() and name.suffix.lower() == ".tar":
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                yield from _images_in(inner, name.with_suffix(""), first)


# ---- Sets of torchvision -----------------------------------------------------------------


def _open_torch(
    name: str, splits_map: Mapping[str, str], data_dir: Path, *, download: bool
) -> dict[str, Any]:
    """The parts of a set of torchvision, fetched where they are missing or broken."""
    known, dataset, used = TORCH_SETS[name], f"timm/torch/{name}", bases_used(splits_map)
    root = data_dir / known.root
    parts = _read_torch(name, used, root)
    if isinstance(parts, str) and not download:
        reason = f"cannot be read ({parts}) and data_download is false"
        raise missing(dataset, reason, root, known.files)
    if isinstance(parts, str):
        with alone(data_dir / f".{name}.lock", f"fetches {dataset}"):
            parts = _read_torch(name, used, root)  # another process may have fetched them
            if isinstance(parts, str):
                logger.warning("{} in {} cannot be read ({}): fetching it", dataset, root, parts)
                _delete_broken(root / known.files)
                parts = _read_torch(name, used, root, download=True)
    if isinstance(parts, str):
        raise missing(dataset, f"could not be fetched ({parts})", root, known.files)
    return parts


def _read_torch(
    name: str, used: list[str], root: Path, *, download: bool = False
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


def _delete_broken(folder: Path) -> None:
    """Files of the MNIST family that torchvision left half unpacked; it fetches missing ones."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    broken = []
    for file in [*folder.glob("*-ubyte"), *folder.glob("*-int")]:
        try:
            read_sn3_pascalvincent_tensor(str(file))
        except (RuntimeError, ValueError, EOFError, LookupError, AssertionError):
            broken.append(file)  # an OSError is of the disk, and no reason to delete anything
    for file in broken:
        file.unlink()
