"""Arrays in memory, dense or CSR: ranges of rows, normalisation, image shape.

Nothing here loops over examples, and nothing copies the data where a view or a
change in place will do: a CSR matrix may fill most of the memory.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from typing import cast

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F

from src.data.batch_augmentation import augmented_batches, not_of_arrays
from src.data.splits import (
    Batch,
    Batches,
    Data,
    LoaderConfig,
    Order,
    Preprocessing,
    Spec,
    Split,
    renumbered,
)
from src.data.splits_map import Range, resolve_all
from src.support import UserError, bad_value

ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class ArraySplit(Split):
    """Data that fit in memory.

    inputs: float32, dense (n, *shape) or CSR (n, features); or images as bytes, uint8 (n, channels,
    height, width), of which normalize makes float32 ones, batch by batch.
    targets: (n,) int64 class numbers 0…C-1, (n,) float32 for regression,
    (n, C) float32 of zeros and ones where an example has several labels.
    """

    inputs: Tensor
    targets: Tensor
    normalize: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def is_multilabel(self) -> bool:
        return self.targets.ndim == 2

    def take(self, indices: Tensor) -> Batch:
        """The examples with these indices, (n,) int64 on the split's device, in one gather."""
        # index_select takes a third of the time of [indices]
        targets = self.targets.index_select(0, indices)
        if self.inputs.layout == torch.strided:
            inputs = self.inputs.index_select(0, indices)
            return (self.normalize(inputs) if self.normalize else inputs), targets
        csr = self.inputs  # of which torch does not offer csr[indices]
        starts = csr.crow_indices()[indices]
        lengths = csr.crow_indices()[indices + 1] - starts
        rows = lengths.new_zeros(len(lengths) + 1)
        torch.cumsum(lengths, 0, dtype=rows.dtype, out=rows[1:])
        shifts = torch.repeat_interleave(starts - rows[:-1], lengths)
        places = torch.arange(len(shifts), device=shifts.device, dtype=shifts.dtype) + shifts
        columns, values = csr.col_indices()[places], csr.values()[places]
        return csr_tensor(rows, columns, values, csr.shape[1]), targets

    def batches(self, order: Iterable[Tensor], loader: LoaderConfig) -> Batches:
        # a blocking copy would wait for the step before
        return (self.take(i.to(loader.device, non_blocking=True)) for i in order)

    def augmented_batches(self, order: Order, loader: LoaderConfig, *, seed: int) -> Batches:
        if loader.augmentation:
            return augmented_batches(
                self.inputs,
                self.targets,
                order,
                loader.augmentation,
                seed=seed,
                normalize=self.normalize,
            )
        if loader.repeats > 1:  # copies that aug_function alone tells apart
            return super().augmented_batches(order, loader, seed=seed)
        return self.batches(map(itemgetter(1), order), loader)

    def range_batches(self, ranges: Sequence[tuple[int, int]], loader: LoaderConfig) -> Batches:
        for i, j in ranges:
            inputs = row_range(self.inputs, i, j)  # a view
            yield (self.normalize(inputs) if self.normalize else inputs), self.targets[i:j]

    def to_device(self, device: torch.device) -> "ArraySplit":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def dense_size(self) -> int:
        is_dense = self.inputs.layout == torch.strided
        return 0 if is_dense else self.inputs.numel() * self.inputs.element_size()

    def to_dense(self) -> "ArraySplit":
        return replace(self, inputs=self.inputs.to_dense()) if self.dense_size() else self

    def input_spec(self, input_shape: tuple[int, ...]) -> Spec | None:
        is_dense = self.inputs.layout == torch.strided
        return (tuple(self.inputs.shape[1:]), torch.float32) if is_dense else None

    def augmentation_obstacle(self, name: str) -> str | None:
        if self.inputs.layout != torch.strided:
            return "the data are sparse, and what changes them would fill them"
        return not_of_arrays(name, are_images=self.inputs.ndim == 4)

    def with_classes(self, table: Sequence[int]) -> "ArraySplit":
        targets, kept = renumbered(self.targets, table)
        inputs, is_whole = self.inputs, len(kept) == len(self)
        inputs = inputs if is_whole else replace(self, normalize=None).take(kept)[0]
        return replace(self, inputs=inputs, targets=targets)


def micro_batches(inputs: Tensor, targets: Tensor, size: int) -> list[Batch]:
    """A batch cut into pieces of `size` examples, the last as short as it is."""
    starts = range(0, len(targets), size)
    return [(row_range(inputs, i, i + size), targets[i : i + size]) for i in starts]


def split_arrays(
    bases: Mapping[str, ArraySplit], splits_map: Mapping[str, str], normalize: str
) -> dict[str, ArraySplit]:
    """Normalise the parts of a data set in place, then cut the splits out of them.

    normalize: 'rows' (unit l2 norm), 'columns' (zero mean and unit variance
    over our train split) or 'none'.
    """
    ranges = resolve_all(splits_map, {base: len(whole) for base, whole in bases.items()})
    if normalize == "rows":
        for whole in bases.values():
            rows_to_unit_norm(whole.inputs)
    elif normalize == "columns":
        if "train" not in ranges:  # of another data set than that of our train split
            expected = "rows or none, as there are splits of other data sets with other columns"
            raise bad_value("data_normalize", "columns", expected)
        train = take(bases, ranges["train"]).inputs
        if train.layout != torch.strided:
            reason = "the data are sparse, and taking a mean off would fill them"
            raise bad_value("data_normalize", "columns", f"rows or none here: {reason}")
        variance, mean = torch.var_mean(train, dim=0, correction=0)
        scale = torch.where(variance > 0, variance.sqrt(), 1.0)  # columns constant in train: 0
        for whole in bases.values():
            whole.inputs.sub_(mean).div_(scale)
    elif normalize != "none":
        raise bad_value("data_normalize", normalize, "rows, columns, none or null")
    return {split: take(bases, wanted) for split, wanted in ranges.items()}


def csr_tensor(rows: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """A CSR tensor (len(rows) - 1, num_columns) on the memory of the three arrays, unchecked."""
    _hear_that_csr_is_in_beta()
    shape = (len(rows) - 1, num_columns)
    return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)


@cache
def _hear_that_csr_is_in_beta() -> None:
    """torch says so once a process; that once is here, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0], [], [], (0, 0), check_invariants=False)


def take(bases: Mapping[str, ArraySplit], ranges: Sequence[Range]) -> ArraySplit:
    """The examples of the ranges, in order; of one range a view."""
    inputs = [row_range(bases[base].inputs, start, stop) for base, start, stop in ranges]
    targets = [bases[base].targets[start:stop] for base, start, stop in ranges]
    if len(ranges) == 1:
        return ArraySplit(inputs[0], targets[0])
    if inputs[0].layout == torch.strided:
        return ArraySplit(torch.cat(inputs), torch.cat(targets))
    ends = np.cumsum([0] + [len(part.values()) for part in inputs])
    dtype = torch.int32 if ends[-1] < 2**31 else torch.int64
    rows = [p.crow_indices()[1:].to(dtype) + int(end) for p, end in zip(inputs, ends, strict=False)]
    csr = csr_tensor(
        torch.cat([torch.zeros(1, dtype=dtype), *rows]),
        torch.cat([part.col_indices() for part in inputs]).to(dtype),
        torch.cat([part.values() for part in inputs]),
        inputs[0].shape[1],
    )
    return ArraySplit(csr, torch.cat(targets))


def row_range(inputs: Tensor, start: int, stop: int) -> Tensor:
    """inputs[start:stop], dense or CSR: a view but for the row ends of CSR."""
    if inputs.layout == torch.strided:
        return inputs[start:stop]
    rows = inputs.crow_indices()[start : stop + 1]
    low, high = int(rows[0]), int(rows[-1])
    columns, values = inputs.col_indices()[low:high], inputs.values()[low:high]
    return csr_tensor(rows - rows[0], columns, values, inputs.shape[1])


def rows_to_unit_norm(inputs: Tensor) -> None:
    """Divide each row by its l2 norm, in place; rows of zeros stay."""
    if inputs.layout == torch.strided:
        flat = inputs.view(len(inputs), -1)
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        flat.div_(norms.masked_fill_(norms == 0, 1))
        return
    rows, values = inputs.crow_indices().numpy(), inputs.values().numpy()
    for start in range(0, len(inputs), ROWS_AT_A_TIME):  # blocks bound the memory this takes
        ends = rows[start : start + ROWS_AT_A_TIME + 1]
        block, lengths = values[ends[0] : ends[-1]], np.diff(ends)
        row_of_value = np.repeat(np.arange(len(lengths)), lengths)
        norms = np.sqrt(np.bincount(row_of_value, np.square(block), minlength=len(lengths)))
        norms[norms == 0] = 1
        block /= norms.astype(np.float32)[row_of_value]


def to_shape(data: Data, wanted: Preprocessing, dataset: str) -> Data:
    """Array data as the model wants them: images resized, and normalised where a mean and a std
    are given; rows reshaped.

    A row of numbers takes any shape with as many elements; other shapes raise UserError.
    """
    shape = tuple(wanted.input_shape or data.input_shape)
    is_image = len(data.input_shape) == 3 and len(shape) == 3
    if shape == data.input_shape and not (is_image and wanted.mean):
        return data
    if wanted.interpolation == "lanczos" and is_image and shape[1:] != data.input_shape[1:]:
        logger.warning("data_interpolation: images in memory are resized by bilinear, not lanczos")
    splits: dict[str, Split] = {}
    for name, split in cast(Mapping[str, ArraySplit], data.splits).items():
        inputs = split.inputs
        if not is_image:
            is_dense = inputs.layout == torch.strided
            if math.prod(shape) != math.prod(data.input_shape) or not is_dense:
                expected = f"{list(data.input_shape)}, the shape of the examples of {dataset}, or, "
                expected += "for dense data, one with as many elements"
                raise bad_value("model_input_shape", list(shape), expected)
            splits[name] = replace(split, inputs=inputs.reshape(len(split), *shape))
            continue
        if inputs.shape[1] not in (1, shape[0]):
            raise bad_value("model_input_shape", list(shape), f"{inputs.shape[1]} channels")
        if inputs.shape[2:] != shape[1:] and wanted.interpolation == "nearest":
            inputs = F.interpolate(inputs, shape[1:], mode="nearest-exact")
        elif inputs.shape[2:] != shape[1:]:
            mode = "bicubic" if wanted.interpolation == "bicubic" else "bilinear"
            inputs = F.interpolate(inputs, shape[1:], mode=mode, antialias=True)
        inputs = inputs.expand(-1, shape[0], -1, -1)
        if wanted.mean is not None and wanted.std is not None:
            mean, std = torch.tensor(wanted.mean), torch.tensor(wanted.std)
            inputs = (inputs - mean[:, None, None]) / std[:, None, None]
        splits[name] = replace(split, inputs=inputs.contiguous())
    return replace(data, splits=splits, input_shape=shape)


def with_num_classes(data: Data, requested: int | None, dataset: str) -> Data:
    """The data with the requested number of classes, data_n_classes, where it is larger."""
    if requested is None or requested == data.n_classes:
        return data
    if data.n_classes is None:
        reason = f"but {dataset} is regression: leave it null"
        raise UserError(f"data_n_classes: got {requested}, {reason}")
    if requested < data.n_classes:
        raise bad_value("data_n_classes", requested, f"at least the {data.n_classes} of {dataset}")
    splits = dict(data.splits)
    for name, split in splits.items():
        if split.is_multilabel:
            targets = F.pad(cast(ArraySplit, split).targets, (0, requested - data.n_classes))
            splits[name] = replace(cast(ArraySplit, split), targets=targets)
    return replace(data, splits=splits, n_classes=requested)


def warn_of_absent_classes(data: Data) -> None:
    """Say so when the train split lacks a class, as slices of files sorted by class do."""
    train = cast(ArraySplit | None, data.splits.get("train"))
    if data.n_classes is None or train is None or train.targets.ndim != 1:
        return
    absent = int((torch.bincount(train.targets, minlength=data.n_classes) == 0).sum())
    if absent:
        words = "{} of {} classes have no example in the train split: are the data sorted by class?"
        logger.warning(words, absent, data.n_classes)
