"""Submit runs to Slurm: as one array, or as several where the cluster's limits ask for it.

sbatch gets submissions/NNN.sh for an array, so that any submit script runs as a task. It starts
with the #SBATCH lines of the submit script, then finds the run of its task and calls the script
with the run's spec.yaml, as `sbatch SCRIPT FOLDER/spec.yaml` would.
"""

import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from loguru import logger

from src.grid.folders import Batch, Row
from src.grid.journal import ACCEPTED, Call, Journal, SubmitOptions
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
    """Submits runs of a batch, call by call, each written to the journal before and after."""

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


# ---- The script of an array --------------------------------------------------------------

# The tasks are ours to number; waiting for them would hold up the submission.
OURS = re.compile(r"#SBATCH +(--array|-a|--wait\b|-W)")


def header(script: str) -> tuple[str, list[str]]:
    """(interpreter, #SBATCH lines): those before the first command, which are all that count."""
    first, *lines = script.splitlines()
    directives = []
    for line in lines:
        if line.startswith("#SBATCH"):
            if not OURS.match(line):
                directives.append(line)
        elif line.strip() and not line.startswith("#"):
            break
    return first[2:].strip() or "/bin/bash", directives


def array_script(script: Path, folder: Path, variables: Mapping[str, str], *, pack: int) -> str:
    """The text of NNN.sh. folder: NNN/, in which K links to the run, or runs, of task K."""
    interpreter, directives = header(script.read_text(errors="replace"))
    body = _PACKED if pack > 1 else _SINGLE
    return "\n".join(
        [
            "#!/bin/bash",
            *directives,
            "# Written by submit_multiple.py: what a task of the array does.",
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"folder={shlex.quote(str(folder))}/$SLURM_ARRAY_TASK_ID",
            f'submit_script() {{ exec {interpreter} {shlex.quote(str(script))} "$1/spec.yaml"; }}',
            body.replace("PACK", str(pack)),
        ]
    )


# squeue shows the run's name once it has started; nothing waits for that.
_SINGLE = """\
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
run=$(readlink -f "$folder")
echo "--- $(date -Is) job $job on $SLURMD_NODENAME ---"
scontrol update jobid="$job" name="${run##*/}" >/dev/null 2>&1 &
submit_script "$run"
"""
_PACKED = """\
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
echo "--- $(date -Is) job $job on $SLURMD_NODENAME ---"
threads=$((${SLURM_CPUS_ON_NODE:-1} / PACK))
beside=("$folder"/*/)
runs=() programs=() stopped=() failed=0 stop=
# Signals reach this shell alone: pass them on.
pass_on() { stop=$1; kill -s "$1" "${programs[@]}" 2>/dev/null; }
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
for run in "$folder"/*/; do
    run=$(readlink -f "$run")
    # What ended by itself is not run again where the job is started again for its neighbours.
    if [ -n "$SLURM_RESTART_COUNT" ] && read -r code <"$folder/${run##*/}.ended"; then
        ((code == 0)) || failed=1
        continue
    fi 2>/dev/null
    (
        echo "--- $(date -Is) job $job on $SLURMD_NODENAME ---"
        export EXPERIMENT_SHARES_JOB=${#beside[@]} OMP_NUM_THREADS=$((threads > 1 ? threads : 1))
        submit_script "$run"
    ) >>"$run/job.log" 2>&1 &
    programs+=($!) runs+=("$run")
done
[ -z "$stop" ] || pass_on "$stop"  # it came before all were there
while ((${#programs[@]})); do
    sleep 1 &
    wait $!  # which a signal interrupts
    for i in "${!programs[@]}"; do
        kill -0 "${programs[i]}" 2>/dev/null && continue
        wait "${programs[i]}"; code=$?
        echo "--- ended: exit code $code ---" >>"${runs[i]}/job.log"
        echo "exit code $code: ${runs[i]##*/}"
        ((code == 0)) || failed=1
        ((code == 75)) && stopped+=("${runs[i]}/spec.yaml")
        # 69: no attempt follows. Others may have been ended by the signal.
        if [ -z "$stop" ] || ((code == 0 || code == 69)); then
            echo $code >"$folder/${runs[i]##*/}.ended"
        fi
        unset "programs[i]"
    done
done
# The job can be requeued only once, when nobody saves any more.
((${#stopped[@]})) && "$EXPERIMENT_PYTHON" -m src.submit.continuation "${stopped[@]}"
exit $failed
"""
