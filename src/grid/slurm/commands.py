"""Slurm: the one module that knows its commands and its error texts.

Not submitit, which submits pickled functions by scripts of its own: docs/conventions.md says why.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.grid.folders import Batch
from src.grid.journal import Call, Journal, SubmitOptions
from src.support import UserError

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
ENDED |= {"OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}  # any other state may still run
# Variables that a surrounding job would hand down to the jobs that it submits.
OF_A_JOB = ("SLURM_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE")
KEPT = {"SLURM_CONF"}
SET_BY_US = {"array", "chdir", "error", "job-name", "output", "parsable", "wait", "wrap"}
SET_BY_US |= {"test-only", "version", "help", "usage"}  # these submit nothing
SET_BY_US_SHORT = "aDeJoWVh"
SECONDS_TO_ANSWER = 100.0  # sbatch itself gives up on a silent controller much sooner
SEPARATOR = "\x1f"
SUBMISSION = "EXPERIMENT_SUBMISSION"  # a variable: how a job was asked for, as JSON

# Every refusal has exit code 1: only the text tells. What is not here stops at once.
NO_ANSWER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted"
    r"|Connection (refused|reset|timed out)|Protocol authentication error|Unexpected message"
    r"|Transport endpoint is not connected|controller not responding|in standby mode"
)
FULL = re.compile(
    r"temporarily unable to accept job|Resource temporarily unavailable"
    r"|(Assoc|QOS)\w*SubmitJob|Job array task limit"
)
REQUEUE_FORBIDDEN = re.compile(r"Requested operation is presently disabled")


class NoSlurm(Exception):  # noqa: N818 - not always an error
    """Slurm is not installed here, or does not answer."""


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue, one for each task of an array."""

    job: str  # '123_4'
    array: str  # '123'
    task: int | None
    state: str
    reason: str
    name: str
    node: str
    command: str  # the script and its arguments


# ---- What Slurm says ---------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Ours, without what belongs to a job that we may run in."""
    in_a_job = "SLURM_JOB_ID" in os.environ
    drop = OF_A_JOB if in_a_job else ("SLURM_",)
    return {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(drop)}


def ask(command: Sequence[str]) -> str:
    """What one of Slurm's commands prints. Raises NoSlurm with its own words."""
    try:
        done = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_TO_ANSWER,
        )
    except FileNotFoundError:
        raise NoSlurm(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise NoSlurm(f"{command[0]} did not answer in {SECONDS_TO_ANSWER:.0f} s") from None
    if done.returncode:
        raise NoSlurm(plain_message(done.stderr) or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def read_queue() -> list[QueuedJob]:
    """All jobs of ours, each task of an array by itself, those lately ended as well."""
    fields = ("%i", "%F", "%K", "%T", "%r", "%N", "%j", "%o")
    user = str(os.getuid())
    text = ask(["squeue", "-h", "-r", "-t", "all", "-u", user, "-o", SEPARATOR.join(fields)])
    lines = (line.split(SEPARATOR) for line in text.splitlines())
    return [_queued(*line) for line in lines if len(line) == len(fields)]


def _queued(
    job: str, array: str, task: str, state: str, reason: str, node: str, name: str, command: str
) -> QueuedJob:
    number = int(task) if task.isdigit() else None
    return QueuedJob(job, array, number, state, reason, name, node, command)


def queued_rows(batch: Batch, journal: Journal, jobs: Sequence[QueuedJob]) -> dict[str, QueuedJob]:
    """Row -> the job that waits or runs for it, by its script: job numbers may come again."""
    calls = {str(script_of(call, journal)): call for call in journal.calls.values()}
    names = {row.name for row in batch.rows}
    found = {}
    for job in jobs:
        if job.state in ENDED:
            continue
        if (call := calls.get(job.command)) and job.task is not None:
            found.update(dict.fromkeys(call.rows_of_task(job.task), job))
        elif (name := Path(job.command).parent.name) in names and runs_spec(
            job, spec_for_slurm(batch, name)
        ):
            found[name] = job
    return found


def runs_spec(job: QueuedJob, spec: Path) -> bool:
    """Whether the job is `SCRIPT …/spec.yaml` for this very file; squeue quotes nothing."""
    return job.command.endswith(f" {spec}")


def spec_for_slurm(batch: Batch, row: str) -> Path:
    """spec.yaml by its one real path, as jobs are known by it, whichever link led here."""
    return Path(os.path.realpath(batch.path), row, "spec.yaml")


def state_and_reason(job: str) -> tuple[str, str]:
    """('RUNNING', 'None'), ('COMPLETING', 'TimeLimit'), …; empty where it is over."""
    text = ask(["squeue", "-h", "-j", job, "-o", f"%T{SEPARATOR}%r"])
    state, _, reason = text.strip().partition(SEPARATOR)
    return state, reason


def read_limits() -> tuple[int, int]:
    """(MaxArraySize, MaxJobCount) of the cluster."""
    text = ask(["scontrol", "show", "config"])
    found = {
        name: re.search(rf"^{name}\s*=\s*(\d+)", text, re.MULTILINE)
        for name in ("MaxArraySize", "MaxJobCount")
    }
    if not all(found.values()):
        raise NoSlurm("scontrol show config names no MaxArraySize and MaxJobCount")
    array, jobs = (int(match[1]) for match in found.values() if match)
    return array, jobs


def plain_message(text: str) -> str:
    """Slurm's own words, without the program's name before each line."""
    lines = (re.sub(r"^\w+: (error|fatal): ", "", line) for line in text.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))


# ---- What Slurm is asked -----------------------------------------------------------------


def check_options(options: SubmitOptions) -> list[str]:
    """What Slurm would refuse of the submit script and the options of sbatch, a line each."""
    if options.is_local:
        return []
    errors = [*_script_errors(options)]
    for option in options.extra:
        name = option.partition("=")[0]
        if name.startswith("--"):
            is_ours = len(name) > 3 and any(ours.startswith(name[2:]) for ours in SET_BY_US)
        else:
            is_ours = name.startswith("-") and name[1:2] in SET_BY_US_SHORT
        if is_ours:
            errors.append(f"-- {option}: submit_multiple.py sets this one itself")
            break
    if options.after:  # a dependency on a job that Slurm does not know counts as fulfilled
        try:
            ask(["squeue", "-h", "-j", options.after])
        except NoSlurm as error:
            if "Invalid job id" in str(error):
                errors.append(f"--after: Slurm knows no job {options.after}")
    # What sbatch would be called with can be shown where there is no Slurm.
    if not options.dry_run and shutil.which("sbatch") is None:
        errors.append("-s: there is no sbatch on this machine; -s local runs them here")
    return errors


def _script_errors(options: SubmitOptions) -> list[str]:
    try:
        text = Path(options.script or "").read_bytes()
    except OSError as error:
        return [f"-s {options.script}: {error.strerror}"]
    if not text.startswith(b"#!"):
        return [f"-s {options.script}: no script; its first line must be like #!/bin/bash"]
    if b"\r\n" in text:
        return [f"-s {options.script}: has DOS line breaks, which Slurm refuses (try dos2unix)"]
    array = re.search(rb"^#SBATCH +(--array|-a).*", text, re.MULTILINE)
    if array and options.no_array:
        words = array[0].decode(errors="replace")
        return [f"-s {options.script}: with --no-array, {words!r} would start each run again"]
    return []


def script_of(call: Call, journal: Journal) -> Path:
    """What sbatch gets for an array."""
    return Path(os.path.realpath(journal.folder), f"{call.label}.sh")


def sbatch_arguments(
    code: Path, extra: Sequence[str], *, name: str, log: str, dependency: str | None = None
) -> list[str]:
    """sbatch and its options; the script and its argument follow. % in a log is a pattern."""
    arguments = ["sbatch", "--parsable", f"--job-name={name}", f"--chdir={code}"]
    # Both, as the script may send its errors to a place that is not there: no log at all then.
    arguments += [f"--output={log}", f"--error={log}", "--open-mode=append"]
    if dependency:
        arguments += [f"--dependency=afterany:{dependency}"]
    return [*arguments, *extra]


def job_variables(script: Path, extra: Sequence[str]) -> dict[str, str]:
    """Environment variables of a job: how it was submitted, so that a follow-up is as well."""
    submission = {"script": str(script), "options": list(extra)}
    return {"EXPERIMENT_PYTHON": sys.executable, SUBMISSION: json.dumps(submission)}


def literal(path: Path) -> str:
    """A path that Slurm expands nothing in."""
    return str(path).replace("%", "%%")


def requeue(job: str) -> None:
    """Have Slurm start it again from the beginning; a task of an array by its '123_4'."""
    ask(["scontrol", "requeue", job])


def run_sbatch(
    command: Sequence[str], variables: Mapping[str, str], code: Path
) -> tuple[int, str, str]:
    """(exit code, output, errors). Ended early where sbatch would wait two minutes for room."""
    try:
        process = subprocess.Popen(
            command,
            cwd=code,
            env=environment() | dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise UserError("there is no sbatch on this machine; -s local runs here") from None
    with process:
        assert process.stdout
        assert process.stderr
        errors = []
        for line in process.stderr:
            errors.append(line)
            if FULL.search(line):
                process.terminate()
        return process.wait(), process.stdout.read(), "".join(errors)
