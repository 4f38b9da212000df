"""Have Slurm start a stopped run again, and count in attempts.json how often it was.

Slurm is asked to requeue the job; where the cluster forbids that, to start a follow-up: the same
submission once more, when this job has ended. In a job that several runs share, none asks by
itself: when all have ended, the job's script asks once, by `python -m src.submit.continuation`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from src.grid.notices import report_failure, wait_until_sent
from src.grid.slurm.commands import (
    ENDED,
    FULL,
    NO_ANSWER,
    REQUEUE_FORBIDDEN,
    SUBMISSION,
    NoSlurm,
    ask,
    literal,
    read_queue,
    requeue,
    runs_spec,
    sbatch_arguments,
    state_and_reason,
)
from src.support import processes, write_atomically

T = TypeVar("T")
PATIENCE = 600.0  # seconds; more than a job has left when it asks
SECONDS_BETWEEN_TRIES = 3.0


@dataclass(frozen=True)
class RestartCount:
    """How often Slurm stopped a run and started it again, since a person submitted it: the content
    of attempts.json. A requeued job and a follow-up count on; a new submission starts from 0."""

    job: str  # Slurm's '123_4'
    restarts: int = 0  # of this job, by Slurm's own count
    time_limits: int = 0
    preemptions: int = 0  # all restarts that the run did not ask for: after a node's failure too
    step: int | None = None  # that was reached at the last time limit
    is_asked: bool = False  # the next restart is the one that this run asks for
    follow_up: str | None = None  # the job that resumes the run where this one may not

    @classmethod
    def read(cls, folder: Path) -> "RestartCount | None":
        """None where nothing was counted, or nothing that can be read."""
        try:
            return cls(**json.loads((folder / "attempts.json").read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def write(self, folder: Path) -> None:
        write_atomically(folder / "attempts.json", json.dumps(asdict(self)) + "\n")

    def at_start(self, job: str, restarts: int) -> "RestartCount":
        """What is counted when an attempt starts. restarts: Slurm's count of this job's."""
        if job == self.follow_up:
            preemptions = self.preemptions + restarts
            return RestartCount(job, restarts, self.time_limits, preemptions, self.step)
        if job != self.job or not restarts:
            return RestartCount(job, restarts, preemptions=restarts)
        unasked = max(0, restarts - self.restarts - self.is_asked)
        preemptions = self.preemptions + unasked
        return replace(self, restarts=restarts, preemptions=preemptions, is_asked=False)

    def at_time_limit(self, step: int) -> "RestartCount":
        return replace(self, time_limits=self.time_limits + 1, step=step, is_asked=True)


def request_attempt(job: str, specs: Sequence[str], folders: Sequence[Path]) -> str | None:
    """Ask for another attempt at these runs of our job; None, or why there is none. Asking twice
    does no harm."""

    def ask_once() -> None:
        state, reason = state_and_reason(job)
        if state != "RUNNING" and reason != "TimeLimit":
            return  # Slurm has heard us already, or somebody has cancelled the job meanwhile
        try:
            requeue(job)
        except NoSlurm as error:
            if not REQUEUE_FORBIDDEN.search(str(error)):
                raise
            for spec, folder in zip(specs, folders, strict=True):
                _follow_up(job, spec, folder)

    try:
        _patiently(ask_once)
        return None
    except NoSlurm as error:
        return f"a time limit: Slurm says {str(error)!r}"


def is_time_limit(job: str) -> bool:
    """Whether Slurm ends the job for that reason; where it does not say, it may be cancelled."""
    try:
        return _patiently(lambda: state_and_reason(job)[1]) == "TimeLimit"
    except NoSlurm:
        return False


def _patiently(question: Callable[[], T]) -> T:
    """The answer, asking again while Slurm is silent or full. Raises NoSlurm."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return question()
        except NoSlurm as error:
            may_pass = NO_ANSWER.search(str(error)) or FULL.search(str(error))
            if not may_pass or time.monotonic() > until:
                raise
        time.sleep(SECONDS_BETWEEN_TRIES)


def _follow_up(job: str, spec: str, folder: Path) -> None:
    """Submit the run again, to start when this job has ended, unless that was done before."""
    path = Path(os.path.realpath(spec))
    jobs = read_queue()
    waiting = (j.job for j in jobs if runs_spec(j, path) and j.state not in ENDED and j.job != job)
    follow_up = next(waiting, None)
    if follow_up is None:
        script, extra = _submission(spec, [j.command for j in jobs if j.job == job])
        log = literal(folder.resolve() / "job.log")
        arguments = sbatch_arguments(Path.cwd(), extra, name=folder.name, log=log, dependency=job)
        follow_up = ask([*arguments, str(script), str(path)]).strip().partition(";")[0]
    count = RestartCount.read(folder) or RestartCount(job)
    replace(count, follow_up=follow_up).write(folder)


def _submission(spec: str, commands: Sequence[str]) -> tuple[Path, list[str]]:
    """(submit script, options of sbatch): as the submission left them for us, else as squeue
    shows `sbatch SCRIPT SPEC`, of which the options are not known."""
    if text := os.environ.get(SUBMISSION):
        facts = json.loads(text)
        return Path(facts["script"]), [o for o in facts["options"] if o not in ("--hold", "-H")]
    for command in commands:
        if command.endswith(f" {spec}"):
            return Path(command.removesuffix(f" {spec}")), []
    raise NoSlurm("requeueing is forbidden, and which script to submit again is not known")


def main(specs: Sequence[str]) -> int:
    """Request another attempt at those of the runs that wait for one; the exit code."""
    job, waiting = processes.slurm_job(), []
    for spec in specs:
        count = RestartCount.read(Path(spec).parent)
        if count and count.is_asked and count.job == job:
            waiting.append(spec)
    folders = [Path(spec).parent for spec in waiting]
    if job and waiting and (reason := request_attempt(job, waiting, folders)):
        for folder in folders:
            with open(folder / "job.log", "a") as log:
                print(f"not continued after {reason}; -r resumes it", file=log)
        for process in [report_failure(folder, 1) for folder in folders]:
            wait_until_sent(process)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
