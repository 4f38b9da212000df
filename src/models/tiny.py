"""tiny/NAME: convolutional networks for small images, of any size and number of channels.

Each is a list of layers and a linear head, written out below from its paper. A new one is a
function (input_shape, n_outputs) -> TinyNet and a line in NETWORKS.
"""

import re
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from src.support import bad_value, unknown_name


class TinyNet(nn.Module):
    """The layers of `body`, the mean over the pixels unless there are features already, `head`."""

    def __init__(self, layers: list[nn.Module], num_features: int, n_outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(num_features, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, outputs)."""
        features = self.body(images)  # (batch, features) or (batch, features, height, width)
        return self.head(features.mean((2, 3)) if features.ndim == 4 else features)


# ---- LeNet -------------------------------------------------------------------------------


def lenet(input_shape: tuple[int, ...], n_outputs: int) -> TinyNet:
    """LeNet-5 of LeCun et al. (1998), Gradient-based learning applied to document recognition,
    section II-B, with what has replaced its sigmoids, mean pooling and RBF outputs: ReLU, max
    pooling and a linear head. 61,706 parameters for 10 outputs on 1×28×28.

    Smaller images keep their size: a convolution pads where they are smaller than the paper's at
    that place (32, then 14; so 28×28 becomes 32×32 there too), and fewer than 10 pixels a side,
    the least that the paper pools, are not pooled.
    """
    channels, *sides = input_shape
    layers: list[nn.Module] = []
    for width, papers_side in ((6, 32), (16, 14)):
        padding = 2 if min(sides) < papers_side else 0
        layers += [nn.Conv2d(channels, width, 5, padding=padding), nn.ReLU()]
        channels, sides = width, [side - 4 + 2 * padding for side in sides]
        if min(sides) >= 10:
            layers.append(nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
    features = channels * sides[0] * sides[1]
    layers += [nn.Flatten(), nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return TinyNet(layers, 84, n_outputs)


# ---- VGG ---------------------------------------------------------------------------------

VGG_WIDTHS = (64, 128, 256, 512, 512)  # channels of a stage; a stage ends in max pooling
VGG_LAYERS = {  # depth -> 3×3 convolutions in each stage: columns A, B, D and E of table 1
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(input_shape: tuple[int, ...], n_outputs: int, *, depth: int) -> TinyNet:
    """Simonyan and Zisserman (2015), Very deep convolutional networks for large-scale image
    recognition, table 1, with batch normalisation (Ioffe and Szegedy 2015) and, for small images,
    one linear layer in place of the three of 4096."""
    channels = input_shape[0]
    layers: list[nn.Module] = []
    for width, count in zip(VGG_WIDTHS, VGG_LAYERS[depth], strict=True):
        for _ in range(count):
            layers += [*convolution(channels, width, 3), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that one pixel stays one pixel
    return TinyNet(layers, channels, n_outputs)


# ---- ResNet ------------------------------------------------------------------------------

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
IMAGENET_BLOCKS = {  # depth -> blocks in each stage, table 1
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def resnet(input_shape: tuple[int, ...], n_outputs: int, *, depth: int) -> TinyNet:
    """He et al. (2016), Deep residual learning for image recognition.

    20 to 110: section 4.2, three stages of 16, 32, 64 channels, shortcuts without parameters.
    18 to 152: table 1 for small images (3×3 convolution first, no pooling after it), shortcuts by
    projection where the shape changes, stride in the 3×3 convolution of a bottleneck.
    """
    is_cifar = depth in CIFAR_DEPTHS
    # Two convolutions a block, three stages, and the first and the last layer: depth = 6n + 2.
    blocks = (depth // 6,) * 3 if is_cifar else IMAGENET_BLOCKS[depth]
    channels = 16 if is_cifar else 64
    layers: list[nn.Module] = [*convolution(input_shape[0], channels, 3), nn.ReLU(inplace=True)]
    for stage, count in enumerate(blocks):
        width = (16 if is_cifar else 64) * 2**stage
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            sizes = [(width, 3, stride), (width, 3, 1)]  # figure 5, left
            if depth in (50, 101, 152):
                sizes = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]  # figure 5, right
            layers.append(Residual(channels, sizes, has_projection=not is_cifar))
            channels = sizes[-1][0]
    return TinyNet(layers, channels, n_outputs)


class Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x)): equations (1) and (2).

    sizes: (channels, pixels a side, stride) of each convolution of the branch. Where the shape
    changes, the shortcut is a 1×1 convolution (option B), or has no parameters (option A).
    """

    def __init__(
        self, channels: int, sizes: list[tuple[int, int, int]], *, has_projection: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner, stride = channels, 1
        for out, side, its_stride in sizes:
            layers += [*convolution(inner, out, side, its_stride), nn.ReLU(inplace=True)]
            inner, stride = out, stride * its_stride
        self.branch = nn.Sequential(*layers[:-1])
        has_new_shape = (channels, 1) != (inner, stride)
        self.new_channels = inner - channels if has_new_shape and not has_projection else 0
        self.shortcut: nn.Module = nn.Identity()
        if has_new_shape and has_projection:
            self.shortcut = nn.Sequential(*convolution(channels, inner, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        if self.new_channels:  # option A: every second pixel, and zeros for the new channels
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(self.branch(x) + shortcut, inplace=True)


def convolution(channels: int, out: int, side: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the image's size (divided by the stride), and batch norm."""
    conv = nn.Conv2d(channels, out, side, stride, padding=side // 2, bias=False)
    return [conv, nn.BatchNorm2d(out)]


# ---- Wide ResNet -------------------------------------------------------------------------

WIDE_NAME = re.compile(r"wrn_(\d+)_(\d+)(?:_(\d*\.?\d+))?")
WIDE_EXAMPLES = ("wrn_DEPTH_WIDTH[_DROPOUT]", "wrn_16_4", "wrn_28_10", "wrn_28_10_0.3", "wrn_40_2")


def wide_resnet(
    input_shape: tuple[int, ...], n_outputs: int, *, depth: int, width: int, dropout: float
) -> TinyNet:
    """Zagoruyko and Komodakis (2016), Wide residual networks, table 1 with blocks B(3,3).

    depth: 6n + 4 for n blocks a stage. width: factor k of table 1. dropout: probability.
    """
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)]
    for out, stage_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for i in range((depth - 4) // 6):
            stride = stage_stride if i == 0 else 1
            layers.append(WideBlock(channels, out, stride=stride, dropout=dropout))
            channels = out
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return TinyNet(layers, channels, n_outputs)


class WideBlock(nn.Module):
    """Normalisation and ReLU before each convolution (He et al. 2016, Identity mappings in deep
    residual networks), dropout between the two (section 2.4). Where the shape changes, the
    shortcut projects the normalised input (figure 1 (d))."""

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


# ---- By name -----------------------------------------------------------------------------

Network = Callable[[tuple[int, ...], int], TinyNet]
NETWORKS: dict[str, Network] = {
    "lenet": lenet,
    **{f"vgg_{depth}": partial(vgg, depth=depth) for depth in VGG_LAYERS},
    **{f"resnet_{depth}": partial(resnet, depth=depth) for depth in CIFAR_DEPTHS},
    **{f"resnet_{depth}": partial(resnet, depth=depth) for depth in IMAGENET_BLOCKS},
}


def names() -> list[str]:
    """As resolve() takes them, and the form of those with numbers."""
    return [*NETWORKS, *WIDE_EXAMPLES]


def resolve(name: str) -> Network:
    """The function that makes the network of this name; UserError where there is none."""
    if network := NETWORKS.get(name):
        return network
    if not (match := WIDE_NAME.fullmatch(name)):
        known = [f"tiny/{n}" for n in names()]
        raise unknown_name("model", f"tiny/{name}", known)
    depth, width, dropout = int(match[1]), int(match[2]), float(match[3] or 0)
    if depth < 10 or depth % 6 != 4:
        raise bad_value("model", f"tiny/{name}", "a depth of 6n + 4: 10, 16, 22, 28, 34, 40, …")
    if width < 1 or dropout >= 1:
        raise bad_value("model", f"tiny/{name}", "a width from 1 up and a dropout below 1")
    return partial(wide_resnet, depth=depth, width=width, dropout=dropout)


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """See FAMILIES in registry.py."""
    model = resolve(name)(input_shape, n_outputs)
    # All layers but the head start as in He et al. (2015), Delving deep into rectifiers, eq. (10):
    # torch's own start of convolutions is smaller, and deep stacks of ReLUs fade with it.
    for module in model.body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model, ("head",)
