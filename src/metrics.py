"""The metrics: which direction is better, and which columns of stats.csv are meant.

A column is named split/model/metric, as in test/last/accuracy; of training train/metric.
"""

import re
from collections.abc import Iterable

from src.support import UserError, short_repr

# 1: more is better, -1: less is better. The first one that a run has compares runs where nobody
# says by what. Perplexity comes first, as only language models have it and it is what they report.
DIRECTIONS = {"perplexity": -1, "accuracy": 1, "loss": -1, "error": -1}

# Keys that change what a loss measures, in evaluations too: losses of runs that differ in one of
# them are on different scales and cannot be compared. A perplexity is e to the loss.
LOSS_KEYS = ("loss", "label_smoothing", "loss_class_weights")
LOSS_METRICS = ("loss", "perplexity")

# Columns that differ between two runs of one configuration: they are no results.
TIME_METRICS = {"time", "data_time", "timestamp", "examples_per_second", "peak_share"}
SYSTEM_PREFIX = "system/"  # of columns about the use of the machine


def metric_name(column: str) -> str:
    """'test/last/loss' -> 'loss'."""
    return column.rpartition("/")[2]


def direction(column: str) -> int:
    """1 where more is better, -1 where less is."""
    return DIRECTIONS[metric_name(column)]


def is_time(column: str) -> bool:
    """Whether the column says how long something took, or when, or what the machine did."""
    return metric_name(column) in TIME_METRICS or column.startswith(SYSTEM_PREFIX)


def metric_columns(
    pattern: str, columns: Iterable[str], *, key: str = "best_checkpoint_metric"
) -> list[str]:
    """The columns that the regular expression matches as a whole, else the one it matches in part.

    Training columns are found in part only where no other is. Raises UserError, naming the key,
    for no column, for several matched in part, and for columns of which some should rise and some
    fall.
    """
    known = [c for c in columns if metric_name(c) in DIRECTIONS]
    chosen = [c for c in known if re.fullmatch(pattern, c)]
    if not chosen:
        in_part = [c for c in known if pattern and re.search(pattern, c)]
        chosen = [c for c in in_part if not c.startswith("train/")] or in_part
        if len(chosen) > 1:
            raise UserError(
                f"{key}: {short_repr(pattern)} is a part of several columns, expected one of "
                f"them or a regular expression that matches whole ones: {', '.join(chosen)}"
            )
    if not chosen:
        raise UserError(f"{key}: {short_repr(pattern)} matches none of: {', '.join(known)}")
    if len({direction(column) for column in chosen}) > 1:
        raise UserError(
            f"{key}: {short_repr(pattern)} matches columns that should rise "
            f"and columns that should fall: {', '.join(chosen)}"
        )
    return chosen


def main_columns(columns: Iterable[str]) -> tuple[str, str] | None:
    """(the column to choose by, the column to report), of the model `last`.

    The choice is made on the first split that is neither train nor test, by the first metric of
    DIRECTIONS that it has. Without such a split it is made on test, the split that is reported.
    None where no split but train was evaluated.
    """
    splits: dict[str, dict[str, str]] = {}  # split -> metric -> column
    for column in columns:
        found = re.fullmatch(rf"(?!train/)(.+)/last/({'|'.join(DIRECTIONS)})", column)
        if found:
            splits.setdefault(found[1], {})[found[2]] = column
    if not splits:
        return None
    others = [split for split in splits if split != "test"]
    chooses = splits[(others or ["test"])[0]]
    reports = splits["test" if "test" in splits else (others[1:] or others)[0]]
    by = next(chooses[name] for name in DIRECTIONS if name in chooses)
    report = next(reports[name] for name in (metric_name(by), *DIRECTIONS) if name in reports)
    return by, report
