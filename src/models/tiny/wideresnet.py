"""tiny/wrn_DEPTH_WIDTH[_DROPOUT]: Zagoruyko and Komodakis (2016), Wide residual networks,
table 1 with blocks B(3,3), normalisation and ReLU before each convolution (He et al. 2016,
Identity mappings in deep residual networks), dropout between the two (section 2.4)."""

import re
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from src.support import bad_value

NAME = re.compile(r"wrn_(\d+)_(\d+)(?:_(\d*\.?\d+))?")


def from_name(name: str) -> Callable[[tuple[int, ...], int], nn.Module] | None:
    """'wrn_28_10_0.3' -> what makes the network; None for a name of another form."""
    if not (match := NAME.fullmatch(name)):
        return None
    depth, width, dropout = int(match[1]), int(match[2]), float(match[3] or 0)
    if depth < 10 or depth % 6 != 4:
        raise bad_value("model", f"tiny/{name}", "a depth of 6n + 4: 10, 16, 22, 28, 34, 40, …")
    if width < 1 or dropout >= 1:
        raise bad_value("model", f"tiny/{name}", "a width from 1 up and a dropout below 1")
    return partial(WideResNet, depth=depth, width=width, dropout=dropout)


class WideResNet(nn.Module):
    """depth: 6n + 4 for n blocks a stage. width: factor k of table 1. dropout: probability."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_outputs: int,
        *,
        depth: int,
        width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = 16
        layers: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)]
        for out, stage_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for i in range((depth - 4) // 6):
                stride = stage_stride if i == 0 else 1
                layers.append(WideBlock(channels, out, stride=stride, dropout=dropout))
                channels = out
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, outputs)."""
        return self.head(self.body(images).mean((2, 3)))


class WideBlock(nn.Module):
    """Figure 1 (d). Where the shape changes, the shortcut projects the normalised input."""

    def __init__(self, channels: int, out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        has_new_shape = stride != 1 or channels != out
        self.projection = nn.Conv2d(channels, out, 1, stride, bias=False) if has_new_shape else None

    def forward(self, x: Tensor) -> Tensor:
        normed = F.relu(self.norm(x), inplace=True)
        shortcut = x if self.projection is None else self.projection(normed)
        return self.branch(normed) + shortcut
