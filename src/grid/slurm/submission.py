"""Bring rows to Slurm: one array, or several where the cluster's limits ask for it."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from loguru import logger

from src.grid.folders import Batch, Row
from src.grid.journal import ACCEPTED, Call, Journal, SubmitOptions
from src.grid.slurm.batch_script import array_script
from src.grid.slurm.commands import (
    ENDED,
    FULL,
    NO_ANSWER,
    NoSlurm,
    QueuedJob,
    job_variables,
    literal,
    plain_message,
    read_limits,
    read_queue,
    run_sbatch,
    runs_spec,
    sbatch_arguments,
    script_of,
    spec_for_slurm,
)
from src.support import UserError

T = TypeVar("T")
WAITS = (2, 4, 8, 15, 30, 60)  # seconds; the last one again and again
LATER = "the same command resumes"


class NotEnoughRoom(Exception):  # noqa: N818 - not always an error
    """A limit on the number of jobs: fewer at a time may pass, or the same later."""


class Submission:
    """Brings rows to Slurm, call by call, each written to the journal before and after."""

    def __init__(
        self,
        batch: Batch,
        options: SubmitOptions,
        code: Path,
        *,
        progress: Callable[[int], object] = lambda num_rows: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.batch, self.options, self.code = batch, options, code
        self.journal = Journal(batch.submissions)
        self.progress, self.sleep = progress, sleep
        self.jobs: list[str] = []

    def settle(self) -> None:
        """Find out what became of calls whose answer never came."""
        if self.journal.open_calls:
            jobs = self._patiently(read_queue)
            for call in self.journal.open_calls:
                self._settle(call, jobs)

    def submit(self, rows: Sequence[Row]) -> list[str]:
        """All of them; the numbers that Slurm gave. Raises UserError where it goes no further:
        what is submitted by then is in the journal, and the next call resumes there."""
        left = list(rows)
        most = self._most_tasks()
        while left:
            chunk = left[: most * self.options.pack]
            try:
                self._call(chunk)
            except NotEnoughRoom as error:
                if most == 1:
                    raise UserError(self._no_room(len(rows), len(left), str(error))) from None
                most = min(most, -(-len(chunk) // self.options.pack)) // 2 or 1
                continue
            del left[: len(chunk)]
            self.progress(len(chunk))
        return self.jobs

    def planned(self, rows: Sequence[Row]) -> list[list[str]]:
        """The calls of sbatch that submit() would make; where Slurm does not tell its limits, as
        if there were none. Scripts that are not written yet are 001-XXXX.sh."""
        if self.options.no_array:
            return [self._single(row) for row in rows]
        try:
            most = max(1, min(read_limits()))
        except NoSlurm:
            most = len(rows)
        size, previous = most * self.options.pack, self._last_array()
        commands: list[list[str]] = []
        for start in range(0, len(rows), size):
            number = max(self.journal.calls, default=0) + 1 + len(commands)
            script = Path(os.path.realpath(self.journal.folder), f"{number:03d}-XXXX.sh")
            commands.append(self._array_command(rows[start : start + size], script, previous))
            previous = f"JOB{number}" if self.options.max_running else None
        return commands

    def _most_tasks(self) -> int:
        """How many tasks one call may have: an index is below MaxArraySize."""
        if self.options.no_array:
            return 1
        max_array, max_jobs = self._patiently(read_limits)
        if max_array < 2:
            raise UserError("this cluster takes no job arrays (MaxArraySize): use --no-array")
        return min(max_array, max_jobs)

    def _no_room(self, num_rows: int, num_left: int, words: str) -> str:
        return (
            f"{num_rows - num_left} of {num_rows} runs are submitted, then Slurm's limit on jobs"
            f" was reached ({words}); the same command resumes when some have ended"
        )

    def _call(self, rows: Sequence[Row]) -> None:
        options = self.options
        call = self.journal.begin(
            [row.name for row in rows],
            pack=options.pack,
            script=options.script,
            extra=list(options.extra),
            is_array=not options.no_array,
        )
        command = self._single(rows[0]) if options.no_array else self._array(call, rows)
        try:
            job = self._sbatch(command, call)
        except NotEnoughRoom as error:
            self.journal.refused(call, str(error))
            raise
        if job is not None:
            self.journal.accepted(call, job)
            self.jobs.append(job)

    def _single(self, row: Row) -> list[str]:
        log = literal(row.log)
        options = self.options
        arguments = sbatch_arguments(
            self.code, options.extra, name=row.name, log=log, dependency=options.after
        )
        spec = spec_for_slurm(self.batch, row.name)
        return [*arguments, str(options.script_path), str(spec)]

    def _array(self, call: Call, rows: Sequence[Row]) -> list[str]:
        """Writes NNN.sh, NNN.script and NNN/; the command that submits them."""
        options, script = self.options, script_of(call, self.journal)
        folder, copy = script.with_suffix(""), script.with_suffix(".script")
        copy.write_bytes(options.script_path.read_bytes())  # sbatch takes a copy as well
        self._link(folder, rows)
        variables = job_variables(copy, options.extra)
        script.write_text(array_script(copy, folder, variables, pack=options.pack))
        return self._array_command(rows, script, self._last_array())

    def _array_command(self, rows: Sequence[Row], script: Path, previous: str | None) -> list[str]:
        options, num_tasks = self.options, -(-len(rows) // self.options.pack)
        names = [row.name.partition("_")[0] for row in (rows[0], rows[-1])]
        throttle = f"%{options.max_running}" if options.max_running else ""
        arguments = sbatch_arguments(
            self.code,
            options.extra,
            name=f"{names[0]}-{names[1]}_{self.batch.path.name}",
            log=f"{literal(script.with_suffix(''))}/%a/job.log",
            dependency=":".join(filter(None, [options.after, previous])),
        )
        return [*arguments, f"--array=0-{num_tasks - 1}{throttle}", str(script)]

    def _last_array(self) -> str | None:
        """A throttle is an array's own, so one array waits for the one before it."""
        calls = [c for c in self.journal.calls.values() if c.is_array and c.state == ACCEPTED]
        return calls[-1].job if self.options.max_running and calls else None

    def _link(self, folder: Path, rows: Sequence[Row]) -> None:
        """NNN/K -> the row of task K, or a folder of links to its rows."""
        folder.mkdir()
        pack = self.options.pack
        if pack == 1:
            for task, row in enumerate(rows):
                (folder / str(task)).symlink_to(f"../../{row.name}")
            return
        for number, row in enumerate(rows):
            beside = folder / str(number // pack)
            beside.mkdir(exist_ok=True)
            (beside / row.name).symlink_to(f"../../../{row.name}")

    def _sbatch(self, command: list[str], call: Call) -> str | None:
        """The job's number; None where the journal has it already. Tries again while it may."""
        until, waits = time.monotonic() + self.options.patience, iter(WAITS)
        variables = job_variables(self.options.script_path, self.options.extra)
        while True:
            code, output, errors = run_sbatch(command, variables, self.code)
            job = output.strip().partition(";")[0]
            if code == 0 and job.isdigit():
                return job
            words = plain_message(errors or output) or f"sbatch: exit code {code}"
            if not (NO_ANSWER.search(errors) or FULL.search(errors)):
                self.journal.refused(call, words)
                raise UserError(f"Slurm refuses: {words}")
            wait = next(waits, WAITS[-1])
            is_over = time.monotonic() + wait > until
            if not is_over:
                logger.warning("{}; asking again in {} s (--patience)", words, wait)
            self.sleep(min(wait, self.options.patience))
            # It may have been taken all the same: an answer that came too late looks like this.
            self._settle(call, self._patiently(read_queue, until), is_last=False)
            if self.journal.calls[call.number].state == ACCEPTED:
                return None
            if FULL.search(errors) and (is_over or len(call.rows) > self.options.pack):
                raise NotEnoughRoom(words)
            if is_over:
                raise UserError(f"Slurm does not answer ({words}); {LATER}")

    def _settle(self, call: Call, jobs: Sequence[QueuedJob], *, is_last: bool = True) -> None:
        """Whether Slurm has this call, by squeue, or by what its rows have printed since."""
        if job := self._found(call, jobs):
            self.journal.accepted(call, job.array)
            self.jobs.append(job.array)
            return
        # The call is the journal's last line; both clocks are the file server's.
        called = self.journal.path.stat().st_mtime
        logs = [self.batch.path / row / "job.log" for row in call.rows]
        if any(_written_since(log, called) for log in logs):
            self.journal.accepted(call, None)
        elif is_last:
            self.journal.refused(call, "never arrived")

    def _found(self, call: Call, jobs: Sequence[QueuedJob]) -> QueuedJob | None:
        """An array's script is its alone; of single rows an ended job may be an earlier one."""
        script = str(script_of(call, self.journal))
        for job in jobs:
            if call.is_array and job.command == script:
                return job
            is_live = not call.is_array and job.state not in ENDED
            if is_live and runs_spec(job, spec_for_slurm(self.batch, call.rows[0])):
                return job
        return None

    def _patiently(self, question: Callable[[], T], until: float | None = None) -> T:
        """The answer, asking again while Slurm is silent."""
        until = until or time.monotonic() + self.options.patience
        waits = iter(WAITS)
        while True:
            try:
                return question()
            except NoSlurm as error:
                wait = next(waits, WAITS[-1])
                if not NO_ANSWER.search(str(error)) or time.monotonic() + wait > until:
                    words = f"Slurm does not answer ({error}); {LATER}"
                    raise UserError(words) from None
                self.sleep(wait)


def _written_since(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment
    except OSError:
        return False
