"""What a fork may write for itself: a data set and a network."""

from pathlib import Path

import torch
from torch import Tensor, nn


def read(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Points of the plane in four quadrants, two classes."""
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    classes = (points[:, 0] * points[:, 1] > 0).long()
    return {"train": (points[:200], classes[:200]), "test": (points[200:], classes[200:])}


def build(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    wide = nn.Linear(input_shape[0], 32)
    return nn.Sequential(wide, nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, n_outputs))
