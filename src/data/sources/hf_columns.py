"""Columns of a table of Hugging Face's `datasets`: which is what, and what they hold as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from src.support import UserError, bad_value, pick

# what the column of targets or of texts is called, the first that there is
TARGETS = ("label", "labels", "target", "class", "y")
TEXTS = ("text", "sentence", "content")
NO_LABEL = -1  # of examples whose class is kept secret
MANY_CLASSES = 100
# kind of a column -> the types of pyarrow that it has; of images and classes `datasets` knows
ARROW_TYPES = {
    "truth": ["boolean"],
    "whole": ["integer"],
    "real": ["floating", "decimal"],
    "text": ["string", "large_string"],
}
LISTS = ("list", "large_list", "fixed_size_list")
NUMBERS = ("whole", "real", "truth", "class", "list")
Parts = Mapping[str, Any]  # part -> datasets.Dataset
Kinds = Mapping[str, str]  # column -> image, text, one of NUMBERS, or what else it holds


@dataclass(frozen=True)
class Targets:
    """part -> (n,) int64 class numbers, or (n,) float32 where n_classes is None."""

    of: dict[str, Tensor]
    n_classes: int | None = None
    names: tuple[str, ...] | None = None


# ---- Which is what -----------------------------------------------------------------------


def kinds_of(parts: Parts, dataset: str) -> Kinds:
    """What the columns hold, on which the parts must agree."""
    (first, part), *others = parts.items()
    for other, found in others:
        both = {**part.features, **found.features}
        if differing := [c for c in both if part.features.get(c) != found.features.get(c)]:
            names = ", ".join(map(repr, differing))
            raise UserError(f"dataset: {dataset}: {first} and {other} differ in column {names}")
    known = {"Image": "image", "ClassLabel": "class"}
    return {
        column: known.get(type(feature).__name__) or _kind(part.data.schema.field(column).type)
        for column, feature in part.features.items()
    }


def _kind(arrow: Any) -> str:
    from pyarrow import types

    def is_any(names: Sequence[str], type_: Any) -> bool:
        return any(getattr(types, f"is_{name}")(type_) for name in names)

    if is_any(LISTS, arrow) and is_any(("integer", "floating"), arrow.value_type):
        return "list"
    return next((kind for kind, names in ARROW_TYPES.items() if is_any(names, arrow)), str(arrow))


def target_column(kinds: Kinds, requested: str | None) -> str:
    """The one requested, or the first of TARGETS that there is."""
    if requested is not None:
        pick(kinds, requested, "data_target_column")
        return requested
    if found := [name for name in TARGETS if name in kinds]:
        return found[0]
    expected = f"one of the columns {', '.join(kinds)}, as none is called {', '.join(TARGETS)}"
    raise bad_value("data_target_column", None, expected)


def input_columns(kinds: Kinds, requested: Sequence[str] | None, target: str | None) -> list[str]:
    """Those requested, or all but the target."""
    key = "data_input_columns"
    others = [name for name in kinds if name != target]
    found = others if requested is None else list(requested)
    for name in found:
        pick(kinds, name, key)
    if not found or target in found or len(set(found)) < len(found):
        raise bad_value(key, found, f"one or more, each once, of {', '.join(others)}")
    if sum(kinds[name] == "image" for name in found) > 1:
        found = [name for name in found if kinds[name] == "image"]
        raise bad_value(key, found, "a single column of images")
    return found


def text_columns(kinds: Kinds, columns: Sequence[str], *, is_requested: bool) -> list[str]:
    """The column of texts, or two that make pairs; [] where there is none."""
    found = [column for column in columns if kinds[column] == "text"]
    if is_requested and found and (len(found) > 2 or found != list(columns)):
        raise bad_value("data_input_columns", list(columns), "one column of texts, or two")
    if is_requested or len(found) < 2:
        return found
    if usual := [name for name in TEXTS if name in found]:
        return usual[:1]
    expected = f"one or two of the columns of texts: {', '.join(found)}"
    raise bad_value("data_input_columns", None, expected)


# ---- What they hold ----------------------------------------------------------------------


def _values(part: Any, column: str) -> Any:
    """The column as a pyarrow.ChunkedArray, in the order of the part."""
    return part.select_columns([column]).with_format("arrow")[:][column]


def _array(found: Any, dtype: Any) -> np.ndarray:
    return found.to_numpy().astype(dtype)


def refuse_missing(parts: Parts, columns: Sequence[str], dataset: str) -> None:
    """UserError with the number of values that are missing, where some are."""
    for column in columns:
        for base, part in parts.items():
            found = _values(part, column)
            count = found.null_count
            if _kind(found.type) == "real":
                count += int(np.isnan(_array(found.drop_null(), np.float64)).sum())
            if count:
                raise UserError(
                    f"dataset: {dataset}: {count:,} of {len(found):,} values of column {column!r} "
                    f"are missing in {base}; fill them in, leave these examples out, or take other "
                    "columns (data_input_columns)"
                )


def read_numbers(parts: Parts, kinds: Kinds, columns: Sequence[str], dataset: str) -> Parts:
    """part -> (n, features) float32; lists, of one length in a column, give as many features.

    UserError where the rows of the table are not numbers alone.
    """
    import pyarrow.compute as pc

    others = [f"{column!r} ({kinds[column]})" for column in columns if kinds[column] not in NUMBERS]
    if others:
        hint = "list those to take, or for texts give a data_tokenizer or a model hf/…"
        found = f"{dataset} has columns that are no numbers: {', '.join(others)}"
        raise UserError(f"data_input_columns: {found}; {hint}")
    refuse_missing(parts, columns, dataset)

    def features(part: Any, column: str) -> Tensor:
        found = flat = _values(part, column)
        if kinds[column] == "list":
            flat = pc.list_flatten(found)
            if len(pc.unique(pc.list_value_length(found))) != 1 or flat.null_count:
                expected = f"columns whose lists have one length and no gaps; {column!r} is none"
                raise bad_value("data_input_columns", column, expected)
        return torch.from_numpy(_array(flat, np.float32)).view(len(found), -1)

    return {
        base: torch.cat([features(part, column) for column in columns], 1)
        for base, part in parts.items()
    }


def read_targets(parts: Parts, column: str, kind: str, dataset: str) -> Targets:
    """Numbers of the classes, in the order of their names, or real targets.

    Classes are those of the feature, or the texts, truth values or whole numbers that occur in
    these parts. UserError for examples without a label and for other kinds.
    """
    refuse_missing(parts, [column], dataset)
    found = {base: _values(part, column) for base, part in parts.items()}
    if kind == "real":
        return Targets({b: torch.from_numpy(_array(v, np.float32)) for b, v in found.items()})
    if kind not in ("class", "whole", "truth", "text"):
        expected = f"a column of classes or numbers; this one holds {kind}"
        raise bad_value("data_target_column", column, expected)
    arrays = {base: v.to_numpy() for base, v in found.items()}
    if kind in ("class", "whole"):
        unlabelled = {base: int((array == NO_LABEL).sum()) for base, array in arrays.items()}
        is_class = kind == "whole" and next(iter(unlabelled.values()))  # one of -1 and 1
        for base, count in unlabelled.items():
            if count and not is_class:
                raise UserError(
                    f"dataset: {dataset}: {count:,} of {len(arrays[base]):,} examples of {base} "
                    "have no label (-1); take another part in data_splits_map"
                )
    if kind == "class":
        feature = next(iter(parts.values())).features[column]
        n_classes, names = feature.num_classes, feature.names
    else:
        names = np.unique(np.concatenate([np.unique(array) for array in arrays.values()]))
        n_classes = len(names)
        arrays = {base: np.searchsorted(names, array) for base, array in arrays.items()}
    if n_classes > MANY_CLASSES and kind == "whole":
        hint = "with a decimal point they would be real targets"
        logger.warning("{:,} classes: the whole numbers in {!r}; {}", n_classes, column, hint)
    of = {base: torch.from_numpy(array.astype(np.int64)) for base, array in arrays.items()}
    return Targets(of, n_classes, tuple(map(str, names)))
