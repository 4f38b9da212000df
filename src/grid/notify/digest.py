"""One message about a batch: what became of its rows, why some failed, the best, the cost."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from src.grid.failures import headline, shown
from src.grid.folders import count_runs, open_batch
from src.grid.progress import Best, Report, cost_in_words, reports
from src.grid.status import count_states

NUM_BEST = 3
MOST_GROUPS = 5  # of failures
DPI = 120


def report_of(batch: Path) -> Report:
    (report,) = reports([open_batch(batch)], None, NUM_BEST)
    return report


def title_of(report: Report) -> str:
    """'26-11-22-x: 22 done, 2 failed'"""
    return f"{report.batch.path.name}: {count_states(report.statuses) or 'no runs'}"


def body_of(report: Report) -> str:
    """What matters most comes first: some services cut it off."""
    lines = [f"{count_runs(len(report.statuses))}: {count_states(report.statuses)}"]
    if report.num_diverged:
        lines.append(f"{report.num_diverged} of those done diverged")
    lines += [f"damaged: {line}" for line in report.damage]
    groups = report.groups
    for group in groups[:MOST_GROUPS]:
        lines.append(f"- {headline(group)}")
        if group.detail:
            lines.append(f"  {group.detail}")
    if len(groups) > MOST_GROUPS:
        lines.append(f"- and {len(groups) - MOST_GROUPS} more kinds of failure")
    if report.best:
        doubts = f" ({'; '.join(report.doubts)})" if report.doubts else ""
        lines.append(f"best by {', '.join(report.columns)}{doubts}:")
        lines += [f"- {_in_words(best, report.keys)}" for best in report.best]
    if words := cost_in_words(report):
        lines.append(f"cost: {words}")
    if kinds := {group.only for group in groups}:
        only = kinds.pop() if len(kinds) == 1 else None
        lines.append(report.retry_command(only))
    lines.append(f"python report.py {report.batch.path}")
    return "\n".join(lines)


def _in_words(best: Best, keys: Sequence[str]) -> str:
    values = " ".join(f"{key}={shown(value)}" for key, value in best.values(keys).items())
    return f"{best.value_in_words} ({best.seeds_in_words}) {values}".rstrip()


@contextmanager
def picture_of(report: Report) -> Iterator[Path | None]:
    """Learning curves of the best settings, as a PNG; None where nothing can be drawn."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{report.batch.path.name}.png"
        try:
            figure = _figure(report)
            if figure is not None:
                figure.savefig(path, dpi=DPI, bbox_inches="tight")
        except Exception:  # the words are to arrive in any case
            traceback.print_exc(file=sys.stdout)
        yield path if path.exists() else None


def _figure(report: Report) -> Any:
    from src.analysis import best_settings, learning_curves, read_experiments
    from src.support import UserError

    if not report.columns:
        return None
    try:
        df = read_experiments(report.batch.path, only_done=True)  # no legend of what failed
        return learning_curves(best_settings(df, report.columns[0]), None)
    except UserError:  # too little to draw
        return None
