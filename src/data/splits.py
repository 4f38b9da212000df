"""What a data family hands over: Data, with one Split a split, which makes its own batches.

A batch is made of (1) the order of the examples, a function of the seed and the step (order.py),
(2) this process's shard of it and (3) the examples themselves, for which each kind of split has
its way: ArraySplit (arrays.py), TextSplit (text.py) and DatasetSplit (images.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from loguru import logger
from torch import Tensor

from src.data.order import batches_from, permutation, shard, shard_of_batch, step_seed
from src.support import UserError, bad_value, processes

NO_TOKEN = -1  # in a batch of texts, where a text has ended
SECOND = -2  # token t of the second text of a pair is SECOND - t, where the tokenizer tells them
MOST_FEATURES = 2048  # of sparse data that are written out
CPU = torch.device("cpu")
MEMORY_FRACTION = 4  # of the free memory that copies of the data may take: one part of so many

Batch = tuple[Tensor, Tensor]  # inputs (n, *shape), dense or CSR; targets (n,) or (n, C)
Batches = Generator[Batch, None, None]  # closing it ends the worker processes, if it has any
Order = Iterable[tuple[int, Tensor]]  # (the number of a pass, indices of a batch), see order.py
Spec = tuple[tuple[int, ...], torch.dtype]  # shape and type of an example


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made; num_workers counts for data that do not fit in memory."""

    batch_size: int
    device: torch.device
    num_workers: int = 0
    # of training batches: what is done at random to examples in memory (images that are read one
    # at a time have it in their transform), what Mixing does, how many copies of each there are
    augmentation: "Augmentation | None" = None
    mixing: Callable[..., Batch] | None = None
    repeats: int = 1
    own_augmentation: Callable[..., Batch] | None = None  # comes before the mixing
    # which process this is, of how many that share each micro-batch
    rank: int = 0
    num_processes: int = 1
    micro_batch_size: int | None = None  # None: the batch

    @property
    def local_batch_size(self) -> int:
        """How many examples of a full micro-batch are this process's."""
        size = self.micro_batch_size or self.batch_size
        start, stop = shard(size, self.rank, self.num_processes)
        return stop - start

    def for_evaluation(self, batch_size: int | None) -> "LoaderConfig":
        """None: batches as large as those of training; they are not cut into micro-batches."""
        return replace(self, batch_size=batch_size or self.batch_size, micro_batch_size=None)


class Split(ABC):
    """One split of a data set: it knows how its batches are made and where it may be cached.

    To add a kind of split, subclass this: `__len__` and `batches` are all it must have. The rest
    says how training changes the examples, and what the kind has that others have not.
    """

    is_in_memory: ClassVar[bool] = True  # False: images, read one at a time
    has_fixed_shape: ClassVar[bool] = True  # all batches have inputs of the same shape

    @property
    def is_multilabel(self) -> bool:
        """Whether an example may have several classes."""
        return False

    @property
    def predicts_next_token(self) -> bool:
        """Whether the targets are each text's own next tokens."""
        return False

    @property
    def grouping_lengths(self) -> Tensor | None:
        """(n,) int64 where training batches are of examples of about the same length."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, order: Iterable[Tensor], loader: LoaderConfig) -> Batches:
        """A batch for each (n,) int64 of indices on the CPU, as evaluations see the examples."""

    def augmented_batches(self, order: Order, loader: LoaderConfig, *, seed: int) -> Batches:
        """The same as training sees them. An index counts on for copies of an example, see
        order.repeated()."""
        return self.batches((indices % len(self) for _, indices in order), loader)

    def range_batches(self, ranges: Sequence[tuple[int, int]], loader: LoaderConfig) -> Batches:
        """A batch for each (start, stop) of the order in which the split is evaluated."""
        return self.batches((torch.arange(start, stop) for start, stop in ranges), loader)

    def to_device(self, device: torch.device) -> "Split":
        """The split with its arrays where the model lives; other data stay where they are."""
        return self

    def dense_size(self) -> int:
        """Bytes that its examples take where sparse ones are written out; 0: they are dense."""
        return 0

    def to_dense(self) -> "Split":
        """The split with sparse examples written out."""
        return self

    def cache_size(self) -> int:
        """Bytes that caching it on the device takes, where to_device() leaves it elsewhere."""
        return 0

    def cache_obstacle(self, name: str) -> str | None:
        """Why it can't be cached on the device, if it can't. name: of the split."""
        return None

    def cached_on_device(self, device: torch.device, *, num_workers: int, name: str) -> "Split":
        """The split with all its examples on the device. num_workers: that read them."""
        return self.to_device(device)

    def input_spec(self, input_shape: tuple[int, ...]) -> Spec | None:
        """Of training examples; None where they have no shape in common. input_shape: Data's."""
        return input_shape, torch.float32

    def augmentation_obstacle(self, name: str) -> str | None:
        """Why the key aug_`name` can't change its examples in training, if it can't."""
        return None

    @abstractmethod
    def with_classes(self, table: Sequence[int]) -> Self:
        """The split with the number table[c] for class c, without examples where that is -1."""

    # ---- What all have in common ---------------------------------------------------------

    def training_batches(
        self, loader: LoaderConfig, *, seed: int, steps_per_pass: int, first_step: int = 0
    ) -> Batches:
        """The batches of step first_step, first_step + 1, …, without an end."""
        order = batches_from(
            first_step,
            seed=seed,
            num_examples=len(self),
            batch_size=loader.batch_size,
            steps_per_pass=steps_per_pass,
            lengths=self.grouping_lengths,
            repeats=loader.repeats,
        )
        if loader.num_processes > 1:
            size = loader.micro_batch_size or loader.batch_size
            order = (
                (number, shard_of_batch(indices, loader.rank, loader.num_processes, size))
                for number, indices in order
            )
        batches = self.augmented_batches(order, loader, seed=seed)
        changes = [change for change in (loader.own_augmentation, loader.mixing) if change]
        return _changed(batches, changes, seed, first_step) if changes else batches

    def evaluation_batches(self, loader: LoaderConfig) -> Batches:
        """Every example once, the last batch as short as it is.

        Where several processes share batches, all have as many; an empty shard is one example's
        inputs and no targets, as networks want something.
        """
        starts = range(0, len(self), loader.batch_size)
        sizes = [min(loader.batch_size, len(self) - start) for start in starts]
        shards = [shard(size, loader.rank, loader.num_processes) for size in sizes]
        own = [(start + i, start + j) for start, (i, j) in zip(starts, shards, strict=True)]
        batches = self.range_batches([(min(i, j - 1), j) for i, j in own], loader)
        if loader.num_processes == 1:
            return batches
        return _without_fillers(batches, iter([j - i for i, j in own]))

    def shuffled_batches(self, loader: LoaderConfig, *, seed: int) -> Batches:
        """Every example once and not augmented, in an order that the seed alone decides.

        Batches have the size that a process trains on or a little more: none is left with a
        single example, of which a batch norm cannot take statistics. Several processes take turns
        with the batches. All get equally many: an empty shard, as in evaluations, stands for one
        that is missing.
        """
        size = -(-(loader.micro_batch_size or loader.batch_size) // loader.num_processes)
        order = permutation(seed, 0, len(self))  # classes may stand one after the other in a split
        batches_of_all = order.tensor_split(max(1, len(self) // size))
        own = batches_of_all[loader.rank :: loader.num_processes]
        num_turns = -(-len(batches_of_all) // loader.num_processes)
        batches = self.batches([*own, order[:1]][:num_turns], loader)
        return _without_fillers(batches, iter([*map(len, own), 0][:num_turns]))


def renumbered(targets: Tensor | None, table: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(the number table[c] for each target c that is kept, the indices of those examples)

    targets: (n,) int64. Examples of classes whose number is -1 are left out.
    """
    if targets is None or targets.ndim != 1:
        raise UserError("data_class_map: only where an example has one class")
    numbers = torch.tensor(table)[targets]
    kept = torch.nonzero(numbers != -1)[:, 0]
    return numbers[kept], kept


def _changed(
    batches: Batches, changes: Sequence[Callable[..., Batch]], seed: int, first_step: int
) -> Batches:
    """The batches of first_step and all that follow, augmented as a whole."""
    with closing(batches):
        for step, batch in enumerate(batches, first_step):
            for change in changes:
                batch = change(*batch, seed=step_seed(seed, step))
            yield batch


def _without_fillers(batches: Batches, sizes: Iterator[int]) -> Batches:
    """Of empty shards the target of the example that fills them is taken away."""
    with closing(batches):
        for (inputs, targets), size in zip(batches, sizes, strict=True):
            yield inputs, targets[:size]


# ---- A data set --------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """What is done to training examples at random; see the keys aug_… for each."""

    pad_crop: int = 0
    crop_scale: tuple[float, ...] | None = None
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    hflip: float = 0.0
    vflip: float = 0.0
    auto: str | None = None
    color_jitter: float = 0.0
    noise: float = 0.0
    erase: float = 0.0
    erase_mode: str = "pixel"


@dataclass(frozen=True)
class Preprocessing:
    """How images are wanted, by a network or by the configuration; None leaves it to the data.

    input_shape: (channels, height, width). mean, std: one number a channel, for
    pixels between 0 and 1. crop_pct: side of the centre crop over the resized side.
    is_squashed: an image of other proportions is squeezed into the shape, nothing cut off.
    is_cropped: crop_pct counts also where all images have the size of the shape.
    Of texts: the tokenizer, a folder or a name of the hub, and how many tokens are taken.
    """

    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    is_squashed: bool = False
    is_cropped: bool = False
    augmentation: Augmentation = Augmentation()
    tokenizer: str | None = None
    text_length: int | None = None


@dataclass(frozen=True)
class Data:
    """All that is known about a data set once it is loaded.

    input_shape: of one example as the model gets it; (features,), (channels, height, width) or,
    of texts, (most tokens,). n_classes: None for regression; the number of tokens where the next
    one is predicted. class_names: in the order of the class numbers, None where nobody knows.
    preprocessing: how its examples were preprocessed. version: of the data set, where it has
    several.
    """

    splits: Mapping[str, Split]
    input_shape: tuple[int, ...]
    n_classes: int | None
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    version: str | None = None

    @property
    def found(self) -> dict[str, Any]:
        """The keys of the configuration that the data decide: name -> value."""
        return {
            "data_n_examples": {name: len(split) for name, split in self.splits.items()},
            "data_n_classes": self.n_classes,
            "data_version": self.version,
            "model_input_shape": list(self.input_shape),
        }

    def to_dense(self) -> "Data":
        """The data with sparse examples written out. UserError where that would be no gain."""
        size = sum(split.dense_size() for split in self.splits.values())
        free = processes.free_memory()
        if size and self.input_shape[-1] > MOST_FEATURES:
            words = f"the data are sparse, with {self.input_shape[-1]:,} features"
            raise UserError(f"engine: got 'stacked', expected 'ordinary', as {words}")
        if free is not None and size * MEMORY_FRACTION > free:
            words = f"the data, written out, take {processes.in_bytes(size)}, more than "
            words += f"1/{MEMORY_FRACTION} of the free memory, {processes.in_bytes(free)}"
            raise UserError(f"engine: got 'stacked', expected 'ordinary', as {words}")
        splits = {name: split.to_dense() for name, split in self.splits.items()}
        return replace(self, splits=splits)

    def should_cache_on_device(
        self, requested: Literal["auto"] | bool, device: torch.device
    ) -> bool:
        """Whether images that are read one at a time are cached on the device.

        requested: data_on_device. Its `auto` depends on the free memory: a run that resumes is to
        keep the answer. UserError where it is true and they can't be cached.
        """
        images = {name: split for name, split in self.splits.items() if not split.is_in_memory}
        if not images or not requested:
            return bool(requested)
        found = (split.cache_obstacle(name) for name, split in images.items())
        obstacle = next((reason for reason in found if reason), None)
        if requested != "auto":
            if obstacle:
                raise bad_value("data_on_device", requested, f"auto or false, as {obstacle}")
            return True
        if not obstacle:
            needed = sum(split.cache_size() for split in images.values())
            free = processes.free_memory(device)
            if free is not None and needed * MEMORY_FRACTION <= free:
                return True
            known = "unknown" if free is None else processes.in_bytes(free)
            most = f"more than 1/{MEMORY_FRACTION} of the free memory, {known}"
            obstacle = f"they take {processes.in_bytes(needed)}, {most}"
        words = "images are read one at a time, not cached on {}: {}"
        logger.info(words, device, obstacle)
        return False

    def to_device(
        self, device: torch.device, *, is_cached: bool, num_workers: int
    ) -> dict[str, Split]:
        """The splits, each where it lives. num_workers: that read the images to cache."""
        if not is_cached:
            return {name: split.to_device(device) for name, split in self.splits.items()}
        return {
            name: split.cached_on_device(device, num_workers=num_workers, name=name)
            for name, split in self.splits.items()
        }
