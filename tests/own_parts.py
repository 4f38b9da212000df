"""What a fork may write for itself: data, networks, losses, optimizers, schedules, averages,
augmentation of batches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from src.losses import ANY_TARGETS, Loss
from src.optim import AveragedModel


def read(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Points of the plane in four quadrants, two classes."""
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    classes = (points[:, 0] * points[:, 1] > 0).long()
    return {"train": (points[:200], classes[:200]), "test": (points[200:], classes[200:])}


def read_prices(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Prices as people have them, around 200,000: the squared error begins at 4e10."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(300, 3, generator=generator)
    prices = 2e5 + 5e4 * sizes[:, 0] + 1e3 * torch.randn(300, generator=generator)
    return {"train": (sizes[:200], prices[:200]), "test": (sizes[200:], prices[200:])}


def read_labels(data_dir: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Ten numbers that say which of four labels an example has, but for some noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(700, 10, generator=generator)
    scores = inputs @ torch.randn(10, 4, generator=generator)
    labels = (scores + torch.randn(700, 4, generator=generator) > 0).float()
    return {"train": (inputs, labels)}


def build(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    wide = nn.Linear(input_shape[0], 32)
    return nn.Sequential(wide, nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, n_outputs))


def build_normed(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    wide = nn.Linear(input_shape[0], 32)
    return nn.Sequential(wide, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, n_outputs))


@dataclass(frozen=True)
class Focal(Loss):
    """Lin et al. 2017; smoothed, to be given a key."""

    label_smoothing: float = 0.0
    power: float = 2.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses * (1 - (-losses).exp()) ** self.power).sum()


class SmallOutputs(Loss):
    """Targets have no part in it."""

    metric_names = ("loss",)
    target_kind = ANY_TARGETS

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().flatten(1).mean(1).sum()


class Contrastive(Loss):
    """Examples of one class should have similar outputs: a loss of pairs."""

    metric_names = ("loss",)
    is_sum_over_examples = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = F.normalize(outputs)
        likeness = (outputs @ outputs.T).masked_fill(torch.eye(len(outputs)).bool(), -1e9)
        is_pair = (targets == targets[:, None]).float().fill_diagonal_(0)
        return -(likeness.log_softmax(1) * is_pair).sum() / is_pair.sum(1).clamp_min(1).mean()


class Normalized(Optimizer):
    """Steps of length lr along a running mean of the gradients."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.0, floor: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "floor": floor})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.sub_(mean, alpha=group["lr"] / (float(mean.norm()) + group["floor"]))


def triangle(num_steps: int) -> Callable[[int], float]:
    return lambda t: 1 - abs(2 * (t + 1) / (num_steps + 1) - 1)


def tail() -> Callable[[int], float]:
    """The mean of the weights from the 5th step on."""
    return lambda t: 1 / max(1, t - 4)


class Twofold(AveragedModel):
    """The running mean of a running mean of the weights, which no c(t) is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lambda t: 0.5)
        self.means = [average.clone() for average in self._averages]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.means, self._weights, 0.5)
        torch._foreach_lerp_(self._averages, self.means, 0.5)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.means = state["means"]


def shake(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Noise, and inputs that are dimmed at random: drawn from torch and from numpy."""
    inputs += 0.3 * torch.randn_like(inputs)
    return inputs * np.random.uniform(0.5, 1), targets


# ---- Wrong ones --------------------------------------------------------------------------


class MeanOfBatch(Focal):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().__call__(outputs, targets) / len(targets)


class Unreduced(Focal):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")


class HiddenPairs(Contrastive):
    is_sum_over_examples = True


class Noisy(Focal):
    """A sum, of losses that are drawn: what it gives for a batch tells nothing of its parts."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().__call__(outputs + torch.randn_like(outputs), targets)


def of_three(one: int, two: int, three: int) -> None:
    raise AssertionError("it is not called")


def nothing(*arguments: object, **named: object) -> None:
    """It gives None, whatever it is."""


def without_numbers(*arguments: int) -> Callable[[int], str]:
    return lambda t: "half"


def half_a_batch(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return inputs[::2], targets
