"""A short job that begins when a batch has ended and sends its digest: so nobody waits for it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from src.grid.journal import SubmitOptions
from src.grid.notify.notices import Notices
from src.grid.progress import Report
from src.grid.slurm.commands import NoSlurm, ask, literal
from src.grid.slurm.submission import header
from src.support import ROOT

MOST_JOBS = 50  # that one job waits for
# Where a job may run, and who pays: all that it takes over from the submit script.
KEPT = {"partition": "p", "account": "A", "qos": "q", "reservation": None, "clusters": "M"}
SMALL = ("--time=10", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=2G")


def submit_digest(
    batch: Path, jobs: Sequence[str], options: SubmitOptions, code: Path, of_round: str
) -> None:
    """When these jobs have ended. options, code: as the runs were submitted.

    Where Slurm refuses, a warning says so: the batch itself is submitted.
    """
    try:
        _, directives = header(options.script_path.read_text(errors="replace"))
        words = [word for line in directives for word in line.removeprefix("#SBATCH").split()]
        _sbatch(batch, jobs, kept_options([*words, *options.extra]), of_round, code)
    except NoSlurm as error:
        logger.warning("no message when the batch ends: Slurm says {!r}", str(error))
    except OSError as error:
        logger.warning("no message when the batch ends: {}: {}", error.filename, error.strerror)


def look_again(report: Report, of_round: str) -> bool:
    """When the rows that go on have ended: follow-ups of rows, or other submissions' rows."""
    going = [s for s in report.statuses if s.state in ("running", "queued") and s.job]
    jobs = list(dict.fromkeys(s.job.partition("_")[0] for s in going if s.job))
    own = Notices(report.batch.path).folder / "options"
    try:
        _sbatch(report.batch.path, jobs, own.read_text().splitlines(), of_round, ROOT)
    except (NoSlurm, OSError):
        return False
    return bool(jobs)


def kept_options(options: Sequence[str]) -> list[str]:
    """Those of KEPT, as --NAME=VALUE; of several the last, as for Slurm."""
    found: dict[str, str] = {}
    for number, word in enumerate(options):
        following = options[number + 1] if number + 1 < len(options) else ""
        for name, letter in KEPT.items():
            if word.startswith(f"--{name}="):
                found[name] = word.partition("=")[2]
            elif word in (f"--{name}", f"-{letter}"):
                found[name] = following
            elif letter and word.startswith(f"-{letter}") and not word.startswith("--"):
                found[name] = word[2:].removeprefix("=")
    return [f"--{name}={value}" for name, value in found.items()]


def _sbatch(
    batch: Path, jobs: Sequence[str], options: Sequence[str], of_round: str, code: Path
) -> None:
    """Raises NoSlurm."""
    if not jobs:
        return
    folder = Notices(batch).folder
    (folder / "options").write_text("\n".join(options))
    script = folder / "digest.sh"
    command = [sys.executable, "-m", "src.grid.notify.sending", "digest", str(batch), of_round]
    script.write_text(f"#!/bin/bash\nexec {shlex.join(command)}\n")
    log = literal(folder / "log")
    arguments = ["sbatch", "--parsable", f"--job-name=digest_{batch.name}", *SMALL, *options]
    arguments += [f"--output={log}", f"--error={log}", "--open-mode=append"]
    arguments += [f"--chdir={code}"]
    arguments += [f"--dependency=afterany:{':'.join(jobs[-MOST_JOBS:])}", str(script)]
    ask(arguments)
