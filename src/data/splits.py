"""What a data family hands over: one object a split, whatever the data are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

NO_TOKEN = -1  # in a batch of texts, where a text has ended
SECOND = -2  # token t of the second text of a pair is SECOND - t, where the tokenizer tells them


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


@dataclass(frozen=True)
class TextSplit:
    """Texts as tokens, in memory: text i is tokens[starts[i]:ends[i]]; texts may overlap.

    tokens: (all,) int32, see SECOND. starts, ends: (n,) int64, on the CPU. targets: (n,) int64
    class numbers or float32 for regression; None where each text's own next tokens are predicted.
    """

    tokens: Tensor
    starts: Tensor
    ends: Tensor
    targets: Tensor | None = None
    is_grouped: bool = False  # whether training batches are of texts of about the same length

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Tensor:
        """(n,) int64 tokens, on the CPU."""
        return self.ends - self.starts


@dataclass(frozen=True)
class PixelSplit:
    """Small images as bytes, where the model lives.

    pixels: (n, channels, height, width) uint8. targets: (n,) int64. normalize: of uint8 batches
    makes float32 ones. augmentation: what is done to training images at random, in batches.
    """

    pixels: Tensor
    targets: Tensor
    normalize: Callable[[Tensor], Tensor]
    augmentation: "Augmentation | None" = None

    def __len__(self) -> int:
        return len(self.targets)


Split = ArraySplit | DatasetSplit | PixelSplit | TextSplit


def has_several_labels(split: Split) -> bool:
    return isinstance(split, ArraySplit) and split.targets.ndim == 2


def is_text(split: Split) -> bool:
    return isinstance(split, TextSplit)


def is_text_alone(split: Split) -> bool:
    return isinstance(split, TextSplit) and split.targets is None


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images at random; see the keys aug_… for each."""

    pad_crop: int = 0
    crop_scale: tuple[float, ...] | None = None
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    hflip: float = 0.0
    vflip: float = 0.0
    auto: str | None = None
    color_jitter: float = 0.0
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
    looks: how its images were preprocessed. version: of the data set, where it has several.
    """

    splits: dict[str, Split]
    input_shape: tuple[int, ...]
    n_classes: int | None
    class_names: tuple[str, ...] | None = None
    looks: Preprocessing = field(default_factory=Preprocessing)
    version: str | None = None
