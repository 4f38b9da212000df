"""The command line of train.py: from its arguments to a run in this process or in several.

On several GPUs of a machine it starts and watches a process for each. Not torchrun: it keeps USR1
to itself, kills 30 seconds after TERM and has exit codes of its own, where Slurm's warnings must
reach the run and its code 75 Slurm. Where torchrun or srun have started the processes, nothing is
started here.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch

from src.config import CommandLine, Config
from src.logging import OtherRun, choose_folder, is_finished, summarize_run
from src.runtime.distributed import DistributedContext
from src.runtime.signals import StopRequested
from src.support import UserError, bad_value, processes


def run_command_line(
    program: str, arguments: Sequence[str], run_experiment: Callable[[Config], pd.DataFrame]
) -> int:
    """Run what the arguments ask for, and print what it reached; returns the exit code.

    program: the file that several processes are started with. 0: done, 2: a mistake of the
    user's, 130: Ctrl-C, 75 (EX_TEMPFAIL): stopped by Slurm's signals, to be started again.
    """
    line = config = None
    try:
        line = CommandLine(arguments)
        if line.asks_for_names:
            from src.runtime.names import describe_names

            print(describe_names(*line.asks_for_names))
            return 0
        config, note = line.checked, ""
        if config is None:  # written by submit_multiple.py --stack
            from src.stacking import run_stack

            try:
                print(run_stack(line.values["stack"]))
            except UserError as error:  # of one of the runs
                return processes.report_exit(error, 2)
            return 0
        is_stacked = config.engine == "stacked"  # one process, however many GPUs there are
        number = 1 if is_stacked else num_processes(config.multi_gpu, config.device, config.dataset)
        if "output_dir" not in line.values:
            config = _with_folder(config, Path(line.config).stem, line.messages)
        if is_finished(config):
            again = line.elsewhere(str(config.output_dir))
            note = f"this run is finished; to do it again: {again}\n"
            stats = None
        elif number > 1:
            command = [program, line.config, *line.overrides]
            if config.output_dir:
                command.append(line.override("output_dir", config.output_dir))
            command += ["--json"] * line.asks_for_json
            return launch_processes(command, number)
        else:
            if config.output_dir is None and processes.is_main_process():
                words = "output_dir is null: nothing of this run will be kept"
                print(words, file=line.messages, flush=True)
            stats = run_experiment(config)
        if processes.is_main_process():
            reached = summarize_run(config.output_dir, stats, as_json=line.asks_for_json)
            print(reached if line.asks_for_json else note + reached, flush=True)
    except OtherRun as error:
        assert line
        elsewhere = line.elsewhere(str(config and config.output_dir))
        words = _mistakes(line.values) or f"{error}; for example: {elsewhere}"
        return processes.report_exit(words, 2)
    except UserError as error:
        names = _mistakes(line.values, error) if line and config else ""
        return processes.report_exit(names or error, 2)
    except BrokenPipeError:  # `… | head`; the run is over by then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return processes.report_exit(UserError.from_os(error), 2)  # no file can have that name
    except StopRequested as stop:
        hint = "; the same command resumes it" if config and config.output_dir else ""
        return processes.report_exit(stop.message + hint, stop.exit_code)
    except KeyboardInterrupt:
        return processes.report_exit("interrupted", 130)
    return 0


def _with_folder(config: Config, name: str, messages: TextIO) -> Config:
    """The config with an output_dir, the same one for all processes of the run."""
    chosen = None
    with DistributedContext(processes.detect_rank(os.environ)) as distributed:
        if distributed.is_main:
            folder, is_resumed = choose_folder(config, name)
            chosen = str(folder)
            what = f"the run in {folder} is resumed" if is_resumed else f"this run is in {folder}"
            print(f"output_dir is not given: {what}", file=messages, flush=True)
        return replace(config, output_dir=distributed.broadcast_object(chosen))


def _mistakes(values: Mapping[str, Any], error: UserError | None = None) -> str:
    """All mistakes in names that are looked up; '' where there is none.

    Of an error in a run that already names a key: those beside it, if it is among them.
    """
    from src.grid import find_mistakes

    return "\n".join(find_mistakes(values, error)) if processes.is_main_process() else ""


# ---- A process a GPU ---------------------------------------------------------------------

ONE_IS_ENOUGH = ("libsvm", "sklearn")  # small: exchanging gradients costs more than computing them


def num_processes(multi_gpu: str | bool, device: str | None, dataset: str) -> int:
    """How many to start: 1 where the run stays in this one. UserError where it would be alone,
    and others were started."""
    started = processes.detect_rank(os.environ)
    if started and multi_gpu is False:
        expected = f"true or fsdp, as {started.size} processes were started"
        raise bad_value("multi_gpu", False, expected)
    if multi_gpu not in (True, "fsdp") or device not in (None, "cuda") or started:
        return 1
    if multi_gpu is True and dataset.partition("/")[0] in ONE_IS_ENOUGH:
        return 1
    return max(1, torch.cuda.device_count())


def launch_processes(command: Sequence[str], number: int) -> int:
    """Run a Python program in so many processes of this machine; its exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"OMP_NUM_THREADS": str(max(1, ceil(processes.num_cores()) // number))}
    common |= os.environ
    common |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {processes.LAUNCHER: str(os.getpid())}
    ranks = map(str, range(number))
    environments = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ranks]
    processes.hold_signals()
    code, _ = processes.run_programs(sys.executable, command, environments)
    return code if code >= 0 else 128 - code
