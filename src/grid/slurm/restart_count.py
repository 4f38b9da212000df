"""attempts.json of a run folder: how often Slurm stopped the run, and began it again.

Counted since a person asked for the run: a requeued job and a follow-up count on, the job of a
new submission starts anew.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from src.support import write_atomically


@dataclass(frozen=True)
class Tally:
    """What is counted of one run."""

    job: str  # Slurm's '123_4'
    restarts: int = 0  # of this job, by Slurm's own count
    time_limits: int = 0
    preemptions: int = 0  # all that Slurm began again unasked: after a node's failure as well
    step: int | None = None  # that was reached at the last time limit
    is_asked: bool = False  # the next restart is the one that this run asks for
    follow_up: str | None = None  # the job that goes on where this one may not

    def begin(self, job: str, restarts: int) -> "Tally":
        """As it is when an attempt begins."""
        if job == self.follow_up:
            return Tally(job, restarts, self.time_limits, self.preemptions + restarts, self.step)
        if job != self.job or not restarts:
            return Tally(job, restarts, preemptions=restarts)
        unasked = max(0, restarts - self.restarts - self.is_asked)
        preemptions = self.preemptions + unasked
        return replace(self, restarts=restarts, preemptions=preemptions, is_asked=False)

    def at_time_limit(self, step: int) -> "Tally":
        return replace(self, time_limits=self.time_limits + 1, step=step, is_asked=True)


def read_tally(folder: Path) -> Tally | None:
    """None where nothing was counted, or nothing that can be read."""
    try:
        return Tally(**json.loads((folder / "attempts.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_tally(folder: Path, tally: Tally) -> None:
    write_atomically(folder / "attempts.json", json.dumps(asdict(tally)) + "\n")


def read_step(folder: Path) -> int:
    """The step that a run has reached, by its status.json; 0 where none is known."""
    try:
        status: dict[str, Any] = json.loads((folder / "status.json").read_text())
        return int(status["step"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0
