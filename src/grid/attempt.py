"""One attempt at a run, and the request for the next one: what a submit script ends in.

    exec python -m src.submit.attempt [--srun] [--max-timeouts N] [--max-preemptions N] \
        train.py SPEC

It starts train.py (--srun: once a task of the job, on all its nodes), passes signals on to it, and
exits with its code. A run that stops because the time limit is near asks Slurm for another attempt:
SIGUSR1 says that it is near, by --signal=B:USR1@120, and so does SIGTERM where Slurm names the time
limit as its reason. After any other SIGTERM Slurm has decided: it restarts a preempted job by
itself, and a cancelled one must not come back.

Slurm is asked to requeue the job; where the cluster forbids that, to start a follow-up: the same
submission once more, when this job has ended. In a job that several runs share, none asks by
itself: when all have ended, the job's script asks once, by `python -m src.submit.continuation`.
attempts.json counts how often a run was started again.

Exit codes of our own: 75 stopped with a saved state; 69 no attempt follows, and why.
"""

import json
import os
import re
import signal
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from src.config import read_yaml, read_yaml_file
from src.grid import slurm
from src.grid.notices import report_failure, wait_until_sent
from src.grid.slurm import NoSlurm
from src.logging import lease
from src.support import OneLineParser, UserError, processes, write_atomically

T = TypeVar("T")
STOPPED, NOT_CONTINUED = 75, 69  # EX_TEMPFAIL, EX_UNAVAILABLE
STOPPING = {signal.SIGUSR1, signal.SIGTERM}
SECONDS_OF_GRACE = 600
SECONDS_BETWEEN_LOOKS = 5  # at a folder in which another process runs
PATIENCE = 600.0  # seconds with a silent Slurm; more than a job has left when it asks
SECONDS_BETWEEN_TRIES = 3.0
MAY_PASS = re.compile(f"{slurm.NO_ANSWER.pattern}|{slurm.FULL.pattern}")
# The main process's exit code is the run's; if a process fails, the others do not wait for it.
SRUN = ["srun", "--kill-on-bad-exit=1", sys.executable]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    processes.hold_signals()
    try:
        options = command_line().parse_args(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    program, *start = SRUN if options.srun else [sys.executable]
    command = [*start, options.program, options.spec, *options.overrides]
    job = processes.slurm_job()
    if job is None:
        return exit_code(processes.run_programs(program, command, [os.environ])[0])
    folder, more = run_folder(options.spec, options.overrides)
    runs = stacked_runs(options.spec) or [folder]
    return SlurmAttempt(job, folder, runs, options).run(program, command + more)


def command_line() -> OneLineParser:
    def count(text: str) -> int:
        if not text.isdigit():
            raise ArgumentTypeError(f"got {text!r}, expected a whole number from 0 up")
        return int(text)

    parser = OneLineParser(description="Run train.py in a job of Slurm, as often as it takes.")
    add = parser.add_argument
    add("--srun", action="store_true", help="a process a task: several GPUs, several nodes")
    add("--max-timeouts", type=count, default=100, metavar="N", help="time limits to resume after")
    add("--max-preemptions", type=count, default=1000, metavar="N", help="restarts by Slurm")
    add("program", help="train.py")
    add("spec", help="its YAML file")
    add("overrides", nargs="*", metavar="key=value")
    return parser


def run_folder(spec: str, overrides: Sequence[str]) -> tuple[Path, list[str]]:
    """(the run's folder, the override that train.py needs): a run without output_dir gets the same
    folder in every attempt. What cannot be read is left for train.py to complain of."""
    with suppress(UserError, OSError):
        values = read_yaml_file(Path(spec))
        values = values if isinstance(values, dict) else {"output_dir": None}
        changes = [text.partition("=")[2] for text in overrides if text.startswith("output_dir=")]
        if changes:
            values["output_dir"] = read_yaml(changes[-1])
        if "output_dir" not in values:
            # Here, as runs of a batch do not need them.
            from src.config import CommandLine, load_config
            from src.logging import choose_folder

            folder, _ = choose_folder(load_config(spec, overrides), Path(spec).stem)
            print(f"output_dir is not given: this run is in {folder}", flush=True)
            return folder, [CommandLine.override("output_dir", str(folder))]
        if isinstance(values["output_dir"], str):
            return Path(os.path.expanduser(values["output_dir"])), []
    return Path(spec).parent, []


def stacked_runs(spec: str) -> list[Path]:
    """The folders of a stack's runs (stacks.py); [] where the file is a run's."""
    with suppress(UserError, OSError):
        values = read_yaml_file(Path(spec))
        specs = values.get("stack") if isinstance(values, dict) else None
        return [Path(str(own)).parent for own in specs] if isinstance(specs, list) else []
    return []


def is_stopped(code: int) -> bool:
    """By a signal: with a saved state, or killed; srun gives the highest code of its tasks."""
    return code == STOPPED or -code in STOPPING or code - 128 in STOPPING


def exit_code(code: int) -> int:
    """As shells give it: 128 + the signal."""
    return code if code >= 0 else 128 - code


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


class SlurmAttempt:
    """An attempt in a job of Slurm: what is printed and counted around train.py."""

    def __init__(self, job: str, folder: Path, runs: Sequence[Path], options: Namespace) -> None:
        """job: '123_4'. folder: of attempts.json. runs: the folder, or those of a stack's runs."""
        self.job, self.folder, self.runs, self.options = job, folder, runs, options
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.count = (RestartCount.read(folder) or RestartCount(job)).at_start(job, restarts)

    def run(self, program: str, command: Sequence[str]) -> int:
        """Run train.py once, with the words around it; the exit code."""
        if "SLURM_ARRAY_TASK_ID" not in os.environ:  # else the array's script has printed it
            now = datetime.now(UTC).isoformat(timespec="seconds")
            node = os.environ.get("SLURMD_NODENAME", "")
            print(f"--- {now} job {self.job} on {node} ---", flush=True)
        with suppress(OSError):  # train.py will say what is wrong with the folder
            self.count.write(self.folder)
        number, most = self.count.preemptions, self.options.max_preemptions
        if number > most:
            raise_it = f"raise --max-preemptions ({most}) in the submit script"
            return self.give_up(f"{number} restarts by Slurm: {raise_it}")
        printed = None
        while owner := lease.live_owner(*self.runs):  # a node that Slurm has lost may still run it
            if owner != printed:
                print(f"waits for {owner}, which runs in this folder", flush=True)
                printed = owner
            if info := signal.sigtimedwait(processes.FORWARDED, SECONDS_BETWEEN_LOOKS):
                return self.end(-info.si_signo, {info.si_signo})
        code, received = self._run_program(program, command)
        if self.options.srun and is_stopped(code) and not received:
            # Tasks hear of a preemption first, the job when its time of grace ends: only if it
            # lives until then it is started again.
            print("stopped; waiting for what Slurm does with the job", flush=True)
            info = signal.sigtimedwait(processes.FORWARDED, SECONDS_OF_GRACE)
            received = {info.si_signo} if info else set()
        code = self.end(code, received)
        if not received & STOPPING:
            self._report_failures(code)
        return code

    def _run_program(self, program: str, command: Sequence[str]) -> tuple[int, set[int]]:
        """Run train.py, in a packed task as a fork of its warm process where that can be."""
        folder = os.environ.get("EXPERIMENT_WARM")  # see _PACKED in submission.py
        if folder and self.options.program == "train.py" and not self.options.srun:
            from src.grid.forks import WarmProcess  # here, as other runs do without

            if warm := WarmProcess.shared(Path(folder)):
                code, received = warm.run(command)
                if code is not None:
                    return code, received
                print("the warm process has ended, and the run with it", flush=True)
                if received & STOPPING:
                    return STOPPED, received
        return processes.run_programs(program, command, [os.environ])

    def end(self, code: int, received: set[int]) -> int:
        """Ask for another attempt where one is due; the exit code."""
        if not is_stopped(code) or not received & STOPPING:
            return exit_code(code)
        if signal.SIGTERM in received:
            try:  # where Slurm does not say that it ends the job for its time, it may be cancelled
                if _patiently(lambda: slurm.state_and_reason(self.job)[1]) != "TimeLimit":
                    return exit_code(code)
            except NoSlurm:
                return exit_code(code)
        # Counted before another attempt is asked for, as Slurm ends us then.
        before, step, number = self.count.step, self._step(), self.count.time_limits + 1
        self.count = replace(self.count, time_limits=number, step=step, is_asked=True)
        try:
            self.count.write(self.folder)
        except OSError as error:
            return self.give_up(f"a time limit: {self.folder}: {error.strerror}")
        if before is not None and step <= before:
            cause = "2 time limits without a step between"
            return self.give_up(f"{cause}: raise --time, for start-up and a step")
        if number > (most := self.options.max_timeouts):
            raise_it = f"raise --max-timeouts ({most}) in the submit script"
            return self.give_up(f"{number} time limits: {raise_it}")
        if "EXPERIMENT_SHARES_JOB" in os.environ:
            return STOPPED  # the job asks once, when all its runs have ended
        if reason := request_attempt(self.job, {self.options.spec: self.folder}):
            return self.give_up(reason)
        print(f"stopped at step {step}; Slurm was asked for another attempt")
        return STOPPED

    def give_up(self, reason: str) -> int:
        """Say why no attempt follows, in a line that report.py shows and in a message."""
        print(f"not continued after {reason}; -r resumes at step {self._step()}", file=sys.stderr)
        self._report_failures(NOT_CONTINUED)
        return NOT_CONTINUED

    def _report_failures(self, code: int) -> None:
        """Of a stack those of all runs that are not done."""
        left = [run for run in self.runs if not (run / "done").exists()] or self.runs[:1]
        for process in [report_failure(run, code) for run in left]:
            wait_until_sent(process)

    def _step(self) -> int:
        """The step that the run has reached, by its status.json, of a stack the furthest one of
        those that are not done; 0 where none is known."""
        steps = [0]
        for run in self.runs:
            with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                if len(self.runs) == 1 or not (run / "done").exists():
                    steps.append(int(json.loads((run / "status.json").read_text())["step"]))
        return max(steps)


def request_attempt(job: str, runs: Mapping[str, Path]) -> str | None:
    """Ask for another attempt at these runs of our job, spec -> folder; None, or why there is
    none. Asking twice does no harm."""

    def ask_once() -> None:
        state, reason = slurm.state_and_reason(job)
        if state != "RUNNING" and reason != "TimeLimit":
            return  # Slurm does it already, or somebody has cancelled the job meanwhile
        try:
            slurm.ask(["scontrol", "requeue", job])  # a task of an array by its '123_4'
        except NoSlurm as error:
            if not slurm.REQUEUE_FORBIDDEN.search(str(error)):
                raise
            for spec, folder in runs.items():
                _follow_up(job, spec, folder)

    try:
        _patiently(ask_once)
        return None
    except NoSlurm as error:
        return f"a time limit: Slurm says {str(error)!r}"


def _patiently(question: Callable[[], T]) -> T:
    until = time.monotonic() + PATIENCE
    return slurm.ask_patiently(question, until, waits=[SECONDS_BETWEEN_TRIES], may_pass=MAY_PASS)


def _follow_up(job: str, spec: str, folder: Path) -> None:
    """Submit the run again, to start when this job has ended, unless that was done before.

    By the script and the options of sbatch that the submission has left for us; else by what squeue
    shows of `sbatch SCRIPT SPEC`, where options are not known.
    """
    path = Path(os.path.realpath(spec))
    jobs = slurm.read_queue()
    waiting = (j.job for j in jobs if j.runs(path) and not j.has_ended and j.job != job)
    if (follow_up := next(waiting, None)) is None:
        by_hand = (j.command for j in jobs if j.job == job and j.command.endswith(f" {spec}"))
        extra: list[str] = []
        if text := os.environ.get(slurm.SUBMISSION):
            facts = json.loads(text)
            script = facts["script"]
            extra = [option for option in facts["options"] if option not in ("--hold", "-H")]
        elif command := next(by_hand, None):
            script = command.removesuffix(f" {spec}")
        else:
            raise NoSlurm("requeueing is forbidden, and which script to submit again is not known")
        log = slurm.literal(folder.resolve() / "job.log")
        arguments = slurm.sbatch_arguments(
            Path.cwd(), extra, name=folder.name, log=log, dependency=job
        )
        follow_up = slurm.ask([*arguments, script, str(path)]).strip().partition(";")[0]
    count = RestartCount.read(folder) or RestartCount(job)
    replace(count, follow_up=follow_up).write(folder)


def request_for_shared_job(specs: Sequence[str]) -> int:
    """Request another attempt at those of the runs that wait for one; the exit code."""
    job, waiting = processes.slurm_job(), dict[str, Path]()
    for spec in specs:
        count = RestartCount.read(Path(spec).parent)
        if count and count.is_asked and count.job == job:
            waiting[spec] = Path(spec).parent
    if not job or not waiting or not (reason := request_attempt(job, waiting)):
        return 0
    for folder in waiting.values():
        with open(folder / "job.log", "a") as log:
            print(f"not continued after {reason}; -r resumes it", file=log)
    for process in [report_failure(folder, 1) for folder in waiting.values()]:
        wait_until_sent(process)
    return 1
