"""R learners as one: what train_step() of train.py does for one of them. Here those of linear
models; those of networks are in networks.py."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.config import Config
from src.optim import build_schedule
from src.runtime import Metrics
from src.stacking.linear import (
    BLOCK,
    EVALUATION_BLOCK,
    gradients_of,
    outputs_of,
    stack_losses,
    vector,
)
from src.stacking.optimizers import ByRow, of_row, stack_optimizers, stacked
from src.stacking.stackable import average_kinds


class Sums:
    """Sums over examples, a number a row (R,) in float64: of training or of an evaluation."""

    def __init__(
        self, of_rows: Sequence[Mapping[str, list[Any]]], device: torch.device, *, is_judged: bool
    ) -> None:
        """of_rows: to begin with, as src/runtime/evaluation.py's Metrics have them; {}: zeros.
        is_judged: there is an accuracy."""

        def column(name: str, place: int) -> Tensor:
            numbers = [float(sums[name][place]) if name in sums else 0.0 for sums in of_rows]
            return torch.tensor(numbers, dtype=torch.float64, device=device)

        self.loss, self.weight = column("loss", 0), column("loss", 1)[0].item()
        self.correct = column("accuracy", 0) if is_judged else None
        self.predictions = column("accuracy", 1)[0].item()

    def add(self, losses: Tensor, correct: Tensor | None) -> None:
        self.loss += losses
        if self.correct is not None and correct is not None:
            self.correct += correct

    def count(self, weight: float, predictions: float) -> None:
        """What the sums are of is the same for all rows."""
        self.weight += weight
        self.predictions += predictions

    def copy(self) -> "Sums":
        copied = copy.copy(self)
        copied.loss = self.loss.clone()
        copied.correct = None if self.correct is None else self.correct.clone()
        return copied

    def of_row(self, row: int) -> dict[str, list[Any]]:
        """{} where nothing was counted."""
        found = {"loss": [self.loss[row].item(), self.weight]} if self.weight else {}
        if self.correct is not None and self.predictions:
            found["accuracy"] = [self.correct[row].item(), self.predictions]
        return found


class StackedLearner:
    """R > 1 learners of train.py as one.

    What it trains may be copies: write_row() puts a row back into its learner. evaluation_batch:
    examples that are measured at a time.
    """

    evaluation_batch: int

    def __init__(
        self, learners: Sequence[Any], configs: Sequence[Config], *, num_steps: int
    ) -> None:
        """configs: resolved, equal in what stackable.py lists. num_steps: of a whole run."""
        assert len(learners) > 1, "a run alone stands in its stack twice, see linear.py"
        self.learners, self.configs = learners, configs
        self.device = next(learners[0].model.parameters()).device
        self.is_judged = "accuracy" in learners[0].loss.metric_names
        self.base = torch.tensor([c.base_lr for c in configs], dtype=torch.float64)[:, None, None]
        self.schedule = ByRow(
            [(config.lr_schedule, config.warmup_steps) for config in configs],
            lambda key: build_schedule(key[0], num_steps=num_steps, warmup_steps=key[1]),
        )

    def __len__(self) -> int:
        return len(self.learners)

    def new_sums(self, of_rows: Sequence[Mapping[str, list[Any]]] | None = None) -> Sums:
        return Sums(of_rows or [{}] * len(self), self.device, is_judged=self.is_judged)

    def rate(self, row: int, step: int) -> float:
        """The learning rate of that step."""
        return (self.base * self.schedule(step))[row].item()

    def step(self, step: int, inputs: Tensor, targets: Tensor, sums: Sums) -> None:
        """One optimizer step of every row. step: how many came before it. inputs: (n, *shape)."""
        raise NotImplementedError

    def measure(
        self, model: str, inputs: Tensor, targets: Tensor, sums: Sums, added: Mapping[int, Metrics]
    ) -> None:
        """Add a batch of an evaluation. model: last, av, … added: row -> what is measured beside
        the loss and the accuracy."""
        raise NotImplementedError

    def write_row(self, row: int, num_steps: int) -> None:
        """Into its learner, after so many steps."""

    def release(self) -> None:
        """The learners share no memory with the stack any more."""


class StackedLinear(StackedLearner):
    """Of models that are Linear; what it trains are copies."""

    # A multiple of EVALUATION_BLOCK: the sums are the same for any eval_batch_size.
    evaluation_batch = 16 * EVALUATION_BLOCK

    def __init__(
        self, learners: Sequence[Any], configs: Sequence[Config], *, num_steps: int
    ) -> None:
        super().__init__(learners, configs, num_steps=num_steps)
        first = learners[0]
        self.originals = [list(learner.model.parameters()) for learner in learners]
        self.parameters = self._stacked(self.originals)
        self.optimizer = stack_optimizers([x.optimizer for x in learners], self.originals)
        self.loss = stack_losses([x.loss for x in learners], self.device)
        # name -> the parameters of the averages, and their coefficients
        self.averages = {
            name: self._stacked([list(x.averages[name].model.parameters()) for x in learners])
            for name in first.averages
        }
        self.coefficients = {}
        for number, name in enumerate(first.averages):
            keys = [average_kinds(config)[number] for config in configs]
            known = {k: x.averages[name].coefficient for k, x in zip(keys, learners, strict=True)}
            self.coefficients[name] = ByRow(keys, known.__getitem__)
        self.factor, self.rates = torch.empty(0), torch.empty(0)  # of the last step
        self.clipping = Clipping(configs, self.device)

    def _stacked(self, of_rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [stacked([x.detach() for x in tensors]) for tensors in zip(*of_rows, strict=True)]

    @torch.no_grad()
    def step(self, step: int, inputs: Tensor, targets: Tensor, sums: Sums) -> None:
        loss, normalizer = self.learners[0].loss, float(self.learners[0].loss.normalizer(targets))
        gradients: list[Tensor] = []
        for start in range(0, len(targets), BLOCK):
            block = slice(start, start + BLOCK)
            x, y = inputs[block].flatten(1), targets[block]
            losses, correct, of_outputs = self.loss(
                outputs_of(self.parameters, x), y, wants_gradient=True
            )
            sums.add(losses, correct)
            assert of_outputs is not None
            found = gradients_of(self.parameters, of_outputs.mul_(1 / normalizer), x)
            for total, part in zip(gradients, found, strict=bool(gradients)):
                total.add_(part)
            gradients = gradients or found
        sums.count(normalizer, loss.num_predictions(targets))
        self.clipping(gradients)
        factor = self.schedule(step)
        if factor is not self.factor:  # of a constant schedule it is always the same tensor
            self.factor, self.rates = factor, (self.base * factor).to(self.device)
        self.optimizer.step(self.parameters, gradients, self.rates, step + 1)
        for name, averages in self.averages.items():
            coefficients = self.coefficients[name](step + 1).to(self.device).float()
            for average, weights in zip(averages, self.parameters, strict=True):
                average.lerp_(weights, coefficients)

    @torch.no_grad()
    def measure(
        self, model: str, inputs: Tensor, targets: Tensor, sums: Sums, added: Mapping[int, Metrics]
    ) -> None:
        parameters = self.parameters if model == "last" else self.averages[model]
        loss = self.learners[0].loss
        for start in range(0, len(targets), EVALUATION_BLOCK):
            block = slice(start, start + EVALUATION_BLOCK)
            x, y = inputs[block].flatten(1), targets[block]
            outputs = outputs_of(parameters, x)
            for row, metrics in added.items():
                if metrics.of_batch:
                    metrics.add_measured(outputs[row].t().contiguous(), y)
            losses, correct, _ = self.loss(outputs, y, wants_gradient=False)
            sums.add(losses, correct)
        sums.count(float(loss.normalizer(targets)), loss.num_predictions(targets))

    @torch.no_grad()
    def write_row(self, row: int, num_steps: int) -> None:
        learner = self.learners[row]
        for own, stack in zip(self.originals[row], self.parameters, strict=True):
            own.copy_(of_row(stack, row, own))
        for name, stacks in self.averages.items():
            average = learner.averages[name]
            average.t = num_steps
            for own, stack in zip(average.model.parameters(), stacks, strict=True):
                own.copy_(of_row(stack, row, own))
        self.optimizer.write_row(row, num_steps)


class Clipping:
    """Each row's gradients, cut to its clip_norm and its clip_value."""

    def __init__(self, configs: Sequence[Config], device: torch.device) -> None:
        norms = [config.clip_norm for config in configs]
        self.most = self.bound = None
        if any(norms):
            self.most = vector([norm or 1.0 for norm in norms], device)
            self.is_clipped = vector([norm is not None for norm in norms], device).bool()
        if any(config.clip_value for config in configs):
            self.bound = vector([config.clip_value or math.inf for config in configs], device)

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        if self.most is not None:
            squares = [x.square().sum((1, 2), keepdim=True) for x in gradients]
            norms = torch.stack(squares).sum(0).sqrt()
            scale = (self.most / (norms + 1e-6)).clamp(max=1)  # as clip_grad_norm_
            for x in gradients:
                torch.where(self.is_clipped, x * scale, x, out=x)
        if self.bound is not None:
            for x in gradients:
                torch.clamp(x, -self.bound, self.bound, out=x)
