"""Which way a measure is better, and which columns of the stats a pattern means."""

import re
from collections.abc import Iterable, Sequence

from src.support import UserError, shown

# the first that there is compares runs where nobody says by what; only language models have the
# perplexity
DIRECTIONS = {"perplexity": -1, "accuracy": 1, "loss": -1, "error": -1}


# keys on which it depends what a loss is, in evaluations too; a perplexity is e to the loss
LOSS_KEYS = ("loss", "label_smoothing", "loss_class_weights")
OF_LOSS = ("loss", "perplexity")

# columns of stats.csv that differ from run to run of one configuration, by their last part
TIMES = {"time", "data_time", "timestamp", "examples_per_second", "peak_share"}
OF_MACHINE = "system/"  # how columns of the machine's use begin


def metric_columns(
    pattern: str, columns: Iterable[str], *, key: str = "best_checkpoint_metric"
) -> list[str]:
    """The columns of the stats that the regular expression matches whole; where there is none, the
    one of which it matches a part, columns of train left aside.

    Raises UserError with the key where it means none, or several in part, or where some should
    rise and some fall.
    """
    known = [c for c in columns if measure(c) in DIRECTIONS]
    chosen = [c for c in known if re.fullmatch(pattern, c)]
    if not chosen:
        chosen = _matched_in_part(pattern, known)
        if len(chosen) > 1:
            raise UserError(
                f"{key}: {shown(pattern)} is a part of several columns, expected one of them or a "
                f"regular expression that matches whole ones: {', '.join(chosen)}"
            )
    if not chosen:
        raise UserError(f"{key}: {shown(pattern)} matches none of: {', '.join(known)}")
    if len({direction(column) for column in chosen}) > 1:
        raise UserError(
            f"{key}: {shown(pattern)} matches columns that should rise "
            f"and columns that should fall: {', '.join(chosen)}"
        )
    return chosen


def _matched_in_part(pattern: str, columns: Sequence[str]) -> list[str]:
    found = [c for c in columns if pattern and re.search(pattern, c)]
    return [c for c in found if not c.startswith("train/")] or found


def main_columns(columns: Iterable[str]) -> tuple[str, str] | None:
    """(the column to choose by, the column to report), of the model `last`.

    The choice is made on the first split that is neither train nor test, by the first of
    DIRECTIONS that it has; without such a split it is made on test, the split that is reported.
    None where no split but train was evaluated.
    """
    splits: dict[str, dict[str, str]] = {}  # split -> measure -> column
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
    report = next(reports[name] for name in (measure(by), *DIRECTIONS) if name in reports)
    return by, report


def direction(column: str) -> int:
    """1 where more is better, -1 where less is."""
    return DIRECTIONS[measure(column)]


def measure(column: str) -> str:
    """'test/last/loss' -> 'loss'."""
    return column.rpartition("/")[2]


def is_time(column: str) -> bool:
    """Whether it says how long something took, or when, or what of the machine: no result."""
    return measure(column) in TIMES or column.startswith(OF_MACHINE)
