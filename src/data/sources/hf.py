"""hf/…: data sets of the Hugging Face hub, and files that its library `datasets` reads.

hf/NAME, hf/OWNER/NAME      of the hub; hf/NAME:CONFIGURATION where it has several
hf/PATH                     a folder: of files, whose names tell the parts (train.csv, test/…),
                            or what save_to_disk wrote
hf/csv:PATH                 a file, such a folder, or a pattern (logs/*.csv); also json, parquet
hf/text:PATH                the same; each line is a text
hf/imagefolder:PATH         a folder with one folder a class, within folders of parts or without

PATH is absolute or below data_dir, where a folder goes before a set of the hub. A single part
is called train. What was read is kept in data_dir/hf, as Arrow files, and beside it the tokens
of texts; all of that may be deleted. Files of the hub as they were fetched stay in its own cache
(HF_HOME), which other programs share; the library takes no other place for them.
"""

import glob
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.utils.data import Dataset

from src.config import Config
from src.data import text as texts
from src.data.arrays import ArraySplit, split_arrays
from src.data.images import cut, image_data
from src.data.source import (
    Source,
    check_pixel_keys,
    pixel_preprocessing,
    refuse_pixel_statistics,
    shaped,
)
from src.data.sources import hf_columns as columns
from src.data.sources.fetch import missing, why_out_of_reach
from src.data.sources.hf_columns import Parts, Targets
from src.data.splits import SECOND, Data, Preprocessing, Split
from src.data.splits_map import Range, bases_used, check_bases, parse, resolve_all
from src.support import UserError, bad_value, one_line, write_atomically

TEXT_LENGTH = 512
# loader -> the endings of its files in a folder
LOADERS: dict[str, list[str]] = {
    "csv": [".csv"],
    "json": [".json", ".jsonl", ".ndjson"],
    "parquet": [".parquet"],
    "text": [".txt"],
    "imagefolder": [],
}
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
NOTES = "asked_for.json"  # request -> configuration and commit, of a set of the hub


def names() -> list[str]:
    """The forms of names: the hub has too many."""
    return ["NAME", "OWNER/NAME", "FOLDER", *(f"{loader}:PATH" for loader in LOADERS)]


def check(config: Config, source: Source) -> None:
    """UserError for what shows without looking at files or asking the hub."""
    loader, _, path = source.name.partition(":")
    if loader in LOADERS and not path:
        raise bad_value("dataset", source.dataset, f"hf/{loader}:PATH")
    if loader in LOADERS and source.version is not None:
        raise bad_value("data_version", source.version, "null, as files have no versions")
    if not loader.strip("/"):
        raise bad_value("dataset", source.dataset, f"hf/NAME, hf/PATH, hf/{'|'.join(LOADERS)}:PATH")
    for spelling in source.splits_map.values():
        parse(spelling)
    if find_spec("datasets") is None:
        needed = f"dataset: {source.dataset} needs `pip install datasets`"
        raise UserError(needed) from ImportError("datasets")
    if config.data_group_by_length and config.loss == "next_token":
        # a batch's loss is a mean over its tokens, so those of short texts would count for more
        expected = "false, as loss is next_token; data_text_pack leaves no padding at all"
        raise bad_value("data_group_by_length", True, expected)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    """Images, where a column holds some; texts, where there is a tokenizer for them; else rows.

    A part that is sorted by class is shuffled, once and for all. UserError.
    """
    dataset, preprocessing = source.dataset, pixel_preprocessing(config, preprocessing)
    parts, version = open_parts(config, source)
    ranges = resolve_all(source.splits_map, {base: len(part) for base, part in parts.items()})
    kinds = columns.kinds_of(parts, dataset)
    target, targets = None, None
    if config.loss != "next_token":
        target = columns.target_column(kinds, config.data_target_column)
        targets = columns.read_targets(parts, target, kinds[target], dataset)
        parts, targets = _shuffled(parts, targets, dataset)
    chosen = columns.input_columns(kinds, config.data_input_columns, target)
    images = [column for column in chosen if kinds[column] == "image"]
    of_texts: list[str] = []
    if preprocessing.tokenizer is not None and not (images and targets):
        is_requested = config.data_input_columns is not None
        of_texts = columns.text_columns(kinds, chosen, is_requested=is_requested)

    if images and targets is not None:
        columns.refuse_missing(parts, images, dataset)
        if targets.names is None:
            raise UserError(f"data_target_column: {dataset}: images need classes, not numbers")
        bases = {
            base: ColumnImages(part.select_columns(images), images[0], targets.of[base].numpy())
            for base, part in parts.items()
        }
        splits, names = cut(bases, ranges), targets.names
        # resize: as only some of the images are looked at
        data = image_data(splits, preprocessing, name=dataset, class_names=names, resize=True)
        check_pixel_keys(config)
    elif of_texts:
        columns.refuse_missing(parts, of_texts, dataset)
        data = _text_data(config, parts, of_texts, targets, ranges, preprocessing)
        refuse_pixel_statistics(config, source)
    elif targets is not None:
        inputs = columns.read_numbers(parts, kinds, chosen, dataset)
        arrays = {base: ArraySplit(inputs[base], targets.of[base]) for base in parts}
        rows = split_arrays(arrays, source.splits_map, config.data_normalize or "none")
        shape = tuple(next(iter(rows.values())).inputs.shape[1:])
        data = Data(dict(rows), shape, targets.n_classes, targets.names)
        data = shaped(config, source, data, preprocessing)
    elif preprocessing.tokenizer is None:
        raise bad_value("data_tokenizer", None, "a tokenizer, as loss is next_token")
    else:
        known = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        expected = f"another one, as {source.name} has no texts: {known}"
        raise bad_value("loss", "next_token", expected)
    return replace(data, version=version)


def _shuffled(parts: Parts, targets: Targets, dataset: str) -> tuple[Parts, Targets]:
    """The parts in which each class is one run of examples, of which a slice would lack classes,
    in another order, which never changes."""
    parts, numbers = dict(parts), dict(targets.of)
    for base, part in parts.items():
        own = numbers[base]
        runs = int((own[1:] != own[:-1]).sum()) + 1
        if targets.n_classes is not None and 1 < runs == len(own.unique()) < len(own):
            logger.info("{}: {} is sorted by class; it is shuffled", dataset, base)
            order = np.random.RandomState(0).permutation(len(part))  # numbers that never change
            parts[base], numbers[base] = part.select(order), own[torch.from_numpy(order)]
    return parts, replace(targets, of=numbers)


@dataclass(frozen=True)
class ColumnImages(Dataset):
    """dataset[i] -> (PIL image, class number); an image is decoded when it is read."""

    part: Any  # datasets.Dataset with the column of images alone
    column: str
    targets: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.part[int(index)][self.column], int(self.targets[index])


def _text_data(
    config: Config,
    parts: Parts,
    of: Sequence[str],
    targets: Targets | None,
    ranges: Mapping[str, list[Range]],
    preprocessing: Preprocessing,
) -> Data:
    """Tokens of one column of texts, or of pairs; targets: None for the texts' own next tokens."""
    length = preprocessing.text_length or TEXT_LENGTH
    if preprocessing.input_shape not in (None, (length,)):
        expected = f"null or [{length}], as data_text_length, for texts"
        raise bad_value("model_input_shape", list(preprocessing.input_shape or ()), expected)
    if config.data_normalize not in (None, "none"):
        raise bad_value("data_normalize", config.data_normalize, "null or none for texts")
    if targets is None and len(of) > 1:
        raise bad_value("data_input_columns", list(of), "one column, as loss is next_token")
    name, is_packed = str(preprocessing.tokenizer), config.data_text_pack
    tokenizer = texts.load_tokenizer(name, download=config.data_download)
    if targets is None:
        settings: tuple[Any, ...] = ("continue", not is_packed)
        to_ids = partial(texts.ids_to_continue, tokenizer, not is_packed)
    else:
        settings = ("classify", length, SECOND)
        to_ids = partial(texts.ids_to_classify, tokenizer, length)
    key = (list(of), texts.fingerprint(tokenizer), settings)
    cache = Path(config.data_dir) / "hf" / "tokens"
    tokens = {base: texts.tokenise(part, to_ids, key, cache) for base, part in parts.items()}
    splits: dict[str, Split] = {}
    for split, of_split in ranges.items():
        taken = texts.take(tokens, of_split)
        if targets is not None:
            numbers = torch.cat([targets.of[base][i:j] for base, i, j in of_split])
            splits[split] = replace(taken, targets=numbers, is_grouped=config.data_group_by_length)
        else:
            splits[split] = (texts.packed if is_packed else texts.one_by_one)(taken, length)
        if not len(splits[split]):
            raise UserError(f"data_splits_map: {split}: no text has a token to predict")
    n_classes = targets.n_classes if targets else len(tokenizer)
    names = targets.names if targets else None
    return Data(splits, (length,), n_classes, names, replace(preprocessing, text_length=length))


# ---- Opening: files, folders, and sets of the hub ----------------------------------------


def open_parts(config: Config, source: Source) -> tuple[Parts, str | None]:
    """part -> datasets.Dataset for the parts that are used, and the commit of a set of the hub.

    All parts are read once, by one process, and kept as Arrow files, while others wait. UserError
    for what is not there, cannot be read or lacks a part.
    """
    commit = None
    try:
        import datasets
        import huggingface_hub

        # What the two libraries log goes nowhere; progress bars go to a terminal alone.
        datasets.logging.set_verbosity_error()
        huggingface_hub.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        found, commit = _open(config, source)
        if not isinstance(found, Mapping):  # a builder
            if found.info.splits:  # a wrong part is refused before gigabytes are fetched
                check_bases(source.splits_map, list(found.info.splits), source.dataset)
            found.download_and_prepare()
            found = found.as_dataset()
        check_bases(source.splits_map, list(found), source.dataset)
    except UserError:
        raise
    except Exception as error:  # whatever the files, the library and those below it raise
        is_wrapped = type(error).__name__ == "DatasetGenerationError"
        cause = (error.__cause__ or error) if is_wrapped else error
        raise UserError(f"dataset: {source.dataset} cannot be read ({one_line(cause)})") from error
    used = bases_used(source.splits_map)
    return {base: found[base].with_format(None) for base in used}, commit


def _open(config: Config, source: Source) -> tuple[Any, str | None]:
    """What save_to_disk wrote, part -> datasets.Dataset, or a builder of the library: of files
    (one, those of a folder, or those that a pattern fits), of a folder, or of a set of the hub,
    whose commit comes with it."""
    from datasets import load_dataset_builder, load_from_disk

    loader, _, rest = source.name.partition(":")
    data_dir = Path(config.data_dir)
    cache, folder = str(data_dir / "hf" / "files"), data_dir / source.name
    if loader in LOADERS:
        files = _data_files(loader, data_dir / rest, source.dataset)
        return load_dataset_builder(loader, cache_dir=cache, **files), None
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", loader):
            expected = f"a name of the hub, hf/OWNER/NAME, or a folder; there is no {folder}"
            raise bad_value("dataset", source.dataset, expected)
        return _open_hub_set(config, loader, rest or None, source.version)
    logger.info("{} is the folder {}", source.dataset, folder)
    if source.version is not None:
        raise bad_value("data_version", source.version, "null, as a folder has no versions")
    if any((folder / file).exists() for file in SAVED):
        found = load_from_disk(str(folder))
        return found if isinstance(found, Mapping) else {"train": found}, None
    return load_dataset_builder(str(folder), cache_dir=cache), None


def _data_files(loader: str, path: Path, dataset: str) -> dict[str, Any]:
    """Where the library's loader finds its files: a file, a pattern, or a folder, in which it
    tells the parts by names of files and folders."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    if not path.is_dir():
        if loader == "imagefolder" or not glob.glob(str(path), recursive=True):
            raise missing(dataset, "is not there", path.parent, path.name)
        return {"data_files": str(path)} | ({"sep": "\t"} if path.suffix == ".tsv" else {})
    if loader == "imagefolder":
        return {"data_dir": str(path)}
    endings = LOADERS[loader]
    try:
        patterns = get_data_patterns(str(path))
    except EmptyDatasetError:
        patterns = {}
    found = DataFilesDict.from_patterns(patterns, base_path=str(path), allowed_extensions=endings)
    if not any(found.values()):
        raise missing(dataset, "has no files", path, " or ".join(f"*{e}" for e in endings))
    return {"data_files": {str(part): list(files) for part, files in found.items() if files}}


def _open_hub_set(
    config: Config, name: str, configuration: str | None, revision: str | None
) -> tuple[Any, str]:
    """A builder of the data set, and the commit that it is of.

    The hub is asked for the newest one, unless a commit is given that is on disk already. Where
    it cannot be asked, the newest on disk is taken, with a warning. Not by the library itself,
    which takes whatever commit is on disk for the one that was requested. UserError.
    """
    from datasets import load_dataset_builder
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    cache = Path(config.data_dir) / "hf" / "hub"
    *owner, own = name.split("/")
    folder = cache / "___".join([*owner, camelcase_to_snakecase(own)])  # as the library names it
    request = f"{configuration or ''}@{revision or ''}"
    try:
        notes = json.loads((folder / NOTES).read_text())
    except (OSError, ValueError):
        notes = {}

    def on_disk() -> Path | None:
        """The folder SET/CONFIGURATION/VERSION/COMMIT, of several the newest; UserError where it
        is not known which configuration is meant."""
        meant, commit = notes.get(request, [configuration, revision])
        if meant is None:  # it is what it was when another revision was requested
            meant = next((noted for key, (noted, _) in notes.items() if key[0] == "@"), None)
        pattern = f"{meant or '*'}/*/{commit if revision else '*'}/dataset_info.json"
        homes = [file.parent for file in folder.glob(pattern)]
        known = sorted({home.parts[-3] for home in homes})
        if meant is None and known not in ([], ["default"]):
            expected = f"one of its configurations: {', '.join(f'hf/{name}:{k}' for k in known)}"
            raise bad_value("dataset", f"hf/{name}", expected)
        return max(homes, key=lambda home: home.stat().st_mtime, default=None)

    is_commit = re.fullmatch(r"[0-9a-f]{40}", revision or "")  # unlike a tag or a branch
    found = on_disk() if is_commit else None
    if found is None:
        reason = why_out_of_reach() if config.data_download else "data_download is false"
        if reason is None:
            where = {"revision": revision, "cache_dir": str(cache)}
            builder = load_dataset_builder(name, configuration, **where)
            known = [builder.config.name, builder.hash]
            if notes.get(request) != known:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / NOTES, json.dumps(notes | {request: known}, indent=1))
            return builder, builder.hash
        found = on_disk()
        if found is None:
            of = f" of revision {revision}" if revision else ""
            raise UserError(f"dataset: hf/{name}{of} is not in {cache}, and {reason}")
        fetched = f"{name}:{found.parts[-3]} as it was fetched: revision {found.name}"
        logger.warning("hf/{}, as {}", fetched, reason)
    configuration, version, commit = found.parts[-3:]
    builder = Cache(
        cache_dir=str(cache),
        dataset_name=own,
        repo_id=name,
        config_name=configuration,
        version=version,
        hash=commit,
    )
    return builder, commit
