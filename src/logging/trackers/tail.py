"""The process that tells one tracker of one run: python -m src.logging.trackers.tail …

It reads the run folder and nothing else, so a tracker that is slow, offline or broken holds up
nobody. It ends when its standard input does: the run has ended, however it did.

trackers/NAME.json    how far it is, for whoever comes next
trackers/NAME/        what is kept offline: each attempt writes it anew, with all rows so far
trackers/NAME.log     what the tracker's library prints
"""

import argparse
import json
import os
import select
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from src.logging.trackers.registry import TRACKERS, Service, load_service
from src.logging.trackers.tracked import (
    FOLDER,
    Tracked,
    Tracker,
    pictures,
    read_end,
    read_json,
    read_rows,
    read_tracked,
)
from src.support import write_atomically

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_FOR_ANOTHER = 60.0  # that may still tell of an earlier attempt
# The run comes first. Where others keep all cores busy, such a process may never get a turn.
NICENESS = int(os.environ.get("EXPERIMENT_TRACKER_NICENESS", "19"))


@dataclass(frozen=True)
class Told:
    """NAME.json"""

    is_online: bool = False
    is_complete: bool = False  # all rows and the end of the run
    last_step: int = -1  # that it was told of by this attempt
    confirmed: int = -1  # of the steps that were sent, by whichever attempt
    problem: str | None = None


def read_told(folder: Path, name: str) -> Told:
    """What a tracker was told of a run; nothing, where nobody says."""
    try:
        return Told(**read_json(folder / FOLDER / f"{name}.json"))
    except TypeError:
        return Told()


def write_told(folder: Path, name: str, told: Told) -> None:
    path = folder / FOLDER / f"{name}.json"
    write_atomically(path, json.dumps(asdict(told)) + "\n", durable=False)


def forget_problem(folder: Path, name: str) -> None:
    """What an earlier attempt says is not said of the next one."""
    if (folder / FOLDER / f"{name}.json").exists():
        write_told(folder, name, replace(read_told(folder, name), problem=None, is_complete=False))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tell a tracker of a run.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=TRACKERS)
    parser.add_argument("--online", action="store_true", help="or not at all")
    options = parser.parse_args(arguments)
    # A signal for the run is not for us: standard input says when the run has ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICENESS)
    folder, name = options.folder.resolve(), options.name
    try:
        with FileLock(folder / FOLDER / f"{name}.lock", timeout=SECONDS_FOR_ANOTHER):
            follow(folder, name, must_be_online=options.online)
    except Exception as error:  # libraries have their own of every kind
        words = " ".join(f"{type(error).__name__}: {error}".split())
        with suppress(OSError):
            write_told(folder, name, replace(read_told(folder, name), problem=words))
        print(words, file=sys.stderr)
        return 1
    return 0


def follow(folder: Path, name: str, *, must_be_online: bool) -> None:
    """Tell all there is, and what comes, until the run has ended."""
    before, service = read_told(folder, name), load_service(name)
    is_online = must_be_online or service.has_credentials()
    run = read_tracked(folder)
    told = Told(is_online, confirmed=before.confirmed)
    try:
        tracker = start(service, run, name, is_online=is_online)
    except Exception as error:
        if must_be_online or not is_online:
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"cannot be reached, so it is kept offline: {words}"
        told = Told(confirmed=before.confirmed, problem=problem)
        tracker = start(service, run, name, is_online=False)
    write_told(folder, name, told)
    known = tracker.last_step(told.confirmed) if told.is_online else -1
    seen, has_ended, seconds = None, False, 0.0
    while not has_ended:
        # Whether it has ended is asked first: what was written before is read then.
        has_ended, seconds = has_input_ended(seconds), SECONDS_BETWEEN_LOOKS
        now = modified(folder / "stats.csv")
        if now != seen or has_ended:
            seen, before_that, known = now, known, tell(tracker, folder, known)
            if known > before_that:
                tracker.flush()
                confirmed = known if told.is_online else told.confirmed
                told = replace(told, last_step=known, confirmed=confirmed)
                write_told(folder, name, told)
    tracker.end(*read_end(folder), pictures(folder))
    write_told(folder, name, replace(told, is_complete=True))


def start(service: Service, run: Tracked, name: str, *, is_online: bool) -> Tracker:
    """With an empty archive: what an earlier attempt has kept there is told again. Online what
    libraries leave on the disk is beside it: an archive may be all there is of the run."""
    archive = run.folder / FOLDER / (f"{name}-online" if is_online else name)
    shutil.rmtree(archive, ignore_errors=True)
    archive.mkdir(parents=True)
    return service.build(run, archive, is_online=is_online)


def tell(tracker: Tracker, folder: Path, known: int) -> int:
    """The rows after step `known`; the last step that is known then."""
    for step, values in read_rows(folder):
        if step > known:
            tracker.log(step, values)
            known = step
    return known


def has_input_ended(seconds: float) -> bool:
    """Whether standard input ends within so many seconds."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
