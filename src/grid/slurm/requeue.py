"""Ask Slurm for another attempt: the same job again, or a follow-up where that is forbidden.

    python -m src.grid.slurm.requeue SPEC …

does so for the stopped rows of a job that several share, when all have ended.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from src.grid.notify.notices import tell_of_failure, wait_until_sent
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
from src.grid.slurm.restart_count import Tally, read_tally, write_tally
from src.support import processes

T = TypeVar("T")
PATIENCE = 600.0  # seconds; more than a job has left when it asks
SECONDS_BETWEEN_TRIES = 3.0


def main(specs: Sequence[str]) -> int:
    """Once for all rows that wait for it; whoever did not ask is not continued."""
    job = processes.slurm_job()
    wanting = [spec for spec in specs if (t := read_tally(Path(spec).parent)) and _asks(t, job)]
    folders = [Path(spec).parent for spec in wanting]
    if job and wanting and (reason := next_attempt(job, wanting, folders)):
        for folder in folders:
            with open(folder / "job.log", "a") as log:
                print(f"not continued after {reason}; -r goes on from there", file=log)
        for process in [tell_of_failure(folder, 1) for folder in folders]:
            wait_until_sent(process)
        return 1
    return 0


def _asks(tally: Tally, job: str | None) -> bool:
    return tally.is_asked and tally.job == job


def next_attempt(job: str, specs: Sequence[str], folders: Sequence[Path]) -> str | None:
    """Ask for another attempt at these runs of our job; None, or why there is none."""
    try:
        _patiently(lambda: _ask_once(job, specs, folders))
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


def _ask_once(job: str, specs: Sequence[str], folders: Sequence[Path]) -> None:
    """Asking twice does no harm. Raises NoSlurm."""
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


def _follow_up(job: str, spec: str, folder: Path) -> None:
    """Submit the run again, to begin when this job has ended, unless that was done before."""
    path = Path(os.path.realpath(spec))
    jobs = read_queue()
    waiting = (j.job for j in jobs if runs_spec(j, path) and j.state not in ENDED and j.job != job)
    follow_up = next(waiting, None)
    if follow_up is None:
        commands = [j.command for j in jobs if j.job == job]
        script, extra = _submission(spec, commands)
        log = literal(folder.resolve() / "job.log")
        arguments = sbatch_arguments(Path.cwd(), extra, name=folder.name, log=log, dependency=job)
        follow_up = ask([*arguments, str(script), str(path)]).strip().partition(";")[0]
    write_tally(folder, replace(read_tally(folder) or Tally(job), follow_up=follow_up))


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
