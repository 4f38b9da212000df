"""What was requested of Slurm for a batch: submissions/journal.jsonl, and which job has which run.

The journal has a line before each call of sbatch, and one after it. A call that was interrupted, or
whose answer never came, stands there as open, and the next submission first asks Slurm what became
of it. submissions/asked.json holds the options of the last submission, which -r repeats.
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

from src.grid.folders import Batch, is_elsewhere, spec_home
from src.grid.run_queue import RunQueue
from src.grid.slurm import QueuedJob
from src.grid.stacks import AUTO, OFF
from src.support import write_atomically

LOCAL = "local"  # instead of a submit script: this machine
OPEN, ACCEPTED, REFUSED = "open", "accepted", "refused"


@dataclass(frozen=True)
class Call:
    """One call of sbatch."""

    number: int
    rows: list[str]  # names of the folders of its runs
    pack: int  # runs that one task has side by side
    script: str  # the submit script, as the user named it
    extra: list[str]  # the user's own options of sbatch
    time: float  # seconds since 1970
    is_array: bool = True
    state: str = OPEN
    job: str | None = None  # Slurm's number of it; None where it is not known
    why: str | None = None  # the words of a refusal
    token: str = ""  # makes the script's name unlike that of any deleted batch
    sizes: tuple[int, ...] = ()  # how many runs each task has, where there are stacks
    workers: int = 0  # how many tasks are workers, which take runs by themselves (workers.py)

    @property
    def label(self) -> str:
        """'003-9f2c': NNN.sh, NNN.script and NNN/ of this call."""
        return f"{self.number:03d}" + (f"-{self.token}" if self.token else "")

    def rows_of_task(self, task: int) -> list[str]:
        if self.workers:
            return []
        if self.sizes:
            start = sum(self.sizes[:task])
            return self.rows[start : start + sum(self.sizes[task : task + 1])]
        return self.rows[task * self.pack : (task + 1) * self.pack]


@dataclass
class SubmitOptions:
    """The options of submit_multiple.py, whose --help explains them."""

    job_file: str | None = None
    retry: str | None = None  # the folder of a batch; either it or job_file is given
    script: str | None = None  # the submit script as the user named it; LOCAL: this machine
    more_scripts: Sequence[str] = ()  # others, with workers
    workers: int | None = None  # how many processes share the runs; null: a task each
    join: str | None = None  # the folder of a batch, or of one to stop
    stop: str | None = None
    only: list[str] | None = None
    dry_run: bool = False
    overwrite: bool = False
    yes: bool = False
    live: bool = False
    refreeze: bool = False
    stack: str | None = None  # auto, off, or how many runs are trained together at most
    # On this machine
    jobs: int | None = None
    gpus: str | None = None
    fresh: bool = False
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
    def for_each_script(self) -> "list[SubmitOptions]":
        """The options by which each of several submit scripts gets its share of the workers."""
        scripts = [str(self.script), *self.more_scripts]
        shares = [
            (self.workers or 0) // len(scripts) + (n < (self.workers or 0) % len(scripts))
            for n in range(len(scripts))
        ]
        return [
            replace(self, script=script, more_scripts=(), workers=share or None)
            for script, share in zip(scripts, shares, strict=True)
            if share or not self.workers
        ]

    @property
    def script_path(self) -> Path:
        return Path(os.path.abspath(self.script or ""))


class Journal:
    """The calls of one batch, read from and appended to its file."""

    def __init__(self, folder: Path) -> None:
        """folder: submissions/ of the batch; it need not exist to be read."""
        self.folder, self.path = folder, folder / "journal.jsonl"
        self.calls: dict[int, Call] = {}
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                self._take_in(json.loads(line))
            except (ValueError, LookupError, TypeError, RecursionError):
                if number < len(lines):  # the last one may have been cut short by a crash
                    logger.warning("{}: line {} cannot be read", self.path, number)
        # In a batch that was moved or copied Slurm runs these rows elsewhere, if at all: the first
        # row whose spec.yaml names a folder shows it.
        rows = (folder.parent / row for call in self.calls.values() for row in call.rows)
        first = next((row for row in rows if spec_home(row) is not None), None)
        self.is_of_elsewhere = first is not None and is_elsewhere(first)
        if self.is_of_elsewhere:
            self.calls = {}

    def _take_in(self, entry: dict[str, Any]) -> None:
        number, state = entry["call"], entry["state"]
        if state == OPEN:
            facts = {k: v for k, v in entry.items() if k not in ("call", "state", "why")}
            rows = entry["rows"]
            if not rows or not all(isinstance(row, str) for row in rows) or entry["pack"] < 1:
                raise ValueError("no call")
            facts["sizes"] = tuple(map(int, facts.get("sizes", ())))
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
        begun = {"call": number, "state": OPEN, "rows": list(rows), "time": time.time()}
        self._append(begun | {"token": secrets.token_hex(2), **facts})
        return self.calls[number]

    def accepted(self, call: Call, job: str | None) -> None:
        self._append({"call": call.number, "state": ACCEPTED, "job": job})

    def refused(self, call: Call, why: str) -> None:
        self._append({"call": call.number, "state": REFUSED, "why": why})

    def remember(self, options: SubmitOptions) -> None:
        """Write down, before the first call, the options that -r repeats."""
        facts = {"script": options.script, "extra": list(options.extra), "pack": options.pack}
        facts |= {"is_array": not options.no_array, "stack": options.stack}
        facts |= {"workers": options.workers, "more_scripts": list(options.more_scripts)}
        write_atomically(self.folder / "asked.json", json.dumps(facts))

    @property
    def last_options(self) -> SubmitOptions:
        """How runs were submitted last; options that Slurm has refused are not repeated."""
        try:
            facts = json.loads((self.folder / "asked.json").read_text())
            script, pack, extra = facts["script"], facts["pack"], tuple(map(str, facts["extra"]))
            stack = facts.get("stack")
            is_stack = stack is None or stack in (AUTO, OFF) or stack.isdigit()
            if not isinstance(script, str) or pack < 1 or not is_stack:
                raise ValueError("no options")
            if self.calls and self.calls[max(self.calls)].state == REFUSED:
                extra = ()
            no_array = not facts.get("is_array", True)
            workers, more = facts.get("workers"), tuple(map(str, facts.get("more_scripts", ())))
            if workers is not None and workers < 1:
                raise ValueError("no options")
            found = SubmitOptions(script=script, extra=extra, pack=pack, no_array=no_array)
            return replace(found, stack=stack, workers=workers, more_scripts=more)
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


# ---- Which job has which run -------------------------------------------------------------


def script_of(call: Call, journal: Journal) -> Path:
    """What sbatch gets for an array."""
    return Path(os.path.realpath(journal.folder), f"{call.label}.sh")


def spec_for_slurm(batch: Batch, row: str) -> Path:
    """spec.yaml by its one real path, as jobs are known by it, whichever link led here."""
    return Path(os.path.realpath(batch.path), row, "spec.yaml")


def queued_rows(batch: Batch, journal: Journal, jobs: Sequence[QueuedJob]) -> dict[str, QueuedJob]:
    """Row -> the job that waits or runs for it, by its script: job numbers may come again. @WORKER
    -> the job that is this worker."""
    calls = {str(script_of(call, journal)): call for call in journal.calls.values()}
    names = {row.name for row in batch.rows}
    found, taken = {}, RunQueue(batch.submissions).taken_runs()
    of_worker = {worker: run for run, worker in taken.items()}
    for job in jobs:
        if job.has_ended:
            continue
        if (call := calls.get(job.command)) and job.task is not None:
            found.update(dict.fromkeys(call.rows_of_task(job.task), job))
            if call.workers:
                worker = f"{call.label}.{job.task}"
                found[f"@{worker}"] = job
                if worker in of_worker:
                    found[of_worker[worker]] = job
        elif (name := Path(job.command).parent.name) in names and job.runs(
            spec_for_slurm(batch, name)
        ):
            found[name] = job
    return found
