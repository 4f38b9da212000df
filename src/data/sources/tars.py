"""Tar files of images, read at the places where they lie in them.

With the names of classes and their order that timm's reader has. It isn't used itself: it keeps
the file open, so that worker processes read it at each other's positions, gives another image
for one that it cannot read, and finds the images by reading all of the file.
"""

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class TarImages(Dataset):
    """(PIL image, class number) of the images in one tar, or in all those of a folder.

    The class is the innermost folder, a tar being one to what is in it, also in another tar;
    classes are sorted with their numbers as numbers. ValueError for what is no whole tar.
    """

    def __init__(self, place: Path) -> None:
        from timm.utils.misc import natural_key

        tars = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        found = []
        for number, path in enumerate(tars):
            prefix = PurePosixPath(path.stem if place.is_dir() else "")
            found += [(*image, number) for image in _images_of(path, prefix)]
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
        self.files = [str(path) for path in tars]
        self.places = np.array([numbers, offsets, sizes]).T  # file, first byte, bytes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        number, offset, size = self.places[index].tolist()
        with open(self.files[number], "rb") as file:  # anew, so that processes share nothing
            file.seek(offset)
            content = file.read(size)
        try:
            image = Image.open(BytesIO(content)).convert("RGB")
        except Exception as error:
            error.add_note(f"in the {size} bytes from {offset} of {self.files[number]}")
            raise
        return image, int(self.targets[index])


def _images_of(path: Path, prefix: PurePosixPath) -> list[tuple[str, int, int]]:
    try:
        with tarfile.open(path, "r:") as tar:
            return list(_images_in(tar, prefix))
    except tarfile.TarError as error:
        raise ValueError(f"{path}: {error}") from error


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
