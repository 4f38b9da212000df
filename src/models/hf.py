"""hf/NAME: networks of transformers."""

from typing import Any

from torch import nn

from src.data.splits import Preprocessing


def look_up(name: str, *, is_pretrained: bool = False) -> Any:
    raise NotImplementedError


def build(
    name: str,
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    is_pretrained: bool = False,
    is_language_model: bool = False,
) -> tuple[nn.Module, tuple[str, ...]]:
    raise NotImplementedError


def preprocessing(name: str, *, has_weights: bool) -> Preprocessing:
    raise NotImplementedError
