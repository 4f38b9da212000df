"""Slurm: the one module that knows its commands and its error texts.

Not submitit, which submits pickled functions by scripts of its own: docs/design.md says why.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

from src.support import UserError

T = TypeVar("T")
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
ENDED |= {"OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}  # any other state may still run
# Variables that a surrounding job would hand down to the jobs that it submits.
OF_A_JOB = ("SLURM_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE")
KEPT = {"SLURM_CONF"}
SECONDS_TO_ANSWER = 100.0  # sbatch itself gives up on a silent controller much sooner
WAITS = (2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # seconds before asking again; the last one for ever
SEPARATOR = "\x1f"
SUBMISSION = "EXPERIMENT_SUBMISSION"  # a variable: how a job was submitted, as JSON

# Every refusal has exit code 1: only the text shows which may pass. Others stop at once.
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
    """A line of `squeue -r`: a job, or one task of an array."""

    job: str  # '123_4'
    array: str  # '123'
    task: int | None
    state: str
    reason: str
    node: str
    name: str
    command: str  # the script and its arguments

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def runs(self, spec: Path) -> bool:
        """Whether it is `SCRIPT …/spec.yaml` for this very file; squeue quotes nothing."""
        return self.command.endswith(f" {spec}")


def environment() -> dict[str, str]:
    """Ours, without what belongs to a job that we may run in."""
    drop = OF_A_JOB if "SLURM_JOB_ID" in os.environ else ("SLURM_",)
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


def ask_patiently(
    question: Callable[[], T],
    until: float,
    *,
    waits: Sequence[float] = WAITS,
    may_pass: re.Pattern[str] = NO_ANSWER,
) -> T:
    """The answer, asking again until that moment of time.monotonic(). Raises NoSlurm, at once where
    it says nothing that may pass."""
    for wait in chain(waits, repeat(waits[-1])):
        try:
            return question()
        except NoSlurm as error:
            if not may_pass.search(str(error)) or time.monotonic() + wait > until:
                raise
        time.sleep(wait)
    raise AssertionError("the last wait is repeated for ever")


def read_queue() -> list[QueuedJob]:
    """All jobs of ours, each task of an array by itself, those lately ended as well."""
    form = SEPARATOR.join(("%i", "%F", "%K", "%T", "%r", "%N", "%j", "%o"))
    text = ask(["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", form])
    lines = [line.split(SEPARATOR) for line in text.splitlines()]
    return [
        QueuedJob(job, array, int(task) if task.isdigit() else None, *rest)
        for job, array, task, *rest in (line for line in lines if len(line) == 8)
    ]


def state_and_reason(job: str) -> tuple[str, str]:
    """('RUNNING', 'None'), ('COMPLETING', 'TimeLimit'), …; empty where it is over."""
    text = ask(["squeue", "-h", "-j", job, "-o", f"%T{SEPARATOR}%r"])
    state, _, reason = text.strip().partition(SEPARATOR)
    return state, reason


def seconds_left(job: str) -> float | None:
    """Until its time limit; None where it has none."""
    text = ask(["squeue", "-h", "-j", job, "-o", "%L"]).strip()  # 1-02:03:04, 03:04, UNLIMITED
    days, _, rest = text.rpartition("-")
    parts = [days or "0", *["0"] * (2 - rest.count(":")), *rest.split(":")]
    if not all(part.isdigit() for part in parts):
        return None
    return float(
        sum(int(part) * size for part, size in zip(parts, (86400, 3600, 60, 1), strict=True))
    )


def read_limits() -> tuple[int, int]:
    """(MaxArraySize, MaxJobCount) of the cluster."""
    text = ask(["scontrol", "show", "config"])
    found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", text, re.MULTILINE))
    if len(found) < 2:
        raise NoSlurm("scontrol show config names no MaxArraySize and MaxJobCount")
    return int(found["MaxArraySize"]), int(found["MaxJobCount"])


def plain_message(text: str) -> str:
    """Slurm's own words, without the program's name before each line."""
    lines = (re.sub(r"^\w+: (error|fatal): ", "", line) for line in text.splitlines())
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))


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


def literal(path: Path) -> str:
    """A path that Slurm expands nothing in."""
    return str(path).replace("%", "%%")


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
