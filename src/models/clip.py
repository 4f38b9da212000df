"""clip/NAME: the image tower of a CLIP of open_clip, and a linear head."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from src.data.splits import Preprocessing


def look_up(name: str, *, is_pretrained: bool = False) -> Any:
    raise NotImplementedError


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int, *, is_pretrained: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    raise NotImplementedError


def preprocessing(name: str) -> Preprocessing:
    raise NotImplementedError


def init_zero_shot(
    model: nn.Module,
    name: str,
    class_names: Sequence[str] | None,
    templates: str | Sequence[str],
) -> None:
    raise NotImplementedError
