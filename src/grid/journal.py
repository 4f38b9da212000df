"""What was asked of Slurm, written down before and after each call: submissions/journal.jsonl.

A call that was interrupted, or whose answer never came, stands there as open, and the next
submission first asks Slurm what became of it. submissions/NNN.sh is the script of call NNN;
task K of its array runs the rows from K * pack on.
"""

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loguru import logger

from src.grid.folders import is_elsewhere, spec_home
from src.support import write_atomically

LOCAL = "local"  # instead of a submit script: this machine
OPEN, ACCEPTED, REFUSED = "open", "accepted", "refused"


@dataclass(frozen=True)
class Call:
    """One call of sbatch."""

    number: int
    rows: list[str]  # names of their folders
    pack: int  # rows that one task runs side by side
    script: str  # the submit script, as the user named it
    extra: list[str]  # the user's own options of sbatch
    time: float  # seconds since 1970
    is_array: bool = True
    state: str = OPEN
    job: str | None = None  # Slurm's number of it; None where it is not known
    why: str | None = None  # the words of a refusal
    token: str = ""  # makes the script's name unlike that of any deleted batch

    @property
    def label(self) -> str:
        """'003-9f2c': NNN.sh, NNN.script and NNN/ of this call."""
        return f"{self.number:03d}" + (f"-{self.token}" if self.token else "")

    def rows_of_task(self, task: int) -> list[str]:
        return self.rows[task * self.pack : (task + 1) * self.pack]


@dataclass
class SubmitOptions:
    """The options of submit_multiple.py, whose --help explains them."""

    job_file: str | None = None
    retry: str | None = None  # the folder of a batch; either it or job_file is given
    script: str | None = None  # the submit script as the user named it; LOCAL: this machine
    only: list[str] | None = None
    dry_run: bool = False
    overwrite: bool = False
    yes: bool = False
    live: bool = False
    refreeze: bool = False
    # On this machine
    jobs: int | None = None
    gpus: str | None = None
    # On Slurm
    no_array: bool = False
    max_running: int | None = None
    pack: int = 1
    after: str | None = None
    patience: float = 300.0  # seconds to wait where Slurm does not answer
    extra: Sequence[str] = ()  # options of sbatch

    @property
    def is_local(self) -> bool:
        return self.script == LOCAL

    @property
    def script_path(self) -> Path:
        return Path(os.path.abspath(self.script or ""))


class Journal:
    """The calls of one batch, read from and appended to its file."""

    def __init__(self, folder: Path) -> None:
        """folder: submissions/ of the batch; it need not exist to be read."""
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.calls: dict[int, Call] = {}
        self._read()
        # A batch that was moved or copied: Slurm runs these rows elsewhere, if at all.
        self.is_of_elsewhere = self._is_of_elsewhere()
        if self.is_of_elsewhere:
            self.calls = {}

    def _read(self) -> None:
        """Its lines; one that a crash cut short counts as not written."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                self._take_in(json.loads(line))
            except (ValueError, LookupError, TypeError, RecursionError):
                if number < len(lines):
                    logger.warning("{}: line {} cannot be read", self.path, number)

    def _is_of_elsewhere(self) -> bool:
        """By the first of its rows that says where it was made."""
        for call in self.calls.values():
            for row in call.rows:
                if spec_home(self.folder.parent / row) is not None:
                    return is_elsewhere(self.folder.parent / row)
        return False

    def _take_in(self, entry: dict[str, Any]) -> None:
        number, state = entry["call"], entry["state"]
        if state == OPEN:
            facts = {k: v for k, v in entry.items() if k not in ("call", "state", "why")}
            if not all(isinstance(row, str) for row in entry["rows"]) or entry["pack"] < 1:
                raise ValueError("no call")
            self.calls[int(number)] = Call(int(number), **facts)
        elif number in self.calls:
            found = {"state": state, "job": entry.get("job"), "why": entry.get("why")}
            self.calls[number] = replace(self.calls[number], **found)

    def _append(self, entry: dict[str, Any]) -> None:
        self._take_in(entry)
        line = json.dumps(entry) + "\n"
        with open(self.path, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def begin(self, rows: Sequence[str], **facts: Any) -> Call:
        """Write down that sbatch is about to be called for these rows."""
        number = max(self.calls, default=0) + 1
        self._append(
            {"call": number, "state": OPEN, "rows": list(rows), "time": time.time()}
            | {"token": secrets.token_hex(2), **facts}
        )
        return self.calls[number]

    def accepted(self, call: Call, job: str | None) -> None:
        self._append({"call": call.number, "state": ACCEPTED, "job": job})

    def refused(self, call: Call, why: str) -> None:
        self._append({"call": call.number, "state": REFUSED, "why": why})

    def remember(self, options: SubmitOptions) -> None:
        """Write down, before the first call, the options that -r repeats."""
        facts = {"script": options.script, "extra": list(options.extra), "pack": options.pack}
        facts["is_array"] = not options.no_array
        write_atomically(self.folder / "asked.json", json.dumps(facts))

    @property
    def last_options(self) -> SubmitOptions:
        """How runs were submitted last; options that Slurm has refused are not repeated."""
        try:
            facts = json.loads((self.folder / "asked.json").read_text())
            if not isinstance(facts["script"], str) or facts["pack"] < 1:
                raise ValueError("no script")
            last = self.calls[max(self.calls)] if self.calls else None
            extra = () if last and last.state == REFUSED else tuple(map(str, facts["extra"]))
            no_array = not facts.get("is_array", True)
            return SubmitOptions(
                script=facts["script"], extra=extra, pack=facts["pack"], no_array=no_array
            )
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return SubmitOptions(script=LOCAL)

    @property
    def open_calls(self) -> list[Call]:
        return [call for call in self.calls.values() if call.state == OPEN]

    @property
    def accepted_rows(self) -> set[str]:
        """The rows that Slurm has taken at some time."""
        calls = (call for call in self.calls.values() if call.state == ACCEPTED)
        return {row for call in calls for row in call.rows}
