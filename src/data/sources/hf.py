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
from src.data.splits import Data, Preprocessing, Split
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


@dataclass(frozen=True)
class HFOptions:
    """Where the data are, and what is taken from them.

    revision: of a set of the hub. input_columns, target_column: None: see hf_columns.py.
    predicts_next_token: the targets are the next tokens of texts; is_packed: in examples of one
    length. is_grouped: texts of about the same length make a batch, of those with classes.
    """

    data_dir: Path
    download: bool = True
    revision: str | None = None
    input_columns: Sequence[str] | None = None
    target_column: str | None = None
    predicts_next_token: bool = False
    is_packed: bool = True
    is_grouped: bool = False
    normalize: str | None = None


def check(config: Config, source: Source) -> None:
    check_name(source.name, source.splits_map, revision=source.version)
    if config.data_group_by_length and config.loss == "next_token":
        # a batch's loss is a mean over its tokens, so those of short texts would count for more
        expected = "false, as loss is next_token; data_text_pack leaves no padding at all"
        raise bad_value("data_group_by_length", True, expected)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    """Images, texts or rows: the files decide which keys apply."""
    options = HFOptions(
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
    data = load(source.name, source.splits_map, options, pixel_preprocessing(config, preprocessing))
    split = next(iter(data.splits.values()))
    if not split.is_fitted:
        return shaped(config, source, data, preprocessing)
    if not split.is_in_memory:
        check_pixel_keys(config)
    else:
        refuse_pixel_statistics(config, source)
    return data


def load(
    name: str,
    splits_map: Mapping[str, str],
    options: HFOptions,
    preprocessing: Preprocessing | None = None,
) -> Data:
    """Images, where a column holds some; texts, where there is a tokenizer for them; else rows.

    A part that is sorted by class is shuffled, once and for all. UserError.
    """
    preprocessing, dataset = preprocessing or Preprocessing(), f"hf/{name}"
    parts, version = open_parts(name, splits_map, options)
    ranges = resolve_all(splits_map, {base: len(part) for base, part in parts.items()})
    kinds = columns.kinds_of(parts, dataset)
    target, targets = None, None
    if not options.predicts_next_token:
        target = columns.target_column(kinds, options.target_column)
        targets = columns.read_targets(parts, target, kinds[target], dataset)
        parts, targets = _shuffled(parts, targets, dataset)
    chosen = columns.input_columns(kinds, options.input_columns, target)
    images = [column for column in chosen if kinds[column] == "image"]
    of: list[str] = []
    if preprocessing.tokenizer is not None and not (images and targets):
        is_requested = options.input_columns is not None
        of = columns.text_columns(kinds, chosen, is_requested=is_requested)

    if images and targets is not None:
        columns.refuse_missing(parts, images, dataset)
        data = _image_data(parts, images[0], targets, ranges, preprocessing, dataset=dataset)
    elif of:
        columns.refuse_missing(parts, of, dataset)
        data = _text_data(parts, of, targets, ranges, preprocessing, options=options)
    elif targets is not None:
        inputs = columns.read_numbers(parts, kinds, chosen, dataset)
        bases = {base: ArraySplit(inputs[base], targets.of[base]) for base in parts}
        splits = split_arrays(bases, splits_map, options.normalize or "none")
        shape = tuple(splits[next(iter(splits))].inputs.shape[1:])
        data = Data(dict(splits), shape, targets.n_classes, targets.names)
    elif preprocessing.tokenizer is None:
        raise bad_value("data_tokenizer", None, "a tokenizer, as loss is next_token")
    else:
        known = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise bad_value("loss", "next_token", f"another one, as {name} has no texts: {known}")
    return replace(data, version=version)


def _shuffled(parts: Parts, targets: Targets, dataset: str) -> tuple[Parts, Targets]:
    """The parts that are sorted by class in another order, which never changes."""
    if targets.n_classes is None:
        return parts, targets
    parts, numbers = dict(parts), dict(targets.of)
    for base, part in parts.items():
        if columns.is_sorted_by_class(numbers[base]):
            logger.info("{}: {} is sorted by class; it is shuffled", dataset, base)
            order = np.random.RandomState(0).permutation(len(part))  # numbers that never change
            parts[base] = part.select(order)
            numbers[base] = numbers[base][torch.from_numpy(order)]
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


def _image_data(
    parts: Parts,
    column: str,
    targets: Targets,
    ranges: Mapping[str, list[Range]],
    preprocessing: Preprocessing,
    *,
    dataset: str,
) -> Data:
    if targets.n_classes is None:
        raise UserError(f"data_target_column: {dataset}: images need classes, not numbers")
    bases = {
        base: ColumnImages(part.select_columns([column]), column, targets.of[base].numpy())
        for base, part in parts.items()
    }
    names, splits = targets.names, cut(bases, ranges)
    # resize: as only some of the images are looked at
    return image_data(splits, preprocessing, name=dataset, class_names=names, resize=True)


def _text_data(
    parts: Parts,
    of: Sequence[str],
    targets: Targets | None,
    ranges: Mapping[str, list[Range]],
    preprocessing: Preprocessing,
    *,
    options: HFOptions,
) -> Data:
    """Tokens of one column of texts, or of pairs."""
    length = preprocessing.text_length or TEXT_LENGTH
    if preprocessing.input_shape not in (None, (length,)):
        expected = f"null or [{length}], as data_text_length, for texts"
        raise bad_value("model_input_shape", list(preprocessing.input_shape or ()), expected)
    if options.normalize not in (None, "none"):
        raise bad_value("data_normalize", options.normalize, "null or none for texts")
    if targets is None and len(of) > 1:
        raise bad_value("data_input_columns", list(of), "one column, as loss is next_token")
    tokenizer = texts.load_tokenizer(str(preprocessing.tokenizer), download=options.download)
    to_ids: texts.ToClassify | texts.ToContinue = texts.ToClassify(tokenizer, length)
    if targets is None:
        to_ids = texts.ToContinue(tokenizer, has_start=not options.is_packed)
    cache = options.data_dir / "hf" / "tokens"
    tokens = {base: texts.tokenise(part, of, to_ids, cache=cache) for base, part in parts.items()}
    splits: dict[str, Split] = {}
    for split, of_split in ranges.items():
        taken = texts.take(tokens, of_split)
        if targets is not None:
            numbers = torch.cat([targets.of[base][i:j] for base, i, j in of_split])
            splits[split] = texts.classified(taken, numbers, options.is_grouped)
        else:
            splits[split] = (texts.packed if options.is_packed else texts.one_by_one)(taken, length)
        if not len(splits[split]):
            raise UserError(f"data_splits_map: {split}: no text has a token to predict")
    preprocessing = replace(preprocessing, text_length=length)
    n_classes = len(tokenizer) if targets is None else targets.n_classes
    names = None if targets is None else targets.names
    return Data(splits, (length,), n_classes, names, preprocessing)


# ---- Opening: files, folders, and sets of the hub ----------------------------------------


def check_name(name: str, splits_map: Mapping[str, str], *, revision: str | None = None) -> None:
    """UserError for what shows without looking at files or asking the hub."""
    loader, _, path = name.partition(":")
    if loader in LOADERS and not path:
        raise bad_value("dataset", f"hf/{name}", f"hf/{loader}:PATH")
    if loader in LOADERS and revision is not None:
        raise bad_value("data_version", revision, "null, as files have no versions")
    if not loader.strip("/"):
        raise bad_value("dataset", f"hf/{name}", f"hf/NAME, hf/PATH, hf/{'|'.join(LOADERS)}:PATH")
    for spelling in splits_map.values():
        parse(spelling)
    if find_spec("datasets") is None:
        needed = f"dataset: hf/{name} needs `pip install datasets`"
        raise UserError(needed) from ImportError("datasets")


def open_parts(
    name: str, splits_map: Mapping[str, str], options: HFOptions
) -> tuple[Parts, str | None]:
    """part -> datasets.Dataset for the parts that are used, and the commit of a set of the hub.

    All parts are read once, by one process, and kept as Arrow files, while others wait. UserError
    for what is not there, cannot be read or lacks a part.
    """
    check_name(name, splits_map, revision=options.revision)
    commit = None
    try:
        _silence()
        if (found := _saved_parts(name, options)) is None:
            builder, commit = _builder(name, options)
            if builder.info.splits:  # a wrong part is refused before gigabytes are fetched
                check_bases(splits_map, list(builder.info.splits), f"hf/{name}")
            builder.download_and_prepare()
            found = builder.as_dataset()
        check_bases(splits_map, list(found), f"hf/{name}")
    except UserError:
        raise
    except Exception as error:  # whatever the files, the library and those below it raise
        is_wrapped = type(error).__name__ == "DatasetGenerationError"
        cause = (error.__cause__ or error) if is_wrapped else error
        raise UserError(f"dataset: hf/{name} cannot be read ({one_line(cause)})") from error
    return {base: found[base].with_format(None) for base in bases_used(splits_map)}, commit


def _silence() -> None:
    """What the two libraries log goes nowhere; progress bars go to a terminal alone."""
    import datasets
    import huggingface_hub

    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _saved_parts(name: str, options: HFOptions) -> Mapping[str, Any] | None:
    """What save_to_disk wrote to the folder; None where the name is of something else."""
    from datasets import load_from_disk

    folder = options.data_dir / name
    if name.partition(":")[0] in LOADERS or not folder.is_dir():
        return None
    logger.info("hf/{} is the folder {}", name, folder)
    if options.revision is not None:
        raise bad_value("data_version", options.revision, "null, as a folder has no versions")
    if not any((folder / file).exists() for file in SAVED):
        return None
    found = load_from_disk(str(folder))
    return found if isinstance(found, Mapping) else {"train": found}


def _builder(name: str, options: HFOptions) -> tuple[Any, str | None]:
    """The library's, of files (one, those of a folder, or those that a pattern fits), of a folder
    or of a set of the hub, whose commit comes with it."""
    from datasets import load_dataset_builder

    loader, _, rest = name.partition(":")
    cache = str(options.data_dir / "hf" / "files")
    folder = options.data_dir / name
    if loader not in LOADERS and folder.is_dir():
        return load_dataset_builder(str(folder), cache_dir=cache), None
    if loader not in LOADERS:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", loader):
            expected = f"a name of the hub, hf/OWNER/NAME, or a folder; there is no {folder}"
            raise bad_value("dataset", f"hf/{name}", expected)
        return _open_hub_set(loader, rest or None, options)
    path = options.data_dir / rest
    given: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
    if not path.is_dir():
        if loader == "imagefolder" or not glob.glob(str(path), recursive=True):
            raise missing(f"hf/{name}", "is not there", path.parent, path.name)
        given["data_files"] = str(path)
    elif loader == "imagefolder":
        given["data_dir"] = str(path)
    else:
        given["data_files"] = _files_of(path, name, LOADERS[loader])
    return load_dataset_builder(loader, cache_dir=cache, **given), None


def _files_of(folder: Path, name: str, endings: list[str]) -> dict[str, list[str]]:
    """part -> its files, as the library tells parts by names of files and folders."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        patterns = get_data_patterns(str(folder))
    except EmptyDatasetError:
        patterns = {}
    found = DataFilesDict.from_patterns(patterns, base_path=str(folder), allowed_extensions=endings)
    if not any(found.values()):
        raise missing(f"hf/{name}", "has no files", folder, " or ".join(f"*{e}" for e in endings))
    return {str(part): list(files) for part, files in found.items() if files}


def _open_hub_set(name: str, configuration: str | None, options: HFOptions) -> tuple[Any, str]:
    """A builder of the data set, and the commit that it is of.

    The hub is asked for the newest one, unless a commit is given that is on disk already. Where
    it cannot be asked, the newest on disk is taken, with a warning. Not by the library itself,
    which takes whatever commit is on disk for the one that was requested. UserError.
    """
    from datasets import load_dataset_builder
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    revision, cache = options.revision, options.data_dir / "hf" / "hub"
    *owner, own = name.split("/")
    folder = cache / "___".join([*owner, camelcase_to_snakecase(own)])  # as the library names it
    request = f"{configuration or ''}@{revision or ''}"
    try:
        notes = json.loads((folder / NOTES).read_text())
    except (OSError, ValueError):
        notes = {}

    is_commit = re.fullmatch(r"[0-9a-f]{40}", revision or "")  # unlike a tag or a branch
    found = _on_disk(name, configuration, revision, folder, notes) if is_commit else None
    if found is None:
        reason = why_out_of_reach() if options.download else "data_download is false"
        if reason is None:
            builder = load_dataset_builder(
                name, configuration, revision=revision, cache_dir=str(cache)
            )
            known = [builder.config.name, builder.hash]
            if notes.get(request) != known:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / NOTES, json.dumps(notes | {request: known}, indent=1))
            return builder, builder.hash
        found = _on_disk(name, configuration, revision, folder, notes)
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


def _on_disk(
    name: str,
    configuration: str | None,
    revision: str | None,
    folder: Path,
    notes: Mapping[str, list[str]],
) -> Path | None:
    """The folder SET/CONFIGURATION/VERSION/COMMIT, of several the newest; UserError where it
    is not known which configuration is meant."""
    request = f"{configuration or ''}@{revision or ''}"
    configuration, commit = notes.get(request, [configuration, revision])
    if configuration is None:  # it is what it was when another revision was requested
        configuration = next((own for key, (own, _) in notes.items() if key[0] == "@"), None)
    pattern = f"{configuration or '*'}/*/{commit if revision else '*'}/dataset_info.json"
    found = [file.parent for file in folder.glob(pattern)]
    known = sorted({home.parts[-3] for home in found})
    if configuration is None and known not in ([], ["default"]):
        expected = f"one of its configurations: {', '.join(f'hf/{name}:{k}' for k in known)}"
        raise bad_value("dataset", f"hf/{name}", expected)
    return max(found, key=lambda home: home.stat().st_mtime, default=None)
