"""What it costs to tell four trackers and to record the machine's use: steps with them and without.

    python benchmarks/recording.py      about ten minutes; part of make bench

Two runs that differ in nothing else take turns of a few epochs each; the ratio is that of their
times, the median over the turns. Trackers are offline, as without credentials. After its turn each
run waits until its trackers have logged everything, so that no turn pays for another's. CPU: the
processor's seconds of a turn with and without, trackers in it.
"""

import os
import sys

if __name__ == "__main__" and len(sys.argv) > 2:
    os.environ |= {"OMP_NUM_THREADS": sys.argv[2], "MKL_NUM_THREADS": sys.argv[2]}

import datetime
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench import machine, make_dense  # noqa: E402 - after the path
from benchmarks.turns import (  # noqa: E402
    Contestant,
    Segments,
    answer,
    measured,
    own_folder,
    times_as_fast,
)

TURNS = 15
EPOCHS_OF_A_TURN = 4
SECONDS_TO_TELL = 3.0
DENSE = {
    "dataset": "libsvm/covtype.multiclass",
    "data_splits_map": {"train": "train"},
    "averaging": "poly_8",
    "batch_size": 512,
    "steps_per_epoch": 3000,
}
LENET = {
    "dataset": "sklearn/digits",
    "model": "tiny/lenet",
    "batch_size": 100,
    "steps_per_epoch": 400,
}
WORK = {"linear, batch 512": DENSE, "LeNet, batch 100": LENET}
RECORDED = {"trackers": ["wandb", "comet", "tensorboard", "trackio"]}
PLAIN = {"system_interval": 0}


def main() -> None:
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    print("| work | threads | s a turn without | speed with / without | turns from … to | CPU, s |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dense(folder)
        os.environ |= {"TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
        os.environ.pop("COMET_API_KEY", None)
        for work in sys.argv[1:] or WORK:
            for threads in (1, os.cpu_count() or 1):
                print(row(work, threads, folder), flush=True)


def row(work: str, threads: int, folder: Path) -> str:
    running = {
        kind: Contestant(__file__, work, str(threads), kind, str(own_folder(folder, kind)))
        for kind in ("with", "without")
    }
    try:
        seconds, cpu = measured(running, TURNS)
    finally:
        for contestant in running.values():
            contestant.close()
    ratios = [b / a for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    ratio = times_as_fast(seconds["with"], seconds["without"])
    usual = statistics.median(seconds["without"])
    spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
    used = f"{cpu['with']:.2f} / {cpu['without']:.2f}"
    return f"| {work} | {threads} | {usual:.1f} | {ratio:.3f} | {spread} | {used} |"


def segments(work: str, kind: str, folder: Path) -> Segments:
    from src.config import make_config
    from train import experiment_generator

    of_all: dict[str, Any] = {"optim_alg": "adam", "base_lr": 1e-3, "device": "cpu"}
    of_all |= {"num_workers": 0, "train_length": 1000, "save_plot": False}
    of_all |= {"data_dir": str(folder / "data"), "output_dir": str(folder / f"run-{os.getpid()}")}
    keys = of_all | WORK[work] | (RECORDED if kind == "with" else PLAIN)
    generator = experiment_generator(make_config(keys))
    next(generator)
    sleep(4 * SECONDS_TO_TELL)  # while trackers start
    while True:
        started = perf_counter()
        for _ in range(EPOCHS_OF_A_TURN):
            next(generator)
        seconds = perf_counter() - started
        sleep(SECONDS_TO_TELL)
        yield seconds


if __name__ == "__main__":
    if len(sys.argv) > 2:
        answer(segments(sys.argv[1], sys.argv[3], Path(sys.argv[4])))
    main()
