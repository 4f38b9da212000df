"""Which runs of a batch are free for workers, and which worker has which: names of files.

    submissions/queue/RUN            a run that nobody trains
    submissions/queue/RUN@KIND       the same; it began on this kind of device
    submissions/taken/RUN@WORKER     a run that this worker trains
    submissions/queue/.stop          no worker takes another run (--stop)
    submissions/003-9f2c/17/         worker 003-9f2c.17, a task of Slurm: spec.yaml, job.log
    submissions/here-node3-4711/     a worker that was started on a machine

A run is taken by renaming its entry, which only one of many can do, and what is next is seen in one
look at a folder, however many runs there are. An entry holds how many workers have died with it
since it made a step, and that step.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from src.grid.folders import Row
from src.logging import lease
from src.support import UserError

STOP = ".stop"


class RunQueue:
    """Which runs of a batch are free, and which worker has which."""

    def __init__(self, submissions: Path) -> None:
        self.folder = submissions
        self.free, self.taken = submissions / "queue", submissions / "taken"
        self.stop = self.free / STOP

    @property
    def exists(self) -> bool:
        """Whether the batch ever had workers."""
        return self.free.is_dir()

    def offer(self, rows: Sequence[Row]) -> None:
        """They are free from now on, but for those that a worker has."""
        try:
            if strange := next((row.name for row in rows if "@" in row.name), None):
                raise UserError(f"{strange}: workers take no run whose folder has an @ in its name")
            for folder in (self.free, self.taken):
                folder.mkdir(parents=True, exist_ok=True)
            self.stop.unlink(missing_ok=True)
            # What is put back between two looks is seen by the third.
            known = {*self.free_runs(), *self.taken_runs(), *self.free_runs()}
            for row in rows:
                if row.name not in known:
                    (self.free / row.name).touch()
        except OSError as error:
            raise UserError.from_os(error, str(self.free)) from None

    def free_runs(self) -> dict[str, str]:
        """Name of the run -> name of the entry, in order."""
        return self.look()[0]

    def look(self) -> tuple[dict[str, str], bool]:
        """(free_runs(), whether nobody is to take one) by one look at the folder."""
        entries = _listed(self.free)
        free = {x.partition("@")[0]: x for x in entries if not x.startswith(".")}  # .nfs…
        return free, STOP in entries

    def taken_runs(self) -> dict[str, str]:
        """Name of the run -> the worker that has it."""
        pairs = (entry.partition("@") for entry in _listed(self.taken))
        return {run: worker for run, _, worker in pairs}

    def workers_here(self) -> list[Path]:
        """The folders of workers that were started on a machine, of those that seem to live; not
        those of another batch, which this one was copied from."""
        return [
            path
            for path in self.folder.glob("here-*")
            if lease.is_claimed(path) and self._is_of_batch(path)
        ]

    def _is_of_batch(self, worker: Path) -> bool:
        try:
            facts = json.loads((worker / "worker.json").read_text())
            return os.path.samefile(facts["batch"], self.folder.parent)
        except (OSError, ValueError, LookupError, TypeError):
            return True  # it has just begun, or cannot be read

    def reset(self) -> None:
        """All are free: the batch was moved or copied, and its workers are elsewhere."""
        for run, worker in self.taken_runs().items():
            os.rename(self.taken / f"{run}@{worker}", self.free / run)

    def worker_folder(self, worker: str) -> Path:
        return self.folder / worker.replace(".", "/")


def _listed(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(os.listdir(folder))
    return []
