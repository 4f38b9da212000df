"""Metrics: sums that stay on the device; and evaluations, a pass over each split by each model."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import zip_longest
from numbers import Real
from time import perf_counter
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of any number of dimensions

from src.data import Batch, LoaderConfig, Split
from src.losses import Loss
from src.metrics import RESERVED, build_metrics, is_time
from src.models import keeps_statistics
from src.runtime.distributed import SINGLE_PROCESS, DistributedContext
from src.runtime.precision import Forward, Precision
from src.support import UserError, bad_value, random_state

Batches = Generator[Batch, None, None]
Sums = dict[str, list[Any]]  # name -> [sum, sum of weights]
MAX_EXPONENT = 700.0  # a float holds exp() of it


class Metrics:
    """Means by name, of a part of training or of a pass over a split, over all processes.

    A mean is a sum over a sum of weights; both stay on the device until compute().
    """

    def __init__(
        self,
        loss: Loss,
        device: torch.device,
        distributed: DistributedContext = SINGLE_PROCESS,
        of_batch: Mapping[str, Callable[[Tensor, Tensor], Any]] | None = None,
    ) -> None:
        """of_batch: what add_batch() measures beside the loss, see METRICS in src/metrics.py."""
        self.loss, self.device, self.distributed = loss, device, distributed
        self.of_batch = of_batch or {}
        # float32 sums of half a million losses are off in the fourth digit; MPS has no float64
        self.precision = torch.float32 if device.type == "mps" else torch.float64
        self.reset()

    def empty(self, of_batch: Mapping[str, Callable[..., Any]] | None = None) -> "Metrics":
        """New metrics for the same loss, at zero."""
        return Metrics(self.loss, self.device, self.distributed, of_batch)

    def reset(self) -> None:
        self.sums: Sums = {}
        self.read: Sums = {}  # the sums of all processes when compute_since_last() was last called

    def add(self, *, weight: float | Tensor | None = None, **values: Any) -> None:
        """Record values by name: add(grad_norm=norm). Their mean over an epoch is the column
        train/grad_norm of stats.csv, and that over the last steps is in the log.

        values: numbers, or tensors and arrays, which have the same shape each time and become
        arrays. weight: what they count for in the mean, such as a number of examples; None: 1.
        """
        for name, value in values.items():
            if name in RESERVED or name in self.of_batch:
                raise UserError(f"metrics.add: {name} is measured already; take another name")
            if not isinstance(value, Tensor | int | float):
                try:
                    value = torch.as_tensor(value)
                except (TypeError, ValueError, RuntimeError):
                    raise bad_value(f"metrics.add: {name}", value, "a number or an array") from None
            self._count(name, *((value, 1) if weight is None else (value * weight, weight)))

    def add_batch(self, loss_sum: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its summed loss (detached), outputs and targets as the loss has them."""
        self._count("loss", loss_sum, self.loss.normalizer(targets))
        if "accuracy" in self.loss.metric_names:
            correct = self.loss.correct(outputs, targets)
            self._count("accuracy", correct, self.loss.num_predictions(targets))
        self.add_measured(outputs, targets)

    def add_measured(self, outputs: Tensor, targets: Tensor) -> None:
        """What add_batch() counts beside the loss and the accuracy."""
        for name, function in self.of_batch.items():
            found = function(outputs, targets)
            if not isinstance(found, tuple) or len(found) != 2:
                expected = "(sum, weight); one of a split takes (run, model, split)"
                raise UserError(f"metrics: {name} of a batch is to be {expected}, got {found!r}")
            self._count(name, *found)

    def _count(self, name: str, total: Any, weight: Any) -> None:
        is_tensor = isinstance(total, Tensor)
        if name not in self.sums:
            shapes = [tuple(getattr(x, "shape", ())) for x in (total, weight)]
            # a dimension of the weight is that of the sum, 1, or missing in front
            pairs = zip_longest(*(shape[::-1] for shape in shapes))
            if any(size not in (of_sum, 1, None) for of_sum, size in pairs):
                raise UserError(f"metrics: {name}: sum and weight have the shapes {shapes}")
            zero = total.new_zeros(total.shape, dtype=self.precision) if is_tensor else 0.0
            self.sums[name] = [zero, 0]
        sums = self.sums[name]
        shape, before = getattr(total, "shape", ()), getattr(sums[0], "shape", ())
        if shape != before:
            raise UserError(
                f"metrics: {name} had the shape {tuple(before)}, now {tuple(shape)}; it is to have "
                "the same each time, also in short batches: add a mean over the examples"
            )
        if is_tensor and not isinstance(sums[0], Tensor):
            sums[0] = sums[0] + total.detach().to(self.precision)
        else:
            sums[0] += total.detach() if is_tensor else total
        if isinstance(weight, Tensor) and weight.is_floating_point():
            weight = weight.to(self.precision)  # where float32 has no 0.1 to add to a large sum
        sums[1] = sums[1] + weight

    def compute(self) -> dict[str, Any]:
        """The means of everything so far, those of the loss first: floats, and arrays of numpy.
        Waits for the device."""
        return self._means(self._totals())

    def compute_since_last(self) -> dict[str, float]:
        """The floats among them, of what was added since this was last called."""
        then = self.read
        self.read = {n: s for n, s in self._totals().items() if isinstance(s[0], float)}
        recent = {}
        for name, (total, weight) in self.read.items():
            total_then, weight_then = then.get(name, (0.0, 0.0))
            recent[name] = [total - total_then, weight - weight_then]
        return self._means({name: sums for name, sums in recent.items() if sums[1]})

    def _totals(self) -> Sums:
        """The sums over all processes, on the CPU: floats and tensors in float64."""
        first, *others = self.distributed.gather_objects(self._own())
        for share in others:
            for name, sums in share.items():
                before = first.get(name, (0.0, 0.0))
                first[name] = [a + b for a, b in zip(before, sums, strict=True)]
        return first

    def _own(self) -> Sums:
        return {
            name: [x.cpu().double() if getattr(x, "shape", ()) else float(x) for x in sums]
            for name, sums in self.sums.items()
        }

    def _means(self, sums: Sums) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(self.loss.metric_names, math.nan)
        for name, (total, weight) in sums.items():
            if isinstance(total, Tensor):
                found[name] = (total / weight).numpy()
            else:
                found[name] = total / weight if weight else math.nan
        if "perplexity" in found:  # of nan it is nan
            loss = found["loss"]
            found["perplexity"] = math.inf if loss > MAX_EXPONENT else math.exp(loss)
        return found

    # ---- As a part of the training state -------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Called by all processes; shares: the sums of each."""
        return {"shares": self.distributed.gather_objects(self._own()), "read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Each process takes its own sums; of another number of them the main one takes all."""
        if "total" in state:
            state = _of_version_0_2(state, self.loss.metric_names)
        self.reset()
        shares, self.read = state["shares"], state["read"]
        if len(shares) == self.distributed.size:
            shares = [shares[self.distributed.rank]]
        elif not self.distributed.is_main:
            shares = []
        for share in shares:
            for name, sums in share.items():
                total, weight = sums
                total = torch.as_tensor(total, dtype=self.precision, device=self.device)
                if isinstance(weight, Tensor):
                    weight = weight.to(self.device)
                self._count(name, total, weight)


def _of_version_0_2(state: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The sums as version 0.2.0 saved them, by position: loss, its weight, correct, predictions."""

    def named(numbers: Iterable[Any]) -> Sums:
        total, weight, correct, predictions = map(float, numbers)
        sums = {"loss": [total, weight], "accuracy": [correct, predictions]}
        return {name: sums[name] for name in names if name in sums}

    own = [state[name] for name in ("total", "weight", "correct", "predictions")]
    shares = [named(share) for share in state.get("shares", [own])]
    return {"shares": shares, "read": named(state["at_last_reading"])}


class Evaluation:
    """The evaluation of every split with every model, after an epoch."""

    def __init__(
        self,
        splits: Mapping[str, Split],
        models: Mapping[str, nn.Module],
        loader: LoaderConfig,
        precision: Precision,
        *,
        metrics: Sequence[str] = (),
        log_interval: int | None,
    ) -> None:
        """loader: makes batches of an evaluation's size. metrics: see METRICS in src/metrics.py."""
        self.splits, self.models, self.loader = splits, models, loader
        self.precision, self.log_interval = precision, log_interval
        self.of_batch, self.of_split = build_metrics(metrics)
        self.added = [*self.of_batch, *self.of_split]
        fixed_shape = all(split.has_fixed_shape for split in splits.values())
        self.forwards = {
            name: precision.forward(
                precision.compiled(model, loader.local_batch_size, fixed_shape=fixed_shape)
            )
            for name, model in models.items()
        }

    def of_all(
        self, run: Any, new_metrics: Callable[..., Metrics], watched: Callable[[Batches], Batches]
    ) -> dict[str, dict[str, Any]]:
        """'SPLIT/MODEL' -> metrics. run: the Session, for functions of a whole split. watched:
        checks for signals between batches."""
        return {
            f"{split_name}/{name}": evaluate(
                model,
                watched(split.evaluation_batches(self.loader)),
                new_metrics(self.of_batch),
                forward=self.forwards[name],
                measure_split=partial(self.measure_split, run, model, split_name),
                name=f"{split_name}/{name}",
                log_interval=self.log_interval,
            )
            for split_name, split in self.splits.items()
            for name, model in self.models.items()
        }

    def measure_split(self, run: Any, model: nn.Module, split: str) -> dict[str, Any]:
        """What is measured of a split as a whole. model: in evaluation mode."""
        found = {}
        with self.precision.autocast():
            for name, function in self.of_split.items():
                found[name] = value = function(run, model, split)
                if not isinstance(value, Real) and not hasattr(value, "ndim"):
                    raise bad_value(f"metrics: {name} of a split", value, "a number or an array")
        return found


@torch.no_grad()
@random_state.isolate_rng()
def evaluate(
    model: nn.Module,
    batches: Batches,
    metrics: Metrics,
    *,
    forward: Forward | None = None,
    measure_split: Callable[[], dict[str, Any]] = dict,
    name: str,
    log_interval: int | None,
) -> dict[str, Any]:
    """One pass in eval mode: the metrics, those of the whole split, time and data_time in seconds.

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
                metrics.add_batch(metrics.loss(outputs, targets), outputs, targets)
            if log_interval and number % log_interval == 0:
                logger.info("{} | batch {} | {}", name, number, in_line(metrics.compute()))
            waited_from = perf_counter()
    result = metrics.compute()
    result |= measure_split()
    model.train(was_training)
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


def in_line(metrics: Mapping[str, Any]) -> str:
    """'loss 0.3121 | accuracy 0.9120': the numbers, without times."""
    shown = {k: x for k, x in metrics.items() if not is_time(k) and np.ndim(x) == 0}
    return " | ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
