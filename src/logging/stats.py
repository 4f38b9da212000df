"""stats.csv: one row an epoch, times in seconds. This module owns its columns.

epoch, step, timestamp; train/loss, train/accuracy, train/time, train/data_time,
train/seen_examples, train/examples_per_second, train/peak_share, train/learning_rate; for each
other split and each evaluated model SPLIT/MODEL/loss, …/accuracy, …/time, …/data_time. No accuracy
where targets are real; also …/perplexity where tokens are predicted. peak_share (of what the
device could compute in train/time, src/runtime/throughput.py) where it is known alone. Last,
system/NAME_mean and system/NAME_peak of what src/logging/machine_use.py has seen in that epoch,
where it has looked.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd

from src.metrics import OF_MACHINE
from src.support import UserError, bad_value

IF_KNOWN = "train/peak_share"
TIMES = ("time", "data_time")
THROUGHPUT = ("seen_examples", "examples_per_second", "peak_share", "learning_rate")


class Stats:
    """The rows so far; a part of the training state."""

    def __init__(self, splits: list[str], models: list[str], metrics: Sequence[str]) -> None:
        """splits: those that are evaluated; models: last, av, …; metrics: loss, accuracy, …"""
        self.columns = ["epoch", "step", "timestamp"]
        self.columns += [f"train/{x}" for x in (*metrics, *TIMES, *THROUGHPUT)]
        self.columns += [f"{s}/{m}/{x}" for s in splits for m in models for x in (*metrics, *TIMES)]
        self.rows: list[dict[str, Any]] = []

    def add(self, epoch: int, step: int, groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Append an epoch: {'train': {'loss': …}, 'test/last': {…}}; returns the flat row.

        Raises UserError for a value that is no number.
        """
        row: dict[str, Any] = {"epoch": epoch, "step": step}
        row["timestamp"] = datetime.now(UTC).isoformat(timespec="seconds")
        for group, values in groups.items():
            for name, value in values.items():
                row[f"{group}/{name}"] = plain_number(value, f"{group}/{name}")
        self.rows.append(row)
        return row

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def frame(self) -> pd.DataFrame:
        """All rows, with the same columns in the same order however few were filled."""
        seen = dict.fromkeys(column for row in self.rows for column in row)
        columns = [c for c in self.columns if c in seen or c != IF_KNOWN]  # in some attempt
        columns += [c for c in seen if c.startswith(OF_MACHINE)]
        return pd.DataFrame(self.rows, columns=columns)


def plain_number(value: Any, column: str) -> float:
    """An int or a float: of numpy's numbers, and of arrays and tensors without dimensions, what
    they hold. A saved state, which is read without pickle, can hold no others."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise bad_value(column, value, "a number")


def read_stats(folder: str | Path) -> pd.DataFrame:
    """The dataframe that was written to a run folder. Raises UserError where it is damaged."""
    path = Path(folder) / "stats.csv"
    try:
        stats = pd.read_csv(path, index_col=0)
        if stats.empty:
            raise ValueError("it holds no epoch")
        stats[_results(stats)].astype(float)
    except (OSError, ValueError) as error:  # pandas' own are of the second kind
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); move {folder} away") from None
    return stats


def summarize_run(folder: str | None, stats: pd.DataFrame | None = None) -> str:
    """What a run reached, and where to look: a line each.

    stats: None: those that the folder holds. Raises UserError where they are damaged.
    """
    if stats is None:
        stats = read_stats(folder or "")
    last = stats.iloc[-1]
    lines = [f"{column:<20} {last[column]:.4f}" for column in _results(stats)]
    if folder:
        lines.append(f"{'run folder':<20} {folder}")
        if (picture := Path(folder) / "curves.png").exists():
            lines.append(f"{'learning curves':<20} {picture}")
    return "\n".join(lines)


def _results(stats: pd.DataFrame) -> list[str]:
    return [c for c in stats.columns if c.endswith(("/loss", "/accuracy", "/perplexity"))]
