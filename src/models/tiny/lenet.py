"""tiny/lenet: LeNet-5 of LeCun et al. (1998), Gradient-based learning applied to document
recognition, section II-B, with what has replaced its sigmoids, mean pooling and RBF outputs:
ReLU, max pooling and a linear head."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5×5 convolutions (6 and 16 channels), layers of 120 and 84; 61,706 parameters for
    10 outputs on 1×28×28.

    Smaller images keep their size: a convolution pads where they are smaller than the paper's at
    that place (32, then 14; so 28×28 becomes 32×32 there too), and fewer than 10 pixels a side,
    the least that the paper pools, are not pooled.
    """

    def __init__(self, input_shape: tuple[int, ...], n_outputs: int) -> None:
        super().__init__()
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
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(84, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, outputs)."""
        return self.head(self.body(images))
