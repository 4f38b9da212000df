"""The process that logs one run to one tracker: python -m src.logging.trackers.tail …

It follows the run folder and reads nothing else. It ends when its standard input does: the run has
ended, however it did.

trackers/NAME.json    how far it has come (tracked.SyncState)
trackers/NAME/        what is kept offline: each attempt writes it anew, with all rows so far
trackers/NAME.log     what the tracker's library prints
"""

import argparse
import os
import select
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from src.logging.trackers.services import SERVICES, Service, load_service
from src.logging.trackers.tracked import FOLDER, SyncState, TrackedRun

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_FOR_ANOTHER = 60.0  # that may still log an earlier attempt
# The run comes first. Where others keep all cores busy, such a process may never get a turn.
NICENESS = int(os.environ.get("EXPERIMENT_TRACKER_NICENESS", "19"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Log a run to a tracker.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=SERVICES)
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
        problem = _as_line(error)
        with suppress(OSError):
            replace(SyncState.read(folder, name), problem=problem).write(folder, name)
        print(problem, file=sys.stderr)
        return 1
    return 0


def follow(folder: Path, name: str, *, must_be_online: bool) -> None:
    """Log all rows that there are, and those that come, until the run has ended."""
    confirmed, service = SyncState.read(folder, name).confirmed, load_service(name)
    run = TrackedRun.read(folder)
    state = SyncState(must_be_online or service.has_credentials(), confirmed=confirmed)
    try:
        tracker = start(service, run, name, is_online=state.is_online)
    except Exception as error:
        if must_be_online or not state.is_online:
            raise
        problem = f"cannot be reached, so it is kept offline: {_as_line(error)}"
        state = SyncState(confirmed=confirmed, problem=problem)
        tracker = start(service, run, name, is_online=False)
    state.write(folder, name)
    logged = tracker.last_step(state.confirmed) if state.is_online else -1
    seen, has_ended, seconds = None, False, 0.0
    while not has_ended:
        # Whether it has ended is asked first: what was written before is read then.
        has_ended, seconds = has_input_ended(seconds), SECONDS_BETWEEN_LOOKS
        stats = folder / "stats.csv"
        modified = stats.stat().st_mtime_ns if stats.exists() else None
        if modified == seen and not has_ended:
            continue
        seen, before = modified, logged
        for step, values in run.rows():
            if step > logged:
                tracker.log(step, values)
                logged = step
        if logged > before:
            tracker.flush()
            confirmed = logged if state.is_online else state.confirmed
            state = replace(state, last_step=logged, confirmed=confirmed)
            state.write(folder, name)
    tracker.end(*run.end(), run.pictures())
    replace(state, is_complete=True).write(folder, name)


def start(service: type[Service], run: TrackedRun, name: str, *, is_online: bool) -> Service:
    """With an empty archive: what an earlier attempt has kept there is logged again. Online, what
    libraries leave on the disk is beside it: an archive may be all there is of the run."""
    archive = run.folder / FOLDER / (f"{name}-online" if is_online else name)
    shutil.rmtree(archive, ignore_errors=True)
    archive.mkdir(parents=True)
    return service(run, archive, is_online=is_online)


def has_input_ended(seconds: float) -> bool:
    """Whether standard input ends within so many seconds."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def _as_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    sys.exit(main())
