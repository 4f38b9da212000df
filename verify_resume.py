"""Certify that a killed run ends as one that was never killed: python verify_resume.py cfg.yaml

Runs the experiment straight through, then again under kill -9, SIGTERM and SIGUSR1 at random
moments, and compares what both leave, byte for byte. On a GPU some of torch's operations sum in
no fixed order: where two straight runs differ, this cannot hold either.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from src.config import load_config
from src.runtime import (
    CorruptCheckpoint,
    Failed,
    KilledRun,
    TooShort,
    final_state,
    first_differences,
    names_of_parts,
    plan,
    run_straight,
)
from src.support import OneLineParser, UserError, bad_value


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 where the runs differ or nothing is shown,
    2 for a mistake of the user's, 130 for Ctrl-C."""
    try:
        options = command_line().parse_intermixed_args(arguments)
        if options.kills < 1:
            raise bad_value("--kills", options.kills, "a whole number from 1 up")
        load_config(options.config, options.overrides)  # mistakes show before anything runs
        with folder_of_runs(options.output) as folder:
            print(certify(options, folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except (Failed, TooShort) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = OneLineParser(description="Certify that a killed run ends as one never killed.")
    add = parser.add_argument
    add("config", help="YAML file with keys of src/keys.py")
    add("overrides", nargs="*", metavar="key=value", help="base_lr=0.1 …")
    add("--kills", type=int, default=20, metavar="N", help="how often it is killed (20)")
    add("--seed", type=int, metavar="N", help="of the moments; without it, others each time")
    add("--output", metavar="FOLDER", help="keep both runs there; else they are removed")
    return parser


@contextmanager
def folder_of_runs(wanted: str | None) -> Iterator[Path]:
    """A temporary one is removed, unless somebody must look at what is in it."""
    path = Path(wanted or tempfile.mkdtemp(prefix="verify_resume.")).absolute()
    is_kept = wanted is not None
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UserError(f"--output: {path} is not empty")
        yield path
    except (Failed, CorruptCheckpoint) as failed:
        is_kept = True
        raise Failed(f"{failed}\nboth runs are kept in {path}") from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    finally:
        if not is_kept:
            shutil.rmtree(path, ignore_errors=True)


def certify(options: argparse.Namespace, folder: Path) -> str:
    """What was shown, in words. Raises Failed where it was not."""
    seed = random.randrange(2**32) if options.seed is None else options.seed
    draw, is_quiet = random.Random(seed), not sys.stderr.isatty()
    with tqdm(total=options.kills, unit="kill", leave=False, disable=is_quiet) as bar:
        bar.set_description("straight run")
        pace = run_straight(options.config, options.overrides, folder / "straight")
        kills = plan(options.kills, pace.epoch_ends, draw)
        killed = KilledRun(folder, pace, kills, draw)
        for number, kill in enumerate(kills):
            bar.set_description(f"{kill.signal.name} in {kill.moment}")
            killed.attempt(number)
            bar.update()
        bar.set_description("to the end")
        killed.finish()
    if differences := first_differences(folder / "straight", folder / "killed"):
        lines = "".join(f"\n  {line}" for line in differences)
        raise Failed(f"{killed.describe()}: straight and killed run differ (--seed {seed}):{lines}")
    parts = ", ".join(names_of_parts(final_state(folder / "killed")))
    rows = f"{len(pace.epoch_ends)} rows of stats"
    return f"{killed.describe()}: {parts} and {rows} are equal, byte for byte"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run ends with us
    sys.exit(main())
