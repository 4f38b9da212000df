"""Source: a data set as the configuration names it; and what the families of data sets share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from src.config import Config, is_import_path
from src.data.arrays import to_shape, warn_of_absent_classes
from src.data.augmentation import switched_on
from src.data.splits import Augmentation, Data, Preprocessing
from src.support import UserError, bad_value


@dataclass(frozen=True)
class Source:
    """A data set as the configuration names it, and the splits that come from it."""

    dataset: str  # family/name, or a fork's own module.path:function
    splits_map: Mapping[str, str]
    version: str | None = None

    @property
    def name(self) -> str:
        """The name within its family."""
        return self.dataset if is_import_path(self.dataset) else self.dataset.partition("/")[2]


def image_augmentation(config: Config) -> Augmentation:
    """The augmentation of single images, keys aug_…"""
    keys = {field.name: getattr(config, f"aug_{field.name}") for field in fields(Augmentation)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
    return Augmentation(**given)


def refuse_augmentation(config: Config, dataset: str) -> None:
    """UserError for augmentation of single images, where the data are arrays or texts."""
    names = switched_on(image_augmentation(config)) if dataset == config.dataset else []
    for name in names[:1]:
        nothing = "0" if isinstance(getattr(config, f"aug_{name}"), int | float) else "null"
        expected = (
            f"{nothing}, as {dataset} is not read image by image, unlike timm/…, tfds/… and"
            " a custom Dataset"
        )
        raise bad_value(f"aug_{name}", getattr(config, f"aug_{name}"), expected)


def refuse_pixel_statistics(config: Config, source: Source) -> None:
    if config.data_mean is not None:
        raise UserError(
            f"data_mean, data_std: for images alone; {source.dataset} is normalised by"
            " data_normalize (rows, columns or none)"
        )


def check_pixel_keys(config: Config) -> None:
    """UserError for keys that do not fit images that are read one at a time."""
    if config.data_normalize not in (None, "none"):
        expected = "null (pixels by mean and std) or none (pixels between 0 and 1) for images"
        raise bad_value("data_normalize", config.data_normalize, expected)
    if config.data_normalize == "none" and config.data_mean is not None:
        raise UserError("data_normalize: got 'none', but data_mean and data_std are given")


def pixel_preprocessing(config: Config, preprocessing: Preprocessing) -> Preprocessing:
    is_raw = config.data_normalize == "none"
    return replace(preprocessing, mean=(0.0,), std=(1.0,)) if is_raw else preprocessing


def shaped(config: Config, source: Source, data: Data, preprocessing: Preprocessing) -> Data:
    """Arrays in the shape that the model takes."""
    if len(data.input_shape) == 1:
        refuse_pixel_statistics(config, source)
    warn_of_absent_classes(data)
    data = to_shape(data, preprocessing, source.dataset)
    # pixels without a mean; for splits of other data sets, whose examples should be alike
    mean, std = preprocessing.mean or (0.0,), preprocessing.std or (1.0,)
    return replace(data, preprocessing=replace(preprocessing, mean=mean, std=std))
