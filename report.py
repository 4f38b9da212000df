"""How far is it: python report.py [results/BATCH …]

A table for each batch, its best settings so far, and what failed why, with the command that runs
it again. Reads the folders and asks Slurm once at most, so it works anywhere at any time.
With --html FILE the same, all runs and pictures of them as a page that opens from disk.
python report.py sync [FOLDER …] sends to trackers what was kept offline.
python report.py notify --test checks the address that messages about batches go to.
python report.py compare A B says which of two kinds of runs is better, seed by seed.
"""

import argparse
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.grid import notify, read_reports, reports_as_json, show_reports, write_report_page
from src.support import OneLineParser, UserError, bad_value

SECONDS_BETWEEN_LOOKS = 10.0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for a mistake of the user's."""
    given = sys.argv[1:] if arguments is None else arguments
    is_watching = False
    try:
        if given[:1] == ["sync"]:
            return sync_command(given[1:])
        if given[:1] == ["notify"]:
            return notify_command(given[1:])
        if given[:1] == ["compare"]:
            return compare_command(given[1:])
        options = command_line().parse_intermixed_args(given)
        check_options(options)
        is_watching = options.watch is not None
        look(options)
        while is_watching:
            print(
                f"{time.strftime('%H:%M:%S')}, every {options.watch:g} s; Ctrl-C ends", flush=True
            )
            time.sleep(options.watch)
            look(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `report.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a batch that is deleted while we look
        print(UserError.from_os(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not is_watching:  # else it is how one ends it
            print("interrupted", file=sys.stderr)
            return 130
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="How far batches of experiments are.",
        epilog="Also `report.py sync [FOLDER …]`, which sends to trackers what was kept offline, "
        "`report.py notify --test | results/BATCH`, which sends a message, and `report.py compare "
        "A B`, which says which of two kinds of runs is better.",
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
    """Mistakes on the command line raise UserError: before minutes of work, not after them."""
    if options.best < 0:
        raise bad_value("--best", options.best, "a whole number from 0 up")
    try:
        re.compile(options.metric or "")
    except re.error as error:
        raise bad_value("--metric", options.metric, f"a regular expression ({error})") from None
    if options.html is not None:
        page = Path(options.html)
        if page.is_dir():
            raise bad_value("--html", str(page), "a file, which this folder is not")
        if not page.parent.is_dir():
            raise bad_value("--html", str(page), f"a file in a folder that exists: {page.parent}?")
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


def look(options: argparse.Namespace) -> None:
    """Read the batches once, and show them."""
    reports, num_older = read_reports(options.batches, options.metric, options.best)
    if options.json:
        print(reports_as_json(reports))
    elif options.html is not None:
        is_metric_given = options.metric is not None
        write_report_page(reports, Path(options.html), is_metric_given=is_metric_given)
        show_reports([], num_older)
    else:
        show_reports(reports, num_older, clear=options.watch is not None)


def sync_command(arguments: Sequence[str]) -> int:
    """Send what trackers did not get while the runs went; 1 where some could not be sent."""
    from src.logging import sync_runs

    parser = OneLineParser(prog="report.py sync", description="Send runs to wandb and Comet.")
    parser.add_argument(
        "folders", nargs="*", default=["results"], help="of runs or batches (results)"
    )
    folders = parser.parse_args(arguments).folders
    num_sent, num_waiting = sync_runs([Path(folder) for folder in folders])
    print(f"{num_sent} of {num_waiting} sent" if num_waiting else "nothing to send")
    return 1 if num_sent < num_waiting else 0


def compare_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="report.py compare",
        description="Which of two kinds of runs is better, seed by seed.",
        epilog="Ends with 0 whatever the verdict is: a, b, or undecided, where the 95 % interval "
        "of the difference includes 0. By default the metric is that of the validation split.",
    )
    parser.add_argument("a", metavar="results/A", help="a batch, or a folder of runs")
    parser.add_argument("b", metavar="results/B", help="the same or another one")
    some: Any = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--a", dest="only_a", help="of these, the runs with this value", **some)
    parser.add_argument("--b", dest="only_b", help="the same of b; both may come again", **some)
    parser.add_argument("--metric", metavar="REGEX", help="column of stats.csv to compare by")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def compare_command(arguments: Sequence[str]) -> int:
    """Which of two kinds of runs is better, over the seeds and settings that both have."""
    from src.analysis import paired, read_experiments, select
    from src.config import read_yaml
    from src.metrics import main_columns, metric_columns

    options = compare_parser().parse_args(arguments)
    sides = []
    for folder, wanted in ((options.a, options.only_a), (options.b, options.only_b)):
        if wrong := [text for text in wanted if "=" not in text]:
            raise UserError(f"compare: got {wrong[0]!r}, expected KEY=VALUE")
        values = {key: read_yaml(text) for key, _, text in (x.partition("=") for x in wanted)}
        sides.append(select(read_experiments(folder), **values))
    columns = main_columns(sides[0].columns)
    metric = columns and columns[0]
    if options.metric:
        (metric, *_) = metric_columns(options.metric, sides[0].columns, key="--metric")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = paired(sides[0], sides[1], metric)
    doubts = [str(warning.message) for warning in caught]
    if options.json:
        entries = asdict(found) | {"verdict": found.verdict, "doubts": doubts}
        entries |= {end: None for end in ("low", "high") if math.isnan(entries[end])}
        print(json.dumps(entries, indent=1, default=str))
    else:
        print("\n".join([str(found), *doubts, f"verdict: {found.verdict}"]))
    return 0


def notify_command(arguments: Sequence[str]) -> int:
    """Send a message now; 1 where an address did not take it."""
    parser = OneLineParser(prog="report.py notify", description="Send a message about a batch.")
    parser.add_argument("batch", nargs="?", metavar="results/BATCH", help="its digest, now")
    parser.add_argument("--test", action="store_true", help="a few words, to check the address")
    options = parser.parse_args(arguments)
    if bool(options.batch) == options.test:
        raise UserError("notify: give either --test or results/BATCH")
    return notify(options.batch)


if __name__ == "__main__":
    sys.exit(main())
