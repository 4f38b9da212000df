"""tiny/NAME: convolutional networks for small images, of any size and channel count."""

from collections.abc import Callable
from functools import partial

from torch import nn

from src.models.tiny import resnet, vgg, wideresnet
from src.models.tiny.lenet import LeNet
from src.models.tiny.resnet import ResNet
from src.models.tiny.vgg import VGG
from src.support import unknown_name

NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "lenet": LeNet,
    **{f"vgg_{depth}": partial(VGG, depth=depth) for depth in vgg.LAYERS},
    **{f"resnet_{depth}": partial(ResNet, depth=depth) for depth in resnet.DEPTHS},
}
WIDE = ("wrn_DEPTH_WIDTH[_DROPOUT]", "wrn_16_4", "wrn_28_10", "wrn_28_10_0.3", "wrn_40_2")


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """'lenet', (1, 28, 28), 10 -> (model, names of its head)."""
    model = look_up(name)(input_shape, n_outputs)
    # All but the head as He et al. (2015), Delving deep into rectifiers, equation (10).
    for module in model.get_submodule("body").modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model, ("head",)


def look_up(name: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    """What makes the network of this name; UserError where there is none."""
    if network := NETWORKS.get(name) or wideresnet.from_name(name):
        return network
    raise unknown_name("model", f"tiny/{name}", [f"tiny/{n}" for n in (*NETWORKS, *WIDE)])
