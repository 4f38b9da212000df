"""Columns of a table of Hugging Face's `datasets`: which is what, and what they hold as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from src.support import UserError, bad_value, unknown_name

# what the column of targets or of texts is called, the first that there is
TARGETS = ("label", "labels", "target", "class", "y")
TEXTS = ("text", "sentence", "content")
NO_LABEL = -1  # of examples whose class is kept secret
MANY_CLASSES = 100
NUMBERS = ("whole", "real", "truth", "class", "list")
Parts = Mapping[str, Any]  # part -> datasets.Dataset
Kinds = Mapping[str, str]  # column -> image, text, one of NUMBERS, or what else it holds


@dataclass(frozen=True)
class Targets:
    """part -> (n,) int64 class numbers, or (n,) float32 where n_classes is None."""

    of: dict[str, Tensor]
    n_classes: int | None
    names: tuple[str, ...] | None


# ---- Which is what -----------------------------------------------------------------------


def kinds_of(parts: Parts, dataset: str) -> Kinds:
    """What the columns hold, on which the parts must agree."""
    (first, part), *others = parts.items()
    for other, found in others:
        both = {**part.features, **found.features}
        if differing := [c for c in both if part.features.get(c) != found.features.get(c)]:
            names = ", ".join(map(repr, differing))
            raise UserError(f"dataset: {dataset}: {first} and {other} differ in column {names}")
    return {
        column: _kind(feature, part.data.schema.field(column).type)
        for column, feature in part.features.items()
    }


def _kind(feature: Any, arrow: Any) -> str:
    import pyarrow as pa

    if (name := type(feature).__name__) in ("Image", "ClassLabel"):
        return {"Image": "image", "ClassLabel": "class"}[name]
    if pa.types.is_boolean(arrow):
        return "truth"
    if pa.types.is_integer(arrow):
        return "whole"
    if pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return "real"
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow):
        return "text"
    is_list = pa.types.is_list(arrow) or pa.types.is_large_list(arrow)
    if is_list or pa.types.is_fixed_size_list(arrow):
        item = arrow.value_type
        if pa.types.is_integer(item) or pa.types.is_floating(item):
            return "list"
    return str(arrow)


def target_column(kinds: Kinds, asked: str | None) -> str:
    """The one asked for, or the first of TARGETS that there is."""
    if asked is not None:
        return _existing(kinds, asked, "data_target_column")
    for name in TARGETS:
        if name in kinds:
            return name
    expected = f"one of the columns {', '.join(kinds)}, as none is called {', '.join(TARGETS)}"
    raise bad_value("data_target_column", None, expected)


def input_columns(kinds: Kinds, asked: Sequence[str] | None, target: str | None) -> list[str]:
    """Those asked for, or all but the target."""
    key = "data_input_columns"
    if asked is None:
        found = [name for name in kinds if name != target]
    else:
        found = [_existing(kinds, name, key) for name in asked]
    if not found or target in found or len(set(found)) < len(found):
        expected = f"one or more, each once, of {', '.join(k for k in kinds if k != target)}"
        raise bad_value(key, found, expected)
    return found


def image_column(kinds: Kinds, columns: Sequence[str]) -> str | None:
    """The column of images among these; None where there is none."""
    found = [column for column in columns if kinds[column] == "image"]
    if len(found) > 1:
        raise bad_value("data_input_columns", found, "a single column of images")
    return found[0] if found else None


def text_columns(kinds: Kinds, columns: Sequence[str], *, is_asked: bool) -> list[str]:
    """The column of texts, or two that make pairs; [] where there is none."""
    found = [column for column in columns if kinds[column] == "text"]
    if is_asked and found and (len(found) > 2 or found != list(columns)):
        raise bad_value("data_input_columns", list(columns), "one column of texts, or two")
    if is_asked or len(found) < 2:
        return found
    for name in TEXTS:
        if name in found:
            return [name]
    expected = f"one or two of the columns of texts: {', '.join(found)}"
    raise bad_value("data_input_columns", None, expected)


def refuse_others(kinds: Kinds, columns: Sequence[str], dataset: str) -> None:
    """UserError where the rows of a table would not be numbers alone."""
    others = [f"{column!r} ({kinds[column]})" for column in columns if kinds[column] not in NUMBERS]
    if others:
        raise UserError(
            f"data_input_columns: {dataset} has columns that are no numbers: {', '.join(others)}; "
            "list those to take, or for texts give a data_tokenizer or a model hf/…"
        )


def _existing(kinds: Kinds, name: str, key: str) -> str:
    if name not in kinds:
        raise unknown_name(key, name, kinds)
    return name


# ---- What they hold ----------------------------------------------------------------------


def values(part: Any, column: str) -> Any:
    """The column as a pyarrow.ChunkedArray, in the order of the part."""
    return part.select_columns([column]).with_format("arrow")[:][column]


def refuse_missing(parts: Parts, columns: Sequence[str], dataset: str) -> None:
    """UserError with the number of values that are missing, where some are."""
    for column in columns:
        for base, part in parts.items():
            found = values(part, column)
            count = found.null_count
            if _kind(None, found.type) == "real":
                count += int(np.isnan(_array(found.drop_null(), np.float64)).sum())
            if count:
                raise UserError(
                    f"dataset: {dataset}: {count:,} of {len(found):,} values of column {column!r} "
                    f"are missing in {base}; fill them in, leave these examples out, or take other "
                    "columns (data_input_columns)"
                )


def numbers(part: Any, columns: Sequence[str]) -> Tensor:
    """(n, features) float32; lists, of one length in a column, give as many features."""
    return torch.cat([_features(values(part, column), column) for column in columns], 1)


def _features(found: Any, column: str) -> Tensor:
    """(n, features) float32."""
    import pyarrow.compute as pc

    if _kind(None, found.type) != "list":
        return torch.from_numpy(_array(found, np.float32))[:, None]
    lengths = pc.unique(pc.list_value_length(found)).to_pylist()
    flat = pc.list_flatten(found)
    if len(lengths) != 1 or flat.null_count:
        expected = f"columns whose lists have one length and no gaps; {column!r} is none"
        raise bad_value("data_input_columns", column, expected)
    return torch.from_numpy(_array(flat, np.float32)).view(len(found), -1)


def _array(found: Any, dtype: Any) -> np.ndarray:
    return found.to_numpy().astype(dtype)


# ---- Targets -----------------------------------------------------------------------------


def read_targets(parts: Parts, column: str, kind: str, dataset: str) -> Targets:
    """Numbers of the classes, in the order of their names, or real targets.

    Classes are those of the feature, or the texts, truth values or whole numbers that occur in
    these parts. UserError for examples without a label and for other kinds.
    """
    refuse_missing(parts, [column], dataset)
    found = {base: values(part, column) for base, part in parts.items()}
    if kind == "real":
        return Targets({base: _tensor(v, np.float32) for base, v in found.items()}, None, None)
    if kind not in ("class", "whole", "truth", "text"):
        expected = f"a column of classes or numbers; this one holds {kind}"
        raise bad_value("data_target_column", column, expected)
    _refuse_unlabelled(found, kind, dataset)
    if kind != "class":
        return _numbered(found, column)
    feature = next(iter(parts.values())).features[column]
    of = {base: _tensor(v, np.int64) for base, v in found.items()}
    return Targets(of, feature.num_classes, tuple(map(str, feature.names)))


def _numbered(found: Mapping[str, Any], column: str) -> Targets:
    """The values in sorted order as classes."""
    arrays = {base: v.to_numpy() for base, v in found.items()}
    classes = np.unique(np.concatenate([np.unique(array) for array in arrays.values()]))
    if len(classes) > MANY_CLASSES and np.issubdtype(classes.dtype, np.integer):
        hint = "with a decimal point they would be real targets"
        logger.warning("{:,} classes: the whole numbers in {!r}; {}", len(classes), column, hint)
    of = {
        base: torch.from_numpy(np.searchsorted(classes, array).astype(np.int64))
        for base, array in arrays.items()
    }
    return Targets(of, len(classes), tuple(map(str, classes)))


def _refuse_unlabelled(found: Mapping[str, Any], kind: str, dataset: str) -> None:
    """UserError for the class -1, unless it is one of -1 and 1, which the first part shows."""
    if kind not in ("class", "whole"):
        return
    counts = {base: int((v.to_numpy() == NO_LABEL).sum()) for base, v in found.items()}
    if kind == "whole" and next(iter(counts.values())):
        return
    for base, count in counts.items():
        if count:
            raise UserError(
                f"dataset: {dataset}: {count:,} of {len(found[base]):,} examples of {base} have "
                "no label (-1); take another part in data_splits_map"
            )


def _tensor(found: Any, dtype: Any) -> Tensor:
    return torch.from_numpy(_array(found, dtype))


def is_sorted_by_class(targets: Tensor) -> bool:
    """Whether each class is one run of examples: a slice would lack classes."""
    runs = int((targets[1:] != targets[:-1]).sum()) + 1
    return 1 < runs == len(targets.unique()) < len(targets)
