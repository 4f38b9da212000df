"""hf/…: data sets of the Hugging Face hub, and files that its library `datasets` reads.

hf/NAME, hf/OWNER/NAME      of the hub; hf/NAME:CONFIGURATION where it has several
hf/PATH                     a folder: of files, whose names tell the parts (train.csv, test/…),
                            or what save_to_disk wrote
hf/csv:PATH                 a file, such a folder, or a pattern (logs/*.csv); also json, parquet
hf/text:PATH                the same; each line is a text
hf/imagefolder:PATH         a folder with one folder a class, within folders of parts or without

PATH is absolute or below data_dir, where a folder goes before a set of the hub. A single part
is called train. What was read is kept in data_dir/hf, as Arrow files, and beside it the tokens
of texts; all of that may be deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch.utils.data import Dataset

from src.data import text as texts
from src.data.arrays import ArraySplit, split_arrays
from src.data.images import cut, image_data
from src.data.slices import Range, resolve_all
from src.data.sources.hf import columns
from src.data.sources.hf.columns import Kinds, Parts, Targets
from src.data.sources.hf.files import Place, open_parts
from src.data.splits import Data, Preprocessing, Split
from src.support import UserError, bad_value

TEXT_LENGTH = 512


@dataclass(frozen=True)
class Wanted:
    """What is taken from a data set.

    inputs, target: columns; None: see src/data/sources/hf/columns.py. is_continued: the
    targets are the next tokens of texts; is_packed: in examples of one length. is_grouped:
    texts of about the same length make a batch, of those with classes.
    """

    inputs: Sequence[str] | None = None
    target: str | None = None
    is_continued: bool = False
    is_packed: bool = True
    is_grouped: bool = False
    normalize: str | None = None


@dataclass(frozen=True)
class Table:
    """The parts of a data set that are used, which slices of them make the splits, the targets."""

    dataset: str
    parts: Parts
    kinds: Kinds
    ranges: Mapping[str, list[Range]]
    splits_map: Mapping[str, str]
    targets: Targets | None  # None where they are the next tokens


def load(
    name: str,
    splits_map: Mapping[str, str],
    place: Place,
    *,
    looks: Preprocessing | None = None,
    wanted: Wanted | None = None,
) -> Data:
    """Images, where a column holds some; texts, where there is a tokenizer for them; else rows.

    A part that is sorted by class is shuffled, once and for all. UserError.
    """
    looks, wanted = looks or Preprocessing(), wanted or Wanted()
    parts, version = open_parts(name, splits_map, place)
    sizes = {base: len(part) for base, part in parts.items()}
    ranges = resolve_all(splits_map, sizes)
    kinds = columns.kinds_of(parts, f"hf/{name}")
    table = Table(f"hf/{name}", parts, kinds, ranges, splits_map, None)
    target = None
    if not wanted.is_continued:
        target = columns.target_column(kinds, wanted.target)
        targets = columns.read_targets(parts, target, kinds[target], table.dataset)
        table = _shuffled(replace(table, targets=targets))
    chosen = columns.input_columns(kinds, wanted.inputs, target)
    image = columns.image_column(kinds, chosen)
    if image is not None and table.targets is not None:
        return replace(_images(table, table.targets, image, looks), version=version)
    of: list[str] = []
    if looks.tokenizer is not None:
        of = columns.text_columns(kinds, chosen, is_asked=wanted.inputs is not None)
    if of:
        data = _texts(table, of, looks=looks, wanted=wanted, place=place)
    elif table.targets is not None:
        data = _rows(table, table.targets, chosen, wanted.normalize)
    elif looks.tokenizer is None:
        raise bad_value("data_tokenizer", None, "a tokenizer, as loss is next_token")
    else:
        held = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise bad_value("loss", "next_token", f"another one, as {name} has no texts: {held}")
    return replace(data, version=version)


def _shuffled(table: Table) -> Table:
    """The parts that are sorted by class in another order, which never changes."""
    targets = table.targets
    if targets is None or targets.n_classes is None:
        return table
    parts, numbers = dict(table.parts), dict(targets.of)
    for base, part in table.parts.items():
        if columns.is_sorted_by_class(numbers[base]):
            logger.info("{}: {} is sorted by class; it is shuffled", table.dataset, base)
            order = np.random.RandomState(0).permutation(len(part))  # numbers that never change
            parts[base] = part.select(order)
            numbers[base] = numbers[base][torch.from_numpy(order)]
    return replace(table, parts=parts, targets=replace(targets, of=numbers))


# ---- Images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Images(Dataset):
    """dataset[i] -> (PIL image, class number); an image is decoded when it is asked for."""

    part: Any  # datasets.Dataset with the column of images alone
    column: str
    targets: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.part[int(index)][self.column], int(self.targets[index])


def _images(table: Table, targets: Targets, column: str, looks: Preprocessing) -> Data:
    if targets.n_classes is None:
        raise UserError(f"data_target_column: {table.dataset}: images need classes, not numbers")
    columns.refuse_missing(table.parts, [column], table.dataset)
    bases = {
        base: _Images(part.select_columns([column]), column, targets.of[base].numpy())
        for base, part in table.parts.items()
    }
    return image_data(
        cut(bases, table.ranges),
        looks,
        name=table.dataset,
        class_names=targets.names,
        resize=True,  # only some are looked at
    )


# ---- Texts -------------------------------------------------------------------------------


def _texts(
    table: Table, of: Sequence[str], *, looks: Preprocessing, wanted: Wanted, place: Place
) -> Data:
    """Tokens of one column of texts, or of pairs."""
    length = looks.text_length or TEXT_LENGTH
    if looks.input_shape not in (None, (length,)):
        expected = f"null or [{length}], as data_text_length, for texts"
        raise bad_value("model_input_shape", list(looks.input_shape or ()), expected)
    if wanted.normalize not in (None, "none"):
        raise bad_value("data_normalize", wanted.normalize, "null or none for texts")
    if wanted.is_continued and len(of) > 1:
        raise bad_value("data_input_columns", list(of), "one column, as loss is next_token")
    columns.refuse_missing(table.parts, of, table.dataset)
    tokenizer = texts.load_tokenizer(str(looks.tokenizer), download=place.download)
    to_ids: texts.ToClassify | texts.ToContinue = texts.ToClassify(tokenizer, length)
    if wanted.is_continued:
        to_ids = texts.ToContinue(tokenizer, has_start=not wanted.is_packed)
    tokens = {
        base: texts.tokenise(part, of, to_ids, cache=place.cache / "tokens")
        for base, part in table.parts.items()
    }
    splits: dict[str, Split] = {}
    for split, ranges in table.ranges.items():
        taken = texts.take(tokens, ranges)
        if table.targets is not None:
            numbers = [table.targets.of[base][i:j] for base, i, j in ranges]
            splits[split] = texts.classified(taken, torch.cat(numbers), wanted.is_grouped)
        elif wanted.is_packed:
            splits[split] = texts.packed(taken, length)
        else:
            splits[split] = texts.one_by_one(taken, length)
        if not len(splits[split]):
            raise UserError(f"data_splits_map: {split}: no text has a token to predict")
    looks = replace(looks, text_length=length)
    if table.targets is None:
        return Data(splits, (length,), len(tokenizer), preprocessing=looks)
    return Data(splits, (length,), table.targets.n_classes, table.targets.names, looks)


# ---- Rows --------------------------------------------------------------------------------


def _rows(table: Table, targets: Targets, chosen: Sequence[str], normalize: str | None) -> Data:
    columns.refuse_others(table.kinds, chosen, table.dataset)
    columns.refuse_missing(table.parts, chosen, table.dataset)
    bases = {
        base: ArraySplit(columns.numbers(part, chosen), targets.of[base])
        for base, part in table.parts.items()
    }
    shape = tuple(next(iter(bases.values())).inputs.shape[1:])
    splits = split_arrays(bases, table.splits_map, normalize or "none")
    return Data(dict(splits), shape, targets.n_classes, targets.names)
