"""The last part of what submit_multiple.py does: runs of a batch folder are handed to Slurm, to
workers, or to processes of this machine; and what is shown and asked before that."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from src.grid.folders import (
    Batch,
    Row,
    count_runs,
)
from src.grid.journal import Journal, SubmitOptions
from src.grid.local import Machine, default_jobs, run_rows
from src.grid.local_display import ENDS
from src.grid.messages import wants_messages
from src.grid.notices import Notices, start_sending, submit_digest, wait_until_sent
from src.grid.repair import repair_batch
from src.grid.reports import short_path
from src.grid.run_queue import RunQueue
from src.grid.snapshot import changed_since_last_copy, freeze, frozen_copies, next_copy
from src.grid.stacks import OFF, describe, tasks_of
from src.grid.status import (
    ask_queue,
    count_states,
    row_statuses,
)
from src.grid.submission import Submission
from src.grid.workers import Stop, in_words, work_here
from src.support import ROOT, UserError

MOST_SHOWN = 5  # runs that are left out


def repair(batch: Batch, options: SubmitOptions) -> dict[str, str]:
    """A batch that was moved, copied or damaged runs where it is; the runs that cannot, and why."""
    done = repair_batch(batch, ROOT, is_dry=options.dry_run)
    if done.moved and not options.dry_run:
        RunQueue(batch.submissions).reset()
    would = "would be " * options.dry_run
    if done.moved:
        print(f"{count_runs(len(done.moved))} of another folder: {would}made to run in this one")
    if done.made_again:
        print(f"{count_runs(len(done.made_again))} without spec.yaml: {would}made again")
    for name, why in list(done.broken.items())[:MOST_SHOWN]:
        print(f"left out: {name}: {why.splitlines()[0]}", file=sys.stderr)
    if (more := len(done.broken) - MOST_SHOWN) > 0:
        print(f"left out: {more:,} more", file=sys.stderr)
    return done.broken


def start(batch: Batch, rows: Sequence[Row], options: SubmitOptions, lock: ExitStack) -> int:
    """Run these here, or hand them to Slurm; the exit code. lock: of the batch, which workers of
    this machine need not hold: others may join them."""
    report = shlex.join(["python", short_path(ROOT / "report.py"), short_path(batch.path)])
    if not rows:
        counts = count_states(row_statuses(batch, ask_queue(batch)))
        print(f"nothing left to start: {counts}; -r runs again what failed or was cancelled")
        print(f"how far it is: {report}")
        return 0
    code = _code_to_run(batch, options)
    if options.workers:
        is_old = not (code / "src/grid/workers.py").exists()
        if is_old and not all(own.is_local for own in options.for_each_script):
            words = f"the code in {short_path(code)} is of a version without workers"
            raise UserError(f"{words}: add --refreeze")
        RunQueue(batch.submissions).offer(rows)
        words = f"{count_runs(len(rows))}, shared by {count_workers(options.workers)}"
        print(words + " more" * bool(options.join))
    if not options.join:  # which changes nothing of what -r does
        Journal(batch.submissions).remember(options)
    notices = Notices(batch.path)
    earlier, new_round = notices.wanted_text, None
    if wants_messages():
        new_round = notices.begin([row.name for row in rows], len(batch.rows))
    exit_code, jobs = 0, list[str]()
    try:
        for own in options.for_each_script:
            if own.is_local:
                if own.workers:
                    lock.close()
                exit_code = _run_here(batch, rows, own, code)
            else:
                _submit_to_slurm(batch, rows, own, code, jobs)
    except BaseException:  # Ctrl-C, or a limit of Slurm
        if new_round and not jobs:
            notices.take_back(earlier)
        raise
    finally:
        if new_round and jobs:
            submit_digest(batch.path, jobs, options, code, new_round)
    print(f"how far it is: {report}")
    if options.is_local and new_round:
        wait_until_sent(start_sending("digest", batch.path, new_round))
    return exit_code


def _run_here(batch: Batch, rows: Sequence[Row], options: SubmitOptions, code: Path) -> int:
    gpus = options.gpus.split(",") if options.gpus else []
    jobs = options.workers or _at_a_time(options)
    machine = Machine(jobs, gpus, not options.fresh, options.stack)
    if options.workers:
        print(f"{jobs} at a time on this machine; Ctrl-C stops")
        try:
            ended = work_here(batch, machine, code=code)
        except Stop:
            raise KeyboardInterrupt from None
        print(f"nothing more to take: {in_words(ended)} here")
        return int(bool(ended["failed"]))
    print(f"running {count_runs(len(rows))}, {jobs} at a time (--jobs N); Ctrl-C stops")
    print_stacks(rows, options)
    ended = run_rows(batch, rows, machine, code=code)
    ends = [f"{ended[how]} {how}" for how in ENDS if ended[how] or how != "interrupted"]
    print(f"{count_runs(len(rows))}: {', '.join(ends)}")
    return int(ended["done"] != len(rows))


def _submit_to_slurm(
    batch: Batch, rows: Sequence[Row], options: SubmitOptions, code: Path, jobs: list[str]
) -> None:
    """jobs: gets Slurm's numbers, also of what was submitted before an error."""
    show_no_bar = not sys.stderr.isatty()
    with tqdm(total=len(rows), unit="run", disable=show_no_bar, leave=False) as bar:
        submission = Submission(batch, options, code, progress=bar.update)
        try:
            own = submission.submit(rows)
        finally:
            jobs += submission.jobs
    what = f"{len(own)} job{'s' * (len(own) > 1)}"
    numbers = own[0] if len(own) == 1 else f"{own[0]} … {own[-1]}"
    submitted = count_workers(options.workers) if options.workers else count_runs(len(rows))
    print(f"submitted {submitted} as {what}: {numbers}")


def _at_a_time(options: SubmitOptions) -> int:
    """How many processes this machine has at a time."""
    return options.jobs or default_jobs(options.gpus.split(",") if options.gpus else [])


def print_stacks(rows: Sequence[Row], options: SubmitOptions) -> None:
    """Which runs are trained together, with --stack."""
    if options.stack not in (None, OFF):
        number = _at_a_time(options) if options.is_local else 1
        tasks = tasks_of(rows, options.stack, num_processes=number)
        gain = "; a stack of 18 costs what one or two of its runs cost alone"
        is_linear = all(str(row.values.get("model", "linear")).startswith("linear") for row in rows)
        print(f"trained together: {describe(tasks)}{gain * is_linear}")


def print_sbatch(batch: Batch, rows: Sequence[Row], options: SubmitOptions) -> None:
    """In a dry run: each call of sbatch that would submit these runs."""
    if rows and not options.is_local:
        code = _code_to_run(batch, options)
        for own in (own for own in options.for_each_script if not own.is_local):
            for command in Submission(batch, own, code).planned(rows):
                print(f"  {shlex.join(command)}")


def _code_to_run(batch: Batch, options: SubmitOptions) -> Path:
    """The repository itself with --live; else the newest frozen copy, made where there is none."""
    if options.live:
        return ROOT
    copies = frozen_copies(batch.path)
    if copies and not options.refreeze:
        return copies[-1]
    copy = next_copy(batch.path)
    return copy if options.dry_run else freeze(ROOT, copy)


def say_if_code_is_older(batch: Batch, options: SubmitOptions) -> bool:
    """Whether older code than that of the repository would run; prints which files differ."""
    is_of_today = options.live or options.refreeze
    changed = [] if is_of_today else changed_since_last_copy(ROOT, batch.path)
    if changed:
        names = ", ".join(changed[:4]) + " …" * (len(changed) > 4)
        code = short_path(frozen_copies(batch.path)[-1])
        print(f"runs the code of {code}; changed here since then: {names}")
        print("  (--refreeze runs the code as it is now)")
    return bool(changed)


def confirm(question: str, options: SubmitOptions, *, is_older: bool = False) -> str:
    """Ask; 'y', or 'r' where the frozen code is older. Raises UserError at any other answer, and
    without a terminal."""
    if options.yes:
        return "y"
    if not sys.stdin.isatty():
        hint = "-y says yes" + ", -y --refreeze with the code as it is now" * is_older
        raise UserError(f"{question} There is no terminal to answer on: {hint}")
    try:
        answer = input(f"{question} [{'y/r/N' if is_older else 'y/N'}] ").strip().lower()
    except (KeyboardInterrupt, EOFError):
        print()
        answer = ""
    if answer in ("y", "yes"):
        return "y"
    if is_older and answer in ("r", "refreeze"):
        return "r"
    raise UserError("nothing was done")


def count_workers(number: int) -> str:
    return f"{number:,} worker" + "s" * (number != 1)
