"""Source: a data set as the configuration names it; and what the families of data sets share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from src.config import Config, is_import_path
from src.data.arrays import to_shape, warn_of_absent_classes
from src.data.batch_augmentation import not_of_arrays
from src.data.splits import Augmentation, Data, Preprocessing
from src.data.transforms import switched_on
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


def example_augmentation(config: Config) -> Augmentation:
    """The augmentation of single examples, keys aug_…"""
    given: dict[str, Any] = {}
    for field in fields(Augmentation):
        value = getattr(config, f"aug_{field.name}")
        given[field.name] = tuple(value) if isinstance(value, list) else value
    return Augmentation(**given)


def refuse_augmentation(config: Config, obstacle_of: Callable[[str], str | None]) -> None:
    """UserError for a key aug_NAME that is on, where obstacle_of(NAME) says why it can't be."""
    for name in (*switched_on(example_augmentation(config)), "mixup", "cutmix"):
        value = getattr(config, f"aug_{name}")
        if value and (obstacle := obstacle_of(name)):
            nothing = "0" if isinstance(value, int | float) else "null"
            raise bad_value(f"aug_{name}", value, f"{nothing}, as {obstacle}")


def refuse_augmentation_of_arrays(
    config: Config, source: Source, *, are_images: bool = False
) -> None:
    """The same where it shows without the data, which are arrays."""
    if config.model_input_shape is not None:
        are_images = len(config.model_input_shape) == 3
    if source.dataset == config.dataset:
        refuse_augmentation(config, partial(not_of_arrays, are_images=are_images))


def refuse_pixel_statistics(config: Config, source: Source) -> None:
    if config.data_mean is not None:
        how = f"{source.dataset} is normalised by data_normalize (rows, columns or none)"
        raise UserError(f"data_mean, data_std: for images alone; {how}")


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
