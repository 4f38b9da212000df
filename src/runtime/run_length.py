"""When a run ends: epochs and samples turned into steps, early stopping, divergence.

Inside there is one unit of time, the optimizer step, which uses `batch_size` examples. A pass goes
once through the training split; its last step may be short. An epoch is the interval between
evaluations: one pass, or what steps_per_epoch or samples_per_epoch make of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger

from src.metrics import direction
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

    @property
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

    def step_reaching(self, samples: int) -> int:
        """The first step after which at least so many examples were used."""
        passes, rest = divmod(samples, self.samples_per_pass)
        return passes * self.steps_per_pass + -(-rest // self.batch_size)

    def epoch_end(self, epoch: int) -> int:
        """The last step of that epoch, counted from 1; epoch_end(0) is 0."""
        if self.samples_per_epoch:
            return self.step_reaching(epoch * self.samples_per_epoch)
        return epoch * (self.steps_per_epoch or self.steps_per_pass)

    def num_steps(self, length: float, unit: str) -> int:
        """The length of a run in steps; unit is epoch, step or sample."""
        whole = int(length)
        if unit == "epoch":
            start, end = self.epoch_end(whole), self.epoch_end(whole + 1)
            return start + round((length - whole) * (end - start))
        if length != whole:
            expected = f"a whole number, as train_length_unit is {unit}"
            raise bad_value("train_length", length, expected)
        return whole if unit == "step" else self.step_reaching(whole)

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


class Best:
    """The best value so far of the chosen columns, and the epochs since."""

    def __init__(self, columns: list[str], patience: int | None) -> None:
        self.columns, self.patience = columns, patience
        self.value, self.epoch, self.epochs_without = math.nan, 0, 0

    def update(self, epoch: int, row: Mapping[str, float]) -> bool:
        """Add an epoch; True where it is the best so far: best.pt is written. NaN never is."""
        sign = direction(self.columns[0])
        values = [sign * row[c] for c in self.columns if not math.isnan(row.get(c, math.nan))]
        if values and not (sign * self.value >= max(values)):
            self.value, self.epoch, self.epochs_without = sign * max(values), epoch, 0
            return True
        self.epochs_without += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch, "epochs_without": self.epochs_without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]
        self.epochs_without = state["epochs_without"]

    @property
    def reason_to_stop(self) -> str | None:
        """Why the run should end, or None."""
        if self.patience is None or self.epochs_without < self.patience:
            return None
        return (
            f"no new best of {', '.join(self.columns)} in {self.patience} epochs: "
            f"{self.value:.6g} in epoch {self.epoch}"
        )


def has_diverged(loss: float, max_allowed_loss: float) -> bool:
    """Whether a training loss is NaN, infinite or larger than allowed."""
    return not (math.isfinite(loss) and loss <= max_allowed_loss)


def loss_limit(first_loss: float, limit: float) -> float:
    """The largest loss that is no divergence, where the user gave none: ten times the first one
    where that is above the limit.

    A squared error of raw targets may exceed any fixed limit before anything has been trained.
    """
    if not math.isfinite(first_loss) or first_loss <= limit:
        return limit
    logger.warning(
        "max_allowed_loss: not given, and the first loss is {:.4g}; so losses above {:.4g} end the "
        "run as diverged, instead of {:.4g}",
        *(first_loss, 10 * first_loss, limit),
    )
    return 10 * first_loss
