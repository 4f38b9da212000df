"""What tests of whole runs share: how they end, the certificate, a grid on this machine."""

import io
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

import pandas as pd
import torch
import yaml

import submit_multiple
import train
import verify_resume
from src.grid import check
from src.logging.records import Stats
from src.metrics import is_time
from src.runtime import certificate as kills
from src.runtime.checkpoints import CheckpointFiles
from src.runtime.signals import StopRequested
from src.stacking.learner import StackedLinear
from tests.forks import Fork, LookupFork
from train import run_experiment

ROOT = Path(__file__).parents[1]
SECONDS = ("training_seconds", "run_seconds")  # of a state


def without_times(stats: pd.DataFrame) -> pd.DataFrame:
    """What is the same in each run of a configuration."""
    return stats.drop(columns=[c for c in stats if is_time(c)])


def lasting(value):
    """A state without times, and with tensors as bytes."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in SECONDS and not is_time(str(k))}
        return {key: lasting(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [lasting(item) for item in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    return repr(value)  # NaN is NaN, -0.0 is not 0.0


def end_of(config) -> dict:
    """The last state of a run, and its stats, without times."""
    state = CheckpointFiles(Path(config.output_dir) / "state").newest()
    state.pop("config")
    stats = pd.read_csv(Path(config.output_dir) / "stats.csv", index_col=0)
    return {"state": lasting(state), "stats": without_times(stats).to_csv()}


def run_through(config) -> int:
    """Start it again until it is done; how many attempts it took."""
    for attempt in range(1, 100):
        try:
            run_experiment(config)
            return attempt
        except StopRequested:
            assert not (Path(config.output_dir) / "done").exists()
    raise AssertionError("it never ends")


def killed_in_steps(main: Callable[[], int], draw: random.Random, most_kills: int = 60) -> int:
    """Start main() in forks until it returns 0, and kill each in one of its first 12 steps of a
    stack; how many attempts it took. Half of the kills are signals that save, half do not ask."""
    for attempt in range(1, 60):
        step_to_die = draw.randint(1, 12) if attempt <= most_kills else 0
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])

        def killed(step_to_die: int = step_to_die, number: int = number) -> int:
            whole, count = StackedLinear.step, 0

            def step(self, *arguments) -> None:
                nonlocal count
                count += 1
                if count == step_to_die:
                    os.kill(os.getpid(), number)
                whole(self, *arguments)

            StackedLinear.step = step
            return main()

        with tempfile.TemporaryFile("w+b") as output:
            code = Fork(killed, output).wait()
            output.seek(0)
            assert code in (0, 75, -signal.SIGKILL), output.read().decode()
        if code == 0:
            return attempt
    raise AssertionError("no end")


def certificate(keys: dict, folder: Path, *options: str) -> tuple[int, str]:
    """The exit code of verify_resume.py, and what it prints. The runs that it kills are forks of
    this process: the same as processes of their own, without the seconds of a start."""
    config, temporary = folder / "cfg.yaml", folder / "temporary"
    config.write_text(yaml.safe_dump({k: v for k, v in keys.items() if k != "output_dir"}))
    output = io.StringIO()
    short = tempfile.mkdtemp()  # a path with room for the sockets of worker processes
    with (
        patch.object(tempfile, "tempdir", short),
        patch.object(kills, "start", train_in_fork),
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        code = verify_resume.main([str(config), *options])
    shutil.move(short, temporary)
    return code, output.getvalue().replace(short, str(temporary))


def train_in_fork(arguments: Sequence[str], output: BinaryIO) -> Fork:
    return Fork(lambda: train.main(list(arguments)), output)


def submit_here(job: Path) -> int:
    """The exit code of `submit_multiple.py JOB -s local --jobs 2`, which looks names up in a fork
    of this process."""
    with patch.object(check, "_lookup_process", LookupFork.started):
        return submit_multiple.main([str(job), "-s", "local", "--jobs", "2"])


def grid_here(parameters: dict, folder: Path) -> list[pd.DataFrame]:
    """The stats of the rows, two of which run at a time, as submit_here starts them."""
    details = {"name": "grid", "output_dir": str(folder / "batches")}
    parameters = {k: v for k, v in parameters.items() if k != "output_dir"}
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump({"job_details": details, "parameters": parameters}))
    assert submit_here(job) == 0
    batch = folder / "batches" / f"{date.today():%y-%m-%d}-grid"
    return [Stats.read(file.parent) for file in sorted(batch.glob("*/stats.csv"))]
