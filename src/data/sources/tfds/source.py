"""tfds/NAME[/CONFIG][:VERSION]: images with classes as TensorFlow Datasets prepares them.

Both of its forms, array_record and tfrecord, are read example by example, without TensorFlow:
timm's reader of the second streams with TensorFlow, repeats examples to fill the last batch and
cannot go on in the middle. Data sets of one's own are prepared by `tfds build`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from torch.utils.data import Dataset

from src.data.images import image_data
from src.data.slices import KEY, Range, check_bases, warn_of_overlap
from src.data.sources.fetch import missing
from src.data.sources.tfds import files as tfds_files
from src.data.sources.tfds.array_records import ArrayRecords, OpenFiles, Reader
from src.data.sources.tfds.files import Asked, asked_for, find, import_tfds
from src.data.sources.tfds.records import Records
from src.data.sources.tfds.tfrecords import TFRecords
from src.data.splits import Data, Preprocessing
from src.data.transforms import MODES, STATISTICS
from src.support import UserError, bad_value, one_line

FILES = "the files that TFDS wrote"


def load(
    name: str,
    splits_map: Mapping[str, str],
    *,
    data_dir: Path,
    download: bool = True,
    version: str | None = None,
    looks: Preprocessing | None = None,
    has_workers: bool = True,
) -> Data:
    """PIL images, and the transforms that make of them what the model wants.

    A split is spelled as TFDS has it: train[:90%], train[10:20]+test, all. version: where it is
    None, the newest in data_dir. has_workers: whether worker processes will read as well.
    UserError for what is not there and cannot be had, and for data other than images of one
    class each.
    """
    asked, folder = find(asked_for(name, version), data_dir)
    if folder is None and not download:
        raise tfds_files.not_there(asked, data_dir, "is not prepared, and data_download is false")
    folder = (folder or tfds_files.prepare(asked, data_dir)).absolute()
    info = _description(folder, asked)
    wanted = _image_and_class(info, asked)
    logger.info("{}: {} files in {}", asked, info.file_format.value, folder)
    splits = {
        split: Examples(records, wanted, f"{asked}:{splits_map[split]}")
        for split, records in _records(info, splits_map, asked, has_workers).items()
    }
    for examples in splits.values():
        examples[0]  # has a class, or is refused now
    data = image_data(
        splits,
        looks or Preprocessing(),
        name=str(asked),
        class_names=wanted.class_names,
        statistics=STATISTICS.get(asked.name),
        resize=wanted.differ_in_size,
    )
    return replace(data, version=folder.name)


def check_name(
    name: str, splits_map: Mapping[str, str], *, data_dir: Path, version: str | None = None
) -> None:
    """UserError for a data set, a version or, where it is prepared, a split that there is not."""
    asked, folder = find(asked_for(name, version), data_dir)
    if folder is not None:
        info = _description(folder.absolute(), asked)
        _image_and_class(info, asked)
        for split, spelling in splits_map.items():
            _instructions(info, split, spelling, asked)


@dataclass(frozen=True)
class ImageAndClass:
    """The two features of a data set that are read, and how."""

    features: Any  # TFDS's FeaturesDict of these two alone
    image: str
    label: str
    decoders: Mapping[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.features[self.label].names)

    @property
    def differ_in_size(self) -> bool:
        return None in self.features[self.image].shape[:2]

    @property
    def mode(self) -> str:
        """Of PIL images with so many channels."""
        return MODES[self.features[self.image].shape[-1]]


class Examples(Dataset):
    """(PIL image, class number) of the records of one split."""

    def __init__(self, records: Records, wanted: ImageAndClass, name: str) -> None:
        self.records, self.wanted, self.name = records, wanted, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        wanted, record = self.wanted, self.records[index]
        try:
            example = wanted.features.deserialize_example_np(record, decoders=wanted.decoders)
            image = Image.open(BytesIO(example[wanted.image])).convert(wanted.mode)
        except Exception as error:
            error.add_note(f"in example {index} of {self.name}")
            raise
        if (number := int(example[wanted.label])) < 0:
            raise UserError(f"{KEY}: example {index} of {self.name} has no class")
        return image, number


def _description(folder: Path, asked: Asked) -> Any:
    """TFDS's of a prepared data set, for which its generator is not needed."""
    tfds = import_tfds()
    try:
        return tfds.builder_from_directory(folder).info
    except Exception as error:  # whatever is wrong with the files
        files = " and ".join(tfds_files.METADATA)
        raise missing(str(asked), f"cannot be read ({one_line(error)})", folder, files) from error


def _image_and_class(info: Any, asked: Asked) -> ImageAndClass:
    """The pair that TFDS calls supervised, else `image` and `label`; UserError for others."""
    tfds, features = import_tfds(), dict(getattr(info.features, "items", dict)())
    for keys in (info.supervised_keys, ("image", "label")):
        image, label = (
            features.get(key) if isinstance(key, str) else None for key in (keys or ("", ""))[:2]
        )
        if (
            isinstance(image, tfds.features.Image)
            and image.np_dtype == np.uint8
            and image.shape[-1] in MODES
            and isinstance(label, tfds.features.ClassLabel)
            and label.num_classes
        ):
            both = dict(zip(keys, (image, label), strict=False))
            # PIL decodes the images, as it does those of folders. TFDS would take OpenCV where
            # that is installed, and gives grey ones among others without their channels.
            decoders = {keys[0]: tfds.decode.SkipDecoding()}
            return ImageAndClass(tfds.features.FeaturesDict(both), keys[0], keys[1], decoders)
    found = ", ".join(f"{key}: {feature!r}" for key, feature in sorted(features.items()))
    found = " ".join((found or repr(info.features)).split())
    expected = "a data set of images with 1 or 3 channels and one class each"
    raise bad_value("dataset", str(asked), f"{expected}; it has {found}")


def _instructions(info: Any, split: str, spelling: str, asked: Asked) -> list[Any]:
    """Which records of which files a split has; TFDS cuts it, part by part as it does itself."""
    found: list[Any] = []
    for part in re.split(r"\s*\+\s*", spelling):
        base = part.partition("[")[0]
        if base != "all":
            check_bases({split: base}, list(info.splits), str(asked))
        try:
            pieces = info.splits[part].file_instructions
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{KEY}: {split}: {spelling!r}: {one_line(error)}") from None
        if not pieces or any(piece.take < 1 for piece in pieces):
            size = info.splits[base].num_examples
            raise UserError(f"{KEY}: {split}: {part!r} is empty, as {base!r} has {size} examples")
        found += pieces
    return found


def _records(
    info: Any, splits_map: Mapping[str, str], asked: Asked, has_workers: bool
) -> dict[str, Records]:
    """The serialised examples of each split."""
    parts = {
        split: _instructions(info, split, spelling, asked) for split, spelling in splits_map.items()
    }
    warn_of_overlap(
        {
            split: [Range(piece.filename, piece.skip, piece.skip + piece.take) for piece in pieces]
            for split, pieces in parts.items()
        }
    )
    form, folder = info.file_format.value, Path(info.data_dir)
    try:
        if form == "tfrecord":
            return {split: TFRecords(instructions) for split, instructions in parts.items()}
        if form == "array_record":
            reader = Reader() if has_workers else OpenFiles()
            return {split: ArrayRecords(given, reader) for split, given in parts.items()}
    except (OSError, ValueError) as error:
        raise missing(str(asked), f"cannot be read ({one_line(error)})", folder, FILES) from error
    expected = "one that is prepared as array_record or tfrecord"
    raise bad_value("dataset", str(asked), f"{expected}, not as {form} as that in {folder}")
