import pytest
import torch
from torch import nn

from src.models import linear
from src.models.linear import Linear

FEATURES = 30
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch: beta, and checks are off


def sparse_rows(num_rows: int) -> torch.Tensor:
    """Every other row is empty; no column is filled in all of them."""
    rows = torch.rand(num_rows, FEATURES) * (torch.rand(num_rows, FEATURES) < 0.3)
    rows[::2] = 0
    return rows


def reference(layer: Linear) -> nn.Linear:
    """The same function as nn.Linear computes it."""
    out = layer.weight.shape[1]
    twin = nn.Linear(FEATURES, out, bias=layer.bias is not None)
    with torch.no_grad():
        twin.weight.copy_(layer.weight.t())
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


def assert_same_function(layer: Linear, inputs: torch.Tensor, dense: torch.Tensor) -> None:
    twin = reference(layer)
    of_outputs = torch.rand(len(dense), layer.weight.shape[1])
    outputs, expected = layer(inputs), twin(dense)
    outputs.backward(of_outputs)
    expected.backward(of_outputs)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad.t())
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [64, 1], ids=["batch", "one empty row"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("outputs", [1, 2, linear.NARROW, linear.NARROW + 1])
def test_sparse_rows_give_what_nn_linear_gives(outputs, index, num_rows, has_bias):
    dense = sparse_rows(num_rows)
    csr = dense.to_sparse_csr()
    csr = torch.sparse_csr_tensor(
        csr.crow_indices().to(index), csr.col_indices().to(index), csr.values(), csr.shape
    )
    assert_same_function(Linear(FEATURES, outputs, has_bias=has_bias), csr, dense)


@pytest.mark.parametrize("has_bias", [True, False])
def test_dense_inputs_of_any_shape_give_what_nn_linear_gives(has_bias):
    dense = torch.rand(7, FEATURES)
    layer = Linear(FEATURES, 3, has_bias=has_bias)
    assert_same_function(layer, dense.view(7, 2, 5, 3), dense)


def test_starts_in_the_range_in_which_nn_linear_starts():
    for parameter in Linear(400, 500).parameters():
        assert parameter.abs().max() <= 1 / 20
        assert parameter.abs().max() > 0.99 / 20
        assert abs(parameter.mean()) < 0.01


@pytest.mark.parametrize(("name", "has_bias"), [("", True), ("no_bias", False)])
def test_parameters_are_called_weight_and_bias(name, has_bias):
    model, _ = linear.build(name, (1, 5, 6), 2)
    names = [name for name, _ in model.named_parameters()]
    assert names == (["weight", "bias"] if has_bias else ["weight"])
