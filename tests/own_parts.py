"""What a fork may write for itself: a data set and a network."""

from pathlib import Path

import torch
from torch import Tensor, nn


def read(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Points of the plane in four quadrants, two classes."""
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    classes = (points[:, 0] * points[:, 1] > 0).long()
    return {"train": (points[:200], classes[:200]), "test": (points[200:], classes[200:])}


def read_prices(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Prices as people have them, around 200,000: the squared error begins at 4e10."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(300, 3, generator=generator)
    prices = 2e5 + 5e4 * sizes[:, 0] + 1e3 * torch.randn(300, generator=generator)
    return {"train": (sizes[:200], prices[:200]), "test": (sizes[200:], prices[200:])}


def build(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    wide = nn.Linear(input_shape[0], 32)
    return nn.Sequential(wide, nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, n_outputs))


def build_normed(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    wide = nn.Linear(input_shape[0], 32)
    return nn.Sequential(wide, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, n_outputs))
