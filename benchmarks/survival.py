"""What resuming costs: saving states, and starting again.

    python benchmarks/survival.py               both tables, about ten minutes; part of make bench
    python benchmarks/survival.py restart       one of them

Saving: one run whose epochs take turns, one that saves a state and one that does not; the cost
of a save is the median difference, the copy and the slowdown by the writing thread in it.
Starting: seconds from the start of a process to the end of its first optimizer step, of a new
run and of one that resumes from a state; medians, the processes taking turns.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import datetime
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench import machine, make_dense, make_images  # noqa: E402 - after the path

TURNS = 9
DENSE = {
    "dataset": "libsvm/covtype.multiclass",
    "data_splits_map": {"train": "train"},
    "model": "linear",
    "averaging": "poly_8",
}
DIGITS = {"dataset": "sklearn/digits", "data_splits_map": {"train": "train[:200]"}}
# (what, keys, steps of an epoch, which must take longer than writing the state)
SAVED = [
    ("linear, 385 parameters, 581,012 rows", DENSE, 5000),
    ("WRN-40-2, 2.2 million", DIGITS | {"model": "tiny/wrn_40_2", "batch_size": 20}, 15),
    ("ResNet-50, 24 million", DIGITS | {"model": "timm/resnet50", "batch_size": 8}, 40),
]
IMAGES = {"model": "tiny/wrn_16_4", "batch_size": 32, "num_workers": 2}
# (what, keys, steps of the run, steps after which it resumes)
RESTARTED = [
    ("linear, 581,012 rows", DENSE, 600_000, [30, 300_001, 590_000]),
    ("images, 2 workers", IMAGES, 1600, [3, 1001]),
]


def main() -> None:
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    wanted = sys.argv[1:] or ["saving", "restart"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dense(folder)
        make_images(folder)
        if "saving" in wanted:
            saving(folder)
        if "restart" in wanted:
            restart(folder)


def config(folder: Path, keys: dict[str, Any], **more: Any) -> Any:
    from src.config import make_config

    of_all = {"optim_alg": "adam", "base_lr": 1e-3, "device": "cpu", "num_workers": 0}
    of_all |= {"data_dir": str(folder / "data"), "seed_model": 0, "seed_training": 0}
    if keys is IMAGES:
        of_all["dataset"] = f"timm/folder/{folder / 'images'}"
    return make_config(of_all | {"output_dir": str(folder / "run")} | keys | more)


# ---- Saving ------------------------------------------------------------------------------


def saving(folder: Path) -> None:
    print("## Saving a state, every 10 minutes by default\n")
    print("| run | state, MB | a save holds up training, s | share of the time |")
    print("|---|---|---|---|", flush=True)
    for name, keys, num_steps in SAVED:
        size, seconds = cost_of_a_save(folder, keys, num_steps)
        print(f"| {name} | {size:.1f} | {seconds:.3f} | {seconds / 600:.2%} |", flush=True)
        shutil.rmtree(folder / "run")
    print()


def cost_of_a_save(folder: Path, keys: dict[str, Any], num_steps: int) -> tuple[float, float]:
    """(MB of the file, seconds that an epoch with a save takes longer)."""
    import torch

    from src.runtime import checkpoints as module
    from train import experiment_generator

    torch.set_num_threads(1)
    more = {"steps_per_epoch": num_steps, "train_length": 10_000, "save_plot": False}
    generator = experiment_generator(config(folder, keys, **more))
    next(generator)
    longer = []
    for turn in range(TURNS):
        seconds = {}
        for share in (0.0, float("inf")) if turn % 2 else (float("inf"), 0.0):
            module.SHARE = share
            started = perf_counter()
            next(generator)
            seconds[share] = perf_counter() - started
        longer.append(seconds[float("inf")] - seconds[0.0])
    newest = max((folder / "run" / "state").iterdir())
    size = newest.stat().st_size / 1e6
    generator.close()
    return size, statistics.median(longer[1:])


# ---- Starting again ----------------------------------------------------------------------

TO_THE_FIRST_STEP = """
import os, sys, train
whole = train.train_step
def until(*arguments):
    whole(*arguments)
    os._exit(0)
train.train_step = until
sys.exit(train.main([sys.argv[1]]) or 'no step was left')
"""


def restart(folder: Path) -> None:
    print("## From process start to the end of the first new step\n")
    print("| run | resumes after step | seconds | seconds beyond a new run |")
    print("|---|---|---|---|", flush=True)
    for name, keys, num_steps, stops in RESTARTED:
        runs = {stop: prepared(folder, keys, num_steps, stop) for stop in [0, *stops]}
        seconds: dict[int, list[float]] = {stop: [] for stop in runs}
        for _ in range(TURNS):
            for stop, path in runs.items():
                seconds[stop].append(to_the_first_step(path))
        medians = {stop: statistics.median(of[1:]) for stop, of in seconds.items()}
        for stop, median in medians.items():
            what = f"{stop:,} of {num_steps:,}" if stop else "a new run"
            print(f"| {name} | {what} | {median:.2f} | {median - medians[0]:+.2f} |", flush=True)
    print()


def prepared(folder: Path, keys: dict[str, Any], num_steps: int, stop: int) -> Path:
    """A configuration, and where stop > 0 the state that a run of it has after `stop` steps."""
    from src.runtime.checkpoints import CheckpointFiles
    from train import experiment_generator

    out = folder / f"run-{stop}"
    shutil.rmtree(out, ignore_errors=True)
    lengths = {"train_length": num_steps, "train_length_unit": "step", "save_plot": False}
    run = config(folder, keys, **lengths, output_dir=str(out), steps_per_epoch=num_steps)
    out.mkdir()
    if stop:
        # The states of a short run and of a long one differ in the position alone.
        short = config(folder, keys, **lengths | {"train_length": 5}, output_dir=str(out))
        list(experiment_generator(short))
        files = CheckpointFiles(out / "state")
        state = files.newest()
        assert state
        for of in state["config"].values():
            of |= {"train_length": num_steps, "steps_per_epoch": num_steps}
        state |= {"step": stop, "epoch": 0, "outcome": None}
        state["parts"]["stats"]["rows"] = []
        files.prune(0)
        files.save(stop, state)
        (out / "done").unlink()
    run.save(out / "spec.yaml")
    return out / "spec.yaml"


def to_the_first_step(path: Path) -> float:
    started = perf_counter()
    command = [sys.executable, "-c", TO_THE_FIRST_STEP, str(path)]
    subprocess.run(command, check=True, cwd=ROOT)
    return perf_counter() - started


if __name__ == "__main__":
    main()
