"""What submit_multiple.py does: a job file becomes runs, on Slurm or on this machine.

    job file -> grid -> checks -> batch folder -> frozen code -> Slurm or worker processes

submit_job_file() walks this way from its beginning; retry() starts from a batch that exists.
Nothing is written before every run has been checked; both may be called again after any crash.
"""

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from loguru import logger

from src.config import make_config
from src.grid import slurm
from src.grid.check import MOST_LINES, check_rows, errors_of
from src.grid.folders import (
    Batch,
    Plan,
    Row,
    batch_name,
    check_writable,
    count_runs,
    delete_batch,
    earlier_batches,
    only_here,
    open_batch,
    plan_batch,
    row_identity,
    write_batch,
)
from src.grid.job_file import read_grid, try_job
from src.grid.journal import Journal, SubmitOptions
from src.grid.reports import group_failures, short_path
from src.grid.run_queue import RunQueue
from src.grid.slurm import NoSlurm
from src.grid.stacks import OFF, choose_engines
from src.grid.start import (
    confirm,
    count_workers,
    print_sbatch,
    print_stacks,
    repair,
    say_if_code_is_older,
    start,
)
from src.grid.status import (
    KINDS,
    RESUMABLE,
    RowStatus,
    ask_queue,
    count_states,
    read_journal,
    row_statuses,
)
from src.grid.submission import Submission, check_options
from src.logging import lease
from src.support import ROOT, UserError

MOST_SHOWN = 5  # runs
MOST_LOOKED_AT = 5  # earlier folders of the same name
# What -r runs again: states of runs, and the kinds of their failures
RETRYABLE = ("failed", "lost", "unstarted", *KINDS)


# ---- A job file --------------------------------------------------------------------------


def submit(options: SubmitOptions) -> int:
    """Do what the command line asks for; the exit code: 1 where runs have failed here or were left
    out. Raises UserError, a line a mistake, before anything is written."""
    if options.stop:
        return stop_workers(options.stop)
    if options.join:
        return join(options.join, options)
    return retry(options.retry, options) if options.retry else submit_job_file(options)


def submit_job_file(options: SubmitOptions) -> int:
    """Submit the grid of a job file. Runs that an earlier call has submitted are left alone."""
    assert options.job_file
    job, errors = try_job(options.job_file)
    grid, grid_errors, unread = read_grid(job.parameters)
    errors = list(dict.fromkeys([*errors, *grid_errors]))
    if not errors:
        print("\n".join([f"{options.job_file}: {grid.description()}", *grid.notes]))
    output_dir = Path(os.path.abspath(job.output_dir))
    mistakes = _check_scripts(options) + errors_of(check_writable, output_dir) + errors[:MOST_LINES]
    mistakes += [f"… and {len(errors) - MOST_LINES:,} more"] * (len(errors) > MOST_LINES)
    mistakes += check_rows([{**job.common, **row} for row in grid.rows], unread=unread)
    if mistakes:
        raise UserError("\n".join([*mistakes, "nothing was written or submitted"]))

    wanted = grid.rows
    if options.stack not in (None, OFF):
        configs = [make_config({**job.common, **row}) for row in wanted]
        wanted, notes = choose_engines(wanted, configs, str(options.stack))
        print("\n".join(notes), end="\n" * bool(notes))
    folder = output_dir / batch_name(job.name, date.today())
    if not options.overwrite:
        folder = _unfinished_batch(output_dir, job.name, wanted) or folder
    plan = plan_batch(folder, wanted, job_text=job.text, common=job.common)
    if options.dry_run:
        print(f"{short_path(folder)}: {plan.summary}")
        rows = plan.wanted
        if options.overwrite and folder.exists():
            print(f"would delete {short_path(folder)} first, after asking")
        else:
            rows = _unsubmitted(plan)
        where = "on this machine" if options.is_local else f"with {options.script}"
        print(f"would run {count_runs(len(rows))} {where}:")
        for row in rows[:MOST_SHOWN]:
            print(f"  {row.name}")
        if len(rows) > MOST_SHOWN:
            print(f"  …\n  {rows[-1].name}")
        print_stacks(rows, options)
        print_sbatch(plan.batch, rows, options)
        print("dry run: nothing was written or submitted")
        return 0
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot make {output_dir}: {error.strerror}") from None
    with ExitStack() as lock:
        lock.enter_context(only_here(folder))
        if options.overwrite and folder.exists():
            old = open_batch(folder)
            Submission(old, options, ROOT).settle()
            statuses = row_statuses(old, ask_queue(old))
            if alive := sum(status.state in ("queued", "running") for status in statuses):
                raise UserError(
                    f"-o: {count_runs(alive)} of {short_path(folder)} queued or running"
                )
            print(f"-o deletes {short_path(folder)}: {count_states(statuses)}")
            confirm("delete it?", options)
            delete_batch(old)
            plan = plan_batch(folder, wanted, job_text=job.text, common=job.common)
        write_batch(plan, ROOT)
        broken = repair(plan.batch, options)
        Submission(plan.batch, options, ROOT).settle()
        print(f"{short_path(folder)}: {plan.summary}")
        say_if_code_is_older(plan.batch, options)
        rows = [row for row in _unsubmitted(plan) if row.name not in broken]
        return start(plan.batch, rows, options, lock) or int(bool(broken))


def _unfinished_batch(output_dir: Path, name: str, grid: Sequence[dict[str, Any]]) -> Path | None:
    """The folder of an earlier day from which Slurm has taken this very grid in part only."""
    wanted = {row_identity(values) for values in grid}
    for folder in earlier_batches(output_dir, name)[:MOST_LOOKED_AT]:
        batch, journal = open_batch(folder), Journal(folder / "submissions")
        if journal.calls and {row_identity(row.values) for row in batch.rows} == wanted:
            untouched = {s.row.name for s in row_statuses(batch, None) if s.state == "unstarted"}
            if untouched - journal.accepted_rows:
                return folder
    return None


def _unsubmitted(plan: Plan) -> list[Row]:
    """The wanted runs that nobody was asked to run yet, or that were interrupted here."""
    taken = Journal(plan.batch.submissions).accepted_rows
    left = {
        status.row.name
        for status in row_statuses(plan.batch, None)
        if status.state in ("unstarted", "lost") or status.kind == "interrupted"
    }
    return [row for row in plan.wanted if row.name in left and row.name not in taken]


# ---- A batch that exists -----------------------------------------------------------------


def retry(folder: str, options: SubmitOptions) -> int:
    """Run again what is not done, queued or running of a batch."""
    batch = _batch_of_ours(folder, "-r")
    if options.script is None:  # as its runs were submitted last
        last = read_journal(batch).last_options
        pack, extra = max(options.pack, last.pack), options.extra or last.extra
        options = replace(
            options,
            script=last.script,
            no_array=last.no_array,
            pack=pack,
            stack=options.stack or last.stack,
            extra=extra,
            workers=options.workers or last.workers,
            more_scripts=last.more_scripts,
        )
        if options.workers:  # which these do not go with, whoever asked for them
            options = replace(options, pack=1, no_array=False, stack=None)
    if errors := _check_scripts(options):
        raise UserError("\n".join(errors))
    with ExitStack() as lock:
        if not options.dry_run:
            lock.enter_context(only_here(batch.path))
        broken, queue = repair(batch, options), None
        if not options.dry_run:
            Submission(batch, options, ROOT).settle()
        try:
            queue = ask_queue(batch)
        except UserError as error:
            if not options.dry_run:  # which needs no answer of Slurm
                raise
            logger.warning("{}; what waits or runs there is shown as lost or unstarted", error)
        statuses = row_statuses(batch, queue)
        chosen = [s for s in statuses if s.state in RETRYABLE and s.row.name not in broken]
        if options.only:
            chosen = [s for s in chosen if {s.state, s.kind} & set(options.only)]
        print(f"{short_path(batch.path)}: {count_states(statuses)}")
        for group in group_failures(chosen, batch.varying):
            print(f"  {group.headline}" + (f": {group.detail}" if group.detail else ""))
        if not chosen:
            print("nothing to run again")
            return int(bool(broken) and not options.dry_run)
        is_older = say_if_code_is_older(batch, options)
        rows = [status.row for status in chosen]
        if options.dry_run:
            print_sbatch(batch, rows, options)
            print("dry run: nothing was submitted")
            return 0
        question = f"run {count_runs(len(chosen))} again?"
        if is_older:
            question += " y: with the frozen code; r: with the code as it is now (--refreeze)."
        if confirm(question, options, is_older=is_older) == "r":
            options = replace(options, refreeze=True)
        return start(batch, rows, options, lock) or int(bool(broken))


# ---- Workers -----------------------------------------------------------------------------


def join(folder: str, options: SubmitOptions) -> int:
    """Add workers to a batch: they take what nobody trains, and nothing that has failed."""
    batch = _batch_of_ours(folder, "--join")
    options = replace(options, workers=options.workers or len(options.for_each_script))
    if errors := _check_scripts(options):
        raise UserError("\n".join(errors))
    with ExitStack() as lock:
        if not options.dry_run:
            lock.enter_context(only_here(batch.path))
        broken, queue = repair(batch, options), None
        is_here = all(own.is_local for own in options.for_each_script)
        is_known = True  # what Slurm has
        try:
            if not options.dry_run and not is_here:
                Submission(batch, options, ROOT).settle()
            queue = ask_queue(batch)
        except UserError as error:  # a machine without Slurm: what waits there is left to it
            if not is_here:
                raise
            logger.warning("{}; only runs that are free for workers are taken", error)
            is_known = False
        statuses = row_statuses(batch, queue)
        print(f"{short_path(batch.path)}: {count_states(statuses)}")
        shared = RunQueue(batch.submissions)
        has_entry = shared.free_runs().keys() | shared.taken_runs().keys()

        def is_left(status: RowStatus) -> bool:
            if status.state == "done" or status.row.name in broken:
                return False
            is_free = status.state in ("unstarted", "lost") or status.kind in RESUMABLE
            return status.row.name in has_entry or (is_known and is_free)

        rows = [status.row for status in statuses if is_left(status)]
        if options.dry_run:
            print_sbatch(batch, rows, options)
            print(f"dry run: {count_runs(len(rows))} to share; nothing was submitted")
            return 0
        return start(batch, rows, options, lock) or int(bool(broken))


def stop_workers(folder: str) -> int:
    """Cancel all workers of a batch; what they have is saved, and free."""
    batch = _batch_of_ours(folder, "--stop")
    shared = RunQueue(batch.submissions)
    if not shared.exists:
        raise UserError(f"--stop: {folder} has no workers; scancel ends jobs of single runs")
    shared.stop.touch()
    here = shared.workers_here()
    for path in here:
        if pid := lease.pid_here(path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    try:
        queue = ask_queue(batch) or {}
        if jobs := {job.array for name, job in queue.items() if name.startswith("@")}:
            slurm.ask(["scancel", *sorted(jobs)])
    except (NoSlurm, UserError) as error:
        words = "workers of this and other machines are told to stop, those of Slurm are not"
        raise UserError(f"--stop: {words} ({error})") from None
    number = sum(name.startswith("@") for name in queue) + len(here)
    left = len(shared.free_runs().keys() | shared.taken_runs().keys())
    print(f"{count_workers(number)} told to stop; {count_runs(left)} left, which --join continues")
    return 0


def _batch_of_ours(folder: str, option: str) -> Batch:
    batch = open_batch(folder)
    if batch.damage:
        logger.warning("{}", batch.damage)
    if not batch.is_ours:
        raise UserError(f"{option}: {folder} belongs to another user")
    return batch


def _check_scripts(options: SubmitOptions) -> list[str]:
    found = [check_options(own) for own in options.for_each_script]
    return list(dict.fromkeys(chain.from_iterable(found)))
