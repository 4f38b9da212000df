"""One attempt at a run, and the request for the next one: what a submit script ends in.

    exec python -m src.submit.attempt [--srun] [--max-timeouts N] [--max-preemptions N] \
        train.py SPEC

It starts train.py (--srun: once a task of the job, on all its nodes), passes signals on to it, and
exits with its code. A run that stops because the time limit is near asks Slurm for another attempt
(requeue.py): SIGUSR1 says that it is near, by --signal=B:USR1@120, and so does SIGTERM where Slurm
names the time limit as its reason. After any other SIGTERM Slurm has decided: it restarts a
preempted job by itself, and a cancelled one must not come back.

Exit codes of our own: 75 stopped with a saved state; 69 no attempt follows, and why.
"""

import json
import os
import signal
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from src.config import read_yaml, read_yaml_file
from src.grid.notices import report_failure, wait_until_sent
from src.grid.slurm.requeue import RestartCount, is_time_limit, request_attempt
from src.logging import live_owner
from src.support import OneLineParser, UserError, processes

STOPPED, NOT_CONTINUED = 75, 69  # EX_TEMPFAIL, EX_UNAVAILABLE
STOPPING = {signal.SIGUSR1, signal.SIGTERM}
SECONDS_OF_GRACE = 600
SECONDS_BETWEEN_LOOKS = 5  # at a folder in which another process runs
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
    command += more
    attempt = SlurmAttempt(job, folder, options)
    if reason := attempt.start():
        return attempt.give_up(reason)
    if number := attempt.wait_for_folder():
        return attempt.end(-number, {number})  # another process runs it
    code, heard = processes.run_programs(program, command, [os.environ])
    if options.srun and stopped_by_signal(code) and not heard:
        heard = attempt.wait_for_slurm()
    code = attempt.end(code, heard)
    if not heard & STOPPING:
        wait_until_sent(report_failure(attempt.folder, code))
    return code


def command_line() -> OneLineParser:
    parser = OneLineParser(description="Run train.py in a job of Slurm, as often as it takes.")
    add = parser.add_argument
    add("--srun", action="store_true", help="a process a task: several GPUs, several nodes")
    add("--max-timeouts", type=count, default=100, metavar="N", help="time limits to resume after")
    add("--max-preemptions", type=count, default=1000, metavar="N", help="restarts by Slurm")
    add("program", help="train.py")
    add("spec", help="its YAML file")
    add("overrides", nargs="*", metavar="key=value")
    return parser


def count(text: str) -> int:
    if not text.isdigit():
        raise ArgumentTypeError(f"got {text!r}, expected a whole number from 0 up")
    return int(text)


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
            from src.config import given, load_config
            from src.logging import choose_folder

            folder, _ = choose_folder(load_config(spec, overrides), Path(spec).stem)
            print(f"output_dir is not given: this run is in {folder}", flush=True)
            return folder, [given("output_dir", str(folder))]
        if isinstance(values["output_dir"], str):
            return Path(os.path.expanduser(values["output_dir"])), []
    return Path(spec).parent, []


def stopped_by_signal(code: int) -> bool:
    """With a saved state, or killed by it; srun gives the highest code of its tasks."""
    return code == STOPPED or -code in STOPPING or code - 128 in STOPPING


def exit_code(code: int) -> int:
    """As shells give it: 128 + the signal."""
    return code if code >= 0 else 128 - code


class SlurmAttempt:
    """An attempt in a job of Slurm: what is printed and counted around train.py."""

    def __init__(self, job: str, folder: Path, options: Namespace) -> None:
        """job: '123_4'"""
        self.job, self.folder, self.options = job, folder, options
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.count = (RestartCount.read(folder) or RestartCount(job)).at_start(job, restarts)

    def start(self) -> str | None:
        """Print a first line, and count the restart; why this attempt must not be, if so."""
        if "SLURM_ARRAY_TASK_ID" not in os.environ:  # else the array's script has printed it
            now = datetime.now(UTC).isoformat(timespec="seconds")
            node = os.environ.get("SLURMD_NODENAME", "")
            print(f"--- {now} job {self.job} on {node} ---", flush=True)
        with suppress(OSError):  # train.py will say what is wrong with the folder
            self.count.write(self.folder)
        number, most = self.count.preemptions, self.options.max_preemptions
        if number <= most:
            return None
        return f"{number} restarts by Slurm: raise --max-preemptions ({most}) in the submit script"

    def wait_for_folder(self) -> int | None:
        """Wait while another process runs in the folder: a node that Slurm has lost may still do.

        The signal that ended the waiting, if one did.
        """
        printed = None
        while owner := live_owner(self.folder):
            if owner != printed:
                print(f"waits for {owner}, which runs in this folder", flush=True)
                printed = owner
            if heard := signal.sigtimedwait(processes.FORWARDED, SECONDS_BETWEEN_LOOKS):
                return heard.si_signo
        return None

    def wait_for_slurm(self) -> set[int]:
        """srun's tasks hear of a preemption first, the job when its time of grace ends: only if it
        lives until then it is started again. The signals that came."""
        print("stopped; waiting for what Slurm does with the job", flush=True)
        heard = signal.sigtimedwait(processes.FORWARDED, SECONDS_OF_GRACE)
        return {heard.si_signo} if heard else set()

    def end(self, code: int, heard: set[int]) -> int:
        """Ask for another attempt where one is due; the exit code."""
        if not (stopped_by_signal(code) and heard & STOPPING):
            return exit_code(code)
        if signal.SIGTERM in heard and not is_time_limit(self.job):
            return exit_code(code)
        if reason := self._count_time_limit():
            return self.give_up(reason)
        if "EXPERIMENT_SHARES_JOB" in os.environ:
            return STOPPED  # the job asks once, when all its runs have ended
        if reason := request_attempt(self.job, [self.options.spec], [self.folder]):
            return self.give_up(reason)
        print(f"stopped at step {self.count.step}; Slurm was asked for another attempt")
        return STOPPED

    def _count_time_limit(self) -> str | None:
        """Before another attempt is asked for, as Slurm ends us then; why none may follow."""
        before, most = self.count.step, self.options.max_timeouts
        self.count = self.count.at_time_limit(step := self._step())
        try:
            self.count.write(self.folder)
        except OSError as error:
            return f"a time limit: {self.folder}: {error.strerror}"
        if before is not None and step <= before:
            return "2 time limits without a step between: raise --time, for start-up and a step"
        if (number := self.count.time_limits) > most:
            return f"{number} time limits: raise --max-timeouts ({most}) in the submit script"
        return None

    def give_up(self, reason: str) -> int:
        """Say why no attempt follows, in a line that report.py shows and in a message."""
        print(f"not continued after {reason}; -r resumes at step {self._step()}", file=sys.stderr)
        wait_until_sent(report_failure(self.folder, NOT_CONTINUED))
        return NOT_CONTINUED

    def _step(self) -> int:
        """The step that the run has reached, by its status.json; 0 where none is known."""
        try:
            return int(json.loads((self.folder / "status.json").read_text())["step"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return 0


if __name__ == "__main__":
    sys.exit(main())
