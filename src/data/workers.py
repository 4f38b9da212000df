"""Images read one at a time, by worker processes, in a given order.

Worker processes survive the signals of the run, which stops them itself.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.order import example_seeds
from src.data.splits import Batch, Batches
from src.data.transforms import ImageTransform
from src.support import bad_value, random_state

SECONDS_TO_OUTLIVE = 120  # that worker processes live on after SIGTERM: a step, and more
SOCKET = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # of multiprocessing, below the temporary folder
LONGEST_SOCKET = 107 if sys.platform.startswith("linux") else 103  # bytes of a path
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
Request = tuple[int, np.ndarray]  # the number of a pass, and which examples


class Examples(Dataset):
    """Batches of (pass, indices) in the form that a DataLoader asks for them.

    `normalize` makes of their inputs what the model wants, on its device. seed: of the
    augmentation, each example's own; None where nothing is drawn.
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Tensor], seed: int | None = None
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.read: Callable[[Any], Any] = transform
        self.batch_of: Callable[[Any], Tensor] = torch.stack
        self.normalize: Callable[[Tensor], Tensor] = identity
        if isinstance(transform, ImageTransform) and not transform.on_tensor:
            self.read, self.batch_of = transform.pixels, transform.batch_of
            self.normalize = transform.to_tensor.normalize

    def __getitems__(self, request: Request) -> Batch:
        pass_number, indices = request
        own = (indices % len(self.dataset)).tolist()  # of copies
        if self.seed is None:
            examples = [self._example(index) for index in own]
        else:
            seeds = example_seeds(self.seed, pass_number, indices).tolist()
            with random_state.isolate_rng():  # without workers this is the training process
                examples = [self._example(*both) for both in zip(own, seeds, strict=True)]
        inputs, targets = zip(*examples, strict=True)
        return self.batch_of(inputs), torch.tensor(targets)

    def _example(self, index: int, seed: int | None = None) -> tuple[Any, Any]:
        """(inputs, target) of one example; an error names the example."""
        if seed is not None:
            random_state.seed_everything(seed, cpu_only=True)
        try:
            image, target = self.dataset[index]
            return self.read(image), target
        except Exception as error:
            error.add_note(f"example {index} of {len(self.dataset):,}")
            raise


def loaded(
    examples: Examples,
    order: Iterable[tuple[int, Tensor]],
    device: torch.device,
    num_workers: int,
) -> Batches:
    """Batches in this order of (pass, indices), on the device; without workers read right here."""
    if num_workers:
        check_temporary_folder()
    on_gpu = device.type == "cuda"
    # as tensors the indices would travel to the workers in files of their own
    requests: Iterable[Any] = ((number, indices.numpy()) for number, indices in order)
    loader = DataLoader(
        examples,
        batch_sampler=requests,
        collate_fn=identity,
        num_workers=num_workers,
        pin_memory=on_gpu,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # else the loader draws from the model's own
    )
    with _signals_blocked():
        batches: Iterator[Batch] = iter(loader)  # starts the workers
    if on_gpu:
        batches = _copied_ahead(batches, device)
    for inputs, targets in batches:
        yield examples.normalize(inputs.to(device)), targets.to(device)


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


def identity(values: Any) -> Any:
    return values
