"""When a run ends early: no new best for too long, or a loss out of bounds."""

import math
import re
from collections.abc import Iterable, Mapping

from src.names import UserError

DIRECTIONS = {"accuracy": 1, "loss": -1, "error": -1, "perplexity": -1}


def metric_columns(pattern: str, columns: Iterable[str]) -> list[str]:
    """The columns of the stats that the regular expression matches whole.

    Raises UserError where there is none, or where some should rise and some fall.
    """
    known = [c for c in columns if c.rpartition("/")[2] in DIRECTIONS]
    chosen = [c for c in known if re.fullmatch(pattern, c)]
    if not chosen:
        raise UserError(f"best_checkpoint_metric: {pattern!r} matches none of: {', '.join(known)}")
    if len({_direction(column) for column in chosen}) > 1:
        raise UserError(
            f"best_checkpoint_metric: {pattern!r} matches columns that should rise "
            f"and columns that should fall: {', '.join(chosen)}"
        )
    return chosen


def _direction(column: str) -> int:
    return DIRECTIONS[column.rpartition("/")[2]]


class Best:
    """The best value so far of the chosen columns, and how long it has stood."""

    def __init__(self, columns: list[str], patience: int | None) -> None:
        self.columns = columns
        self.patience = patience
        self.value = math.nan
        self.epoch = 0
        self.epochs_without = 0

    def update(self, epoch: int, row: Mapping[str, float]) -> bool:
        """Take in an epoch; True where it is the best so far. NaN never is."""
        sign = _direction(self.columns[0])
        values = [sign * row[c] for c in self.columns if not math.isnan(row[c])]
        if values and not (sign * self.value >= max(values)):
            self.value, self.epoch, self.epochs_without = sign * max(values), epoch, 0
            return True
        self.epochs_without += 1
        return False

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
    """Whether a training loss is NaN or larger than allowed."""
    return not loss <= max_allowed_loss
