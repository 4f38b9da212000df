"""Epochs, passes and samples in one unit: the optimizer step.

A step uses `batch_size` examples. A pass goes once through the training split; its
last step may be short. An epoch is the interval between evaluations: one pass, or
what steps_per_epoch or samples_per_epoch make of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from src.support import UserError, bad_value


@dataclass(frozen=True)
class StepSchedule:
    """The steps of a run. An epoch's end is the number of steps done by then."""

    num_examples: int
    batch_size: int
    drop_last: bool = False
    steps_per_epoch: int | None = None
    samples_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if not self.steps_per_pass:
            raise UserError(
                f"batch_size: got {self.batch_size} with drop_last=True, "
                f"expected at most the {self.num_examples} training examples"
            )

    @cached_property  # called in every step
    def steps_per_pass(self) -> int:
        full, rest = divmod(self.num_examples, self.batch_size)
        return full if self.drop_last else full + (rest > 0)

    @property
    def samples_per_pass(self) -> int:
        return min(self.num_examples, self.steps_per_pass * self.batch_size)

    def samples_after(self, step: int) -> int:
        """How many examples the first `step` steps use, short steps counted as such."""
        passes, rest = divmod(step, self.steps_per_pass)
        return passes * self.samples_per_pass + rest * self.batch_size

    def examples_of(self, step: int) -> int:
        """How many examples that step uses, counted from 0."""
        done = step % self.steps_per_pass * self.batch_size
        return min(self.batch_size, self.num_examples - done)

    def step_reaching(self, samples: int) -> int:
        """The first step after which at least so many examples were used."""
        passes, rest = divmod(samples, self.samples_per_pass)
        return passes * self.steps_per_pass + -(-rest // self.batch_size)

    def epoch_end(self, epoch: int) -> int:
        """The last step of that epoch, counted from 1; epoch_end(0) is 0."""
        if self.steps_per_epoch:
            return epoch * self.steps_per_epoch
        if self.samples_per_epoch:
            return self.step_reaching(epoch * self.samples_per_epoch)
        return epoch * self.steps_per_pass

    def num_steps(self, length: float, unit: str) -> int:
        """The length of a run in steps; unit is epoch, step or sample."""
        if unit == "step":
            return _whole(length, unit)
        if unit == "sample":
            return self.step_reaching(_whole(length, unit))
        whole = int(length)
        start, end = self.epoch_end(whole), self.epoch_end(whole + 1)
        return start + round((length - whole) * (end - start))

    def epochs(self, num_steps: int) -> Iterator[tuple[int, range]]:
        """Each epoch's number, from 1, and its steps, counted from 0.

        The last one may be short. A run of no steps has one epoch of none, so that
        it is evaluated once.
        """
        epoch = start = 0
        while start < num_steps or epoch == 0:
            epoch += 1
            end = min(self.epoch_end(epoch), num_steps)
            if end > start or num_steps == 0:  # a pass's short end may fill several epochs
                yield epoch, range(start, end)
            start = end


def _whole(length: float, unit: str) -> int:
    if length != int(length):
        raise bad_value("train_length", length, f"a whole number, as train_length_unit is {unit}")
    return int(length)
