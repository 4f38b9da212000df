"""tfds/NAME[/CONFIG][:VERSION]: images with classes as TensorFlow Datasets prepares them.

Both of its forms, array_record and tfrecord, are read example by example, without TensorFlow:
timm's reader of the second streams with TensorFlow, repeats examples to fill the last batch and
cannot resume in the middle. Custom data sets are prepared by `tfds build`.

tfds_files.py finds or prepares the folder, TFDS itself says which records of which files a split
has, and tfds_records.py reads them.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from torch.utils.data import Dataset

from src.config import Config
from src.data.images import image_data
from src.data.source import Source, check_pixel_keys, pixel_preprocessing
from src.data.sources.fetch import missing
from src.data.sources.tfds_files import (
    METADATA,
    TFDSName,
    find,
    import_tfds,
    not_prepared,
    parse_name,
    prepare,
)
from src.data.sources.tfds_records import ArrayRecords, OpenFiles, ReaderProcess, Records, TFRecords
from src.data.splits import Data, Preprocessing
from src.data.splits_map import KEY, Range, check_bases, warn_of_overlap
from src.data.transforms import MODES, STATISTICS
from src.support import UserError, bad_value, one_line


def names() -> list[str]:
    """Those that TFDS can make; whether they are images with one class each shows in check()."""
    return import_tfds().list_builders(with_community_datasets=False)


def check(config: Config, source: Source) -> None:
    """UserError for a data set, a version or, where it is prepared, a split that does not exist."""
    wanted, folder = find(parse_name(source.name, source.version), Path(config.data_dir))
    if folder is not None:
        info = _description(folder.absolute(), wanted)
        _image_and_class(info, wanted)
        for split, spelling in source.splits_map.items():
            _instructions(info, split, spelling, wanted)
    check_pixel_keys(config)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    """A split is spelled as TFDS has it: train[:90%], train[10:20]+test, all.

    UserError for what is neither there nor can be fetched, and for data other than images of one
    class each.
    """
    data_dir = Path(config.data_dir)
    wanted, folder = find(parse_name(source.name, source.version), data_dir)
    if folder is None and not config.data_download:
        raise not_prepared(wanted, data_dir, "is not prepared, and data_download is false")
    folder = (folder or prepare(wanted, data_dir)).absolute()
    info = _description(folder, wanted)
    features = _image_and_class(info, wanted)
    form = info.file_format.value
    logger.info("{}: {} files in {}", wanted, form, folder)
    parts = {k: _instructions(info, k, text, wanted) for k, text in source.splits_map.items()}
    warn_of_overlap(
        {
            split: [Range(piece.filename, piece.skip, piece.skip + piece.take) for piece in pieces]
            for split, pieces in parts.items()
        }
    )
    records: Callable[[list[Any]], Records]
    if form == "tfrecord":
        records = TFRecords
    elif form == "array_record":
        records = partial(ArrayRecords, ReaderProcess() if config.num_workers else OpenFiles())
    else:
        expected = "one that is prepared as array_record or tfrecord"
        raise bad_value("dataset", str(wanted), f"{expected}, not as {form} as that in {folder}")
    try:
        splits = {
            split: RecordImages(records(pieces), features, f"{wanted}:{source.splits_map[split]}")
            for split, pieces in parts.items()
        }
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({one_line(error)})"
        raise missing(str(wanted), reason, folder, "the files that TFDS wrote") from error
    for examples in splits.values():
        examples[0]  # has a class, or is refused now
    image, label = features.values()
    data = image_data(
        splits,
        pixel_preprocessing(config, preprocessing),
        name=str(wanted),
        class_names=tuple(label.names),
        statistics=STATISTICS.get(wanted.name),
        resize=None in image.shape[:2],  # they differ in size
    )
    return replace(data, version=folder.name)


class RecordImages(Dataset):
    """(PIL image, class number) of the records of one split."""

    def __init__(self, records: Records, features: Any, name: str) -> None:
        """features: TFDS's FeaturesDict of an image and a class, in this order."""
        self.records, self.features, self.name = records, features, name
        self.image, self.label = features
        self.mode = MODES[features[self.image].shape[-1]]  # of PIL
        # PIL decodes the images, as it does those of folders. TFDS would take OpenCV where
        # that is installed, and gives grey ones among others without their channels.
        self.decoders = {self.image: import_tfds().decode.SkipDecoding()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        record = self.records[index]
        try:
            example = self.features.deserialize_example_np(record, decoders=self.decoders)
            image = Image.open(BytesIO(example[self.image])).convert(self.mode)
        except Exception as error:
            error.add_note(f"in example {index} of {self.name}")
            raise
        if (number := int(example[self.label])) < 0:
            raise UserError(f"{KEY}: example {index} of {self.name} has no class")
        return image, number


def _description(folder: Path, wanted: TFDSName) -> Any:
    """TFDS's of a prepared data set, for which its generator is not needed."""
    tfds = import_tfds()
    try:
        return tfds.builder_from_directory(folder).info
    except Exception as error:  # whatever is wrong with the files
        reason = f"cannot be read ({one_line(error)})"
        raise missing(str(wanted), reason, folder, " and ".join(METADATA)) from error


def _image_and_class(info: Any, wanted: TFDSName) -> Any:
    """TFDS's FeaturesDict of the pair that it calls supervised, else of `image` and `label`;
    UserError for others."""
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
            return tfds.features.FeaturesDict({keys[0]: image, keys[1]: label})
    found = ", ".join(f"{key}: {feature!r}" for key, feature in sorted(features.items()))
    found = " ".join((found or repr(info.features)).split())
    expected = "a data set of images with 1 or 3 channels and one class each"
    raise bad_value("dataset", str(wanted), f"{expected}; it has {found}")


def _instructions(info: Any, split: str, spelling: str, wanted: TFDSName) -> list[Any]:
    """Which records of which files a split has; TFDS cuts it, part by part as it does itself."""
    found: list[Any] = []
    for part in re.split(r"\s*\+\s*", spelling):
        base = part.partition("[")[0]
        if base != "all":
            check_bases({split: base}, list(info.splits), str(wanted))
        try:
            pieces = info.splits[part].file_instructions
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{KEY}: {split}: {spelling!r}: {one_line(error)}") from None
        if not pieces or any(piece.take < 1 for piece in pieces):
            size = info.splits[base].num_examples
            raise UserError(f"{KEY}: {split}: {part!r} is empty, as {base!r} has {size} examples")
        found += pieces
    return found
