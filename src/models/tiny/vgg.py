"""tiny/vgg_DEPTH: Simonyan and Zisserman (2015), Very deep convolutional networks for
large-scale image recognition, table 1, columns A, B, D and E, with batch normalisation (Ioffe
and Szegedy 2015) and, for small images, one linear layer in place of the three of 4096."""

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)  # channels of a stage; a stage ends in max pooling
LAYERS = {  # depth -> 3×3 convolutions in each stage
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """depth: a key of LAYERS."""

    def __init__(self, input_shape: tuple[int, ...], n_outputs: int, *, depth: int) -> None:
        super().__init__()
        channels = input_shape[0]
        layers: list[nn.Module] = []
        for width, count in zip(WIDTHS, LAYERS[depth], strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # one pixel stays one pixel
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, outputs)."""
        return self.head(self.body(images).mean((2, 3)))
