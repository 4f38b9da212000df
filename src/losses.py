"""The losses: what training minimises, and what counts as a correct prediction.

A loss returns a sum over examples, and `normalizer` says what to divide it by. Sums add up: a
batch may be cut into micro-batches or spread over processes, and its gradient stays the same. A
new loss is a subclass of Loss and a line in LOSSES.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data import NO_TOKEN
from src.support import UserError, bad_value, pick

# Where all classes of a batch have weight 0, its sum of losses is 0 as well: 0 / 1e-30 is 0 and
# has gradients of zero, where 0 / 0 would put nan into every weight.
SMALLEST_NORMALIZER = 1e-30


class Loss:
    """The mean loss of a batch is loss(outputs, targets) / loss.normalizer(targets)."""

    # What is measured with this loss: columns of stats.csv, figures in the log.
    metric_names: tuple[str, ...] = ("loss", "accuracy")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum () of the examples' losses, in the outputs' floating-point type."""
        raise NotImplementedError

    def normalizer(self, targets: Tensor) -> float | Tensor:
        """The number of examples, or () the sum of their classes' weights."""
        return len(targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The number (int64, ()) of correct predictions; None for regression."""
        return (outputs.argmax(1) == targets).sum()

    def num_predictions(self, targets: Tensor) -> int | Tensor:
        """What `correct` is divided by for the accuracy."""
        return len(targets)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """outputs: logits (n, C). targets: class numbers (n,), or class probabilities (n, C) of mixed
    images. label_smoothing: Szegedy et al. 2016, section 7. class_weights: (C,) on the device."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            outputs,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def normalizer(self, targets: Tensor) -> float | Tensor:
        if self.class_weights is None:
            return len(targets)
        # As torch's mean for class numbers. For probabilities torch divides by n and forgets the
        # weights; here both kinds of targets have the same scale.
        is_mixed = targets.ndim == 2
        weights = (targets @ self.class_weights) if is_mixed else self.class_weights[targets]
        return weights.sum().clamp_min(SMALLEST_NORMALIZER)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Of a mixed image the class with the largest share counts as its class."""
        return (outputs.argmax(1) == (targets.argmax(1) if targets.ndim == 2 else targets)).sum()


class NextToken(Loss):
    """Cross-entropy over tokens. outputs: logits (n, length, V). targets: tokens (n, length),
    NO_TOKEN behind the end of a text. Perplexity is e to the mean of this loss."""

    metric_names = ("loss", "accuracy", "perplexity")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs.flatten(0, 1)  # (n * length, V)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=NO_TOKEN, reduction="sum")

    def normalizer(self, targets: Tensor) -> float | Tensor:
        # By token and not by text, so that each token counts the same whatever its text's length.
        return self.num_predictions(targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return (outputs.argmax(-1) == targets).sum()  # NO_TOKEN is negative and never predicted

    def num_predictions(self, targets: Tensor) -> Tensor:
        return (targets != NO_TOKEN).sum()


class ClassSquaredError(Loss):
    """Squared distance of C outputs to one-hot class numbers (n,), the mean over the outputs."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        one_hot = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)  # (n, C)
        return F.mse_loss(outputs, one_hot, reduction="sum") / outputs.shape[1]


class SquaredError(Loss):
    """Squared distance of k outputs to real targets (n,) or (n, k), the mean over the outputs."""

    metric_names = ("loss",)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.numel() != targets.numel():
            shapes = f"{tuple(outputs.shape)} outputs for {tuple(targets.shape)} targets"
            raise UserError(f"model_output_dim: the model gives {shapes}")
        # Outputs (n, 1) minus targets (n,) would broadcast to (n, n) without an error.
        distances = F.mse_loss(outputs, targets.view_as(outputs), reduction="sum")
        return distances * (len(targets) / targets.numel())

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return None


class BinaryCrossEntropy(Loss):
    """Several labels an example, the mean over the C labels. outputs: logits (n, C). targets:
    zeros and ones (n, C), floats. A prediction is correct where all C labels are."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise bad_value("model_output_dim", outputs.shape[1], f"{targets.shape[1]}, the labels")
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        return losses / outputs.shape[1]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return ((outputs > 0) == (targets > 0.5)).all(1).sum()


LOSSES: dict[str, type[Loss]] = {
    "log": CrossEntropy,
    "xentropy": CrossEntropy,
    "mse": ClassSquaredError,  # SquaredError where the targets are real numbers
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
    """The loss of this name for such targets; UserError where the two do not go together.

    n_classes: None for real targets. is_text_alone: the targets are the next tokens.
    class_weights: (n_classes,). device: where the outputs are.
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
