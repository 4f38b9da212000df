"""What was reported about a batch: files in submissions/notices/, each made once.

wanted.json     an address was known when runs were submitted last: which round it is
failed/RUN      a run that has failed in this round
ROUND-KIND      what was reported: failure (the first one), many (more than a fifth), digest
sent-NN         the budget: messages of all rounds
log             what became of them; never an address

Nobody waits for a batch: when a run fails, what has started it starts a process that sends a
message (messages.py). The digest is sent when a batch has ended, on Slurm by a short job.
"""

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from loguru import logger

from src.grid.journal import SubmitOptions
from src.grid.slurm import NoSlurm, ask, literal, sbatch_arguments
from src.grid.submission import header
from src.support import ROOT, OneLineParser, UserError, write_atomically

MOST_MESSAGES = 20  # of a batch, with all its retries
MANY = 5  # one part of so many
SECONDS_TO_SEND = 60.0
NO_FAILURES = {0, 75, 130}  # exit codes: done, stopped with a saved state, Ctrl-C
SENDER = "src.notify.sending"  # for `python -m`: frozen copies of older versions have it as well
MOST_JOBS = 50  # that the job of a digest waits for
# Where that job may run, and who pays: all that it takes over from the submit script.
KEPT = {"partition": "p", "account": "A", "qos": "q", "reservation": None, "clusters": "M"}
SMALL = ("--time=10", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=2G")


class Notices:
    """Of one batch."""

    def __init__(self, batch: Path) -> None:
        self.batch = batch
        self.folder = batch / "submissions" / "notices"

    @property
    def wanted_text(self) -> str | None:
        """The content of wanted.json."""
        try:
            return (self.folder / "wanted.json").read_text()
        except OSError:
            return None

    @property
    def _wanted(self) -> dict:
        try:
            return json.loads(self.wanted_text or "{}")
        except (ValueError, RecursionError):
            return {}

    @property
    def round(self) -> str | None:
        """A name of the last submission; None where nobody wants messages."""
        return self._wanted.get("round")

    def begin(self, rows: Iterable[str], num_rows: int) -> str:
        """These runs are about to be submitted, of so many in the batch; the round's name."""
        (self.folder / "failed").mkdir(parents=True, exist_ok=True)
        for row in rows:
            (self.folder / "failed" / row).unlink(missing_ok=True)
        facts = {"round": secrets.token_hex(4), "num_rows": num_rows}
        write_atomically(self.folder / "wanted.json", json.dumps(facts) + "\n")
        return str(facts["round"])

    def take_back(self, earlier: str | None) -> None:
        """Nothing came of the submission: the round before counts, whose wanted_text it was."""
        if earlier is None:
            (self.folder / "wanted.json").unlink(missing_ok=True)
        else:
            write_atomically(self.folder / "wanted.json", earlier)

    def due_after_failure(self, row: str) -> str | None:
        """A run has failed: what is to be reported at once, failure or many; None: nothing."""
        if not (wanted := self._wanted):
            return None
        with suppress(OSError):
            (self.folder / "failed" / row).touch()
        is_many = self.num_failed * MANY > wanted["num_rows"]
        if is_many and self._is_first(f"{wanted['round']}-many"):
            self._is_first(f"{wanted['round']}-failure")  # one message is enough
            return "many"
        return "failure" if self._is_first(f"{wanted['round']}-failure") else None

    @property
    def num_failed(self) -> int:
        with suppress(OSError):
            return len(os.listdir(self.folder / "failed"))
        return 0

    def may_send_digest(self, of_round: str) -> bool:
        """Once a round, and not of one that another has followed."""
        return self.round == of_round and self._is_first(f"{of_round}-digest")

    def take_from_budget(self) -> bool:
        """Whether one more message may be sent; prints where not."""
        if any(self._is_first(f"sent-{number:02d}") for number in range(MOST_MESSAGES)):
            return True
        print("not sent: this batch has sent enough messages")
        return False

    def _is_first(self, name: str) -> bool:
        """Make the file of this name: of several processes that try, True for one."""
        try:
            os.close(os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except OSError:  # it is there, or the disk is full
            return False


def report_failure(row: Path, code: int) -> subprocess.Popen | None:
    """A run in this folder has ended: the process that reports it, where one is due. Never
    raises."""
    if code in NO_FAILURES:
        return None
    kind = Notices(row.parent).due_after_failure(row.name)
    return start_sending(kind, row.parent, row.name) if kind else None


def start_sending(kind: str, batch: Path, argument: str) -> subprocess.Popen | None:
    """A process that sends a message, see messages.main; None where it cannot start."""
    with suppress(OSError), open(Notices(batch).folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", SENDER, kind, str(batch), argument],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return None


def wait_until_sent(process: subprocess.Popen | None) -> None:
    """A dead address holds up nobody for long; what takes longer continues by itself."""
    if process is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_SEND)


def submit_digest(
    batch: Path, jobs: Sequence[str], options: SubmitOptions | None, code: Path, of_round: str
) -> bool:
    """Submit a short job that sends the digest when these jobs have ended; whether one will come.

    options, code: as the runs were submitted, and where Slurm refuses, a warning says so: the batch
    itself is submitted. None: from within such a job, whose options are taken once more.
    """
    folder, script = Notices(batch).folder, Notices(batch).folder / "digest.sh"
    if not jobs:
        return False
    try:
        if options is None:
            kept = (folder / "options").read_text().splitlines()
        else:
            _, directives = header(options.script_path.read_text(errors="replace"))
            words = [word for line in directives for word in line.removeprefix("#SBATCH").split()]
            kept = kept_options([*words, *options.extra])
            (folder / "options").write_text("\n".join(kept))
        command = [sys.executable, "-m", SENDER, "digest", str(batch), of_round]
        script.write_text(f"#!/bin/bash\nexec {shlex.join(command)}\n")
        name, log = f"digest_{batch.name}", literal(folder / "log")
        after = ":".join(jobs[-MOST_JOBS:])
        arguments = sbatch_arguments(code, [*SMALL, *kept], name=name, log=log, dependency=after)
        ask([*arguments, str(script)])
        return True
    except (NoSlurm, UserError) as error:
        problem = f"Slurm says {str(error)!r}"
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    if options:
        logger.warning("no message when the batch ends: {}", problem)
    return False


def kept_options(options: Sequence[str]) -> list[str]:
    """Those of KEPT, as --NAME=VALUE; of several the last, as for Slurm."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    for name, letter in KEPT.items():
        parser.add_argument(f"--{name}", *[f"-{letter}"] * bool(letter))
    found, _ = parser.parse_known_args(options)
    return [f"--{name}={value}" for name, value in vars(found).items() if value is not None]
