"""Linear models stacked: R models as one, each a row of weights (R, C, F) and biases (R, C, 1).

C outputs, F features, n examples; outputs are (R, C, n). With the classes in the middle and the
examples last every pass over them is contiguous, which is most of the gain. Gradients are written
by hand, as autograd takes as long again.

**A row's bits do not depend on the others**, on their number or order, under three conditions.
There are two rows at least, as a product of one takes another path in BLAS: a row alone stands in
its stack twice. The matrices of all rows begin at addresses that are multiples of 64 bytes, as BLAS
computes others in another order: see aligned(). And of the operations none is used whose result
depends on the place in memory, or on the number of rows: those are sigmoid, powers, sums over the
first dimension, and one product of all rows as (R * C, F). Numbers that differ by row are computed
as Python's floats or in float64, and are float32 (R, 1, 1) where they meet the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from src.losses import (
    BinaryCrossEntropy,
    ClassSquaredError,
    CrossEntropy,
    Loss,
    SquaredError,
)
from src.support import bad_value

# Examples that are computed at a time: the outputs of many rows for them stay in the cache. The
# same for every stack, as the number decides the order of sums.
BLOCK = 1024
EVALUATION_BLOCK = 512

FLOATS = 16  # of 64 bytes

# (sums of losses (R,), numbers of correct predictions (R,) or None, gradients (R, C, n) or None)
Measured = tuple[Tensor, Tensor | None, Tensor | None]


# ---- Losses ------------------------------------------------------------------------------


@dataclass
class StackedCrossEntropy:
    """label_smoothing: (R, 1, 1), None where no row has any. class_weights: (C, 1) of all rows."""

    label_smoothing: Tensor | None
    class_weights: Tensor | None

    def __call__(self, outputs: Tensor, targets: Tensor, *, wants_gradient: bool) -> Measured:
        """outputs: (R, C, n), overwritten, by the gradients if they are wanted. targets: class
        numbers (n,) or probabilities (n, C)."""
        n_classes = outputs.shape[1]
        classes = targets.argmax(1) if targets.ndim == 2 else targets
        # argmax(1) takes ten times as long; ties are the same
        largest, predicted = outputs.max(1, keepdim=True)
        correct = (predicted == classes).sum((1, 2))
        wanted = one_hot(targets, n_classes, outputs.dtype) if targets.ndim == 1 else targets.t()
        is_plain = targets.ndim == 1 and self.class_weights is None
        if self.label_smoothing is not None:
            smooth = self.label_smoothing
            # 1 · x + 0 for rows without smoothing: the same bits as where no row has any
            wanted = wanted * (1 - smooth) + smooth / n_classes
            is_plain = False
        if self.class_weights is not None:
            wanted = wanted * self.class_weights
        outputs.sub_(largest)
        of_wanted = (outputs * wanted).sum(1, keepdim=True)
        total = outputs.exp_().sum(1, keepdim=True)
        log_total = total.log()
        if is_plain:
            gradients = outputs.div_(total).sub_(wanted) if wants_gradient else None
        else:
            weight = wanted.sum(-2, keepdim=True)  # 1, but for weights and rounding
            log_total.mul_(weight)
            gradients = outputs.div_(total).mul_(weight).sub_(wanted) if wants_gradient else None
        return log_total.sub_(of_wanted).sum((1, 2)), correct, gradients


class StackedSquaredError:
    """Of one-hot classes (n,) int64, or of real targets (n,) or (n, C): the mean over C outputs."""

    def __call__(self, outputs: Tensor, targets: Tensor, *, wants_gradient: bool) -> Measured:
        n_outputs, correct = outputs.shape[1], None
        if targets.is_floating_point():
            wanted = targets.view(len(targets), -1).t()
        else:
            correct = (outputs.max(1).indices == targets).sum(1)
            wanted = one_hot(targets, n_outputs, outputs.dtype)
        distances = outputs.sub_(wanted)
        losses = distances.square().sum((1, 2)).div_(n_outputs)
        return losses, correct, distances.mul_(2 / n_outputs) if wants_gradient else None


class StackedBinaryCrossEntropy:
    """Labels (n, C), zeros and ones."""

    def __call__(self, outputs: Tensor, targets: Tensor, *, wants_gradient: bool) -> Measured:
        n_outputs, wanted = outputs.shape[1], targets.t()
        correct = ((outputs > 0) == (wanted > 0.5)).all(1).sum(1)
        small = outputs.abs().neg_().exp_()  # of both signs at most 1
        losses = outputs.clamp_min(0).sub_(outputs * wanted).add_(small.log1p())
        gradients = None
        if wants_gradient:  # of sigmoid(outputs), whose own bits depend on the place in memory
            numerator = torch.where(outputs > 0, torch.ones_like(small), small)
            numerator.div_(small.add_(1)).sub_(wanted).mul_(1 / n_outputs)
            gradients = outputs.copy_(numerator)
        return losses.sum((1, 2)).div_(n_outputs), correct, gradients


def one_hot(targets: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    """(C, n); F.one_hot takes several operations, and reads the values."""
    return identity(n_classes, dtype, targets.device).index_select(1, targets)


@cache
def identity(n_classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(n_classes, dtype=dtype, device=device)


def stack_losses(losses: Sequence[Loss], device: torch.device) -> Callable[..., Measured]:
    """The losses of the rows as one. UserError for another kind, such as a subclass of a fork's."""
    first = losses[0]
    if type(first) is CrossEntropy:
        smoothing = [loss.label_smoothing for loss in losses if isinstance(loss, CrossEntropy)]
        weights = None if first.class_weights is None else first.class_weights[:, None]
        return StackedCrossEntropy(vector(smoothing, device) if any(smoothing) else None, weights)
    if type(first) in (ClassSquaredError, SquaredError):
        return StackedSquaredError()
    if type(first) is BinaryCrossEntropy:
        return StackedBinaryCrossEntropy()
    raise bad_value("engine", "stacked", f"ordinary, as stacks have no {type(first).__name__}")


def vector(numbers: Sequence[float], device: torch.device | None = None) -> Tensor:
    """A number a row, (R, 1, 1) float32."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None]


# ---- Products ----------------------------------------------------------------------------


def aligned(num_rows: int, n_outputs: int, length: int, device: torch.device) -> Tensor:
    """(R, C, length) float32 whose rows begin at multiples of 64 bytes; not initialised."""
    used = n_outputs * length
    stride = -(-used // FLOATS) * FLOATS
    memory = torch.empty(num_rows * stride, dtype=torch.float32, device=device)
    return memory.as_strided((num_rows, n_outputs, length), (stride, length, 1))


def outputs_of(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """(R, C, n) of weights (R, C, F), biases (R, C, 1) if there are any, and inputs (n, F)."""
    weights, *biases = parameters
    of_rows = inputs.t().expand(len(weights), -1, -1)
    num_rows, n_outputs, _ = weights.shape
    outputs = aligned(num_rows, n_outputs, len(inputs), weights.device)
    if biases:
        return torch.baddbmm(biases[0], weights, of_rows, out=outputs)
    return torch.bmm(weights, of_rows, out=outputs)


def gradients_of(parameters: Sequence[Tensor], of_outputs: Tensor, inputs: Tensor) -> list[Tensor]:
    """Of weights and biases, from those of the outputs (R, C, n)."""
    num_rows, n_outputs, num_features = parameters[0].shape
    of_weights = aligned(num_rows, n_outputs, num_features, of_outputs.device)
    torch.bmm(of_outputs, inputs.expand(len(of_outputs), -1, -1), out=of_weights)
    return [of_weights, *(of_outputs.sum(2, keepdim=True) for _ in parameters[1:])]
