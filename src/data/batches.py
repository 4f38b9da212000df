"""From a split to batches on the device.

Arrays, tokens and held images live on the device and a batch is one gather; all else is read by
worker processes. Either way the batches are a function of the seed and the step.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from src.data.arrays import csr_tensor, row_range
from src.data.batch_augmentation import augmented
from src.data.mixing import Mixing
from src.data.order import (
    batches_from,
    example_seeds,
    permutation,
    share,
    share_of_batch,
    step_seed,
)
from src.data.splits import NO_TOKEN, ArraySplit, DatasetSplit, PixelSplit, Split, TextSplit
from src.data.workers import Batch, Examples, TrainingExamples, as_they_are, loaded


@dataclass(frozen=True)
class Loading:
    """How batches are made; num_workers counts for data that do not fit in memory."""

    batch_size: int
    device: torch.device
    num_workers: int = 0
    # of training batches: how examples are mixed, and how many copies of each are in a batch
    mixing: Mixing | None = None
    repeats: int = 1
    # which process this is, of how many that share each micro-batch
    rank: int = 0
    num_processes: int = 1
    micro_batch_size: int | None = None  # None: the batch

    @property
    def own_size(self) -> int:
        """How many examples of a full micro-batch are this process's."""
        size = self.micro_batch_size or self.batch_size
        first, last = share(size, self.rank, self.num_processes)
        return last - first

    def for_evaluation(self, batch_size: int | None) -> "Loading":
        """None: batches as large as those of training; they are not cut."""
        return replace(self, batch_size=batch_size or self.batch_size, micro_batch_size=None)

    def own(self, indices: Tensor) -> Tensor:
        """This process's share of a training batch."""
        size = self.micro_batch_size or self.batch_size
        return share_of_batch(indices, self.rank, self.num_processes, size)

    def own_part(self, start: int, num_examples: int) -> tuple[int, int]:
        """Its share of the evaluation batch that begins there: from, up to but not."""
        size = min(self.batch_size, num_examples - start)
        first, last = share(size, self.rank, self.num_processes)
        return start + first, start + last


def on_device(split: Split, device: torch.device) -> Split:
    """The split with its arrays where the model lives; other data stay where they are."""
    if isinstance(split, ArraySplit):
        return ArraySplit(split.inputs.to(device), split.targets.to(device))
    if isinstance(split, TextSplit):
        targets = None if split.targets is None else split.targets.to(device)
        return replace(split, tokens=split.tokens.to(device), targets=targets)
    return split


def training_batches(
    split: Split, loading: Loading, *, seed: int, steps_per_pass: int, first_step: int = 0
) -> Generator[Batch, None, None]:
    """The batches of step first_step, first_step + 1, …, without an end."""
    whole_batches = batches_from(
        first_step,
        seed=seed,
        num_examples=len(split),
        batch_size=loading.batch_size,
        steps_per_pass=steps_per_pass,
        lengths=split.lengths if isinstance(split, TextSplit) and split.is_grouped else None,
        repeats=loading.repeats,
    )
    order = ((number, loading.own(indices)) for number, indices in whole_batches)
    if isinstance(split, ArraySplit):
        # a blocking copy would wait for the step before
        batches = (take(split, i.to(loading.device, non_blocking=True)) for _, i in order)
    elif isinstance(split, TextSplit):
        batches = (take_texts(split, indices) for _, indices in order)
    elif isinstance(split, PixelSplit):
        batches = (take_pixels(split, indices, seed, number) for number, indices in order)
    else:
        batches = loaded(TrainingExamples(split, seed), order, loading.device, loading.num_workers)
    return _mixed(batches, loading.mixing, seed, first_step) if loading.mixing else batches


def _mixed(
    batches: Generator[Batch, None, None], mixing: Mixing, seed: int, first_step: int
) -> Generator[Batch, None, None]:
    """The batches of first_step and all that follow, mixed. Closing it closes them."""
    with closing(batches):
        for step, (inputs, targets) in enumerate(batches, first_step):
            yield mixing(inputs, targets, seed=step_seed(seed, step))


def evaluation_batches(split: Split, loading: Loading) -> Generator[Batch, None, None]:
    """Every example once, in the order of the split, the last batch as short as it is.

    Texts come by their lengths, the longest first: what doesn't fit shows at once. Where several
    processes share batches, all have as many; a share of nothing is one example's inputs and no
    targets, as networks want something. Closing it ends its worker processes.
    """
    starts = range(0, len(split), loading.batch_size)
    own = [loading.own_part(start, len(split)) for start in starts]
    parts = [(min(i, j - 1), j) for i, j in own]
    sizes = iter([j - i for i, j in own])
    if isinstance(split, ArraySplit):
        batches = (take_range(split, i, j) for i, j in parts)
    elif isinstance(split, TextSplit):
        by_length = split.lengths.argsort(descending=True, stable=True)
        batches = (take_texts(split, by_length[i:j]) for i, j in parts)
    elif isinstance(split, PixelSplit):
        whole = ArraySplit(split.pixels, split.targets)
        pieces = (take_range(whole, i, j) for i, j in parts)
        batches = ((split.normalize(pixels), targets) for pixels, targets in pieces)
    else:
        order = ((0, torch.arange(i, j)) for i, j in parts)
        batches = loaded(
            Examples(split, split.transform), order, loading.device, loading.num_workers
        )
    return _without_targets_of_others(batches, sizes) if loading.num_processes > 1 else batches


def shuffled_batches(split: Split, loading: Loading, *, seed: int) -> Generator[Batch, None, None]:
    """Every example once and not augmented, in an order that the seed alone decides.

    Batches have the size that a process trains on or a little more: none is left with a single
    example, of which a batch norm cannot take statistics. Several processes take turns with the
    batches. All get equally many: an empty shard, as in evaluations, stands for one that is
    missing. Closing the generator ends its worker processes.
    """
    size = -(-(loading.micro_batch_size or loading.batch_size) // loading.num_processes)
    order = permutation(seed, 0, len(split))  # classes may stand one after the other in a split
    batches_of_all = order.tensor_split(max(1, len(split) // size))
    own = batches_of_all[loading.rank :: loading.num_processes]
    num_turns = -(-len(batches_of_all) // loading.num_processes)
    indices = [*own, order[:1]][:num_turns]
    sizes = iter([*map(len, own), 0][:num_turns])
    if isinstance(split, ArraySplit):
        batches = (take(split, i.to(loading.device)) for i in indices)
    elif isinstance(split, TextSplit):
        batches = (take_texts(split, i) for i in indices)
    elif isinstance(split, PixelSplit):
        as_it_is = replace(split, augmentation=None)
        batches = (take_pixels(as_it_is, i, seed, 0) for i in indices)
    else:
        examples = Examples(split, split.transform)
        batches = loaded(examples, ((0, i) for i in indices), loading.device, loading.num_workers)
    return _without_targets_of_others(batches, sizes)


def _without_targets_of_others(
    batches: Generator[Batch, None, None], sizes: Iterator[int]
) -> Generator[Batch, None, None]:
    """Of shares of nothing the target of the example that fills it is taken away."""
    with closing(batches):
        for (inputs, targets), size in zip(batches, sizes, strict=True):
            yield inputs, targets[:size]


def pixel_batches(split: DatasetSplit, loading: Loading) -> Generator[Batch, None, None]:
    """Every example of ImageTransforms once, uint8 and not yet normalised."""
    examples = Examples(split, split.transform)
    examples.normalize = as_they_are
    order = ((0, indices) for indices in torch.arange(len(split)).split(loading.batch_size))
    return loaded(examples, order, loading.device, loading.num_workers)


# ---- Arrays ------------------------------------------------------------------------------


def take(split: ArraySplit, indices: Tensor) -> Batch:
    """The examples with these indices, (n,) int64 on the split's device, in one gather."""
    targets = split.targets[indices]
    if split.inputs.layout == torch.sparse_csr:
        return _take_rows(split.inputs, indices), targets
    return split.inputs[indices], targets


def take_range(split: ArraySplit, start: int, stop: int) -> Batch:
    """Examples start … stop-1: views where the arrays allow it."""
    return row_range(split.inputs, start, stop), split.targets[start:stop]


def take_pixels(split: PixelSplit, indices: Tensor, seed: int, pass_number: int) -> Batch:
    """Training images of these numbers, (n,) on the CPU, copies counted on: see repeated()."""
    device = split.pixels.device
    wanted = (indices % len(split)).to(device, non_blocking=True)
    pixels, targets = split.pixels[wanted], split.targets[wanted]
    if split.augmentation is None:
        return split.normalize(pixels), targets
    seeds = torch.from_numpy(example_seeds(seed, pass_number, indices.numpy()).astype(np.int64))
    asked, normalize = split.augmentation, split.normalize
    return augmented(pixels, asked, seeds=seeds, normalize=normalize), targets


def take_texts(split: TextSplit, indices: Tensor) -> Batch:
    """The texts with these indices, (n,) on the CPU, padded to the longest with NO_TOKEN.

    inputs: (n, length) int64. targets: (n,), or the next tokens (n, length) where the split has
    none of its own; then inputs are without the last token.
    """
    device = split.tokens.device
    starts, lengths = split.starts[indices], split.lengths[indices]
    positions = torch.arange(int(lengths.max()))
    wanted = (starts[:, None] + positions).clamp_(max=len(split.tokens) - 1)
    is_there = (positions < lengths[:, None]).to(device, non_blocking=True)
    tokens = split.tokens[wanted.to(device, non_blocking=True)].long()
    tokens = torch.where(is_there, tokens, NO_TOKEN)
    if split.targets is not None:
        return tokens, split.targets[indices.to(device, non_blocking=True)]
    inputs = torch.where(is_there[:, 1:], tokens[:, :-1], NO_TOKEN)
    return inputs, tokens[:, 1:]


def micro_batches(inputs: Tensor, targets: Tensor, size: int) -> list[Batch]:
    """A batch cut into pieces of `size` examples, the last as short as it is."""
    if len(targets) <= size:
        return [(inputs, targets)]
    whole = ArraySplit(inputs, targets)
    return [take_range(whole, start, start + size) for start in range(0, len(targets), size)]


def _take_rows(csr: Tensor, indices: Tensor) -> Tensor:
    """csr[indices], which torch does not offer."""
    starts = csr.crow_indices()[indices]
    lengths = csr.crow_indices()[indices + 1] - starts
    rows = lengths.new_zeros(len(lengths) + 1)
    torch.cumsum(lengths, 0, dtype=rows.dtype, out=rows[1:])
    shifts = torch.repeat_interleave(starts - rows[:-1], lengths)
    positions = torch.arange(len(shifts), device=shifts.device, dtype=shifts.dtype) + shifts
    return csr_tensor(rows, csr.col_indices()[positions], csr.values()[positions], csr.shape[1])
