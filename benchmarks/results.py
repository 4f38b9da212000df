"""Seconds and memory to look at many results: python benchmarks/results.py [RUNS]

Generates a batch of finished runs of 20 epochs and reads it into one dataframe: at first, with
the disk's cache dropped where we may do that, then again; then the page of it.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.config import make_config, write_yaml  # noqa: E402
from src.grid.folders import plan_batch, write_batch  # noqa: E402
from src.grid.job_file import expand_grid  # noqa: E402

EPOCHS = 20
NAME = "26-11-23-generated"
MEASURES = ("loss", "accuracy", "time", "data_time")
COLUMNS = [f"train/{x}" for x in (*MEASURES, "seen_examples", "learning_rate")]
COLUMNS += [f"{split}/last/{x}" for split in ("val", "test") for x in MEASURES]
DROP = "/proc/sys/vm/drop_caches"
READ = """
import json, resource, sys, time
sys.path.insert(0, {root!r})
import pandas
from src.analysis import read_experiments
from src.analysis.curves import last
started = time.perf_counter()
df = read_experiments([{batch!r}], index_field="train/seen_examples")
taken = time.perf_counter() - started
assert len(df) == {runs} and last(df["test/last/accuracy"]).notna().all()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([taken, peak]))
"""


def grid_of(num_runs: int) -> dict[str, Any]:
    """Two optimizers, learning rates, batch sizes and ten seeds."""
    return {
        "dataset": "sklearn/digits",
        "data_splits_map": "dict(train='train[:80%]', val='train[80%:]', test='test')",
        "model": ["linear", "tiny/lenet"],
        "optim_alg": ["sgd", "adamw"],
        "batch_size": [32, 64, 128, 256, 512],
        "base_lr": [float(f"{0.001 * 1.2**i:.6g}") for i in range(max(1, num_runs // 200))],
        "seed_training": list(range(10)),
    }


def generate(place: Path, num_runs: int) -> Path:
    """A batch folder whose runs have all ended; accuracies are best at a learning rate of 0.1."""
    rows = expand_grid(grid_of(num_runs)).rows
    plan = plan_batch(place / NAME, rows, job_text="", common={})
    write_batch(plan, ROOT)
    for row in plan.batch.rows:
        finish(row.folder, row.values)
    return place / NAME


def finish(folder: Path, values: dict[str, Any]) -> None:
    """What a run of 20 epochs leaves."""
    config = make_config({"seed_model": 1, **values, "output_dir": str(folder)})
    found = {"data_n_examples": {"train": 1150, "val": 288, "test": 359}, "data_n_classes": 10}
    (folder / "config.yaml").write_text(write_yaml(vars(config) | found))
    is_small, is_sgd = config.model == "linear", config.optim_alg == "sgd"
    far = abs(math.log10(config.base_lr / (0.3 if is_sgd else 0.1)))  # from the best one
    top = 0.97 - 0.02 * far - 0.03 * is_small + 0.001 * config.seed_training
    cost = (0.1 if is_small else 0.3) * (32 / config.batch_size) ** 0.5
    lines = [",".join(["", "epoch", "step", "timestamp", *COLUMNS])]
    for epoch in range(1, EPOCHS + 1):
        accuracy = top * (1 - math.exp(-epoch / 4))
        train = (2.3 * (1 - accuracy), accuracy, cost, 0.01, epoch * 1150, config.base_lr)
        val = (2.4 * (1 - accuracy), accuracy - 0.01, 0.02, 0.001)
        test = (2.5 * (1 - accuracy), accuracy - 0.02, 0.02, 0.001)
        stamp = f"2026-11-23T00:00:{epoch:02}+00:00"
        numbers = ",".join(f"{x:.9g}" for x in (*train, *val, *test))
        lines.append(f"{epoch - 1},{epoch},{epoch * 15},{stamp},{numbers}")
    (folder / "stats.csv").write_text("\n".join(lines) + "\n")
    (folder / "done").write_text('{"outcome": "finished", "time": "2026-11-23T00:00:00+00:00"}')
    (folder / "status.json").write_text('{"state": "done", "progress": 1.0, "host": "node1"}')


def read(batch: Path, num_runs: int) -> tuple[float, float]:
    """(seconds, MB at the most) of a new process that reads the batch, its imports apart."""
    script = READ.format(root=str(ROOT), batch=str(batch), runs=num_runs)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    taken, peak = json.loads(done.stdout)
    return taken, peak


def make_page(batch: Path, page: Path) -> tuple[float, float]:
    """(seconds, MB of the file) of report.py --html, start and imports included."""
    command = [sys.executable, str(ROOT / "report.py"), str(batch), "--html", str(page)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started, page.stat().st_size / 1e6


def drop_caches() -> bool:
    """Whether the disk has to be read again."""
    os.sync()
    try:
        Path(DROP).write_text("3\n")
        return True
    except OSError:
        return False


def main() -> None:
    num_runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    place = Path(tempfile.mkdtemp())
    first, again = [], []
    try:
        batch = generate(place, num_runs)
        for _ in range(3):
            (batch / ".big_df.npz").unlink(missing_ok=True)
            is_cold = drop_caches()
            first.append(read(batch, num_runs))
            again.append(read(batch, num_runs))
        seconds, size = make_page(batch, place / "page.html")
    finally:
        shutil.rmtree(place)
    how = "cold" if is_cold else "without a cache of ours; the disk's could not be dropped"
    print("| what | limit, s | median, s | MB at most |\n|---|---|---|---|")
    for what, limit, taken in ((f"the first time, {how}", 8, first), ("again", 1, again)):
        middle, memory = median(t for t, _ in taken), max(m for _, m in taken)
        print(f"| read {num_runs:,} runs {what} | {limit} | {middle:.2f} | {memory:.0f} |")
    print(f"| the page of them, {size:.1f} MB, once | - | {seconds:.1f} | - |")


if __name__ == "__main__":
    main()
