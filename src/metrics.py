"""Which way a measure is better, and which columns of the stats a pattern means."""

import re
from collections.abc import Iterable

from src.names import UserError

# the first that there is compares runs where nobody says by what; only language models have the
# perplexity
DIRECTIONS = {"perplexity": -1, "accuracy": 1, "loss": -1, "error": -1}


# columns of stats.csv that differ from run to run of one configuration, by their last part
TIMES = {"time", "data_time", "timestamp", "examples_per_second", "peak_share"}
OF_MACHINE = "system/"  # how columns of the machine's use begin


def metric_columns(
    pattern: str, columns: Iterable[str], *, key: str = "best_checkpoint_metric"
) -> list[str]:
    """The columns of the stats that the regular expression matches whole.

    Raises UserError with the key where there is none, or where some should rise and some fall.
    """
    known = [c for c in columns if measure(c) in DIRECTIONS]
    chosen = [c for c in known if re.fullmatch(pattern, c)]
    if not chosen:
        raise UserError(f"{key}: {pattern!r} matches none of: {', '.join(known)}")
    if len({direction(column) for column in chosen}) > 1:
        raise UserError(
            f"{key}: {pattern!r} matches columns that should rise "
            f"and columns that should fall: {', '.join(chosen)}"
        )
    return chosen


def direction(column: str) -> int:
    """1 where more is better, -1 where less is."""
    return DIRECTIONS[measure(column)]


def measure(column: str) -> str:
    """'test/last/loss' -> 'loss'."""
    return column.rpartition("/")[2]


def is_time(column: str) -> bool:
    """Whether it says how long something took, or when, or what of the machine: no result."""
    return measure(column) in TIMES or column.startswith(OF_MACHINE)
