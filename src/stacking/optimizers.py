"""SGD and the Adam family for stacks: each row has its own numbers, and the state of its optimizer.

The formulas are those of torch.optim, in another order of rounding than its fused kernels. To write
a row back into its optimizer gives a state_dict that torch continues with.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from src.stacking.linear import aligned, vector
from src.support import bad_value

T = TypeVar("T", bound=Hashable)


# ---- Between rows and stacks -------------------------------------------------------------


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(R, C, F) of weights (F, C), (R, C, 1) of biases (C,)."""
    found = torch.stack([x.t() if x.ndim == 2 else x[:, None] for x in tensors])
    num_rows, n_outputs, length = found.shape
    return aligned(num_rows, n_outputs, length, found.device).copy_(found)


def of_row(stack: Tensor, row: int, like: Tensor) -> Tensor:
    """A view of a row in the shape that the model of that row has."""
    return stack[row].t() if like.ndim == 2 else stack[row, :, 0]


class ByRow:
    """function(step) of every row, (R, 1, 1) float64; equal ones are computed once.

    In Python's floats: a power or a cosine of torch may depend on the place in the stack.
    """

    def __init__(self, keys: Sequence[T], function: Callable[[T], Callable[[int], float]]) -> None:
        distinct = list(dict.fromkeys(keys))
        self.functions = [function(key) for key in distinct]
        self.index = torch.tensor([distinct.index(key) for key in keys])
        self.last: tuple[list[float], Tensor] = [], torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        values = [function(step) for function in self.functions]
        if values != self.last[0]:
            table = torch.tensor(values, dtype=torch.float64)
            self.last = values, table[self.index][:, None, None]
        return self.last[1]


# ---- Optimizers --------------------------------------------------------------------------


class StackedOptimizer:
    """What R optimizers of torch do, as one. The same operations whatever the numbers of the rows:
    a row without weight decay adds 0 times its weights, so that its bits are those of any stack."""

    # Tensors that the optimizer keeps of each parameter, in its shape
    buffer_names: tuple[str, ...] = ()

    def __init__(self, optimizers: Sequence[Optimizer], parameters: Sequence[list[Any]]) -> None:
        """parameters: of each row, in one order, that of the stacks in step()."""
        self.optimizers, self.originals = optimizers, parameters
        self.device = parameters[0][0].device
        num_parameters = range(len(parameters[0]))
        self.decays = [self.by_row("weight_decay", i) for i in num_parameters]
        self.buffers = {
            name: [self._gathered(name, i) for i in num_parameters] for name in self.buffer_names
        }

    def by_row(self, setting: str, parameter: int = 0) -> Tensor:
        """A setting of that parameter's group, (R, 1, 1) float32."""
        return vector([group[setting] for group in self.groups(parameter)], self.device)

    def groups(self, parameter: int = 0) -> list[dict[str, Any]]:
        """Of each row the group that holds that parameter."""
        return [
            next(g for g in optimizer.param_groups if any(p is own[parameter] for p in g["params"]))
            for optimizer, own in zip(self.optimizers, self.originals, strict=True)
        ]

    def _gathered(self, name: str, i: int) -> Tensor:
        """The stack of a buffer; zeros before the first step."""
        rows = zip(self.optimizers, self.originals, strict=True)
        states = [(optimizer.state.get(own[i], {}).get(name), own[i]) for optimizer, own in rows]
        return stacked([torch.zeros_like(p) if x is None else x for x, p in states])

    def step(
        self, parameters: list[Tensor], gradients: list[Tensor], rates: Tensor, number: int
    ) -> None:
        """rates: learning rates (R, 1, 1) float64. number: of the step, from 1. Both lists are
        stacks of (R, …); the gradients are overwritten."""
        raise NotImplementedError

    def write_row(self, row: int, num_steps: int) -> None:
        """Into the row's own optimizer, which has made so many steps."""
        for i, parameter in enumerate(self.originals[row] if num_steps else ()):
            state = self.optimizers[row].state[parameter]
            for name, stacks in self.buffers.items():
                own = of_row(stacks[i], row, parameter)
                state[name] = own.clone(memory_format=torch.contiguous_format)
            self.complete(state, row, num_steps)

    def complete(self, state: dict[str, Any], row: int, num_steps: int) -> None:
        """What torch's optimizer keeps of a parameter beside the buffers."""


class StackedSGD(StackedOptimizer):
    buffer_names = ("momentum_buffer",)

    def __init__(self, optimizers: Sequence[Optimizer], parameters: Sequence[list[Any]]) -> None:
        super().__init__(optimizers, parameters)
        self.momenta = self.by_row("momentum")
        self.has_momentum = [group["momentum"] > 0 for group in self.groups()]

    def step(
        self, parameters: list[Tensor], gradients: list[Tensor], rates: Tensor, number: int
    ) -> None:
        """Nesterov's momentum, which is none where it is 0."""
        rates = rates.float()
        stacks = zip(
            parameters, gradients, self.decays, self.buffers["momentum_buffer"], strict=True
        )
        for weights, gradient, decay, velocity in stacks:
            gradient.addcmul_(weights, decay)
            velocity.mul_(self.momenta).add_(gradient)
            weights.addcmul_(gradient.addcmul_(velocity, self.momenta), rates, value=-1)

    def complete(self, state: dict[str, Any], row: int, num_steps: int) -> None:
        if not self.has_momentum[row]:
            del state["momentum_buffer"]


class StackedAdam(StackedOptimizer):
    """Adam, AdamW, and both with the largest second moment (AMSGrad)."""

    buffer_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, optimizers: Sequence[Optimizer], parameters: Sequence[list[Any]]) -> None:
        groups = optimizers[0].param_groups
        self.is_amsgrad = groups[0]["amsgrad"]
        self.is_decoupled = groups[0]["decoupled_weight_decay"]
        if self.is_amsgrad:
            self.buffer_names = (*self.buffer_names, "max_exp_avg_sq")
        super().__init__(optimizers, parameters)
        betas = [group["betas"] for group in self.groups()]
        self.of_first = vector([1 - first for first, _ in betas], self.device)
        self.of_second = vector([1 - second for _, second in betas], self.device)
        self.second = vector([second for _, second in betas], self.device)
        self.eps = self.by_row("eps")
        self.first_sum = ByRow([b for b, _ in betas], lambda beta: lambda t: 1 - beta**t)
        self.second_sum = ByRow([b for _, b in betas], lambda beta: lambda t: (1 - beta**t) ** 0.5)

    def step(
        self, parameters: list[Tensor], gradients: list[Tensor], rates: Tensor, number: int
    ) -> None:
        sizes = (rates / self.first_sum(number)).float()
        roots = self.second_sum(number).float()
        rates = rates.float()
        for i, (weights, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if self.is_decoupled:
                weights.sub_(rates * self.decays[i] * weights)
            else:
                gradient.addcmul_(weights, self.decays[i])
            mean, square, *largest = (buffers[i] for buffers in self.buffers.values())
            mean.lerp_(gradient, self.of_first)
            square.mul_(self.second).addcmul_(gradient * gradient, self.of_second)
            for most in largest:
                square = torch.maximum(most, square, out=most)
            weights.sub_(mean.div(square.sqrt().div_(roots).add_(self.eps)).mul_(sizes))

    def complete(self, state: dict[str, Any], row: int, num_steps: int) -> None:
        state["step"] = torch.tensor(float(num_steps))


def stack_optimizers(
    optimizers: Sequence[Optimizer], parameters: Sequence[list[Any]]
) -> StackedOptimizer:
    """All of one kind. UserError for another, which a fork may have in its table."""
    if isinstance(optimizers[0], SGD):
        return StackedSGD(optimizers, parameters)
    if isinstance(optimizers[0], Adam | AdamW):
        return StackedAdam(optimizers, parameters)
    name = type(optimizers[0]).__name__
    raise bad_value("engine", "stacked", f"ordinary, as stacks have no {name}")
