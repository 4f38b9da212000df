"""The losses: what training minimises, and what counts as a correct prediction.

A loss returns a sum over examples, and `normalizer` says what to divide it by. Sums add up: a
batch may be cut into micro-batches or spread over processes, and its gradient stays the same. To
add one: a subclass of Loss and a line in LOSSES; or name it in YAML, `loss: my_losses:Focal`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.config import Config, import_function, is_import_path
from src.data import NO_TOKEN
from src.support import UserError, bad_value, pick, random_state, unknown_name

# Where all classes of a batch have weight 0, its sum of losses is 0 as well: 0 / 1e-30 is 0 and
# has gradients of zero, where 0 / 0 would put nan into every weight.
SMALLEST_NORMALIZER = 1e-30


class Loss:
    """The mean loss of a batch is loss(outputs, targets) / loss.normalizer(targets)."""

    # What is measured with this loss: columns of stats.csv, figures in the log.
    metric_names: tuple[str, ...] = ("loss", "accuracy")
    target_kind: str = "classes"  # of the targets that it takes: one of TARGET_KINDS, ANY_TARGETS
    # False of one that looks at examples together (contrastive, by rank): cut into micro-batches or
    # spread over processes, a batch would have another gradient. Evaluations see such a loss in
    # batches of eval_batch_size and report the mean over these, weighted by the normalizer.
    is_sum_over_examples: bool = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum () of the examples' losses, in the outputs' floating-point type."""
        raise NotImplementedError(f"{type(self).__name__}.__call__(outputs, targets)")

    def normalizer(self, targets: Tensor) -> float | Tensor:
        """The number of examples, or () the sum of their classes' weights."""
        return len(targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The number (int64, ()) of correct predictions; None for regression. Of a mixed image the
        class with the largest share counts as its class."""
        return (outputs.argmax(1) == (targets.argmax(1) if targets.ndim == 2 else targets)).sum()

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


class NextToken(Loss):
    """Cross-entropy over tokens. outputs: logits (n, length, V). targets: tokens (n, length),
    NO_TOKEN behind the end of a text. Perplexity is e to the mean of this loss."""

    metric_names = ("loss", "accuracy", "perplexity")
    target_kind = "tokens"

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
    target_kind = "numbers"

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

    target_kind = "labels"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise bad_value("model_output_dim", outputs.shape[1], f"{targets.shape[1]}, the labels")
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        return losses / outputs.shape[1]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return ((outputs > 0) == (targets > 0.5)).all(1).sum()


def squared_error(n_classes: int | None) -> Loss:
    return SquaredError() if n_classes is None else ClassSquaredError()


# name in YAML -> a subclass of Loss, or a function that gives a Loss. It is called with n_classes
# (None for real targets), label_smoothing and class_weights ((n_classes,) on the device, or None)
# where its signature names them, and with loss_args. Your own, module.path:function, is called in
# the same way.
LOSSES: dict[str, Callable[..., Loss]] = {
    "log": CrossEntropy,
    "xentropy": CrossEntropy,
    "mse": squared_error,
    "square": squared_error,
    "bce": BinaryCrossEntropy,
    "next_token": NextToken,
}
ANY_TARGETS = "any"  # also of one that takes no notice of them
# kind of targets -> what a loss for them is called, and why
TARGET_KINDS = {
    "classes": "'log' or 'mse', as an example has one class",
    "labels": "'bce', as an example has several labels",
    "numbers": "'mse', as the targets are real numbers",
    "tokens": "'next_token', as the targets are the next tokens",
}


def make_loss(
    name: str,
    *,
    n_classes: int | None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | Tensor | None = None,
    loss_args: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> Loss:
    """The loss of this name; UserError where there is none or it does not take what is given."""
    make = import_function(name, "loss") if is_import_path(name) else pick(LOSSES, name, "loss")
    weights = None if class_weights is None else torch.as_tensor(class_weights, device=device)
    given = {"n_classes": n_classes, "label_smoothing": label_smoothing, "class_weights": weights}
    signature = inspect.signature(make)
    if label_smoothing and "label_smoothing" not in signature.parameters:
        raise bad_value("label_smoothing", label_smoothing, f"0, as loss {name} takes none")
    if weights is not None and "class_weights" not in signature.parameters:
        expected = f"null, as loss {name} takes none"
        raise bad_value("loss_class_weights", weights.tolist(), expected)
    if weights is not None and n_classes and weights.shape != (n_classes,):
        raise bad_value("loss_class_weights", weights.tolist(), f"{n_classes} numbers")
    arguments = {key: x for key, x in given.items() if key in signature.parameters}
    for argument in loss_args or {}:
        if argument not in (known := signature.parameters.keys() - given.keys()):
            raise unknown_name("loss_args", argument, known)
    arguments |= loss_args or {}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        expected = "a subclass of Loss of src/losses.py, or a function that gives one, which takes "
        expected += f"of {', '.join(given)} what it needs, and nothing else: {error}"
        raise bad_value("loss", name, expected) from None
    loss = make(**arguments)
    if not isinstance(loss, Loss):
        expected = "a subclass of Loss of src/losses.py, or a function that gives one; not"
        raise bad_value("loss", name, f"{expected} {type(loss).__name__}")
    return loss


def build_loss(
    name: str,
    *,
    n_classes: int | None,
    is_multilabel: bool = False,
    is_text_alone: bool = False,
    **settings: Any,
) -> Loss:
    """The loss of this name for such targets; UserError where the two do not go together.

    n_classes: None for real targets. is_text_alone: the targets are the next tokens. settings:
    see make_loss().
    """
    loss = make_loss(name, n_classes=n_classes, **settings)
    kind = "numbers" if n_classes is None else "labels" if is_multilabel else "classes"
    kind = "tokens" if is_text_alone else kind
    if loss.target_kind not in (kind, ANY_TARGETS):
        raise bad_value("loss", name, f"{TARGET_KINDS[kind]}; this one takes {loss.target_kind}")
    if is_import_path(name) and loss.is_sum_over_examples:
        _check_sum(name, loss, kind, n_classes or 1)
    return loss


@torch.no_grad()
@random_state.isolate_rng()
def _check_sum(name: str, loss: Loss, kind: str, n_outputs: int) -> None:
    """UserError where four made-up examples show that an own loss is not a sum over examples."""
    targets = {
        "classes": torch.arange(4) % n_outputs,
        "labels": torch.eye(4, n_outputs),
        "numbers": torch.linspace(-1, 1, 4),
    }.get(kind)
    if targets is None or loss.target_kind == ANY_TARGETS:
        return
    outputs = torch.linspace(-1, 1, 4 * n_outputs).view(4, n_outputs)
    try:
        whole, again, twice = (
            torch.as_tensor(loss(outputs.repeat(n, 1), torch.cat([targets] * n))) for n in (1, 1, 2)
        )
    except Exception:  # it takes outputs of another shape, or lives on a GPU
        return
    if whole.ndim:
        what = f"a tensor of shape {tuple(whole.shape)}"
    elif torch.equal(whole, again) and not torch.allclose(twice, 2 * whole, equal_nan=True):
        what = "a mean" if torch.allclose(twice, whole) else "no sum"
    else:
        return
    expected = f"one that gives the sum () of its examples' losses; this gives {what} (a loss "
    expected += "of pairs or ranks says is_sum_over_examples = False)"
    raise bad_value("loss", name, expected)


def check_cut(loss: Loss, config: Config, num_processes: int = 1) -> None:
    """UserError where batches are cut for a loss that is not a sum over examples."""
    if loss.is_sum_over_examples:
        return
    reason = "is no sum over examples: parts of a batch have another gradient"
    if config.grad_accum_steps > 1:
        expected = f"1, as loss {config.loss} {reason}"
        raise bad_value("grad_accum_steps", config.grad_accum_steps, expected)
    if num_processes > 1:
        expected = f"another one for {num_processes} processes, as this one {reason}"
        raise bad_value("loss", config.loss, expected)
