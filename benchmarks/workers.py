"""What workers ask of a file system: how soon the next run is found, how many operations a second.

    python benchmarks/workers.py      about three minutes

A batch of 10,000 runs of which 9,000 are done, on a folder where every operation takes 10 ms more,
as on a busy network disk. 50 workers take runs that last ten seconds, then thirty, with the
heartbeats of the worker and of the run. What the runs themselves write is not counted.
"""

import datetime
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench import machine  # noqa: E402 - after the path
from src.grid.folders import Batch, Row  # noqa: E402
from src.grid.run_queue import RunQueue  # noqa: E402
from src.grid.workers import WorkerSource  # noqa: E402
from src.logging import lease  # noqa: E402

NUM_RUNS, NUM_DONE, NUM_WORKERS = 10_000, 9_000, 50
DELAY = 0.01  # seconds an operation
LENGTHS = (10, 30)  # seconds of a run
SECONDS = 60.0


def main() -> None:
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    print(
        f"| {NUM_WORKERS} workers; runs of | until the next one is found, median | the longest ",
        end="",
    )
    print("| operations a second and worker |\n|---|--:|--:|--:|")
    for length in LENGTHS:
        with tempfile.TemporaryDirectory() as name:
            measure(Batch(Path(name), []), length)


def measure(batch: Batch, length: int) -> None:
    rows = [Row(batch.path / f"{n:05d}_x", {}) for n in range(NUM_RUNS)]
    for row in rows:
        row.folder.mkdir()
        row.spec.write_text("checkpoint_minutes: 10\n")
    for row in rows[:NUM_DONE]:
        (row.folder / "done").write_text("{}")
    RunQueue(batch.submissions).offer(rows[NUM_DONE:])
    with multiprocessing.get_context("fork").Pool(NUM_WORKERS) as pool:
        found = pool.map(work, [(batch, number, length) for number in range(NUM_WORKERS)], 1)
    seconds = [second for each, _, _ in found for second in each]
    rate = sum(operations for _, operations, _ in found) / sum(whole for *_, whole in found)
    usual, most = statistics.median(seconds), max(seconds)
    print(f"| {length} s | {usual:.2f} s | {most:.2f} s | {rate:.2f} |", flush=True)


def work(given: tuple[Batch, int, int]) -> tuple[list[float], int, float]:
    """(seconds until each run was found, operations, seconds in all) of a worker."""
    batch, number, length = given
    folder = batch.submissions / "w" / str(number)
    folder.mkdir(parents=True)
    counted = count_operations(str(batch.path))
    found, began = [], time.monotonic()
    own = lease.Lease(folder)
    own.take()
    source = WorkerSource(batch, f"w.{number}", "cpu")
    while time.monotonic() - began < SECONDS:
        asked = time.monotonic()
        task = source.take(is_idle=True)
        if task is None:
            break
        found.append(time.monotonic() - asked)
        of_run = lease.Lease(task.row.folder)  # as train.py has
        of_run.take()
        time.sleep(length)
        of_run.release()
        source.ended(task, "done", is_ours=False)
    own.release()
    return found, counted[0], time.monotonic() - began


def count_operations(folder: str) -> list[int]:
    """A counter of what this process asks of the file system below the folder, each time slowed."""
    count = [0]

    def slow(*_: object) -> None:
        count[0] += 1
        time.sleep(DELAY)

    def hook(event: str, arguments: tuple) -> None:
        is_of_files = event == "open" or event.startswith("os.")
        if is_of_files and arguments and str(arguments[0]).startswith(folder):
            slow()

    sys.addaudithook(hook)
    for name in ("stat", "lstat"):  # which no hook sees
        whole = getattr(os, name)

        def slowed(path: object, *rest: object, whole=whole, **options: object) -> object:
            if str(path).startswith(folder):
                slow()
            return whole(path, *rest, **options)

        setattr(os, name, slowed)
    for name in ("pwrite", "fsync"):  # of files that are open: those of the lease alone
        plain = getattr(os, name)

        def counted(*arguments: object, plain=plain) -> object:
            slow()
            return plain(*arguments)

        setattr(os, name, counted)
    return count


if __name__ == "__main__":
    main()
