"""`python train.py` on several GPUs of a machine: a process for each, started and watched here.

Not torchrun: it keeps USR1 to itself, kills 30 seconds after TERM and has exit codes of its own,
where Slurm's warnings must reach the run and its code 75 Slurm. Where torchrun or srun have
started the processes, nothing is started here.
"""

import os
import socket
import sys
from collections.abc import Sequence
from math import ceil

import torch

from src.runtime.distributed import detect_rank
from src.support import bad_value, processes

ONE_IS_ENOUGH = ("libsvm", "sklearn")  # rows in memory: gradients would travel longer than wait


def num_processes(multi_gpu: str | bool, device: str | None, dataset: str) -> int:
    """How many to start: 1 where the run stays in this one. UserError where it would be alone,
    and others were started."""
    place = detect_rank(os.environ)
    if place and multi_gpu is False:
        raise bad_value("multi_gpu", False, f"true or fsdp, as {place.size} processes were started")
    if multi_gpu not in (True, "fsdp") or device not in (None, "cuda") or place:
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
    ranks = [str(rank) for rank in range(number)]
    processes.hold_signals()
    environments = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ranks]
    code, _ = processes.run_programs(sys.executable, command, environments)
    return code if code >= 0 else 128 - code
