"""timm/torch/NAME, timm/folder/PATH, timm/tar/PATH: image sets as timm's dataset factory has them.

torch/NAME     a set of torchvision, below data_dir
folder/PATH    train/CLASS/IMAGE.jpg, val/… (or validation/…), test/…
tar/PATH       train.tar with CLASS/IMAGE.jpg, or train/CLASS.tar; the other parts likewise

timm's factory takes any name of a split, and gives the test set for those it does not know; so it
only ever reads parts that exist, and slices are cut here.
"""

import tarfile
from collections.abc import Iterator
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
ELSEWHERE = {"hfds": "hf", "tfds": "tfds"}  # what other families read, as the libraries behind timm
# part -> the folders, or the tars, that may hold it; the first that is there
FOLDERS = {"train": ["train"], "val": ["val", "validation"], "test": ["test"]}


def names() -> list[str]:
    return [*(f"torch/{name}" for name in TORCH_SETS), *(f"{layout}/PATH" for layout in LAYOUTS)]


def check(config: Config, source: Source) -> None:
    """UserError for a kind, a data set or a part that does not exist; folders aren't read."""
    kind, _, rest = source.name.partition("/")
    if kind == "torch":
        check_bases(source.splits_map, pick(TORCH_SETS, rest, "dataset").bases, source.dataset)
    elif kind in STREAMS:
        expected = f"{STREAMS[kind]}, as a stream has no exact order, nor resumes in the middle"
        raise bad_value("dataset", source.dataset, expected)
    elif kind not in LAYOUTS:
        known = ["torch/NAME", "folder/PATH", "tar/PATH", "tfds/NAME", "hfds/NAME"]
        raise unknown_name("dataset", source.dataset, [f"timm/{one}" for one in known])
    check_pixel_keys(config)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    kind, _, rest = source.name.partition("/")
    bases = (_open_torch if kind == "torch" else _open_files)(config, source)
    sizes = {base: len(images) for base, images in bases.items()}
    return image_data(
        cut(bases, resolve_all(source.splits_map, sizes)),
        pixel_preprocessing(config, preprocessing),
        name=source.dataset,
        class_names=classes_of(bases),
        statistics=STATISTICS.get(rest) if kind == "torch" else None,
        resize=kind != "torch",
    )


# ---- Folders and tars --------------------------------------------------------------------


def _open_files(config: Config, source: Source) -> dict[str, Any]:
    """The parts of a folder, each shuffled once and for all, since a slice of images sorted by
    class would lack classes."""
    from timm.data import create_dataset

    kind, _, rest = source.name.partition("/")
    folder, found = Path(config.data_dir) / rest, dict[str, Path]()
    try:
        for base, names in FOLDERS.items():
            for name in names:
                if kind == "folder" and (folder / name).is_dir():
                    found.setdefault(base, folder / name)
                elif kind == "tar" and (folder / f"{name}.tar").is_file():
                    found.setdefault(base, folder / f"{name}.tar")
                elif kind == "tar" and any((folder / name).glob("*.tar")):
                    found.setdefault(base, folder / name)
    except OSError as error:  # a name that no file system takes
        expected = f"a {kind} that can be read ({error.strerror})"
        raise bad_value("dataset", source.dataset, expected) from None
    if not found:
        raise missing(source.dataset, f"has no {kind} train", folder, LAYOUTS[kind])
    check_bases(source.splits_map, found, source.dataset)
    bases = {}
    for base in bases_used(source.splits_map):
        try:  # folders by torchvision, as timm's own gives another image for one it cannot read
            images: Any = (
                TarImages(found[base])
                if kind == "tar"
                else create_dataset("torch/folder", str(found[base]), search_split=False)
            )
        except FAILED as error:
            files, reason = LAYOUTS[kind].replace("train", found[base].stem), one_line(error)
            raise missing(source.dataset, f"cannot be read ({reason})", folder, files) from error
        order = np.random.RandomState(0).permutation(len(images))  # numbers that never change
        bases[base] = Subset(images, order.tolist())
    return bases


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


def _open_torch(config: Config, source: Source) -> dict[str, Any]:
    """The parts of a set of torchvision, fetched where they are missing or broken."""
    from timm.data import create_dataset

    name, dataset, data_dir = source.name, source.dataset, Path(config.data_dir)
    known = TORCH_SETS[name.removeprefix("torch/")]
    root = data_dir / known.root

    def read(download: bool = False) -> dict[str, Any] | str:
        """The data sets of the parts, or why they cannot be read."""
        try:
            with read_timeout():
                return {
                    base: create_dataset(name, str(root), base, download=download)
                    for base in bases_used(source.splits_map)
                }
        except FAILED as error:
            return one_line(error)

    parts = read()
    if isinstance(parts, str) and not config.data_download:
        reason = f"cannot be read ({parts}) and data_download is false"
        raise missing(dataset, reason, root, known.files)
    if isinstance(parts, str):
        with alone(data_dir / f".{name.removeprefix('torch/')}.lock", f"fetches {dataset}"):
            parts = read()  # another process may have fetched them
            if isinstance(parts, str):
                logger.warning("{} in {} cannot be read ({}): fetching it", dataset, root, parts)
                _delete_broken(root / known.files)
                parts = read(download=True)
    if isinstance(parts, str):
        raise missing(dataset, f"could not be fetched ({parts})", root, known.files)
    return parts


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
