"""dataset: family/name -> Data. To add a family: a file in sources/, and a line in FAMILIES."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from loguru import logger

from src.config import Config, is_import_path
from src.data.arrays import with_num_classes
from src.data.batch_augmentation import MIXABLE_LOSSES, Mixing, OwnAugmentation, not_in_batches
from src.data.source import Source, example_augmentation, refuse_augmentation
from src.data.sources import custom, hf, libsvm, sklearn, tfds, timm
from src.data.splits import Data, LoaderConfig, Preprocessing
from src.data.splits_map import by_dataset, joined
from src.data.transforms import check_augmentation, switched_on
from src.support import UserError, bad_value, pick

MOST_SHOWN = 8


# A family is a module with check(config, source), which raises UserError for mistakes that show
# without the data, build(config, source, preprocessing) -> Data, and names(), for --list.
FAMILIES: dict[str, Any] = {
    "hf": hf,
    "libsvm": libsvm,
    "sklearn": sklearn,
    "tfds": tfds,
    "timm": timm,
}


def dataset_names() -> Iterator[str]:
    """What `dataset` takes; of a family whose library is missing, how to install it."""
    for family, module in FAMILIES.items():
        try:
            yield from (f"{family}/{name}" for name in module.names())
        except UserError as error:
            yield f"{family}/… ({error})"


def build_data(config: Config, preprocessing: Preprocessing | None) -> Data:
    """The splits of config.data_splits_map, preprocessed for the model."""
    check_dataset(config)
    own, *others = _sources(config)
    data = _load(config, own, resolve_preprocessing(config, preprocessing or Preprocessing()))
    refuse_augmentation(config, data.splits["train"].augmentation_obstacle)
    data = with_num_classes(data, config.data_n_classes, config.dataset)
    names: Sequence[str] | None = config.data_class_names
    if names == "imagenet":  # the 1000 of open_clip, which were chosen for its prompts
        try:
            from open_clip import IMAGENET_CLASSNAMES
        except ImportError as error:
            needed = "data_class_names: imagenet needs `pip install open_clip_torch`"
            raise UserError(needed) from error
        names = IMAGENET_CLASSNAMES
    if names is not None:
        if len(names) != data.n_classes:
            shown = ", ".join(map(str, names[:MOST_SHOWN])) + ", …" * (len(names) > MOST_SHOWN)
            raise bad_value("data_class_names", shown, f"{data.n_classes} names, not {len(names)}")
        data = replace(data, class_names=tuple(names))
    # examples of other data sets are preprocessed as ours are
    preprocessing = replace(data.preprocessing, input_shape=data.input_shape)  # type: ignore[arg-type]
    loaded = {other.dataset: _load(config, other, preprocessing) for other in others}
    return joined(data, loaded, config.data_class_map or {}, config.data_splits_map)


def build_loader_config(
    config: Config, data: Data, device: torch.device, rank: int = 0, num_processes: int = 1
) -> LoaderConfig:
    """How training batches are made; config with its inferred keys.

    rank, num_processes: which process this is, of how many that share each batch.
    """
    micro_batch_size = config.batch_size_accum or config.batch_size
    if micro_batch_size < num_processes:  # one would get nothing
        expected = f"at least one example for each of {num_processes} processes in a micro-batch"
        raise bad_value("batch_size", config.batch_size, expected)
    left = len(data.splits["train"]) % config.batch_size % micro_batch_size
    if not config.drop_last and 0 < left < num_processes:
        expected = (
            f"another one, drop_last: true or fewer processes, as {num_processes} of them share "
            f"the last micro-batch of a pass, which is left with {left}"
        )
        raise bad_value("batch_size", config.batch_size, expected)
    augmentation, mixing = example_augmentation(config), None
    if config.aug_mixup or config.aug_cutmix:
        mixing = Mixing(
            config.model_output_dim,  # type: ignore[arg-type]
            mixup=config.aug_mixup,
            cutmix=config.aug_cutmix,
            prob=config.aug_mix_prob,
            switch_prob=config.aug_mix_switch_prob,
        )
    own = OwnAugmentation(config.aug_function, rank) if config.aug_function else None
    return LoaderConfig(
        config.batch_size,
        device,
        config.num_workers,
        augmentation=augmentation if switched_on(augmentation) else None,
        mixing=mixing,
        repeats=config.aug_repeats,
        own_augmentation=own,
        rank=rank,
        num_processes=num_processes,
        micro_batch_size=config.batch_size_accum,
    )


def check_dataset(config: Config) -> None:
    """UserError for mistakes that show without the data: names, parts, contradictions of keys."""
    for source in _sources(config):
        family, source = family_of(source)
        family.check(config, source)
    own = config.dataset
    prefix = "" if is_import_path(own) else own.removeprefix("timm/").partition("/")[0]
    if config.data_version is not None and prefix not in ("tfds", "hf", "hfds"):
        expected = f"null, as {own} is neither tfds/… nor hf/…"
        raise bad_value("data_version", config.data_version, expected)
    if (config.data_mean is None) != (config.data_std is None):
        raise UserError("data_mean, data_std: give both or neither")

    augmentation = example_augmentation(config)
    check_augmentation(augmentation)
    if config.data_on_device is True and (obstacle := not_in_batches(*switched_on(augmentation))):
        raise bad_value("data_on_device", True, f"auto or false, as {obstacle}")
    if config.aug_function is not None:
        OwnAugmentation(config.aug_function)
    if config.aug_repeats > 1 and not switched_on(augmentation) and not config.aug_function:
        expected = "1, as copies of an example would be the same: no aug_… of single examples is on"
        raise bad_value("aug_repeats", config.aug_repeats, expected)
    is_mixable = config.loss in MIXABLE_LOSSES or is_import_path(config.loss)
    if (config.aug_mixup or config.aug_cutmix) and not is_mixable:
        expected = f"{MIXABLE_LOSSES[0]!r}, as aug_mixup and aug_cutmix make mixtures of classes"
        raise bad_value("loss", config.loss, expected)


def _sources(config: Config) -> list[Source]:
    """The data sets of the splits, that of the key `dataset` first."""
    splits_of = by_dataset(config.data_splits_map, config.dataset)
    version = {config.dataset: config.data_version}
    return [Source(dataset, splits, version.get(dataset)) for dataset, splits in splits_of.items()]


def _load(config: Config, named: Source, preprocessing: Preprocessing) -> Data:
    family, source = family_of(named)
    if source != named:
        logger.info("{} is read as {}", named.dataset, source.dataset)
    return family.build(config, source, preprocessing)


def family_of(source: Source) -> tuple[Any, Source]:
    """The module that serves it, and the source by the name that it has there."""
    if is_import_path(source.dataset):
        return custom, source
    family = pick(FAMILIES, source.dataset.partition("/")[0], "dataset")
    kind, _, name = source.name.partition("/")
    if family is timm and kind in timm.ELSEWHERE:
        return family_of(replace(source, dataset=f"{timm.ELSEWHERE[kind]}/{name}"))
    return family, source


def resolve_preprocessing(config: Config, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing of the network, overruled by the keys of the config."""

    def of(values: list[Any] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values)

    given: dict[str, Any] = {
        "input_shape": of(config.model_input_shape),  # of rows it may be of any length
        "mean": of(config.data_mean),
        "std": of(config.data_std),
        "augmentation": example_augmentation(config),
        "crop_pct": config.data_crop_pct,
        "is_cropped": config.data_crop_pct is not None or None,
        "interpolation": config.data_interpolation,
        "tokenizer": config.data_tokenizer,
        "text_length": config.data_text_length,
    }
    return replace(preprocessing, **{k: value for k, value in given.items() if value is not None})
