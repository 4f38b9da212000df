"""Early stopping and divergence: no new best for too long, or a loss out of bounds."""

import math
from collections.abc import Mapping
from typing import Any

from loguru import logger

from src.metrics import direction

MARGIN = 10  # times the first loss


class Best:
    """The best value so far of the chosen columns, and the epochs since."""

    def __init__(self, columns: list[str], patience: int | None) -> None:
        self.columns = columns
        self.patience = patience
        self.value = math.nan
        self.epoch = 0
        self.epochs_without = 0

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
    """The largest loss that is no divergence, where the user gave none.

    A squared error of raw targets may exceed any fixed limit before anything has been trained.
    """
    if not math.isfinite(first_loss) or first_loss <= limit:
        return limit
    logger.warning(
        "max_allowed_loss: not given, and the first loss is {:.4g}; so losses above {:.4g} end the "
        "run as diverged, instead of {:.4g}",
        first_loss,
        MARGIN * first_loss,
        limit,
    )
    return MARGIN * first_loss
