"""Networks stacked: R models of one architecture as one, by torch.func.vmap. For GPUs, where a step
of a small network is a sequence of launches, each as long for R models as for one; on CPUs it is no
faster than one after the other.

Forward and backward pass are one for all rows; losses, clipping, optimizers and averages are those
of the rows, on views into the stack. So everything of a learner may differ but the architecture.
**Bits may depend on the stack**: products of matrices round by where these begin in memory.
"""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src.config import Config
from src.data import micro_batches
from src.runtime import Metrics
from src.stacking.learner import StackedLearner, Sums
from src.support import UserError

Tensors = dict[str, Tensor]  # name -> (R, *shape)


class StackedNetworks(StackedLearner):
    """R learners of train.py with one architecture, whose weights are views into the stack."""

    def __init__(
        self, learners: Sequence[Any], configs: Sequence[Config], *, num_steps: int
    ) -> None:
        super().__init__(learners, configs, num_steps=num_steps)
        # A row alone stands in the stack twice, as that of linear models does: the copy is not
        # trained.
        self.num_trained = len({id(learner) for learner in learners})
        self.config, self.network = configs[0], learners[0].model
        self.evaluation_batch = self.config.eval_batch_size or self.config.batch_size
        models = [learner.model for learner in learners]
        self.parameters = stacks_of([dict(model.named_parameters()) for model in models])
        self.buffers = stacks_of([dict(model.named_buffers()) for model in models])
        self.averages: dict[str, tuple[Tensors, Tensors]] = {}  # as they were last evaluated
        for row, model in enumerate(models[: self.num_trained]):
            for own, stacks in self._tensors(model):
                for name, tensor in own.items():
                    tensor.data = stacks[name].data[row]
        for name, parameter in self.network.named_parameters():
            self.parameters[name].requires_grad_(parameter.requires_grad)

    def _tensors(self, model: nn.Module) -> list[tuple[Tensors, Tensors]]:
        """Parameters and buffers: the model's own, and those of the stack."""
        return [
            (dict(model.named_parameters()), self.parameters),
            (dict(model.named_buffers()), self.buffers),
        ]

    def release(self) -> None:
        """The rows' models own their weights again."""
        for learner in self.learners[: self.num_trained]:
            for own, _ in self._tensors(learner.model):
                for tensor in own.values():
                    tensor.data = tensor.data.clone()

    def outputs(self, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> list[Tensor]:
        """Of each row, (n, …). UserError where the network has a layer that vmap does not take."""

        def call(own: Tensors, statistics: Tensors) -> Tensor:
            return functional_call(self.network, (own, statistics), (inputs,))

        try:
            # One mask of dropout for all rows, which is that of a run alone.
            found = torch.vmap(call, randomness="same")(parameters, buffers)
        except (RuntimeError, ValueError) as error:
            if not any(word in str(error).lower() for word in ("vmap", "batching rule")):
                raise
            reason = f"{self._layer_of(error)}: {str(error).splitlines()[0]}"
            raise UserError(
                f"model: got {self.config.model!r}, which cannot be stacked: {reason}"
            ) from None
        return list(found.float().unbind())

    def _layer_of(self, error: BaseException) -> str:
        """The innermost layer that the error comes from."""
        modules = {id(module): name for name, module in self.network.named_modules()}
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        layer = [module for module in frames if modules.get(id(module))][-1:]
        return " ".join(f"{modules[id(x)]} ({type(x).__name__})" for x in layer) or "the network"

    def step(self, step: int, inputs: Tensor, targets: Tensor, sums: Sums) -> None:
        """As train_step() of train.py, for each row."""
        if not self.network.training:
            self.network.train()
        first, learners = self.learners[0].loss, self.learners[: self.num_trained]
        normalizer = float(first.normalizer(targets))
        size = self.config.batch_size // self.config.grad_accum_steps
        for x, y in micro_batches(inputs, targets, size):
            outputs = self.outputs(self.parameters, self.buffers, x)
            losses = [
                learner.loss(own, y) for learner, own in zip(self.learners, outputs, strict=True)
            ]
            (torch.stack(losses).sum() * (1 / normalizer)).backward()
            self._count(sums, losses, outputs, y)
        sums.count(normalizer, first.num_predictions(targets))
        rates = (self.base * self.schedule(step)).flatten().tolist()
        for row, learner in enumerate(learners):
            for name, parameter in learner.model.named_parameters():
                gradients = self.parameters[name].grad
                parameter.grad = None if gradients is None else gradients[row]
            config = self.configs[row]
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(learner.parameters, config.clip_norm)
            if config.clip_value is not None:
                nn.utils.clip_grad_value_(learner.parameters, config.clip_value)
            for group in learner.optimizer.param_groups:
                group["lr"] = rates[row] * group.get("lr_scale", 1)
            learner.optimizer.step()
            for parameter in learner.parameters:
                parameter.grad = None
            for average in learner.averages.values():
                average.update()
        for stack in self.parameters.values():
            stack.grad = None
        self.averages = {}

    def _count(
        self, sums: Sums, losses: list[Tensor], outputs: list[Tensor], targets: Tensor
    ) -> None:
        correct = None
        if self.is_judged:
            pairs = zip(self.learners, outputs, strict=True)
            correct = torch.stack([x.loss.correct(own.detach(), targets) for x, own in pairs])
        sums.add(torch.stack(losses).detach(), correct)

    @torch.no_grad()
    def measure(
        self, model: str, inputs: Tensor, targets: Tensor, sums: Sums, added: Mapping[int, Metrics]
    ) -> None:
        if self.network.training:
            self.network.eval()
        parameters, buffers = self.parameters, self.buffers
        if model != "last":
            if model not in self.averages:
                models = [learner.averages[model].model for learner in self.learners]
                own = [
                    stacks_of([dict(named(m)) for m in models])
                    for named in (nn.Module.named_parameters, nn.Module.named_buffers)
                ]
                self.averages[model] = own[0], own[1]
            parameters, buffers = self.averages[model]
        outputs = self.outputs(parameters, buffers, inputs)
        for row, metrics in added.items():
            metrics.add_measured(outputs[row], targets)
        losses = [x.loss(own, targets) for x, own in zip(self.learners, outputs, strict=True)]
        self._count(sums, losses, outputs, targets)
        loss = self.learners[0].loss
        sums.count(float(loss.normalizer(targets)), loss.num_predictions(targets))


def stacks_of(rows: Sequence[Tensors]) -> Tensors:
    """A copy of the rows' tensors, a row each."""
    return {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}
