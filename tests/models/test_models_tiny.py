"""tiny/…: sizes as in the papers, images of any size, starts, names."""

from itertools import product

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from src.models.registry import build_model
from src.models.tiny import Residual
from src.support.errors import UserError

KINDS = ["lenet", "vgg_11", "resnet_20", "resnet_18", "resnet_50", "wrn_10_2"]
SHAPES = [(1, 8, 8), (3, 33, 47), (2, 1, 1)]
OF_LENET = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]  # its layers depend on the size

# millions, as printed: He et al. (2016), table 6; Zagoruyko and Komodakis (2016)
PUBLISHED = {
    "resnet_20": "0.27",
    "resnet_32": "0.46",
    "resnet_44": "0.66",
    "resnet_56": "0.85",
    "resnet_110": "1.7",
    "wrn_40_1": "0.6",
    "wrn_40_2": "2.2",
    "wrn_40_4": "8.9",
    "wrn_16_4": "2.7",
    "wrn_16_8": "11.0",
    "wrn_22_8": "17.2",
    "wrn_28_10": "36.5",
}
# torchvision's, with 1000 outputs and a first convolution of 7×7 on three channels
IMAGENET = {18: 11689512, 34: 21797672, 50: 25557032, 101: 44549160, 152: 60192808}
# Simonyan and Zisserman (2015), table 2, millions, with three layers of 4096, 4096, 1000
VGG = {11: "133", 13: "133", 16: "138", 19: "144"}


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def build(config):
    """The model tiny/NAME."""

    def build(name: str, shape=(3, 32, 32), n_classes=10):
        return build_model(config(f"tiny/{name}"), shape, n_classes)

    return build


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_parameter_counts_are_the_papers(build, name, millions):
    decimals = len(millions.split(".")[1])
    assert f"{num_parameters(build(name)) / 1e6:.{decimals}f}" == millions


@pytest.mark.parametrize(("depth", "count"), IMAGENET.items())
def test_deeper_resnets_differ_from_imagenets_in_the_first_layer_alone(build, depth, count):
    ours = num_parameters(build(f"resnet_{depth}", n_classes=1000))
    assert ours == count - 64 * 3 * (7 * 7 - 3 * 3)


@pytest.mark.parametrize(("depth", "millions"), VGG.items())
def test_vgg_has_the_papers_convolutions(build, depth, millions):
    body = num_parameters(build(f"vgg_{depth}").body)
    fully_connected = 512 * 7 * 7 * 4096 + 4096 * 4096 + 4096 * 1000
    assert f"{(body + fully_connected) / 1e6:.0f}" == millions


def test_lenet_is_lecuns_on_mnist(build):
    layers = [156, 2416, 48120, 10164, 850]  # C1, C3 fully connected, C5, F6, output
    assert num_parameters(build("lenet", (1, 28, 28))) == sum(layers)


@pytest.mark.parametrize(
    ("name", "shape"),
    [*product(KINDS, SHAPES), *(("lenet", shape) for shape in OF_LENET)],
    ids=str,
)
def test_any_image_gives_finite_outputs_and_gradients(build, name, shape):
    model = build(name, shape, 5)
    outputs = model(torch.randn(2, *shape))
    assert outputs.shape == (2, 5)
    cross_entropy(outputs, torch.tensor([0, 4])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", ["lenet", "vgg_11", "resnet_20", "wrn_10_2"])
def test_all_but_the_head_start_as_he_et_al(build, name):
    for module in build(name).body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_padded_shortcut_takes_every_second_pixel_and_adds_zeros():
    block = Residual(1, [(3, 3, 2)], has_projection=False)
    nn.init.zeros_(block.branch[0].weight)
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, -9]])
    expected = torch.zeros(3, 2, 2)
    expected[0] = torch.tensor([[1.0, 3], [7, 0]])  # after the ReLU
    assert torch.equal(block(image.view(1, 1, 3, 3))[0], expected)


@pytest.mark.parametrize(("name", "differs"), [("wrn_10_1", False), ("wrn_10_1_0.5", True)])
def test_wrn_drops_out_where_asked(build, name, differs):
    model = build(name)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(images), model(images)) is not differs
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet5", r"unknown 'tiny/lenet5'; did you mean 'tiny/lenet'\? there is: .*tiny/vgg_19"),
        ("resnet_21", "unknown 'tiny/resnet_21'; did you mean 'tiny/resnet_"),
        ("wrn_28_x", r"unknown 'tiny/wrn_28_x'; did you mean 'tiny/wrn_28_10'\?"),
        ("wrn_27_10", r"got 'tiny/wrn_27_10', expected a depth of 6n \+ 4"),
        ("wrn_4_1", r"got 'tiny/wrn_4_1', expected a depth of 6n \+ 4: 10"),
        ("wrn_16_0", "got .*, expected a width from 1 up"),
        ("wrn_16_4_1.0", "got .*, expected .* a dropout below 1"),
    ],
)
def test_wrong_names_are_reported(build, name, message):
    with pytest.raises(UserError, match=f"^model: {message}"):
        build(name)


def test_lenet_learns_digits(build):
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    model = build("lenet", (1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(6):
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    correct = model(images[test]).argmax(1) == labels[test]
    assert correct.float().mean() > 0.95
