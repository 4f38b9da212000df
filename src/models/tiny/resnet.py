"""tiny/resnet_DEPTH: He et al. (2016), Deep residual learning for image recognition.

20 to 110: section 4.2, three stages of 16, 32, 64 channels, shortcuts without parameters.
18 to 152: table 1 for small images (3×3 convolution first, no pooling after it), shortcuts by
projection where the shape changes, stride in the 3×3 convolution of a bottleneck.
"""

import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
DEPTHS = (*CIFAR_DEPTHS, *IMAGENET_BLOCKS)


class ResNet(nn.Module):
    """depth: one of DEPTHS."""

    def __init__(self, input_shape: tuple[int, ...], n_outputs: int, *, depth: int) -> None:
        super().__init__()
        is_cifar = depth in CIFAR_DEPTHS
        # two convolutions a block, three stages, and the first and the last layer: 6n + 2
        blocks = (depth // 6,) * 3 if is_cifar else IMAGENET_BLOCKS[depth]
        branch, expansion = (basic, 1) if is_cifar or depth < 50 else (bottleneck, 4)
        width = channels = 16 if is_cifar else 64
        layers: list[nn.Module] = [*convolution(input_shape[0], width, 3), nn.ReLU(inplace=True)]
        for stage, count in enumerate(blocks):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                out = width * 2**stage * expansion
                way_round = shortcut(channels, out, stride, is_padded=is_cifar)
                layers.append(Residual(branch(channels, width * 2**stage, stride), way_round))
                channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, outputs)."""
        return self.head(self.body(images).mean((2, 3)))


class Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x)): equations (1) and (2)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x), inplace=True)


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the new channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


def convolution(channels: int, out: int, side: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the image's size (over the stride), normalised."""
    conv = nn.Conv2d(channels, out, side, stride, padding=side // 2, bias=False)
    return [conv, nn.BatchNorm2d(out)]


def basic(channels: int, width: int, stride: int) -> nn.Module:
    """Two 3×3 convolutions (figure 5, left)."""
    return nn.Sequential(
        *convolution(channels, width, 3, stride),
        nn.ReLU(inplace=True),
        *convolution(width, width, 3),
    )


def bottleneck(channels: int, width: int, stride: int) -> nn.Module:
    """1×1, 3×3 and 1×1 to four times the width (figure 5, right)."""
    return nn.Sequential(
        *convolution(channels, width, 1),
        nn.ReLU(inplace=True),
        *convolution(width, width, 3, stride),
        nn.ReLU(inplace=True),
        *convolution(width, 4 * width, 1),
    )


def shortcut(channels: int, out: int, stride: int, *, is_padded: bool) -> nn.Module:
    """The identity where the shape stays; else option A (padded) or B (1×1 convolution)."""
    if channels == out and stride == 1:
        return nn.Identity()
    if is_padded:
        return PaddedShortcut(out - channels)
    return nn.Sequential(*convolution(channels, out, 1, stride))
