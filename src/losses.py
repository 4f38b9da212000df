"""Losses as sums over examples, to be divided by a weight: sums add up over micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data import NO_TOKEN
from src.support import UserError, bad_value, pick

LEAST_WEIGHT = 1e-30  # of a batch whose classes all count for nothing: its gradients are zero


class Loss:
    """loss(outputs, targets) / loss.weight(targets) is the loss of a batch.

    Both are sums over the examples, so the loss of a large batch is the sum of its
    micro-batches' losses over the sum of their weights, whatever their sizes.
    """

    measures: tuple[str, ...] = ("loss", "accuracy")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum () of the examples' losses, in the outputs' floats."""
        raise NotImplementedError

    def weight(self, targets: Tensor) -> float | Tensor:
        """What the sum is divided by: the number of examples, or () their classes' weights."""
        return len(targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """How many (int64, ()) predictions are right; None for regression."""
        return (outputs.argmax(1) == targets).sum()

    def predictions(self, targets: Tensor) -> int | Tensor:
        """How many there are."""
        return len(targets)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """outputs: logits (n, C); targets: class numbers (n,), or shares of the classes (n, C) of
    mixed images, whose largest share counts as the class. Smoothing and weights as torch's."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # (C,), on the outputs' device

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            outputs,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def weight(self, targets: Tensor) -> float | Tensor:
        if self.class_weights is None:
            return len(targets)
        is_mixed = targets.ndim == 2
        weights = (targets @ self.class_weights) if is_mixed else self.class_weights[targets]
        return weights.sum().clamp_min(LEAST_WEIGHT)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return (outputs.argmax(1) == (targets.argmax(1) if targets.ndim == 2 else targets)).sum()


class NextToken(Loss):
    """Mean over tokens; outputs: logits (n, length, V); targets: tokens (n, length), NO_TOKEN
    where there is none."""

    measures = ("loss", "accuracy", "perplexity")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs.flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=NO_TOKEN, reduction="sum")

    def weight(self, targets: Tensor) -> float | Tensor:
        return self.predictions(targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return (outputs.argmax(-1) == targets).sum()  # no output is NO_TOKEN

    def predictions(self, targets: Tensor) -> Tensor:
        return (targets != NO_TOKEN).sum()


class ClassSquaredError(Loss):
    """Mean over the C outputs of their squared distance to the one-hot class numbers (n,)."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        one_hot = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)  # (n, C)
        return F.mse_loss(outputs, one_hot, reduction="sum") / outputs.shape[1]


class SquaredError(Loss):
    """Mean over the k outputs of their squared distance to real targets (n,) or (n, k)."""

    measures = ("loss",)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.numel() != targets.numel():
            shapes = f"{tuple(outputs.shape)} outputs for {tuple(targets.shape)} targets"
            raise UserError(f"model_output_dim: the model gives {shapes}")
        # (n, 1) less (n,) would broadcast to (n, n)
        distances = F.mse_loss(outputs, targets.view_as(outputs), reduction="sum")
        return distances * (len(targets) / targets.numel())

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return None


class BinaryCrossEntropy(Loss):
    """Mean over the C labels; outputs: logits (n, C); targets: zeros and ones (n, C), floats."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise bad_value("model_output_dim", outputs.shape[1], f"{targets.shape[1]}, the labels")
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        return losses / outputs.shape[1]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The examples with all their labels right."""
        return ((outputs > 0) == (targets > 0.5)).all(1).sum()


LOSSES = {
    "log": CrossEntropy,
    "xentropy": CrossEntropy,
    "mse": ClassSquaredError,
    "square": ClassSquaredError,
    "bce": BinaryCrossEntropy,
    "next_token": NextToken,
}


def build_loss(
    name: str,
    *,
    n_classes: int | None,
    is_multilabel: bool = False,
    is_text_alone: bool = False,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | Tensor | None = None,
    device: torch.device | None = None,
) -> Loss:
    """The loss of this name for such targets; combinations without a meaning raise UserError.

    n_classes: None for real targets. is_text_alone: the targets are the next tokens.
    class_weights: (n_classes,). device: the model's.
    """
    loss = pick(LOSSES, name, "loss")
    if is_text_alone is not (loss is NextToken):
        expected = "next_token" if is_text_alone else "'log' or another one, as there are targets"
        raise bad_value("loss", name, expected)
    if n_classes is None and loss is not ClassSquaredError:
        raise bad_value("loss", name, "'mse', as the targets are real numbers")
    if n_classes is not None and is_multilabel and loss is not BinaryCrossEntropy:
        raise bad_value("loss", name, "'bce', as an example has several labels")
    if n_classes is not None and not is_multilabel and loss is BinaryCrossEntropy:
        raise bad_value("loss", name, "'log' or 'mse', as an example has one class")
    weights = None if class_weights is None else torch.as_tensor(class_weights, device=device)
    if loss is CrossEntropy:
        if weights is not None and weights.shape != (n_classes,):
            raise bad_value("loss_class_weights", weights.tolist(), f"{n_classes} numbers")
        return CrossEntropy(label_smoothing, weights)
    if label_smoothing:
        raise bad_value("label_smoothing", label_smoothing, "0, as loss is not 'log'")
    if weights is not None:
        raise bad_value("loss_class_weights", weights.tolist(), "null, as loss is not 'log'")
    return SquaredError() if n_classes is None else loss()
