"""A report as text for a terminal, as JSON for programs, as a page for a browser."""

import json
import math
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from src.grid.reports import RESULTS, RankedSetting, Report, describe, short_path
from src.grid.status import NAMES, STATES
from src.support import UserError, write_atomically

# Of states, where there are runs in them; the others are red
COLOURS = {"done": "green", "running": "cyan", "queued": ""}
MOST_RUNS = 5  # of a setting, by number


def show_reports(reports: Sequence[Report], num_older: int, *, clear: bool = False) -> None:
    """Print them. clear: on a terminal in place of what stood there."""
    # made again each time, as windows change their size
    console = Console(highlight=False, markup=False, emoji=False)
    if clear and console.is_terminal:
        _fill_window(reports, console)
        return
    for report in reports:
        show_report(report, console)
    if num_older:
        console.print(f"older batches, not shown: {num_older} (python report.py {RESULTS}/BATCH)")


def _fill_window(reports: Sequence[Report], console: Console) -> None:
    """The first batch, which is the newest; below it the others, as long as there is room."""
    room, shown = console.height - 2, list[str]()  # report.py adds a line
    for report in reports:
        with console.capture() as capture:
            show_report(report, console)
        lines = capture.get().rstrip("\n").split("\n")
        if shown and len(shown) + 1 + len(lines) > room:
            break
        if len(lines) > room:
            command = f"python report.py {short_path(report.batch.path)}"
            lines = [*lines[: room - 1], f"… {len(lines) - room + 1} lines more: {command}"]
        shown += [*[""] * bool(shown), *lines]
    console.clear()
    print("\n".join(shown))


def show_report(report: Report, console: Console) -> None:
    def line(text: str, indent: int = 2) -> None:
        """Wrapped below its beginning, without the spaces that rich would fill lines with."""
        wrapper = textwrap.TextWrapper(
            max(console.width, 40), " " * indent, " " * (indent + 2), break_long_words=False
        )
        wrapper.break_on_hyphens = False
        console.print(wrapper.fill(text), soft_wrap=True)

    console.print(short_path(report.batch.path), style="bold", soft_wrap=True)
    # A column a state. Most batches have no interrupted runs, and 80 columns no room for them but
    # where the names stand closer and break into lines.
    is_wide = report.counts["interrupted"] > 0
    states = [state for state in STATES if state != "interrupted" or is_wide]
    table = Table(box=None, padding=(0, 1 if is_wide else 2, 0, 0), pad_edge=False)
    for name in ["runs", *(NAMES.get(state, state) for state in states), "progress", "time left"]:
        table.add_column(name, justify="right", no_wrap=" " not in name or not is_wide)
    counts = [
        Text(str(count), COLOURS.get(state, "red") if count else "")
        for state, count in ((state, report.counts[state]) for state in states)
    ]
    number = str(len(report.statuses))
    table.add_row(number, *counts, f"{report.progress:.0%}", _time_left(report) or "-")
    console.print(table)
    if report.num_diverged:
        console.print(f"  {report.num_diverged} of the {report.counts['done']} done diverged")
    if report.is_queue_unknown:
        console.print("  the queue is unknown: runs that wait in it show as never started")
    for damage in report.damage:
        line(f"damaged: {damage}")
    if report.cost_text:
        line(f"cost: {report.cost_text}")
    if report.best:
        line(f"best so far {report.ranking_text}:")
        console.print(_best_table(report))
    for i, group in enumerate(report.groups):
        line(group.headline)
        if group.detail:
            line(group.detail, indent=4)
        if [g.only for g in report.groups[i : i + 2]] != [group.only] * 2:  # the last of its kind
            command = report.retry_command(group.only)
            console.print(f"    {command}", style="cyan", soft_wrap=True)
    if changed := report.changed_code:
        names = ", ".join(changed[:4]) + " …" * (len(changed) > 4)
        line(f"changed since the code of this batch was frozen: {names}")
    console.print()


def _time_left(report: Report) -> str | None:
    """None where nothing runs or waits."""
    is_over = not report.counts["running"] + report.counts["queued"]
    return None if is_over else duration(report.seconds_left)


def duration(seconds: float | None) -> str:
    """'45 s', '12 min', '3.5 h', '4.2 d'; '?' where it is not known."""
    if seconds is None:
        return "?"
    for size, unit, most in ((1, "s", 90), (60, "min", 5400), (3600, "h", 172800)):
        if seconds < most:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def _best_table(report: Report) -> Padding:
    """Of each setting its value, its seeds, the numbers of its runs, and what differs."""
    is_column_shown = len(report.columns) > 1
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("value", *["column"] * is_column_shown, "seeds"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "values"):
        table.add_column(name, overflow="fold")
    for best in report.best:
        runs = []
        for status in (result.status for result in best.results[:MOST_RUNS]):
            number = status.row.name.partition("_")[0]
            state = NAMES.get(status.state, status.state)
            runs.append(number if state == "done" else f"{number} ({state})")
        numbers = ", ".join(runs) + ", …" * (len(best.results) > MOST_RUNS)
        column, values = [best.column] * is_column_shown, describe(best.values(report.keys))
        table.add_row(best.value_text, *column, best.seeds_text, numbers, values)
    return Padding(table, (0, 0, 0, 4))


def reports_as_json(reports: Sequence[Report]) -> str:
    return json.dumps([as_json(report) for report in reports], indent=1, default=str)


def as_json(report: Report) -> dict[str, Any]:
    """Everything, in plain values."""
    rows = []
    for status in report.statuses:
        facts = {"name": status.row.name, **vars(status)}
        del facts["row"]
        costs = {key: facts[key] and asdict(facts[key]) for key in ("cost", "wasted")}
        rows.append(facts | costs)
    failures = []
    for group in report.groups:
        texts = {"headline": group.headline, "detail": group.detail}
        failures.append({**vars(group), **texts, "command": report.retry_command(group.only)})
    return {
        "batch": str(report.batch.path),
        "damage": report.batch.damage,
        "changed_code": report.changed_code,
        "counts": {state: report.counts[state] for state in STATES},
        "diverged": report.num_diverged,
        "progress": report.progress,
        "seconds_left": report.seconds_left,
        "cost": asdict(report.cost),
        "wasted": asdict(report.wasted),
        "queue_unknown": report.is_queue_unknown,
        "rows": rows,
        "ranked_by": report.columns,
        "doubts": report.doubts,
        "best": [_setting_as_json(best, report.keys) for best in report.best],
        "failures": failures,
    }


def _setting_as_json(best: RankedSetting, keys: Sequence[str]) -> dict[str, Any]:
    """value: the mean over the seeds that have one, null where none has."""
    standing, runs = best.standing, []
    for result in best.results:
        value, status = result.ranked_by(best.column).value, result.status
        run = {"row": status.row.name, "value": value if math.isfinite(value) else None}
        runs.append(run | {"epoch": result.epoch, "state": status.state, "outcome": status.outcome})
    return {
        "column": best.column,
        "value": standing.mean if standing.num_seeds else None,
        "std": standing.std if standing.num_seeds > 1 else None,
        "num_seeds": standing.num_seeds,
        "num_expected": standing.num_expected,
        "num_diverged": standing.num_diverged,
        "value_in_words": best.value_text,
        "seeds_in_words": best.seeds_text,
        "values": best.values(keys),
        "runs": runs,
    }


def write_report_page(reports: Sequence[Report], path: Path, *, is_metric_given: bool) -> None:
    """One HTML file. What draws and counts is imported here, as the terminal needs none of it."""
    import pandas as pd

    from src.analysis import read_experiments, render_page

    batches = []
    for report in reports:
        # of several columns that one which the best setting counts by
        columns = [*(best.column for best in report.best[:1]), *report.columns]
        facts = as_json(report) | {
            "metric": columns[0] if is_metric_given and columns else None,
            "time_left": _time_left(report),
            "cost_in_words": report.cost_text,
            "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        }
        df = pd.DataFrame()
        with suppress(UserError):  # no run has begun
            df = read_experiments(report.batch.path)
        batches.append((facts, df))
    content = render_page(batches)
    try:
        write_atomically(path, content)
    except OSError as error:  # whose file is the one beside it
        raise UserError(f"--html: {path}: {error.strerror}") from None
    print(path)
