"""From a split to batches on the device.

Arrays, tokens and held images live on the device and a batch is one gather; all else is read by
worker processes. Either way the batches are a function of the seed and the step.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.arrays import csr_tensor, row_range
from src.data.batch_augmentation import augmented
from src.data.mixing import Mixing
from src.data.order import batches_from, example_seeds, share, share_of_batch, step_seed
from src.data.splits import NO_TOKEN, ArraySplit, DatasetSplit, PixelSplit, Split, TextSplit
from src.data.transforms import ImageTransform
from src.generators import generators_kept, seed_cpu
from src.names import bad_value

SECONDS_TO_OUTLIVE = 120  # that worker processes live on after SIGTERM: a step, and more
SOCKET = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # of multiprocessing, below the temporary folder
LONGEST_SOCKET = 107 if sys.platform.startswith("linux") else 103  # bytes of a path
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
Request = tuple[int, np.ndarray]  # the number of a pass, and which examples
Batch = tuple[Tensor, Tensor]  # inputs (n, *shape), dense or CSR; targets (n,) or (n, C)


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
        batches = _loaded(_TrainingExamples(split, seed), order, loading)
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
        batches = _loaded(_Examples(split, split.transform), order, loading)
    return _without_targets_of_others(batches, sizes) if loading.num_processes > 1 else batches


def _without_targets_of_others(
    batches: Generator[Batch, None, None], sizes: Iterator[int]
) -> Generator[Batch, None, None]:
    """Of shares of nothing the target of the example that fills it is taken away."""
    with closing(batches):
        for (inputs, targets), size in zip(batches, sizes, strict=True):
            yield inputs, targets[:size]


def pixel_batches(split: DatasetSplit, loading: Loading) -> Generator[Batch, None, None]:
    """Every example of ImageTransforms once, uint8 and not yet normalised."""
    examples = _Examples(split, split.transform)
    examples.normalize = _nothing
    order = ((0, indices) for indices in torch.arange(len(split)).split(loading.batch_size))
    return _loaded(examples, order, loading)


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


# ---- Everything else ---------------------------------------------------------------------


class _Examples(Dataset):
    """Batches of (pass, indices) in the form that a DataLoader asks for them.

    `normalize` makes of their inputs what the model wants, on its device.
    """

    def __init__(self, split: DatasetSplit, transform: Callable[[Any], Tensor]) -> None:
        self.split = split
        self.read: Callable[[Any], Any] = transform
        self.batch_of: Callable[[Any], Tensor] = torch.stack
        self.normalize: Callable[[Tensor], Tensor] = _nothing
        if isinstance(transform, ImageTransform) and not transform.on_tensor:
            self.read, self.batch_of = transform.pixels, transform.batch_of
            self.normalize = transform.to_tensor.normalize

    def __getitems__(self, request: Request) -> Batch:
        _, indices = request
        inputs, targets = zip(*map(self._example, indices.tolist()), strict=True)
        return self.batch_of(inputs), torch.tensor(targets)

    def _example(self, index: int) -> tuple[Any, Any]:
        """What goes into a batch; an error says of which example it is."""
        try:
            image, target = self.split.dataset[index]
            return self.read(image), target
        except Exception as error:
            error.add_note(f"example {index} of {len(self.split):,}")
            raise


class _TrainingExamples(_Examples):
    """The same with augmentation, each example's randomness its own."""

    def __init__(self, split: DatasetSplit, seed: int) -> None:
        super().__init__(split, split.train_transform)
        self.seed = seed

    def __getitems__(self, request: Request) -> Batch:
        if self.split.train_transform is self.split.transform:  # nothing is drawn
            return super().__getitems__(request)
        pass_number, indices = request
        seeds = example_seeds(self.seed, pass_number, indices).tolist()
        indices = indices % len(self.split)  # of copies
        examples = []
        with generators_kept():  # without workers this is the training process
            for index, seed in zip(indices.tolist(), seeds, strict=True):
                seed_cpu(seed)
                examples.append(self._example(index))
        inputs, targets = zip(*examples, strict=True)
        return self.batch_of(inputs), torch.tensor(targets)


def _loaded(
    examples: _Examples, order: Iterable[tuple[int, Tensor]], loading: Loading
) -> Generator[Batch, None, None]:
    """Batches in this order, read by worker processes, on the device."""
    if loading.num_workers:
        check_temporary_folder()
    on_gpu = loading.device.type == "cuda"
    # as tensors the indices would travel to the workers in files of their own
    requests: Iterable[Any] = ((number, indices.numpy()) for number, indices in order)
    loader = DataLoader(
        examples,
        batch_sampler=requests,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=loading.num_workers,
        pin_memory=on_gpu,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # else the loader draws from the model's own
    )
    with _signals_blocked():
        batches: Iterator[Batch] = iter(loader)  # starts the workers
    if on_gpu:
        batches = _copied_ahead(batches, loading.device)
    for inputs, targets in batches:
        yield examples.normalize(inputs.to(loading.device)), targets.to(loading.device)


def check_temporary_folder() -> None:
    """UserError where its path leaves no room for the sockets by which workers hand over what they
    have read: they would fail in silence, and the run wait for ever."""
    folder = tempfile.gettempdir()
    most = LONGEST_SOCKET - len(SOCKET)
    if len(os.fsencode(folder)) > most:
        expected = f"a path of at most {most} characters, as TMPDIR=/tmp, or num_workers: 0"
        raise bad_value("TMPDIR", folder, expected)


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Pinned batches on a GPU, each copied on a stream beside while the one before computes."""
    beside = torch.cuda.Stream(device)

    def copied(batch: Batch | None) -> list[Tensor]:
        with torch.cuda.stream(beside):
            return [part.to(device, non_blocking=True) for part in batch or ()]

    coming = copied(next(batches, None))
    while coming:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(beside)  # for this batch: the copy of the next has not begun
        inputs, targets = coming
        for part in (inputs, targets):
            part.record_stream(computing)  # else its memory would be free for copies too early
        coming = copied(next(batches, None))
        yield inputs, targets


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """They come afterwards. A worker that is starting would die of SIGTERM, by torch's handler."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_signals(worker: int) -> None:
    """Slurm and Ctrl-C signal the whole group; the run needs its batches until it stops itself.

    TERM is also how a program that crashed ends its workers: it may wait a little for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_OUTLIVE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _nothing(inputs: Tensor) -> Tensor:
    return inputs
