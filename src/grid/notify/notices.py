"""What a batch may still tell its owner: files in submissions/notices/, each made once.

wanted.json     an address was known when rows were submitted last: which round it is
failed/ROW      a row that has failed in this round
ROUND-KIND      what was told: failure (the first one), many (more than a fifth), digest
sent-NN         the budget: messages of all rounds
log             what became of them; never an address

Nobody waits for a batch: a row that fails tells of itself, by src/grid/notify/sending.py.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from src.support import ROOT, write_atomically

MOST_MESSAGES = 20  # of a batch, with all its retries
MANY = 5  # one part of so many
SECONDS_TO_SEND = 60.0
NO_FAILURES = {0, 75, 130}  # exit codes: done, stopped with a saved state, Ctrl-C


class Notices:
    """Of one batch."""

    def __init__(self, batch: Path) -> None:
        self.batch = batch
        self.folder = batch / "submissions" / "notices"

    @property
    def round(self) -> str | None:
        """A name of the last submission; None where nobody is to be told."""
        return self._wanted.get("round")

    @property
    def _wanted(self) -> dict:
        try:
            return json.loads(self.wanted_text or "{}")
        except (ValueError, RecursionError):
            return {}

    def begin(self, rows: Iterable[str], num_rows: int) -> str:
        """These rows are about to be submitted, of so many in the batch; the round's name."""
        (self.folder / "failed").mkdir(parents=True, exist_ok=True)
        for row in rows:
            (self.folder / "failed" / row).unlink(missing_ok=True)
        name = secrets.token_hex(4)
        facts = {"round": name, "num_rows": num_rows}
        write_atomically(self.folder / "wanted.json", json.dumps(facts) + "\n")
        return name

    def take_back(self, earlier: str | None) -> None:
        """Nothing came of the submission: the round of before is in force, if there was one."""
        if earlier is None:
            (self.folder / "wanted.json").unlink(missing_ok=True)
        else:
            write_atomically(self.folder / "wanted.json", earlier)

    @property
    def wanted_text(self) -> str | None:
        """For take_back()."""
        try:
            return (self.folder / "wanted.json").read_text()
        except OSError:
            return None

    def of_failure(self, row: str) -> str | None:
        """A row has failed: what is to be told at once, failure or many; None: nothing."""
        wanted = self._wanted
        if not wanted:
            return None
        with suppress(OSError):
            (self.folder / "failed" / row).touch()
        is_many = self.num_failed * MANY > wanted["num_rows"]
        if is_many and self._is_first("many"):
            self._is_first("failure")  # one message is enough
            return "many"
        return "failure" if self._is_first("failure") else None

    @property
    def num_failed(self) -> int:
        with suppress(OSError):
            return len(os.listdir(self.folder / "failed"))
        return 0

    def may_tell_digest(self, of_round: str) -> bool:
        """Once a round, and not of one that another has followed."""
        return self.round == of_round and self._is_first("digest")

    def take_of_budget(self) -> bool:
        """Whether one more message may be sent."""
        return any(self._is_made(f"sent-{number:02d}") for number in range(MOST_MESSAGES))

    def _is_first(self, kind: str) -> bool:
        return self._is_made(f"{self.round}-{kind}")

    def _is_made(self, name: str) -> bool:
        """Of several processes that try, one is told yes."""
        try:
            os.close(os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except OSError:  # it is there, or the disk is full
            return False


def tell_of_failure(row: Path, code: int) -> subprocess.Popen | None:
    """A run in this folder has ended: what tells of it, where that is due. Never raises."""
    if code in NO_FAILURES:
        return None
    kind = Notices(row.parent).of_failure(row.name)
    return start_sending(kind, row.parent, row.name) if kind else None


def start_sending(kind: str, batch: Path, *arguments: str) -> subprocess.Popen | None:
    """src/grid/notify/sending.py in a process of its own; None where it cannot begin."""
    with suppress(OSError), open(Notices(batch).folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "src.grid.notify.sending", kind, str(batch), *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return None


def wait_until_sent(process: subprocess.Popen | None) -> None:
    """A dead address holds up nobody for long; what takes longer goes on by itself."""
    if process is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_SEND)
