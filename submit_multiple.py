"""Run a grid of experiments: python submit_multiple.py jobs/x.yaml -s submit_cpu.sh [-- …]

The grid becomes a folder a row (src/grid/folders.py), run by Slurm (src/grid/slurm/submission.py)
or, with `-s local`, by worker processes here (src/grid/local.py).
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import date
from pathlib import Path

from loguru import logger
from tqdm import tqdm

from src.grid import (
    ENDS,
    KINDS,
    LOCAL,
    MOST_LINES,
    Asked,
    Batch,
    Grid,
    Job,
    Journal,
    Machine,
    Notices,
    Options,
    Plan,
    QueuedJob,
    Row,
    Submission,
    ask_queue,
    batch_name,
    changed_since_last_copy,
    check_installed,
    check_rows,
    check_slurm,
    check_writable,
    count_rows,
    count_states,
    default_jobs,
    delete_batch,
    errors_of,
    freeze,
    frozen_copies,
    group_rows,
    has_address,
    headline,
    is_job_id,
    next_copy,
    only_here,
    open_batch,
    plan_batch,
    read_grid,
    read_journal,
    repair_batch,
    row_statuses,
    run_rows,
    short_path,
    start_sending,
    submit_digest,
    try_job,
    unfinished_folder,
    unreadable,
    unsubmitted,
    wait_until_sent,
    write_batch,
)
from src.support import OneLineParser, UserError, bad_value, closest, cut, pick

ROOT = Path(__file__).resolve().parent
MOST_SHOWN = 5  # rows
# What -r takes up: states, among them interrupted, and the kinds of failures
REPEATED = ("failed", "lost", "unstarted", *KINDS)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for a mistake of the user's, 130 for Ctrl-C,
    1 where rows that ran here have failed, or rows were left out."""
    given = sys.argv[1:] if arguments is None else arguments
    split = given.index("--") if "--" in given else len(given)
    with suppress(ValueError):
        logger.remove(0)  # loguru's own, which prints everything
    warnings = logger.add(lambda line: print(line, end="", file=sys.stderr), format="{message}")
    try:
        # --dry_run as --dry-run
        ours = [re.sub(r"^--\w+", lambda m: m[0].replace("_", "-"), a) for a in given[:split]]
        options = command_line().parse_args(ours)
        options.extra = given[split + 1 :]
        check_options(options)
        return retry(options) if options.retry else submit(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… -d | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full, a folder that is not ours
        print(f"{cut(str(error.filename or 'the disk'))}: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        logger.remove(warnings)


def command_line() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="Run a grid of experiments on Slurm or on this machine.",
        epilog="What follows -- goes to sbatch: … -s submit_cpu.sh -- --partition=long",
    )
    add = parser.add_argument
    add("job_file", nargs="?", help="YAML file with the grid, see jobs/; with -r alone FOLDER")
    add("-s", "--script", help="the submit script, or `local` for this machine")
    add("-d", "--dry-run", action="store_true", help="say what would happen, touch nothing")
    add("-o", "--overwrite", action="store_true", help="delete today's folder of this batch first")
    what = "run again what is not done in this batch"
    add("-r", "--retry", "--rerun", metavar="FOLDER", nargs="?", const="", help=what)
    add("--only", metavar="KIND", action="append", help="with -r: " + ", ".join(REPEATED))
    add("-y", "--yes", action="store_true", help="answer every question with yes")
    add("--live", action="store_true", help="run the code where it lies, not a frozen copy")
    add("--refreeze", action="store_true", help="freeze the code anew for what runs from now on")
    here = parser.add_argument_group("this machine")
    here.add_argument("--jobs", type=positive, metavar="N", help="rows at a time")
    here.add_argument("--gpus", metavar="0,1", help="GPUs that the rows share, a row each")
    on_slurm = parser.add_argument_group("Slurm")
    add = on_slurm.add_argument
    add("--no-array", action="store_true", help="one `sbatch SCRIPT FOLDER/spec.yaml` a row")
    add("--max-running", type=positive, metavar="N", help="at most N jobs at a time")
    add("--pack", type=positive, metavar="N", default=1, help="N rows side by side in one job")
    add("--after", metavar="JOBID", help="start when this job has ended")
    add("--patience", type=float, metavar="S", default=300, help="seconds to wait for Slurm (300)")
    return parser


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 up")
    return int(text)


def check_options(options: argparse.Namespace) -> None:
    """Options that contradict each other, and what is none of what can be named."""
    if options.retry == "":  # results/BATCH -r
        options.retry, options.job_file = options.job_file, None
    if bool(options.job_file) == bool(options.retry):
        raise UserError("give either a job file or -r FOLDER")
    if options.job_file and os.path.isdir(options.job_file):
        raise UserError(f"{options.job_file}: is a folder; -r runs what is not done in it again")
    if options.retry and os.path.isfile(options.retry):
        raise UserError(f"-r: {options.retry} is a file, expected the folder of a batch")
    if options.job_file and not options.script:
        raise UserError("-s: say with which submit script, such as submit_cpu.sh, or local")
    if options.script not in (LOCAL, None) and not os.path.lexists(options.script):
        near = closest(options.script, [LOCAL, *map(str, Path().glob("*.sh"))])
        hint = f"did you mean {near!r}?" if near else "-s local runs the rows here"
        raise UserError(f"-s {options.script}: No such file or directory; {hint}")
    if options.only and not options.retry:
        raise UserError("--only: goes with -r")
    for kind in options.only or ():
        pick(dict.fromkeys(REPEATED), kind, "--only")
    if options.retry and options.overwrite:
        raise UserError("-o and -r exclude each other")
    if options.live and options.refreeze:
        raise UserError("--live and --refreeze exclude each other")
    for_slurm = ("no_array", "max_running", "after")
    unfit = [f"--{x.replace('_', '-')}" for x in for_slurm if getattr(options, x)]
    unfit += ["--pack"] * (options.pack > 1) + ["what follows --"] * bool(options.extra)
    if options.script == LOCAL and unfit:
        raise UserError(f"-s local: {unfit[0]} is for Slurm; here there is --jobs N")
    if options.gpus and not re.fullmatch(r"[\w-]+(,[\w-]+)*", options.gpus):
        raise bad_value("--gpus", options.gpus, "numbers with commas between, such as 0,1")
    if not options.patience >= 0:
        raise bad_value("--patience", options.patience, "seconds from 0 up")
    if options.script not in (LOCAL, None) and (options.jobs or options.gpus):
        raise UserError("--jobs, --gpus: for -s local; on Slurm there are --max-running and --pack")
    if options.no_array and (options.pack > 1 or options.max_running):
        raise UserError("--no-array: --pack and --max-running need an array")
    if options.after and not is_job_id(options.after):
        raise UserError(f"--after: got {options.after!r}, expected a job's number such as 1234")


# ---- A job file --------------------------------------------------------------------------


def submit(options: argparse.Namespace) -> int:
    """From a job file to running rows."""
    job, errors = try_job(options.job_file)
    grid, of_grid, unread = read_grid(job.parameters)
    errors = list(dict.fromkeys([*errors, *of_grid]))
    if not errors:
        print("\n".join([f"{options.job_file}: {grid.description()}", *grid.notes]))
    check_everything(options, job, grid, errors, unread)
    output_dir = Path(os.path.abspath(job.output_dir))
    folder = output_dir / batch_name(job.name, date.today())
    if not options.overwrite:
        folder = unfinished_folder(output_dir, job.name, grid.rows) or folder
    plan = plan_batch(folder, grid.rows, job_text=job.text, common=job.common)
    if options.dry_run:
        return describe(options, plan)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot make {output_dir}: {error.strerror}") from None
    with only_here(folder):
        if options.overwrite and folder.exists():
            overwrite(open_batch(folder), options)
            plan = plan_batch(folder, grid.rows, job_text=job.text, common=job.common)
        write_batch(plan, ROOT)
        broken = mend(plan.batch, options)
        settle(plan.batch, options)
        print(f"{short_path(folder)}: {plan.summary}")
        is_code_older(plan.batch, options)
        rows = [row for row in unsubmitted(plan) if row.name not in broken]
        return start(plan.batch, rows, options) or int(bool(broken))


def check_everything(
    options: argparse.Namespace, job: Job, grid: Grid, of_file: Sequence[str], unread: set[str]
) -> None:
    """Every mistake that can be known now, at once, before anything is written. of_file: what is
    wrong with the job file by itself; unread: keys that the rows lack for it."""
    errors = slurm_errors(options)
    errors += errors_of(check_writable, Path(os.path.abspath(job.output_dir)))
    errors += of_file[:MOST_LINES]
    errors += [f"… and {len(of_file) - MOST_LINES:,} more"] * (len(of_file) > MOST_LINES)
    errors += check_rows([{**job.common, **row} for row in grid.rows], unread=unread)
    if errors:
        raise UserError("\n".join(errors) + "\nnothing was written or submitted")


def slurm_errors(options: argparse.Namespace) -> list[str]:
    errors = check_slurm(
        options.script, options.extra, after=options.after, is_array=not options.no_array
    )
    # What would be asked of Slurm can be said where there is none.
    return errors + (
        [] if options.dry_run or options.script == LOCAL else errors_of(check_installed)
    )


def describe(options: argparse.Namespace, plan: Plan) -> int:
    """What would happen."""
    batch = plan.batch
    print(f"{short_path(batch.path)}: {plan.summary}")
    if options.overwrite and batch.path.exists():
        print(f"would delete {short_path(batch.path)} first, after asking")
        rows = plan.wanted
    else:
        rows = unsubmitted(plan)
    where = "on this machine" if options.script == LOCAL else f"with {options.script}"
    print(f"would run {count_rows(len(rows))} {where}:")
    for row in rows[:MOST_SHOWN]:
        print(f"  {row.name}")
    if len(rows) > MOST_SHOWN:
        print(f"  …\n  {rows[-1].name}")
    print_calls(batch, rows, options)
    print("dry run: nothing was written or submitted")
    return 0


def print_calls(batch: Batch, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Each call of sbatch that would bring these rows to Slurm."""
    if options.script == LOCAL or not rows:
        return
    copies = frozen_copies(batch.path)
    is_new = options.refreeze or not copies
    code = ROOT if options.live else next_copy(batch.path) if is_new else copies[-1]
    for command in Submission(batch, slurm_options(options, code)).planned(rows):
        print(f"  {shlex.join(command)}")


def overwrite(batch: Batch, options: argparse.Namespace) -> None:
    """Delete a batch, after showing it and asking; never while its rows wait or run."""
    settle(batch, options)
    statuses = row_statuses(batch, ask_queue(batch))
    if alive := sum(status.state in ("queued", "running") for status in statuses):
        raise UserError(f"-o: {count_rows(alive)} of {short_path(batch.path)} queued or running")
    print(f"-o deletes {short_path(batch.path)}: {count_states(statuses)}")
    confirm("delete it?", options)
    delete_batch(batch)


# ---- A batch that is there ---------------------------------------------------------------


def retry(options: argparse.Namespace) -> int:
    """Run again what is not done, queued or running."""
    batch = open_batch(options.retry)
    if batch.damage:
        logger.warning("{}", batch.damage)
    if not batch.is_ours:
        raise UserError(f"-r: {options.retry} belongs to another user")
    use_last_script(batch, options)
    if errors := slurm_errors(options):
        raise UserError("\n".join(errors))
    with nullcontext() if options.dry_run else only_here(batch.path):
        broken = mend(batch, options)
        if not options.dry_run:
            settle(batch, options)
        statuses = row_statuses(batch, ask_queue_or_warn(batch, options))
        chosen = [s for s in statuses if s.state in REPEATED and s.row.name not in broken]
        if options.only:
            chosen = [s for s in chosen if {s.state, s.kind} & set(options.only)]
        print(f"{short_path(batch.path)}: {count_states(statuses)}")
        for group in group_rows(chosen, batch.varying):
            print(f"  {headline(group)}" + (f": {group.detail}" if group.detail else ""))
        if not chosen:
            print("nothing to run again")
            return int(bool(broken) and not options.dry_run)
        is_older = is_code_older(batch, options)
        rows = [status.row for status in chosen]
        if options.dry_run:
            print_calls(batch, rows, options)
            print("dry run: nothing was submitted")
            return 0
        question = f"run {count_rows(len(chosen))} again?"
        if is_older:
            question += " y: with the frozen code; r: with the code as it is now (--refreeze)."
        options.refreeze |= confirm(question, options, is_older=is_older) == "r"
        return start(batch, rows, options) or int(bool(broken))


def ask_queue_or_warn(batch: Batch, options: argparse.Namespace) -> dict[str, QueuedJob] | None:
    """A dry run goes on without Slurm's word."""
    try:
        return ask_queue(batch)
    except UserError as error:
        if not options.dry_run:
            raise
        logger.warning("{}; what waits or runs there is shown as lost or unstarted", error)
        return None


def use_last_script(batch: Batch, options: argparse.Namespace) -> None:
    """Without -s: as the rows were asked for last."""
    if options.script is None:
        asked = read_journal(batch).asked
        options.script, options.no_array = asked.script, not asked.is_array
        options.pack = max(options.pack, asked.pack)
        options.extra = options.extra or list(asked.extra)


# ---- Both --------------------------------------------------------------------------------


def mend(batch: Batch, options: argparse.Namespace) -> dict[str, str]:
    """A batch that was moved, copied or damaged runs where it is; the rows that cannot, and why."""
    done = repair_batch(batch, ROOT, is_dry=options.dry_run)
    would = "would be " * options.dry_run
    if done.moved:
        print(f"{count_rows(len(done.moved))} of another folder: {would}made to run in this one")
    if done.made_again:
        print(f"{count_rows(len(done.made_again))} without spec.yaml: {would}made again")
    for name, why in list(done.broken.items())[:MOST_SHOWN]:
        print(f"left out: {name}: {why.splitlines()[0]}", file=sys.stderr)
    if (more := len(done.broken) - MOST_SHOWN) > 0:
        print(f"left out: {more:,} more", file=sys.stderr)
    return done.broken


def settle(batch: Batch, options: argparse.Namespace) -> None:
    """What became of a submission that was interrupted."""
    settling = Options(Path(), "", [], ROOT, "", patience=options.patience)
    Submission(batch, settling).settle()


def start(batch: Batch, rows: Sequence[Row], options: argparse.Namespace) -> int:
    """Run these rows here, or hand them to Slurm."""
    if not rows:
        counts = count_states(row_statuses(batch, ask_queue(batch)))
        print(f"nothing left to start: {counts}; -r takes up what failed or was cancelled")
        print(report_command(batch))
        return 0
    code = code_to_run(batch, options)
    asked = Asked(options.script, tuple(options.extra), options.pack, not options.no_array)
    Journal(batch.submissions).ask(asked)
    notices, told_round = Notices(batch.path), None
    earlier = notices.wanted_text
    if has_address() and (why := unreadable()):
        logger.warning("no messages will be sent: {}", why)
    elif has_address():
        told_round = notices.begin([row.name for row in rows], len(batch.rows))
    if options.script == LOCAL:
        try:
            exit_code = start_here(batch, rows, options, code)
        except BaseException:  # Ctrl-C
            notices.take_back(earlier)
            raise
        if told_round:
            wait_until_sent(start_sending("digest", batch.path, told_round))
        return exit_code
    wanted = slurm_options(options, code)
    with tqdm(total=len(rows), unit="row", disable=not sys.stderr.isatty(), leave=False) as bar:
        submission = Submission(batch, wanted, progress=bar.update)
        try:
            jobs = submission.submit(rows)
        finally:
            if told_round and submission.jobs:
                submit_digest(batch.path, submission.jobs, wanted, told_round)
            elif told_round:
                notices.take_back(earlier)
    numbers = jobs[0] if len(jobs) == 1 else f"{jobs[0]} … {jobs[-1]}"
    print(f"submitted {count_rows(len(rows))} as {len(jobs)} job{'s' * (len(jobs) > 1)}: {numbers}")
    print(report_command(batch))
    return 0


def slurm_options(options: argparse.Namespace, code: Path) -> Options:
    return Options(
        script=Path(os.path.abspath(options.script)),
        script_as_named=options.script,
        extra=options.extra,
        code=code,
        python=sys.executable,
        is_array=not options.no_array,
        pack=options.pack,
        max_running=options.max_running,
        after=options.after,
        patience=options.patience,
    )


def start_here(batch: Batch, rows: Sequence[Row], options: argparse.Namespace, code: Path) -> int:
    gpus = options.gpus.split(",") if options.gpus else []
    machine = Machine(options.jobs or default_jobs(gpus), gpus)
    print(f"running {count_rows(len(rows))}, {machine.jobs} at a time (--jobs N); Ctrl-C stops")
    ended = run_rows(batch, rows, machine, code=code)
    counts = [f"{ended[how]} {how}" for how in ENDS if ended[how] or how != "interrupted"]
    print(f"{count_rows(len(rows))}: {', '.join(counts)}")
    print(report_command(batch))
    return 0 if ended["done"] == len(rows) else 1


def report_command(batch: Batch) -> str:
    """How far it is, as a line to paste."""
    report = ROOT / "report.py"
    return "how far it is: " + shlex.join(["python", short_path(report), short_path(batch.path)])


def code_to_run(batch: Batch, options: argparse.Namespace) -> Path:
    """The repository itself with --live; else the newest frozen copy, made where there is none."""
    if options.live:
        return ROOT
    copies = frozen_copies(batch.path)
    if not copies or options.refreeze:
        return freeze(ROOT, next_copy(batch.path))
    return copies[-1]


def is_code_older(batch: Batch, options: argparse.Namespace) -> bool:
    """Whether the rows would run older code than that of the repository; prints which files."""
    if options.live or options.refreeze:
        return False
    changed = changed_since_last_copy(ROOT, batch.path)
    if changed:
        names = ", ".join(changed[:4]) + (" …" if len(changed) > 4 else "")
        code = short_path(frozen_copies(batch.path)[-1])
        print(f"runs the code of {code}; changed here since then: {names}")
        print("  (--refreeze runs the code as it is now)")
    return bool(changed)


def confirm(question: str, options: argparse.Namespace, *, is_older: bool = False) -> str:
    """Ask; 'y', or 'r' where the frozen code is older. Raises UserError at any other answer, and
    without a terminal."""
    if options.yes:
        return "y"
    if not sys.stdin.isatty():
        raise UserError(
            f"{question} There is no terminal to answer on: -y says yes"
            + ", -y --refreeze with the code as it is now" * is_older
        )
    answers = {"y": "y", "yes": "y"} | ({"r": "r", "refreeze": "r"} if is_older else {})
    try:
        answer = input(f"{question} [{'y/r/N' if is_older else 'y/N'}] ")
    except (KeyboardInterrupt, EOFError):
        print()
        answer = ""
    if answer.strip().lower() not in answers:
        raise UserError("nothing was done")
    return answers[answer.strip().lower()]


if __name__ == "__main__":
    sys.exit(main())
