"""linear, linear/no_bias: one layer, for dense inputs of any shape and for sparse rows."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.support import pick

VARIANTS = {"linear": True, "linear/no_bias": False}  # whether there is a bias

# Up to so many outputs NarrowBag's backward wins on a CPU. Measured with 47,236 features, 75 of
# them filled, forward and backward on one thread, milliseconds (embedding_bag / NarrowBag):
# 512 rows: 2 outputs 2.4 / 0.6, 16 outputs 2.8 / 1.7; 4096 rows: 16: 23 / 13, 32: 24 / 33.
NARROW = 16


def names() -> list[str]:
    """As resolve() takes them."""
    return [name.removeprefix("linear").removeprefix("/") for name in VARIANTS]


def resolve(name: str) -> bool:
    """Whether this variant has a bias; UserError where there is no such variant."""
    return pick(VARIANTS, f"linear/{name}" if name else "linear", "model")


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """See FAMILIES in registry.py; the head is the model itself."""
    return Linear(math.prod(input_shape), n_outputs, has_bias=resolve(name)), ("",)


class Linear(nn.Module):
    """outputs = inputs @ weight + bias, with weight (features, outputs).

    This is nn.Linear transposed: one entry of a sparse input multiplies one row of the weight, so
    sparse batches need no transposed copy of the weight at every step.
    """

    def __init__(self, num_features: int, num_outputs: int, *, has_bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_outputs)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/sqrt(features), as nn.Linear starts."""
        bound = 1 / math.sqrt(len(self.weight))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """float32, dense (batch, *shape) or CSR (batch, features) -> (batch, outputs)."""
        if inputs.layout == torch.sparse_csr:
            outputs = multiply_csr(inputs, self.weight)
            return outputs if self.bias is None else outputs + self.bias
        if inputs.ndim > 2:
            inputs = inputs.flatten(1)
        if self.bias is None:
            return inputs @ self.weight
        return torch.addmm(self.bias, inputs, self.weight)  # one kernel instead of two


def multiply_csr(inputs: Tensor, weight: Tensor) -> Tensor:
    """CSR (batch, features) @ dense (features, outputs), differentiable in the weight alone."""
    crow, col, values = inputs.crow_indices(), inputs.col_indices(), inputs.values()
    # On a GPU index_add sums in no fixed order, and a run would not repeat itself.
    if weight.is_cpu and weight.shape[1] <= NARROW:
        return NarrowBag.apply(crow.long(), col.long(), values, weight)
    return F.embedding_bag(
        col, weight, crow, mode="sum", per_sample_weights=values, include_last_offset=True
    )


class NarrowBag(torch.autograd.Function):
    """F.embedding_bag with a backward that does not sort the entries by column."""

    @staticmethod
    def forward(ctx: Any, crow: Tensor, col: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(crow, col, values)
        ctx.num_features = len(weight)
        return F.embedding_bag(
            col, weight, crow, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        crow, col, values = ctx.saved_tensors
        (of_rows,) = gradients  # (batch, outputs)
        of_entries = of_rows.repeat_interleave(crow.diff(), dim=0, output_size=len(values))
        of_entries *= values[:, None]  # (entries, outputs)
        of_weight = of_rows.new_zeros(ctx.num_features, of_rows.shape[1])
        return None, None, None, of_weight.index_add_(0, col, of_entries)
