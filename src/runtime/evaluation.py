"""Metrics: loss and correct predictions, summed on the device; and one pass over a split."""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of any number of dimensions

from src.data import Batch, LoaderConfig, Split
from src.losses import Loss
from src.models import keeps_statistics
from src.runtime.distributed import SINGLE_PROCESS, DistributedContext
from src.runtime.precision import Forward, Precision
from src.support import random_state

Batches = Generator[Batch, None, None]
MAX_EXPONENT = 700.0  # a float holds exp() of it


class Metrics:
    """Sums over the examples of all processes, which stay on the device until compute()."""

    def __init__(
        self, loss: Loss, device: torch.device, distributed: DistributedContext = SINGLE_PROCESS
    ) -> None:
        self.loss, self.device, self.distributed = loss, device, distributed
        self.reset()

    def empty(self) -> "Metrics":
        """New metrics of the same kind, at zero."""
        return Metrics(self.loss, self.device, self.distributed)

    def reset(self) -> None:
        # float32 metrics of half a million losses are off in the fourth digit; MPS has no float64
        precision = torch.float32 if self.device.type == "mps" else torch.float64
        self.total = torch.zeros((), dtype=precision, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.weight: float | Tensor = 0
        self.predictions: int | Tensor = 0
        self.at_last_reading = [0.0, 0.0, 0, 0]

    def state_dict(self) -> dict[str, Any]:
        """Called by all processes; shares: the sums of each, (processes, 4)."""
        names = ("total", "correct", "weight", "predictions", "at_last_reading")
        state = {name: getattr(self, name) for name in names}
        return state | (
            {"shares": self.distributed.gather(self._own())} if self.distributed.size > 1 else {}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each process takes its own sums; of another number of them the main one takes all."""
        shares = state.get("shares")
        if shares is None and self.distributed.is_main:
            for name, value in state.items():
                setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)
            return
        self.at_last_reading = state["at_last_reading"]
        if shares is not None and len(shares) == self.distributed.size:
            self._take(shares[self.distributed.rank].tolist())
        elif shares is not None and self.distributed.is_main:
            self._take(shares.sum(0).tolist())

    def _take(self, numbers: list[float]) -> None:
        total, weight, correct, predictions = numbers
        self.total.fill_(total)
        self.correct.fill_(int(correct))
        self.weight, self.predictions = weight, int(predictions)

    def add(self, loss_sum: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its summed loss (detached), outputs and targets as the loss has them."""
        self.total += loss_sum
        weight = self.loss.normalizer(targets)
        self.weight += weight.to(self.total.dtype) if isinstance(weight, Tensor) else weight
        self.predictions += self.loss.num_predictions(targets)
        if "accuracy" in self.loss.metric_names:
            self.correct += self.loss.correct(outputs, targets)  # type: ignore[arg-type]

    def compute(self) -> dict[str, float]:
        """The loss's metrics over everything so far; waits for the device."""
        return self._metrics_of(self.distributed.sum(self._own()))

    def compute_since_last(self) -> dict[str, float]:
        """The same over what was added since this was last called."""
        now, then = self.distributed.sum(self._own()), self.at_last_reading
        self.at_last_reading = now
        return self._metrics_of([a - b for a, b in zip(now, then, strict=True)])

    def _own(self) -> list[float]:
        """[summed loss, its normalizer, correct, predictions] of this process's shards."""
        return [float(self.total), float(self.weight), int(self.correct), int(self.predictions)]

    def _metrics_of(self, sums: list[float]) -> dict[str, float]:
        total, weight, correct, predictions = sums
        loss = total / weight if weight else math.nan
        known = {
            "loss": loss,
            "accuracy": correct / predictions if predictions else math.nan,
            "perplexity": math.inf if loss > MAX_EXPONENT else math.exp(loss),  # of nan it is nan
        }
        return {name: known[name] for name in self.loss.metric_names}


class Evaluation:
    """The evaluation of every split with every model, after an epoch."""

    def __init__(
        self,
        splits: Mapping[str, Split],
        models: Mapping[str, nn.Module],
        loader: LoaderConfig,
        precision: Precision,
        *,
        log_interval: int | None,
    ) -> None:
        """loader: makes batches of an evaluation's size."""
        self.splits, self.models, self.loader = splits, models, loader
        self.log_interval = log_interval
        fixed_shape = all(split.has_fixed_shape for split in splits.values())
        self.forwards = {
            name: precision.forward(
                precision.compiled(model, loader.local_batch_size, fixed_shape=fixed_shape)
            )
            for name, model in models.items()
        }

    def of_all(
        self, new_metrics: Callable[[], Metrics], watched: Callable[[Batches], Batches]
    ) -> dict[str, dict[str, float]]:
        """'SPLIT/MODEL' -> metrics. watched: checks for signals between batches."""
        return {
            f"{split_name}/{name}": evaluate(
                model,
                watched(split.evaluation_batches(self.loader)),
                new_metrics(),
                forward=self.forwards[name],
                name=f"{split_name}/{name}",
                log_interval=self.log_interval,
            )
            for split_name, split in self.splits.items()
            for name, model in self.models.items()
        }


@torch.no_grad()
@random_state.isolate_rng()
def evaluate(
    model: nn.Module,
    batches: Batches,
    metrics: Metrics,
    *,
    forward: Forward | None = None,
    name: str,
    log_interval: int | None,
) -> dict[str, float]:
    """One pass in eval mode: the loss's metrics, time and data_time in seconds.

    metrics: empty ones. forward: the model as it is called, if not by itself. Means weigh by
    example or token, so a short last batch has its own weight, and an empty shard none. However it
    ends, batches is closed.
    """
    started = waited_from = perf_counter()
    data_time = 0.0
    forward = forward or model
    was_training = model.training
    model.eval()
    with closing(batches):
        for number, (inputs, targets) in enumerate(batches, 1):
            data_time += perf_counter() - waited_from
            outputs = forward(inputs)
            if len(targets):
                metrics.add(metrics.loss(outputs, targets), outputs, targets)
            if log_interval and number % log_interval == 0:
                logger.info("{} | batch {} | {}", name, number, in_line(metrics.compute()))
            waited_from = perf_counter()
    model.train(was_training)
    result = metrics.compute()
    result |= {"time": perf_counter() - started, "data_time": data_time}
    logger.info("{} | {} | {:.1f} s", name, in_line(result), result["time"])
    return result


@torch.no_grad()
@random_state.isolate_rng()
def recompute_batch_norms(
    model: nn.Module,
    batches: Batches,
    forward: Forward,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> None:
    """Set the statistics of batch norms to their means over these batches, of all processes.

    It is torch.optim.swa_utils.update_bn to the bit, but dropout stays off (it would draw, and be
    in the statistics though not in evaluations), frozen norms keep theirs, and the model computes
    in the precision of the run. forward: the model as it is called. However it ends, batches is
    closed.
    """
    started, num_batches = perf_counter(), 0
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm)
        and module.running_mean is not None
        and not keeps_statistics(module)
    ]
    momenta = [norm.momentum for norm in norms]
    with closing(batches):
        if not norms:
            return
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # each batch counts the same
                norm.train()
            for inputs, targets in batches:
                if len(targets):
                    forward(inputs)
                    num_batches += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
    statistics = [x for norm in norms for x in (norm.running_mean, norm.running_var)]
    distributed.average_(statistics, num_batches)
    seconds = perf_counter() - started
    logger.info("batch norms recomputed from {} batches | {:.1f} s", num_batches, seconds)


def in_line(metrics: Mapping[str, float]) -> str:
    """'loss 0.3121 | accuracy 0.9120'."""
    shown = [f"{k} {metrics[k]:.4f}" for k in ("loss", "accuracy", "perplexity") if k in metrics]
    return " | ".join(shown)
