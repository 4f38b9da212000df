"""Which example comes when: a pure function of (seed, pass, position).

Nothing here remembers anything, so the order does not depend on the number of
workers, and a run continues anywhere without replaying what came before. (torchdata's
StatefulDataLoader would store a position; here the step is the position.)
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

GROUP = 50  # batches, among which texts are sorted by length; as Hugging Face's Trainer has it


def permutation(seed: int, pass_number: int, num_examples: int) -> Tensor:
    """The order of one pass through the data: (num_examples,) int64 on the CPU."""
    mixed = np.random.SeedSequence([seed, pass_number]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(mixed[0] >> 1))
    return torch.randperm(num_examples, generator=generator)


def batches_from(
    step: int,
    *,
    seed: int,
    num_examples: int,
    batch_size: int,
    steps_per_pass: int,
    lengths: Tensor | None = None,
    repeats: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """(pass, indices of one batch) for this step and all that follow, without an end.

    steps_per_pass says whether the short last batch of a pass is used. lengths: (num_examples,)
    of texts whose batches are to be of about the same length. repeats: see repeated().
    """
    pass_number, position = divmod(step, steps_per_pass)
    while True:
        order = permutation(seed, pass_number, num_examples)
        if lengths is not None:
            batch_order = permutation(seed, pass_number, num_examples // batch_size)
            order = grouped(order, lengths, batch_size, batch_order)
        if repeats > 1:
            order = repeated(order, repeats)
        for start in range(position * batch_size, steps_per_pass * batch_size, batch_size):
            yield pass_number, order[start : start + batch_size]
        pass_number, position = pass_number + 1, 0


def grouped(order: Tensor, lengths: Tensor, batch_size: int, batch_order: Tensor) -> Tensor:
    """The order with texts of about the same length in each batch of batch_size.

    Runs of GROUP full batches are sorted by length, then the batches come as batch_order, a
    permutation of them, says. The short last batch stays as it is: where it is left out, long
    texts are as short ones are.
    """
    full = len(batch_order) * batch_size
    runs = order[:full].split(GROUP * batch_size)
    by_length = [run[lengths[run].argsort(descending=True, stable=True)] for run in runs]
    batches = torch.cat([order[:0], *by_length]).view(-1, batch_size)[batch_order]
    return torch.cat([batches.flatten(), order[full:]])


def repeated(order: Tensor, repeats: int) -> Tensor:
    """As many examples of which each comes `repeats` times in a row: the first of the order.

    Copy c of example i is i + c * len(order), a number of its own to draw its augmentation by.
    A batch of a multiple of `repeats` has all copies of its examples; others share some with
    the next. (timm's RepeatAugSampler gives the copies to several processes.)
    """
    num_examples = len(order)
    examples = order[: -(-num_examples // repeats)]
    copies = torch.arange(repeats) * num_examples
    return (examples[:, None] + copies).flatten()[:num_examples]


def shard(num_examples: int, rank: int, num_processes: int) -> tuple[int, int]:
    """Which of so many examples are a process's: (start, stop). Those that are left over go one
    each to the first processes."""
    each, left = divmod(num_examples, num_processes)
    start = rank * each + min(rank, left)
    return start, start + each + (rank < left)


def shard_of_batch(indices: Tensor, rank: int, num_processes: int, micro_batch_size: int) -> Tensor:
    """A process's shard of each micro-batch: what one process would do at once is done at once."""
    pieces = indices.split(micro_batch_size)
    return torch.cat([p[slice(*shard(len(p), rank, num_processes))] for p in pieces])


def step_seed(seed: int, step: int) -> int:
    """A seed for what is drawn for the batch of a step, a whole number below 2**32."""
    return int(np.random.SeedSequence([seed, step, 2]).generate_state(1)[0])


def example_seeds(seed: int, pass_number: int, indices: np.ndarray) -> np.ndarray:
    """A seed for the augmentation of each example: (len(indices),) uint32.

    A function of (seed, pass, index) alone: the finaliser of SplitMix64 (Steele, Lea and
    Flood 2014) over the three, spread by odd constants.
    """
    base = np.random.SeedSequence([seed, pass_number, 1]).generate_state(1, np.uint64)[0]
    z = base + indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
