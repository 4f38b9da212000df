"""Sums of loss and correct predictions, and one pass over a split."""

import math
from collections.abc import Generator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from src.generators import generators_kept
from src.losses import Loss

MOST_LOSS = 700.0  # of which a float holds the exponential


class Sums:
    """Totals over examples that stay on the device until they are read."""

    def __init__(self, loss: Loss, device: torch.device) -> None:
        self.loss, self.device = loss, device
        self.reset()

    def reset(self) -> None:
        # float32 sums of half a million losses are off in the fourth digit; MPS has no float64
        precision = torch.float32 if self.device.type == "mps" else torch.float64
        self.total = torch.zeros((), dtype=precision, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.weight: float | Tensor = 0
        self.predictions: int | Tensor = 0
        self.at_last_reading = [0.0, 0.0, 0, 0]

    def state_dict(self) -> dict[str, Any]:
        names = ("total", "correct", "weight", "predictions", "at_last_reading")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)

    def add(self, loss_sum: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its summed loss (detached), outputs and targets as the loss has them."""
        self.total += loss_sum
        weight = self.loss.weight(targets)
        self.weight += weight.to(self.total.dtype) if isinstance(weight, Tensor) else weight
        self.predictions += self.loss.predictions(targets)
        if "accuracy" in self.loss.measures:
            self.correct += self.loss.correct(outputs, targets)  # type: ignore[arg-type]

    def averages(self) -> dict[str, float]:
        """The loss's measures of everything so far; waits for the device."""
        return self._averages(self._read())

    def recent(self) -> dict[str, float]:
        """The same for what was added since this was last asked."""
        now, then = self._read(), self.at_last_reading
        self.at_last_reading = now
        return self._averages([a - b for a, b in zip(now, then, strict=True)])

    def _read(self) -> list[float]:
        """[summed loss, its weight, correct, predictions]."""
        return [float(self.total), float(self.weight), int(self.correct), int(self.predictions)]

    def _averages(self, sums: list[float]) -> dict[str, float]:
        total, weight, correct, predictions = sums
        loss = total / weight if weight else math.nan
        averages = {
            "loss": loss,
            "accuracy": correct / predictions if predictions else math.nan,
            "perplexity": math.inf if loss > MOST_LOSS else math.exp(loss),  # of nan it is nan
        }
        return {measure: averages[measure] for measure in self.loss.measures}


@torch.no_grad()
@generators_kept()
def evaluate(
    model: nn.Module,
    batches: Generator[tuple[Tensor, Tensor], None, None],
    loss: Loss,
    *,
    device: torch.device,
    name: str,
    log_interval: int | None,
) -> dict[str, float]:
    """One pass in eval mode: the loss's measures, time and data_time in seconds.

    Averages weigh by example or token, so a short last batch counts as what it is. However it
    ends, batches is closed.
    """
    started = waited_from = perf_counter()
    data_time = 0.0
    sums = Sums(loss, device)
    was_training = model.training
    model.eval()
    with closing(batches):
        for number, (inputs, targets) in enumerate(batches, 1):
            data_time += perf_counter() - waited_from
            outputs = model(inputs)
            sums.add(loss(outputs, targets), outputs, targets)
            if log_interval and number % log_interval == 0:
                logger.info("{} | batch {} | {}", name, number, in_words(sums.averages()))
            waited_from = perf_counter()
    model.train(was_training)
    result = sums.averages()
    result |= {"time": perf_counter() - started, "data_time": data_time}
    logger.info("{} | {} | {:.1f} s", name, in_words(result), result["time"])
    return result


def in_words(averages: Mapping[str, float]) -> str:
    """'loss 0.3121 | accuracy 0.9120'."""
    shown = [f"{k} {averages[k]:.4f}" for k in ("loss", "accuracy", "perplexity") if k in averages]
    return " | ".join(shown)
