"""How far is it: python report.py [results/BATCH …]

A table for each batch, its best settings so far, and what failed why, with the command that runs
it again. Reads the folders and asks Slurm once at most, so it works anywhere at any time.
With --html FILE the same, all runs and pictures of them as a page that opens from disk.
python report.py sync [FOLDER …] sends to trackers what was kept offline.
python report.py notify --test checks the address that messages about batches go to.
"""

import argparse
import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from src.grid import (
    RESULTS,
    STATES,
    Best,
    Report,
    RowStatus,
    chosen_batches,
    cost_in_words,
    headline,
    reports,
    short_path,
    shown,
)
from src.support import OneLineParser, UserError, bad_value, write_atomically

if TYPE_CHECKING:
    import pandas as pd

SECONDS_BETWEEN_LOOKS = 10.0
MOST_ROWS = 5  # of a setting, by number


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for a mistake of the user's."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["sync"]:
            return sync(given[1:])
        if given[:1] == ["notify"]:
            return notify(given[1:])
        options = command_line().parse_intermixed_args(given)
        check_options(options)
        if options.watch is None:
            look(options, Console(highlight=False, markup=False, emoji=False))
        else:
            watch(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `report.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a batch that is deleted while we look
        print(UserError.from_os(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if (
            given[:1] in (["sync"], ["notify"]) or options.watch is None
        ):  # else it is how one ends it
            print("interrupted", file=sys.stderr)
            return 130
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="How far batches of experiments are.",
        epilog="Also `report.py sync [FOLDER …]`, which sends to trackers what was kept offline, "
        "and `report.py notify --test | results/BATCH`, which sends a message.",
    )
    add = parser.add_argument
    add("batches", nargs="*", metavar="results/BATCH", help="default: the newest few of results/")
    add("--metric", metavar="REGEX", help="columns of stats.csv to rank settings by")
    add("--best", type=int, default=3, metavar="N", help="how many of the best settings (3)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--watch",
        nargs="?",
        const=str(SECONDS_BETWEEN_LOOKS),
        metavar="SECONDS",
        help="look again every so many seconds (10), until Ctrl-C",
    )
    either.add_argument("--json", action="store_true", help="everything, for programs")
    either.add_argument("--html", metavar="FILE", help="a page to look at, with table and pictures")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Mistakes on the command line raise UserError."""
    if options.best < 0:
        raise bad_value("--best", options.best, "a whole number from 0 up")
    try:
        re.compile(options.metric or "")
    except re.error as error:
        raise bad_value("--metric", options.metric, f"a regular expression ({error})") from None
    if options.html is not None:
        check_page(Path(options.html))
    if options.watch is None:
        return
    if os.path.isdir(options.watch):  # `--watch results/x`: no seconds, but a batch
        options.batches.append(options.watch)
        options.watch = SECONDS_BETWEEN_LOOKS
    try:
        seconds = float(options.watch)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise bad_value("--watch", options.watch, "a number of seconds above 0")
    options.watch = seconds


def check_page(path: Path) -> None:
    """Before minutes of work, not after them."""
    if path.is_dir():
        raise bad_value("--html", str(path), "a file, which this folder is not")
    if not path.parent.is_dir():
        raise bad_value("--html", str(path), f"a file in a folder that exists: {path.parent}?")


def duration(seconds: float | None) -> str:
    """'45 s', '12 min', '3.5 h', '4.2 d'; '?' where it is not known."""
    if seconds is None:
        return "?"
    for size, unit, most in ((1, "s", 90), (60, "min", 5400), (3600, "h", 172800)):
        if seconds < most:
            digits = 1 if unit == "h" else 0
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"


# ---- Showing -----------------------------------------------------------------------------


def look(options: argparse.Namespace, console: Console) -> None:
    """One look, shown."""
    batches, num_older = chosen_batches(options.batches)
    found = reports(batches, options.metric, options.best)
    if options.json:
        print(json.dumps([as_json(report) for report in found], indent=1, default=str))
        return
    if options.html is not None:
        write_page(found, Path(options.html), is_metric_asked=options.metric is not None)
    else:
        if options.watch is not None and console.is_terminal:
            console.clear()
        for report in found:
            show(report, console)
    if num_older:
        console.print(f"older batches, not shown: {num_older} (python report.py {RESULTS}/BATCH)")


def watch(options: argparse.Namespace) -> None:
    """Look again and again. The console is made anew, as windows change their size."""
    while True:
        console = Console(highlight=False, markup=False, emoji=False)
        look(options, console)
        console.print(f"{time.strftime('%H:%M:%S')}, every {options.watch:g} s; Ctrl-C ends")
        time.sleep(options.watch)


def show(report: Report, console: Console) -> None:
    counts = report.counts
    console.print(short_path(report.batch.path), style="bold", soft_wrap=True)
    console.print(counts_table(report))
    if report.num_diverged:
        console.print(f"  {report.num_diverged} of the {counts['done']} done diverged")
    if report.is_queue_unknown:
        console.print("  the queue is unknown: rows that wait in it show as never started")
    for line in report.damage:
        print_line(f"damaged: {line}", console)
    if words := cost_in_words(report):
        print_line(f"cost: {words}", console)
    if report.best:
        print_line(f"{best_title(report)}:", console)
        console.print(best_table(report))
    show_failures(report, console)
    console.print()


def print_line(text: str, console: Console, *, indent: int = 2) -> None:
    """Wrapped below its beginning, without the spaces that rich would fill lines with."""
    margin = " " * indent
    wrapped = textwrap.fill(
        text,
        max(console.width, 40),
        initial_indent=margin,
        subsequent_indent=margin + "  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    console.print(wrapped, soft_wrap=True)


def counts_table(report: Report) -> Table:
    """A column a state. Most batches have no interrupted rows, and 80 columns no room for them but
    where the names stand closer and break into lines."""
    is_wide = report.counts["interrupted"] > 0
    states = [state for state in STATES if state != "interrupted" or is_wide]
    names = {"unstarted": "never started"}
    table = Table(box=None, padding=(0, 1 if is_wide else 2, 0, 0), pad_edge=False)
    for name in ["rows", *(names.get(state, state) for state in states), "progress", "time left"]:
        table.add_column(name, justify="right", no_wrap=" " not in name or not is_wide)
    counts = [str(report.counts[state]) for state in states]
    left = time_left(report) or "-"
    table.add_row(str(len(report.statuses)), *counts, f"{report.progress:.0%}", left)
    return table


def time_left(report: Report) -> str | None:
    """None where nothing goes on."""
    goes_on = report.counts["running"] + report.counts["queued"]
    return duration(report.seconds_left) if goes_on else None


def best_title(report: Report) -> str:
    """'best so far by test/last/accuracy (chosen and reported on the same split)'"""
    doubts = "; ".join(report.doubts)
    return f"best so far by {', '.join(report.columns)}" + (f" ({doubts})" if doubts else "")


def best_table(report: Report) -> Padding:
    """Of each setting its value, its seeds, the numbers of its rows, and what differs."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("value", *["column"] * (len(report.columns) > 1), "seeds"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "values"):
        table.add_column(name, overflow="fold")
    for best in report.best:
        values = " ".join(f"{key}={shown(v)}" for key, v in best.values(report.keys).items())
        column = [best.column] * (len(report.columns) > 1)
        table.add_row(best.value_in_words, *column, best.seeds_in_words, numbers_of(best), values)
    return Padding(table, (0, 0, 0, 4))


def numbers_of(best: Best) -> str:
    """'000, 003 (running)' of the rows; of many the first ones."""
    found = []
    for row in best.rows[:MOST_ROWS]:
        status = row.status
        state = "never started" if status.state == "unstarted" else status.state
        number = status.row.name.partition("_")[0]
        found.append(number if state == "done" else f"{number} ({state})")
    return ", ".join(found) + ", …" * (len(best.rows) > MOST_ROWS)


def show_failures(report: Report, console: Console) -> None:
    groups = report.groups
    for i, group in enumerate(groups):
        print_line(headline(group), console)
        if group.detail:
            print_line(group.detail, console, indent=4)
        is_last_of_kind = [g.only for g in groups[i : i + 2]] != [group.only] * 2
        if is_last_of_kind:
            command = report.retry_command(group.only)
            console.print(f"    {command}", style="cyan", soft_wrap=True)
    if changed := report.changed_code:
        names = ", ".join(changed[:4]) + " …" * (len(changed) > 4)
        print_line(f"changed since the code of this batch was frozen: {names}", console)


def as_json(report: Report) -> dict[str, Any]:
    """Everything, in plain values."""
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
        "rows": [row_as_json(status) for status in report.statuses],
        "ranked_by": report.columns,
        "doubts": report.doubts,
        "best": [best_as_json(best, report.keys) for best in report.best],
        "failures": [
            {
                "rows": group.rows,
                "only": group.only,
                "cause": group.cause,
                "headline": headline(group),
                "detail": group.detail,
                "shared": group.shared,
                "node": group.node,
                "command": report.retry_command(group.only),
            }
            for group in report.groups
        ],
    }


def best_as_json(best: Best, keys: Sequence[str]) -> dict[str, Any]:
    """A setting; value: the mean over the seeds that have one, null where none has."""
    standing = best.standing
    runs = [(row, row.run(best.column)) for row in best.rows]
    return {
        "column": best.column,
        "value": standing.mean if standing.num_seeds else None,
        "std": standing.std if standing.num_seeds > 1 else None,
        "num_seeds": standing.num_seeds,
        "num_expected": standing.num_expected,
        "num_diverged": standing.num_diverged,
        "value_in_words": best.value_in_words,
        "seeds_in_words": best.seeds_in_words,
        "values": best.values(keys),
        "runs": [
            {
                "row": row.status.row.name,
                "value": run.value if math.isfinite(run.value) else None,
                "epoch": row.epoch,
                "state": row.status.state,
                "outcome": row.status.outcome,
            }
            for row, run in runs
        ],
    }


def row_as_json(status: RowStatus) -> dict[str, Any]:
    facts = {key: value for key, value in vars(status).items() if key != "row"}
    costs = {key: facts[key] and asdict(facts[key]) for key in ("cost", "wasted")}
    return {"name": status.row.name, **facts, **costs}


# ---- Trackers ----------------------------------------------------------------------------


def sync(arguments: Sequence[str]) -> int:
    """Send what trackers have not got while the runs went; 1 where some could not be sent."""
    from src.logging import sync_runs

    parser = OneLineParser(prog="report.py sync", description="Send runs to wandb and Comet.")
    parser.add_argument(
        "folders", nargs="*", default=[str(RESULTS)], help="of runs or batches (results)"
    )
    paths = [Path(folder) for folder in parser.parse_args(arguments).folders]
    num_sent, num_waiting = sync_runs(paths)
    print(f"{num_sent} of {num_waiting} sent" if num_waiting else "nothing to send")
    return 1 if num_sent < num_waiting else 0


# ---- Notifications -----------------------------------------------------------------------


def notify(arguments: Sequence[str]) -> int:
    """Send a message now; 1 where an address did not take it."""
    from src.grid import body_of, picture_of, report_of, send, title_of

    parser = OneLineParser(prog="report.py notify", description="Send a message about a batch.")
    parser.add_argument("batch", nargs="?", metavar="results/BATCH", help="its digest, now")
    parser.add_argument("--test", action="store_true", help="a few words, to check the address")
    options = parser.parse_args(arguments)
    if bool(options.batch) == options.test:
        raise UserError("notify: give either --test or results/BATCH")
    if options.test:
        words = "This is where messages about your experiments will come."
        deliveries = send("Experiment Starter", words, is_bad=False)
    else:
        report = report_of(Path(options.batch))
        with picture_of(report) as picture:
            deliveries = send(title_of(report), body_of(report), picture=picture, is_bad=False)
    for delivery in deliveries:
        took = "sent" if delivery.is_delivered else "not delivered: wrong, dead or out of reach"
        print(f"{delivery.service}: {took}")
    return 0 if all(delivery.is_delivered for delivery in deliveries) else 1


# ---- The page ----------------------------------------------------------------------------


def write_page(found: Sequence[Report], path: Path, *, is_metric_asked: bool) -> None:
    """One HTML file; what draws and counts is imported here, as a look needs none of it."""
    from src.analysis import render_page

    batches = []
    for report in found:
        # of several columns that one which the best setting counts by
        columns = [*(best.column for best in report.best[:1]), *report.columns]
        metric = columns[0] if is_metric_asked and columns else None
        batches.append((page_facts(report, metric), all_runs(report.batch.path)))
    content = render_page(batches)
    try:
        write_atomically(path, content)
    except OSError as error:  # whose file is the one beside it
        raise UserError(f"--html: {path}: {error.strerror}") from None
    print(path)


def page_facts(report: Report, metric: str | None) -> dict[str, Any]:
    """as_json, and what a reader is told in words. metric: that was asked for."""
    return as_json(report) | {
        "metric": metric,
        "time_left": time_left(report),
        "cost_in_words": cost_in_words(report),
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
    }


def all_runs(folder: Path) -> "pd.DataFrame":
    """The big_df of a batch; without rows where none has begun."""
    import pandas as pd

    from src.analysis import read_experiments

    try:
        return read_experiments(folder)
    except UserError:  # no runs there
        return pd.DataFrame()


if __name__ == "__main__":
    sys.exit(main())
