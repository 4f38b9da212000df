"""Runs are submitted to Slurm, each call written down before and after (journal.py).

Runs go as one array, or as several where the cluster's limits ask for it. sbatch gets
submissions/NNN.sh, which is written so that any submit script runs as a task: it starts with the
#SBATCH lines of the submit script, then finds the run of its task and calls the script with the
run's spec.yaml, as `sbatch SCRIPT FOLDER/spec.yaml` would. Task K of call NNN has the runs from
K * pack on, or a stack of them (stacks.py), or is a worker (workers.py).
"""

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat, takewhile
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger

from src.config import write_yaml
from src.grid import slurm
from src.grid.folders import Batch, Row
from src.grid.journal import ACCEPTED, Call, Journal, SubmitOptions, script_of, spec_for_slurm
from src.grid.slurm import NoSlurm, QueuedJob
from src.grid.stacks import own_log, tasks_of, write_stack
from src.support import UserError, write_atomically

T = TypeVar("T")
LATER = "the same command resumes"
SET_BY_US = {"array", "chdir", "error", "job-name", "output", "parsable", "wait", "wrap"}
SET_BY_US |= {"test-only", "version", "help", "usage"}  # these submit nothing
SET_BY_US_SHORT = "aDeJoWVh"


# ---- Before anything is written ----------------------------------------------------------


def check_options(options: SubmitOptions) -> list[str]:
    """What Slurm would refuse of the submit script and the options of sbatch, a line each."""
    if options.is_local:
        return []
    errors = []
    try:
        text = Path(options.script or "").read_bytes()
        array = re.search(rb"^#SBATCH +(--array|-a).*", text, re.MULTILINE)
        if not text.startswith(b"#!"):
            errors.append("no script; its first line must be like #!/bin/bash")
        elif b"\r\n" in text:
            errors.append("has DOS line breaks, which Slurm refuses (try dos2unix)")
        elif array and options.no_array:
            words = array[0].decode(errors="replace")
            errors.append(f"with --no-array, {words!r} would start each run again")
    except OSError as error:
        errors.append(str(error.strerror))
    errors = [f"-s {options.script}: {error}" for error in errors]
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
            slurm.ask(["squeue", "-h", "-j", options.after])
        except NoSlurm as error:
            if "Invalid job id" in str(error):
                errors.append(f"--after: Slurm knows no job {options.after}")
    # What sbatch would be called with can be shown where there is no Slurm.
    if not options.dry_run and shutil.which("sbatch") is None:
        errors.append("-s: there is no sbatch on this machine; -s local runs them here")
    return errors


# ---- Submitting runs ---------------------------------------------------------------------


def job_variables(script: Path, extra: Sequence[str]) -> dict[str, str]:
    """Environment variables of a job: how it was submitted, so that a follow-up is as well."""
    submission = {"script": str(script), "options": list(extra)}
    return {"EXPERIMENT_PYTHON": sys.executable, slurm.SUBMISSION: json.dumps(submission)}


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
        progress: Callable[[int], object] = lambda num_runs: None,
    ) -> None:
        self.batch, self.options, self.code, self.progress = batch, options, code, progress
        self.journal = Journal(batch.submissions)
        self.jobs: list[str] = []  # Slurm's numbers
        self.shared: list[Row] = []  # the runs that workers share

    def settle(self) -> None:
        """Find out what became of calls whose answer never came."""
        if self.journal.open_calls:
            jobs = self._patiently(slurm.read_queue)
            for call in self.journal.open_calls:
                self._settle(call, jobs)

    def submit(self, rows: Sequence[Row]) -> list[str]:
        """All of them, or the workers that share them; the numbers that Slurm gave. Raises
        UserError where it goes no further: what is submitted by then is in the journal, and the
        next call resumes there."""
        self.shared = list(rows) if self.options.workers else []
        left, most = self._tasks(rows), 1  # most: tasks of one call
        if not self.options.no_array:
            max_array, max_jobs = self._patiently(slurm.read_limits)
            if max_array < 2:  # an index is below it
                raise UserError("this cluster takes no job arrays (MaxArraySize): use --no-array")
            most = min(max_array, max_jobs)
        while left:
            chunk = left[:most]
            try:
                self._call(chunk)
            except NotEnoughRoom as error:
                if most == 1:
                    number, what, later = sum(map(len, left)), "runs", LATER
                    if self.options.workers:
                        number, what = len(left), "workers"
                        later = "--join adds more"
                    total = self.options.workers or len(rows)
                    raise UserError(
                        f"{total - number} of {total} {what} are submitted, then Slurm's"
                        f" limit on jobs was reached ({error}); {later} when some have ended"
                    ) from None
                most = min(most, len(chunk)) // 2 or 1
                continue
            del left[: len(chunk)]
            self.progress(sum(map(len, chunk)) or len(chunk))
        return self.jobs

    def planned(self, rows: Sequence[Row]) -> list[list[str]]:
        """The calls of sbatch that submit() would make; where Slurm does not name its limits, as
        if there were none. Scripts that are not written yet are 001-XXXX.sh."""
        try:
            size = 1 if self.options.no_array else max(1, min(slurm.read_limits()))
        except NoSlurm:
            size = len(rows)
        self.shared = list(rows) if self.options.workers else []
        previous, tasks = self._last_array(), self._tasks(rows)
        commands: list[list[str]] = []
        for start in range(0, len(tasks), size):
            number = max(self.journal.calls, default=0) + 1 + len(commands)
            script = Path(os.path.realpath(self.journal.folder), f"{number:03d}-XXXX.sh")
            commands.append(self._command(tasks[start : start + size], script, previous))
            previous = f"JOB{number}" if self.options.max_running else None
        return commands

    def _tasks(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The runs of each task; of a worker none."""
        if self.options.workers:
            return [[] for _ in range(self.options.workers)]
        if (pack := self.options.pack) > 1:
            return [list(rows[start : start + pack]) for start in range(0, len(rows), pack)]
        return tasks_of(rows, self.options.stack)

    def _call(self, tasks: Sequence[list[Row]]) -> None:
        """One call of sbatch, again while it may pass; the script of an array is written first."""
        options, rows = self.options, self.shared or list(chain.from_iterable(tasks))
        names = [row.name for row in rows]
        facts: dict[str, Any] = {"pack": options.pack, "script": options.script}
        facts["extra"] = list(options.extra)
        if options.workers:
            facts["workers"] = len(tasks)
        elif options.pack == 1 and len(tasks) < len(rows):
            facts["sizes"] = [len(task) for task in tasks]
        call = self.journal.begin(names, **facts, is_array=not options.no_array)
        script = script_of(call, self.journal)
        if not options.no_array:
            self._write_array(script, tasks)
        command = self._command(tasks, script, self._last_array())
        variables = job_variables(options.script_path, options.extra)
        until = time.monotonic() + options.patience
        for wait in chain(slurm.WAITS, repeat(slurm.WAITS[-1])):
            code, output, errors = slurm.run_sbatch(command, variables, self.code)
            job = output.strip().partition(";")[0]
            if code == 0 and job.isdigit():
                self.journal.accepted(call, job)
                self.jobs.append(job)
                return
            words = slurm.plain_message(errors or output) or f"sbatch: exit code {code}"
            if not (slurm.NO_ANSWER.search(errors) or slurm.FULL.search(errors)):
                self.journal.refused(call, words)
                raise UserError(f"Slurm refuses: {words}")
            is_over = time.monotonic() + wait > until
            if not is_over:
                logger.warning("{}; asking again in {:g} s (--patience)", words, wait)
            time.sleep(min(wait, options.patience))
            # It may have been taken all the same: an answer that came too late looks like this.
            self._settle(call, self._patiently(slurm.read_queue, until), is_last=False)
            if self.journal.calls[call.number].state == ACCEPTED:
                return
            if slurm.FULL.search(errors) and (is_over or len(tasks) > 1):
                self.journal.refused(call, words)
                raise NotEnoughRoom(words)
            if is_over:
                raise UserError(f"Slurm does not answer ({words}); {LATER}")

    def _write_array(self, script: Path, tasks: Sequence[list[Row]]) -> None:
        """NNN.sh; NNN.script, a copy of the submit script, as sbatch takes one as well; and NNN/,
        where K links to the run of task K, is a folder of links to its runs, its stack, or a
        worker."""
        folder, copy = script.with_suffix(""), script.with_suffix(".script")
        pack = self.options.pack
        copy.write_bytes(self.options.script_path.read_bytes())
        folder.mkdir()
        for number, runs in enumerate(tasks):
            of_task = folder / str(number)
            if not runs:
                of_task.mkdir()
                content = {"output_dir": str(of_task), "worker": os.path.realpath(self.batch.path)}
                write_atomically(of_task / "spec.yaml", write_yaml(content))
            elif pack > 1:
                of_task.mkdir()
                for row in runs:
                    (of_task / row.name).symlink_to(f"../../../{row.name}")
            elif len(runs) > 1:
                write_stack(of_task, runs)
            else:
                own_log(runs[0])
                of_task.symlink_to(f"../../{runs[0].name}")
        interpreter, directives = header(copy.read_text(errors="replace"))
        variables = job_variables(copy, self.options.extra)
        lines = ["#!/bin/bash", *directives]
        lines += ["# Written by submit_multiple.py: what a task of the array does."]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines += [f"folder={shlex.quote(str(folder))}/$SLURM_ARRAY_TASK_ID"]
        command = f'{interpreter} {shlex.quote(str(copy))} "$1/spec.yaml"'
        lines += [f"submit_script() {{ exec {command}; }}"]
        body = _PACKED if pack > 1 else _SINGLE
        script.write_text("\n".join([*lines, body.replace("PACK", str(pack))]))

    def _command(self, tasks: Sequence[list[Row]], script: Path, previous: str | None) -> list[str]:
        """sbatch with its arguments, for one run, or for the script of an array, which waits for
        the one before it."""
        options, num_tasks = self.options, len(tasks)
        rows = self.shared or list(chain.from_iterable(tasks))
        if options.no_array:
            name, log, after = rows[0].name, slurm.literal(rows[0].log), options.after
            what = [str(options.script_path), str(spec_for_slurm(self.batch, rows[0].name))]
        else:
            first, last = (row.name.partition("_")[0] for row in (rows[0], rows[-1]))
            name = f"{first}-{last}_{self.batch.path.name}"
            name = f"workers_{self.batch.path.name}" if options.workers else name
            log = f"{slurm.literal(script.with_suffix(''))}/%a/job.log"
            after = ":".join(filter(None, [options.after, previous]))
            throttle = f"%{options.max_running}" if options.max_running else ""
            what = [f"--array=0-{num_tasks - 1}{throttle}", str(script)]
        arguments = slurm.sbatch_arguments(
            self.code, options.extra, name=name, log=log, dependency=after
        )
        return [*arguments, *what]

    def _last_array(self) -> str | None:
        """A throttle is an array's own, so one array waits for the one before it."""
        calls = [c for c in self.journal.calls.values() if c.is_array and c.state == ACCEPTED]
        return calls[-1].job if self.options.max_running and calls else None

    def _settle(self, call: Call, jobs: Sequence[QueuedJob], *, is_last: bool = True) -> None:
        """Whether Slurm has this call, by squeue, or by what its runs have printed since."""
        script = str(script_of(call, self.journal))
        spec = spec_for_slurm(self.batch, call.rows[0])
        for job in jobs:
            # An array's script is its alone; of single runs an ended job may be an earlier one.
            is_single = not call.is_array and not job.has_ended and job.runs(spec)
            if is_single or (call.is_array and job.command == script):
                self.journal.accepted(call, job.array)
                self.jobs.append(job.array)
                return
        # The call is the journal's last line; both clocks are the file server's.
        called = self.journal.path.stat().st_mtime
        logs = [self.batch.path / row / "job.log" for row in call.rows]
        if call.workers:
            logs = [*script_of(call, self.journal).with_suffix("").glob("*/job.log")]
        if any(log.exists() and log.stat().st_mtime >= called for log in logs):
            self.journal.accepted(call, None)
        elif is_last:
            self.journal.refused(call, "never arrived")

    def _patiently(self, question: Callable[[], T], until: float | None = None) -> T:
        """The answer; UserError where Slurm stays silent."""
        try:
            return slurm.ask_patiently(question, until or time.monotonic() + self.options.patience)
        except NoSlurm as error:
            raise UserError(f"Slurm does not answer ({error}); {LATER}") from None


# ---- The script of an array --------------------------------------------------------------

# The tasks are ours to number; waiting for them would hold up the submission.
OURS = re.compile(r"#SBATCH +(--array|-a|--wait\b|-W)")


def header(script: str) -> tuple[str, list[str]]:
    """(interpreter, #SBATCH lines): those before the first command, which are all that count."""
    first, *lines = script.splitlines()
    comments = takewhile(lambda line: line.startswith("#") or not line.strip(), lines)
    directives = [ln for ln in comments if ln.startswith("#SBATCH") and not OURS.match(ln)]
    return first[2:].strip() or "/bin/bash", directives


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
# Where the runs find the process that they are forks of: see WarmProcess.shared() in forks.py.
export EXPERIMENT_WARM=
((${#beside[@]} > 1)) && EXPERIMENT_WARM=$(mktemp -d) && ln -s "$folder" "$EXPERIMENT_WARM/runs"
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
[ -z "$EXPERIMENT_WARM" ] || rm -r "$EXPERIMENT_WARM"
# The job can be requeued only once, when nobody saves any more.
((${#stopped[@]})) && "$EXPERIMENT_PYTHON" -m src.submit.continuation "${stopped[@]}"
exit $failed
"""
