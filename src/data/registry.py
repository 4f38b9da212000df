"""dataset: family/name -> Data. To add a family: a file beside this one, and a line in FAMILIES."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger

from src.config import import_function, is_import_path
from src.data.arrays import to_shape, warn_of_absent_classes, with_num_classes
from src.data.augmentation import check_augmentation, switched_on
from src.data.batch_augmentation import not_in_batches
from src.data.mixing import MIXABLE_LOSSES, Mixing
from src.data.order import check_shards
from src.data.sources import custom, hf, libsvm, sklearn, tfds, timm
from src.data.splits import Augmentation, Data, LoaderConfig, Preprocessing
from src.data.splits_map import by_dataset, joined
from src.support import UserError, bad_value, pick

if TYPE_CHECKING:
    from src.config import Config

MOST_SHOWN = 8


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


def build_data(config: "Config", preprocessing: Preprocessing | None) -> Data:
    """The splits of config.data_splits_map, preprocessed for the model."""
    check_dataset(config)
    own, *others = _sources(config)
    data = _load(config, own, resolve_preprocessing(config, preprocessing or Preprocessing()))
    if data.splits["train"].is_in_memory:
        _refuse_augmentation(config, config.dataset)
    data = with_num_classes(data, config.data_n_classes, config.dataset)
    if (names := _class_names(config)) is not None:
        if len(names) != data.n_classes:
            shown = ", ".join(map(str, names[:MOST_SHOWN])) + ", …" * (len(names) > MOST_SHOWN)
            raise bad_value("data_class_names", shown, f"{data.n_classes} names, not {len(names)}")
        data = replace(data, class_names=tuple(names))
    # examples of other data sets are preprocessed as ours are
    preprocessing = replace(data.preprocessing, input_shape=data.input_shape)  # type: ignore[arg-type]
    loaded = {other.dataset: _load(config, other, preprocessing) for other in others}
    return joined(data, loaded, config.data_class_map or {}, config.data_splits_map)


def found_in(config: "Config", data: Data) -> dict[str, Any]:
    """The inferred keys of the config: name -> value."""
    return {
        "data_n_examples": {name: len(split) for name, split in data.splits.items()},
        "data_n_classes": data.n_classes,
        "data_version": data.version,
        "model_input_shape": list(data.input_shape),
        "batch_size_accum": config.batch_size // config.grad_accum_steps,
    }


def build_loader_config(
    config: "Config", data: Data, device: torch.device, rank: int = 0, num_processes: int = 1
) -> LoaderConfig:
    """How training batches are made; config with its inferred keys.

    rank, num_processes: which process this is, of how many that share each batch.
    """
    sizes = config.batch_size, config.batch_size_accum or config.batch_size
    check_shards(len(data.splits["train"]), *sizes, num_processes, config.drop_last)
    mixing = None
    if config.aug_mixup or config.aug_cutmix:
        for key in ("aug_mixup", "aug_cutmix"):
            obstacle = data.splits["train"].mixing_obstacle(key)
            if (value := getattr(config, key)) and obstacle:
                raise bad_value(key, value, f"0, as {obstacle}")
        mixing = Mixing(
            config.model_output_dim,  # type: ignore[arg-type]
            mixup=config.aug_mixup,
            cutmix=config.aug_cutmix,
            prob=config.aug_mix_prob,
            switch_prob=config.aug_mix_switch_prob,
        )
    return LoaderConfig(
        config.batch_size,
        device,
        config.num_workers,
        mixing,
        config.aug_repeats,
        rank=rank,
        num_processes=num_processes,
        micro_batch_size=config.batch_size_accum,
    )


def check_dataset(config: "Config") -> None:
    """UserError for mistakes that show without the data: names, parts, contradictions of keys."""
    for source in _sources(config):
        check, _ = family_of(source.dataset)
        check(config, source)
    own = config.dataset
    family = "" if is_import_path(own) else own.removeprefix("timm/").partition("/")[0]
    if config.data_version is not None and family not in ("tfds", "hf", "hfds"):
        expected = f"null, as {own} is neither tfds/… nor hf/…"
        raise bad_value("data_version", config.data_version, expected)
    if (config.data_mean is None) != (config.data_std is None):
        raise UserError("data_mean, data_std: give both or neither")
    check_keys_of_augmentation(config)


def check_keys_of_augmentation(config: "Config") -> None:
    """UserError for values that mean nothing, and for contradictions between the keys."""
    augmentation = _augmentation(config)
    check_augmentation(augmentation)
    if config.data_on_device is True and (obstacle := not_in_batches(augmentation)):
        raise bad_value("data_on_device", True, f"auto or false, as {obstacle}")
    if config.aug_repeats > 1 and not switched_on(augmentation):
        expected = "1, as copies of an example would be the same: no aug_… of single images is on"
        raise bad_value("aug_repeats", config.aug_repeats, expected)
    if (config.aug_mixup or config.aug_cutmix) and config.loss not in MIXABLE_LOSSES:
        expected = f"{MIXABLE_LOSSES[0]!r}, as aug_mixup and aug_cutmix make mixtures of classes"
        raise bad_value("loss", config.loss, expected)


def _augmentation(config: "Config") -> Augmentation:
    """The augmentation of single images, keys aug_…"""
    keys = {field.name: getattr(config, f"aug_{field.name}") for field in fields(Augmentation)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
    return Augmentation(**given)


def _refuse_augmentation(config: "Config", dataset: str) -> None:
    """UserError for augmentation of single images, where the data are arrays or texts."""
    names = switched_on(_augmentation(config)) if dataset == config.dataset else []
    for name in names[:1]:
        nothing = "0" if isinstance(getattr(config, f"aug_{name}"), int | float) else "null"
        expected = (
            f"{nothing}, as {dataset} is not read image by image, unlike timm/…, tfds/… and"
            " a custom Dataset"
        )
        raise bad_value(f"aug_{name}", getattr(config, f"aug_{name}"), expected)


def _sources(config: "Config") -> list[Source]:
    """The data sets of the splits, that of the key `dataset` first."""
    splits_of = by_dataset(config.data_splits_map, config.dataset)
    version = {config.dataset: config.data_version}
    return [Source(dataset, splits, version.get(dataset)) for dataset, splits in splits_of.items()]


def _load(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    _, build = family_of(source.dataset)
    return build(config, source, preprocessing)


def family_of(dataset: str) -> tuple["Check", "Build"]:
    """(check, build) of the data set's family."""
    if is_import_path(dataset):
        return check_custom, build_custom
    return pick(FAMILIES, dataset.partition("/")[0], "dataset")


def _class_names(config: "Config") -> Sequence[str] | None:
    """data_class_names; imagenet: the 1000 of open_clip, which were chosen for its prompts."""
    if config.data_class_names != "imagenet":
        return config.data_class_names
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise UserError("data_class_names: imagenet needs `pip install open_clip_torch`") from error
    return list(IMAGENET_CLASSNAMES)


def resolve_preprocessing(config: "Config", preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing of the network, overruled by the keys of the config."""
    if config.model_input_shape is not None:
        shape = tuple(config.model_input_shape)  # of rows it may be of any length
        preprocessing = replace(preprocessing, input_shape=shape)  # type: ignore[arg-type]
    if config.data_mean is not None and config.data_std is not None:
        preprocessing = replace(
            preprocessing, mean=tuple(config.data_mean), std=tuple(config.data_std)
        )
    given: dict[str, Any] = {
        "augmentation": _augmentation(config),
        "crop_pct": config.data_crop_pct,
        "is_cropped": config.data_crop_pct is not None or None,
        "interpolation": config.data_interpolation,
        "tokenizer": config.data_tokenizer,
        "text_length": config.data_text_length,
    }
    return replace(
        preprocessing, **{key: value for key, value in given.items() if value is not None}
    )


def check_sklearn(config: "Config", source: Source) -> None:
    _refuse_augmentation(config, source.dataset)
    sklearn.check_name(source.name, source.splits_map)


def build_sklearn(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    data = sklearn.load(source.name, source.splits_map, normalize=config.data_normalize)
    return _shaped(config, source, data, preprocessing)


def check_libsvm(config: "Config", source: Source) -> None:
    _refuse_augmentation(config, source.dataset)
    _refuse_pixel_statistics(config, source)
    libsvm.check_name(source.name, source.splits_map, data_dir=Path(config.data_dir))


def build_libsvm(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    data = libsvm.load(
        source.name,
        source.splits_map,
        data_dir=Path(config.data_dir),
        download=config.data_download,
        normalize=config.data_normalize,
    )
    return _shaped(config, source, data, preprocessing)


def check_timm(config: "Config", source: Source) -> None:
    if elsewhere := timm.name_elsewhere(source.name):
        check, _ = family_of(elsewhere)
        return check(config, replace(source, dataset=elsewhere))
    timm.check_name(source.name, source.splits_map)
    _check_pixels(config)


def build_timm(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    if elsewhere := timm.name_elsewhere(source.name):
        logger.info("{} is read as {}", source.dataset, elsewhere)
        return _load(config, replace(source, dataset=elsewhere), preprocessing)
    return timm.load(
        source.name,
        source.splits_map,
        data_dir=Path(config.data_dir),
        download=config.data_download,
        preprocessing=_pixels(config, preprocessing),
    )


def check_tfds(config: "Config", source: Source) -> None:
    data_dir = Path(config.data_dir)
    tfds.check_name(source.name, source.splits_map, data_dir=data_dir, version=source.version)
    _check_pixels(config)


def build_tfds(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    return tfds.load(
        source.name,
        source.splits_map,
        data_dir=Path(config.data_dir),
        download=config.data_download,
        version=source.version,
        preprocessing=_pixels(config, preprocessing),
        has_workers=config.num_workers > 0,
    )


def check_hf(config: "Config", source: Source) -> None:
    hf.check_name(source.name, source.splits_map, revision=source.version)
    if config.data_group_by_length and config.loss == "next_token":
        # a batch's loss is a mean over its tokens, so those of short texts would count for more
        expected = "false, as loss is next_token; data_text_pack leaves no padding at all"
        raise bad_value("data_group_by_length", True, expected)


def build_hf(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    """Images, texts or rows: the files decide which keys apply."""
    options = hf.HFOptions(
        Path(config.data_dir),
        download=config.data_download,
        revision=source.version,
        input_columns=config.data_input_columns,
        target_column=config.data_target_column,
        predicts_next_token=config.loss == "next_token",
        is_packed=config.data_text_pack,
        is_grouped=config.data_group_by_length,
        normalize=config.data_normalize,
    )
    data = hf.load(source.name, source.splits_map, options, _pixels(config, preprocessing))
    split = next(iter(data.splits.values()))
    if not split.is_fitted:
        return _shaped(config, source, data, preprocessing)
    if not split.is_in_memory:
        _check_pixels(config)
    else:
        _refuse_pixel_statistics(config, source)
    return data


def check_custom(config: "Config", source: Source) -> None:
    import_function(source.name, "dataset")


def build_custom(config: "Config", source: Source, preprocessing: Preprocessing) -> Data:
    data = custom.load(
        source.name,
        source.splits_map,
        data_dir=Path(config.data_dir),
        normalize=config.data_normalize,
        preprocessing=preprocessing,
    )
    if any(split.is_fitted for split in data.splits.values()):
        return data  # its transforms do the rest
    return _shaped(config, source, data, preprocessing)


Check = Callable[["Config", Source], None]
Build = Callable[["Config", Source, Preprocessing], Data]
FAMILIES: dict[str, tuple[Check, Build]] = {
    "hf": (check_hf, build_hf),
    "libsvm": (check_libsvm, build_libsvm),
    "sklearn": (check_sklearn, build_sklearn),
    "tfds": (check_tfds, build_tfds),
    "timm": (check_timm, build_timm),
}


def _shaped(config: "Config", source: Source, data: Data, preprocessing: Preprocessing) -> Data:
    """Arrays in the shape that the model takes."""
    if len(data.input_shape) == 1:
        _refuse_pixel_statistics(config, source)
    warn_of_absent_classes(data)
    data = to_shape(data, preprocessing, source.dataset)
    # pixels without a mean; for splits of other data sets, whose examples should be alike
    mean, std = preprocessing.mean or (0.0,), preprocessing.std or (1.0,)
    return replace(data, preprocessing=replace(preprocessing, mean=mean, std=std))


def _check_pixels(config: "Config") -> None:
    """UserError for keys that do not fit images that are read one at a time."""
    if config.data_normalize not in (None, "none"):
        expected = "null (pixels by mean and std) or none (pixels between 0 and 1) for images"
        raise bad_value("data_normalize", config.data_normalize, expected)
    if config.data_normalize == "none" and config.data_mean is not None:
        raise UserError("data_normalize: got 'none', but data_mean and data_std are given")


def _pixels(config: "Config", preprocessing: Preprocessing) -> Preprocessing:
    is_raw = config.data_normalize == "none"
    return replace(preprocessing, mean=(0.0,), std=(1.0,)) if is_raw else preprocessing


def _refuse_pixel_statistics(config: "Config", source: Source) -> None:
    if config.data_mean is not None:
        raise UserError(
            f"data_mean, data_std: for images alone; {source.dataset} is normalised by"
            " data_normalize (rows, columns or none)"
        )
