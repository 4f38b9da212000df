"""What a data family hands over: one object a split, whatever the data are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class ArraySplit:
    """Data that fit in memory.

    inputs: float32, dense (n, *shape) or CSR (n, features).
    targets: (n,) int64 class numbers 0…C-1, (n,) float32 for regression,
    (n, C) float32 of zeros and ones where an example has several labels.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class DatasetSplit:
    """Data read an example at a time: dataset[i] -> (PIL image, class number).

    The transforms turn the image into a float32 tensor of the model's input
    shape; `train_transform` may draw at random, from torch's, numpy's and
    Python's global generators alone, which the loader seeds for each example.
    """

    dataset: Dataset
    train_transform: Callable[[Any], Tensor]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


Split = ArraySplit | DatasetSplit


@dataclass(frozen=True)
class Data:
    """All that is known about a data set once it is loaded.

    input_shape: of one example as the model gets it; (features,) or (channels, height, width).
    n_classes: None for regression.
    """

    splits: dict[str, Split]
    input_shape: tuple[int, ...]
    n_classes: int | None


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images; None leaves it to the data.

    input_shape: (channels, height, width). mean, std: one number a channel, for
    pixels between 0 and 1. crop_pct: side of the centre crop over the resized side.
    """

    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
