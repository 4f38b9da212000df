"""Speed and memory beside a bare PyTorch loop and other trainers, on one thread.

    make bench                                  every table, about 15 minutes
    python benchmarks/bench.py dense startup    some of them

Each contestant has a process of its own, and they take turns (benchmarks/turns.py); a ratio is
the median over the turns. Peak memory is that of the process, less what `import torch` takes.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.turns import (  # noqa: E402 - after the path
    Contestant,
    answer,
    high_water_mark,
    own_folder,
    seconds_of_turns,
    times_as_fast,
)

# (table, batch size, steps in a segment, turns)
ROWS = {
    "dense": [(8, 3000, 7), (100, 2000, 7), (512, 700, 7), (8192, 71, 5)],
    "evaluation": [(100, 1, 7), (512, 1, 7), (8192, 1, 7)],
    "sparse": [(100, 300, 5), (512, 100, 5)],
    "images": [(128, 2, 5)],
    "metrics": [(100, 200, 15)],
}
TITLES = {
    "dense": "Training, 581,012 x 54 dense, 7 classes, linear, Adam, poly_8",
    "evaluation": "An evaluation pass over 581,012 rows",
    "sparse": "Training, 700,000 x 47,236 sparse (0.16 % filled), 2 classes, linear, Adam",
    "images": "Training, WRN-16-4 on 32x32 images, SGD",
    "metrics": "Training, LeNet on 10,000 images of 28x28 in memory, Adam",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="some of the contestants; the bare loop always")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(ROWS)}, startup")
    options = parser.parse_args()
    if options.worker:
        return work(*options.worker)
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for table in options.tables or [*ROWS, "startup"]:
            if table == "startup":
                start_up(Path(folder))
            else:
                MAKE_DATA[table](Path(folder))
                compare(table, Path(folder), options.only)


def machine() -> str:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{model}, one thread, Python {platform.python_version()}, torch {torch.__version__}"


# ---- One table ---------------------------------------------------------------------------


def contestants_of(table: str) -> dict[str, Callable]:
    from benchmarks import contestants as c

    tables = {"dense": c.DENSE, "evaluation": c.EVALUATION, "sparse": c.SPARSE}
    tables |= {"images": c.IMAGES, "metrics": c.METRICS}
    return (tables | {"modules": {"modules": c.modules_alone}})[table]


def contestant(table: str, batch_size: int, name: str, folder: Path) -> Contestant:
    return Contestant(__file__, "--worker", table, str(batch_size), name, str(folder))


def work(table: str, batch_size: str, name: str, folder: str) -> None:
    """The other end of a contestant."""
    import torch

    torch.set_num_threads(1)
    before = high_water_mark()
    num_steps = next((s for b, s, _ in ROWS.get(table, []) if b == int(batch_size)), 20)
    own = own_folder(Path(folder), name)
    answer(contestants_of(table)[name](int(batch_size), num_steps, own), before)


def compare(table: str, folder: Path, only: list[str] | None) -> None:
    """Print a table: a row a batch size and contestant, in speed relative to the bare loop."""
    print(f"## {TITLES[table]}\n")
    print("| batch | contestant | speed relative to the bare loop | ms a step | peak memory, MB |")
    print("|---|---|---|---|---|", flush=True)
    names = [n for n in contestants_of(table) if only is None or n in ("bare loop", *only)]
    for batch_size, num_steps, turns in ROWS[table]:
        running = {name: contestant(table, batch_size, name, folder) for name in names}
        seconds = seconds_of_turns(running, turns)
        for name, of_turns in seconds.items():
            ratio = times_as_fast(of_turns, seconds["bare loop"])
            ms = 1000 * statistics.median(of_turns) / num_steps
            memory = running[name].ask("memory")
            print(f"| {batch_size} | {name} | {ratio:.2f} | {ms:.3f} | {memory:.0f} |", flush=True)
        for process in running.values():
            process.close()
    modules = contestant("modules", 1, "modules", folder)
    modules.ask("segment")
    taken = modules.ask("memory")
    modules.close()
    print(f"\nOf our memory {taken:.0f} MB are modules: what a run on 150 flowers takes.\n")


# ---- Data in the formats that a user would have ------------------------------------------


def make_dense(folder: Path) -> None:
    from benchmarks.contestants import covtype_like

    cache = folder / "data" / "libsvm"
    cache.mkdir(parents=True, exist_ok=True)
    inputs, targets = covtype_like()
    np.save(cache / "covtype.multiclass_X.npy", np.asfortranarray(inputs.double().numpy()))
    np.save(cache / "covtype.multiclass_y.npy", targets.double().numpy() + 1)


def make_sparse(folder: Path) -> None:
    """700,000 rows of 75 or 76 entries each, columns in the skew of words."""
    import scipy.sparse

    cache = folder / "data" / "libsvm"
    cache.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, columns, filled = 700_000, 47_236, 75
    indices = (columns * rng.random(rows * filled, dtype=np.float32) ** 2).astype(np.int32)
    values = rng.random(rows * filled, dtype=np.float32).astype(np.float64)
    starts = np.arange(0, rows * filled + 1, filled, dtype=np.int32)
    inputs = scipy.sparse.csr_matrix((values, indices, starts), (rows, columns))
    inputs.sum_duplicates()
    targets = np.where(inputs[:, :500].sum(1).A1 > inputs[:, 500:1500].sum(1).A1, 1.0, -1.0)
    scipy.sparse.save_npz(cache / "rcv1.binary_X.npz", inputs.tocsc(), compressed=False)
    np.save(cache / "rcv1.binary_y.npy", targets)
    crow_bytes = 8 * inputs.nnz + 4 * (rows + 1)
    print(f"(its CSR arrays, float32 and int32, take {crow_bytes / 2**20:.0f} MB)\n")


def make_images(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(640):
        split = "train" if number < 512 else "test"
        path = folder / "images" / split / f"class_{number % 10}"
        path.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{number}.png")


MAKE_DATA = {
    "dense": make_dense,
    "evaluation": make_dense,
    "sparse": make_sparse,
    "images": make_images,
    "metrics": lambda folder: None,
}


# ---- From nothing to the first step ------------------------------------------------------

FIRST_STEP = """
import os, sys
from src.config import make_config
from train import experiment_generator
keys = dict(dataset="sklearn/digits", data_splits_map=dict(train="train"), model="linear")
next(experiment_generator(make_config(keys | dict(steps_per_epoch=1, output_dir=sys.argv[1]))))
os._exit(0)
"""


def start_up(folder: Path) -> None:
    """Seconds of a process that imports torch, and of one that does a first step."""
    commands = {
        "import torch": ["-c", "import torch"],
        "first step on sklearn/digits": ["-c", FIRST_STEP, str(folder / "first")],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(8):
        for name, command in commands.items():
            started = perf_counter()
            subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
            seconds[name].append(perf_counter() - started)
    print("## From process start to the first optimizer step\n")
    print("| process | seconds |\n|---|---|")
    for name, of_runs in seconds.items():
        print(f"| {name} | {statistics.median(of_runs[1:]):.2f} |")
    print()


if __name__ == "__main__":
    main()
