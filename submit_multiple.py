"""Run a grid of experiments: python submit_multiple.py jobs/x.yaml -s submit_cpu.sh [-- …]

This is the command line; what it does is in src/grid/submit_grid.py. Each run gets a folder
and is run by Slurm or, with `-s local`, by worker processes on this machine.
"""

import argparse
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger

from src.grid import RETRYABLE, SubmitOptions, submit
from src.support import OneLineParser, UserError, bad_value, closest, pick

LOCAL = "local"  # instead of a submit script


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for a mistake of the user's, 130 for Ctrl-C,
    1 where runs have failed here or were left out."""
    given = sys.argv[1:] if arguments is None else arguments
    split = given.index("--") if "--" in given else len(given)
    with suppress(ValueError):
        logger.remove(0)  # loguru's own, which prints everything
    warnings = logger.add(lambda line: print(line, end="", file=sys.stderr), format="{message}")
    try:
        # --dry_run as --dry-run
        ours = [re.sub(r"^--\w+", lambda m: m[0].replace("_", "-"), a) for a in given[:split]]
        options = command_line().parse_args(ours, SubmitOptions(extra=given[split + 1 :]))
        check_options(options)
        return submit(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… -d | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full, a folder that is not ours
        print(UserError.from_os(error, error.filename or "the disk"), file=sys.stderr)
        return 2
    finally:
        logger.remove(warnings)


def command_line() -> argparse.ArgumentParser:
    """Its options are the fields of SubmitOptions, where their defaults stand."""
    parser = OneLineParser(
        description="Run a grid of experiments on Slurm or on this machine.",
        epilog="What follows -- goes to sbatch: … -s submit_cpu.sh -- --partition=long",
    )
    add = parser.add_argument
    add("job_file", nargs="?", help="YAML file with the grid, see jobs/; with -r alone FOLDER")
    what = "the submit script, or `local` for this machine; with --workers several"
    add("-s", "--script", metavar="SCRIPT", action="append", help=what)
    add("-d", "--dry-run", action="store_true", help="say what would happen, touch nothing")
    add("-o", "--overwrite", action="store_true", help="delete today's folder of this batch first")
    what = "run again what is not done in this batch"
    add("-r", "--retry", "--rerun", metavar="FOLDER", nargs="?", const="", help=what)
    add("--only", metavar="KIND", action="append", help="with -r: " + ", ".join(RETRYABLE))
    add("-y", "--yes", action="store_true", help="answer every question with yes")
    add("--live", action="store_true", help="run the code where it lies, not a frozen copy")
    add("--refreeze", action="store_true", help="freeze the code again for what runs from now on")
    what = "train runs together that can be, `engine: stacked`: auto, off, or N at most, which all"
    add("--stack", type=stack, metavar="auto|N", help=f"{what} must take")
    shared = parser.add_argument_group("workers, which share the runs of a batch")
    what = "N processes that take one run after the other, instead of a job a run"
    shared.add_argument("--workers", type=positive, metavar="N", help=what)
    what = "add workers to this batch, 1 by default"
    shared.add_argument("--join", metavar="FOLDER", help=what)
    what = "cancel the workers of this batch; what they train is saved"
    shared.add_argument("--stop", metavar="FOLDER", help=what)
    here = parser.add_argument_group("this machine")
    here.add_argument("--jobs", type=positive, metavar="N", help="runs at a time")
    here.add_argument("--gpus", metavar="0,1", help="GPUs that the runs share, a run each")
    what = "start each run by itself, not as a fork of a process that has imported torch"
    here.add_argument("--fresh", action="store_true", help=what)
    on_slurm = parser.add_argument_group("Slurm")
    add = on_slurm.add_argument
    add("--no-array", action="store_true", help="one `sbatch SCRIPT FOLDER/spec.yaml` a run")
    add("--max-running", type=positive, metavar="N", help="at most N jobs at a time")
    add("--pack", type=positive, metavar="N", help="N runs side by side in one job")
    add("--after", metavar="JOBID", help="start when this job has ended")
    add("--patience", type=float, metavar="S", help="seconds to wait for Slurm (300)")
    return parser


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 up")
    return int(text)


def stack(text: str) -> str:
    if text not in ("auto", "off") and not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected auto, off, or a number from 1 up")
    return text


def check_options(options: SubmitOptions) -> None:
    """Options that contradict each other, and what is none of what can be named."""
    given: Any = options.script or []  # -s gives a list
    given = sorted(given, key=lambda script: script == LOCAL)  # this machine comes last
    options.script, options.more_scripts = next(iter(given), None), tuple(given[1:])
    if options.retry == "":  # results/BATCH -r
        options.retry, options.job_file = options.job_file, None
    asked = [options.job_file, options.retry, options.join, options.stop]
    if sum(map(bool, asked)) != 1:
        raise UserError("give one of a job file, -r FOLDER, --join FOLDER, --stop FOLDER")
    if options.job_file and os.path.isdir(options.job_file):
        raise UserError(f"{options.job_file}: is a folder; -r runs what is not done in it again")
    folders = {"-r": options.retry, "--join": options.join, "--stop": options.stop}
    for option, folder in folders.items():
        if folder and os.path.isfile(folder):
            raise UserError(f"{option}: {folder} is a file, expected the folder of a batch")
    if (options.job_file or options.join) and not options.script:
        raise UserError("-s: say with which submit script, such as submit_cpu.sh, or local")
    scripts = [script for script in (options.script, *options.more_scripts) if script]
    for script in scripts:
        if script != LOCAL and not os.path.lexists(script):
            near = closest(script, [LOCAL, *map(str, Path().glob("*.sh"))])
            hint = f"did you mean {near!r}?" if near else "-s local runs them here"
            raise UserError(f"-s {script}: No such file or directory; {hint}")
    check_workers(options)
    is_slurm = any(script != LOCAL for script in scripts)
    if options.only and not options.retry:
        raise UserError("--only: goes with -r")
    for kind in options.only or ():
        pick(dict.fromkeys(RETRYABLE), kind, "--only")
    if options.retry and options.overwrite:
        raise UserError("-o and -r exclude each other")
    if options.live and options.refreeze:
        raise UserError("--live and --refreeze exclude each other")
    for_slurm = ("no_array", "max_running", "after")
    unfit = [f"--{x.replace('_', '-')}" for x in for_slurm if getattr(options, x)]
    unfit += ["--pack"] * (options.pack > 1) + ["what follows --"] * bool(options.extra)
    if scripts == [LOCAL] and unfit:
        raise UserError(f"-s local: {unfit[0]} is for Slurm; here there is --jobs N")
    if options.gpus and not re.fullmatch(r"[\w-]+(,[\w-]+)*", options.gpus):
        raise bad_value("--gpus", options.gpus, "numbers with commas between, such as 0,1")
    if not options.patience >= 0:
        raise bad_value("--patience", options.patience, "seconds from 0 up")
    if is_slurm and LOCAL not in scripts and (options.jobs or options.gpus or options.fresh):
        hint = "on Slurm there are --max-running and --pack"
        raise UserError(f"--jobs, --gpus, --fresh: for -s local; {hint}")
    if options.no_array and (options.pack > 1 or options.max_running):
        raise UserError("--no-array: --pack and --max-running need an array")
    if options.stack not in (None, "off") and (options.no_array or options.pack > 1):
        raise UserError("--stack: goes neither with --pack nor with --no-array")
    if options.after and not re.fullmatch(r"\d+(_\d+)?", options.after):
        raise UserError(f"--after: got {options.after!r}, expected a job's number such as 1234")


def check_workers(options: SubmitOptions) -> None:
    """What --workers and --join do not go with."""
    if options.stop and (options.dry_run or options.script or options.workers or options.overwrite):
        raise UserError("--stop: goes with no other option; it stops at once")
    if options.retry and options.workers and (options.pack > 1 or options.no_array):
        raise UserError("--workers: goes neither with --pack nor with --no-array")
    if options.more_scripts and not (options.workers or options.join):
        raise UserError("-s: several submit scripts are for --workers, which share the runs")
    if options.more_scripts and options.workers and options.workers <= len(options.more_scripts):
        number = 1 + len(options.more_scripts)
        raise bad_value("--workers", options.workers, f"{number} or more, one for each -s")
    if not (options.workers or options.join):
        return
    others = {"--pack": options.pack > 1, "--no-array": options.no_array, "--jobs": options.jobs}
    others |= {"--stack": options.stack not in (None, "off"), "--max-running": options.max_running}
    if unfit := [name for name, is_given in others.items() if is_given]:
        raise UserError(f"{unfit[0]}: does not go with workers, of which --workers says how many")


if __name__ == "__main__":
    sys.exit(main())
