"""dataset: family/name -> Data. To add a family: a file beside this one, and a line in FAMILIES."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from src.data import libsvm, own, sklearn, timm
from src.data.arrays import to_shape, warn_of_absent_classes, with_classes
from src.data.splits import Data, DatasetSplit, Preprocessing
from src.names import UserError, bad_value, pick, split_family
from src.own_code import is_own

if TYPE_CHECKING:
    from src.config import Config


def build_data(config: "Config", preprocessing: Preprocessing | None) -> Data:
    """The splits that config.data_splits_map asks for, as the model wants its inputs."""
    check_dataset(config)
    name, (_, build) = family_of(config.dataset)
    data = build(config, name, _looks(config, preprocessing or Preprocessing()))
    return with_classes(data, config.data_n_classes, config.dataset)


def check_dataset(config: "Config") -> None:
    """UserError for what shows before any data are there: names, parts, keys that contradict."""
    name, (check, _) = family_of(config.dataset)
    check(config, name)
    if (config.data_mean is None) != (config.data_std is None):
        raise UserError("data_mean, data_std: give both or neither")


def family_of(dataset: str) -> tuple[str, tuple["Check", "Build"]]:
    """(the name in its family, what checks and builds it); a fork's own has a colon."""
    if is_own(dataset):
        return dataset, (check_own, build_own)
    family, name = split_family(dataset)
    return name, pick(FAMILIES, family, "dataset")


def _looks(config: "Config", network: Preprocessing) -> Preprocessing:
    """What the network wants, overruled by what the config gives."""
    looks = network
    if config.model_input_shape is not None:
        shape = tuple(config.model_input_shape)  # of rows it may be of any length
        looks = replace(looks, input_shape=shape)  # type: ignore[arg-type]
    if config.data_mean is not None and config.data_std is not None:
        looks = replace(looks, mean=tuple(config.data_mean), std=tuple(config.data_std))
    return looks


def check_sklearn(config: "Config", name: str) -> None:
    sklearn.check_name(name, config.data_splits_map)


def build_sklearn(config: "Config", name: str, looks: Preprocessing) -> Data:
    data = sklearn.load(name, config.data_splits_map, normalize=config.data_normalize)
    if len(data.input_shape) == 1:
        _refuse_pixel_statistics(config)
    warn_of_absent_classes(data)
    return to_shape(data, looks, config.dataset)


def check_libsvm(config: "Config", name: str) -> None:
    _refuse_pixel_statistics(config)
    libsvm.check_name(name, config.data_splits_map, data_dir=Path(config.data_dir))


def build_libsvm(config: "Config", name: str, looks: Preprocessing) -> Data:
    data = libsvm.load(
        name,
        config.data_splits_map,
        data_dir=Path(config.data_dir),
        download=config.data_download,
        normalize=config.data_normalize,
    )
    warn_of_absent_classes(data)
    return to_shape(data, looks, config.dataset)


def check_timm(config: "Config", name: str) -> None:
    timm.check_name(name, config.data_splits_map)
    if config.data_normalize not in (None, "none"):
        expected = "null (pixels by mean and std) or none (pixels between 0 and 1) for images"
        raise bad_value("data_normalize", config.data_normalize, expected)
    if config.data_normalize == "none" and config.data_mean is not None:
        raise UserError("data_normalize: got 'none', but data_mean and data_std are given")


def build_timm(config: "Config", name: str, looks: Preprocessing) -> Data:
    if config.data_normalize == "none":
        looks = replace(looks, mean=(0.0,), std=(1.0,))
    return timm.load(
        name,
        config.data_splits_map,
        data_dir=Path(config.data_dir),
        download=config.data_download,
        looks=looks,
    )


def check_own(config: "Config", name: str) -> None:
    own.look_up(name)


def build_own(config: "Config", name: str, looks: Preprocessing) -> Data:
    normalize, data_dir = config.data_normalize, Path(config.data_dir)
    splits = config.data_splits_map
    data = own.load(name, splits, data_dir=data_dir, normalize=normalize, looks=looks)
    if any(isinstance(split, DatasetSplit) for split in data.splits.values()):
        return data  # its transforms do the rest
    if len(data.input_shape) == 1:
        _refuse_pixel_statistics(config)
    warn_of_absent_classes(data)
    return to_shape(data, looks, config.dataset)


Check = Callable[["Config", str], None]
Build = Callable[["Config", str, Preprocessing], Data]
FAMILIES: dict[str, tuple[Check, Build]] = {
    "libsvm": (check_libsvm, build_libsvm),
    "sklearn": (check_sklearn, build_sklearn),
    "timm": (check_timm, build_timm),
}


def _refuse_pixel_statistics(config: "Config") -> None:
    if config.data_mean is not None:
        raise UserError(
            f"data_mean, data_std: for images alone; {config.dataset} is normalised by"
            " data_normalize (rows, columns or none)"
        )
