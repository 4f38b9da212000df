"""Seconds for large grids: python benchmarks/grids.py [ROWS]

expand, check, write, read again as a report; and, where Slurm is there, submit a tenth of
the rows to it. Medians of three; the limits are what a person waits for without wondering.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.grid.check import check_rows  # noqa: E402
from src.grid.folders import Plan, plan_batch, write_batch  # noqa: E402
from src.grid.job_file import expand_grid  # noqa: E402
from src.grid.journal import SubmitOptions  # noqa: E402
from src.grid.reports import read_reports  # noqa: E402
from src.grid.slurm import ask  # noqa: E402
from src.grid.submission import Submission  # noqa: E402

EPOCHS = 20
COLUMNS = ("train/loss", "train/accuracy", "train/time", "test/last/loss", "test/last/accuracy")


def seconds(what: Callable[[], object], *, repeat: int = 3) -> float:
    taken = []
    for _ in range(repeat):
        started = time.perf_counter()
        what()
        taken.append(time.perf_counter() - started)
    return median(taken)


def grid_of(num_rows: int) -> dict[str, object]:
    """One line of every kind that a job file knows."""
    return {
        "dataset": "sklearn/digits",
        "model": ["linear", "tiny/lenet"],
        "LIST_optimizer": [
            {"optim_alg": "sgd", "momentum": [0.0, 0.9]},
            {"optim_alg": "adamw", "momentum": [0.9, 0.95]},
        ],
        "base_lr": {"loguniform": [1e-4, 1.0], "n": num_rows // 80, "seed": 1},
        "seed_training": list(range(10)),
    }


def finish(folder: Path) -> None:
    """What a run of 20 epochs leaves, as far as a report reads it."""
    header = ",".join(["", "epoch", "step", "timestamp", *COLUMNS])
    line = "2026-11-23T00:00:00+00:00," + ",".join(["0.123456789"] * len(COLUMNS))
    rows = "\n".join(f"{i},{i + 1},{i * 100},{line}" for i in range(EPOCHS))
    (folder / "stats.csv").write_text(f"{header}\n{rows}\n")
    (folder / "done").write_text('{"outcome": "finished", "time": "2026-11-23T00:00:00+00:00"}')
    (folder / "status.json").write_text('{"state": "done", "progress": 1.0}')


def submit(place: Path, num_rows: int) -> float:
    """Seconds to hand them to Slurm, which holds and then forgets them."""
    grid = expand_grid(grid_of(num_rows)).rows
    plan = plan_batch(place / "26-11-23-slurm", grid, job_text="", common={})
    write_batch(plan, ROOT)
    (place / "true.sh").write_text("#!/bin/bash\ntrue\n")
    options = SubmitOptions(script=str(place / "true.sh"), extra=["--hold"])
    jobs: list[str] = []
    taken = seconds(
        lambda: jobs.extend(Submission(plan.batch, options, place).submit(plan.wanted)), repeat=1
    )
    subprocess.run(["scancel", *jobs], check=True)
    return taken


def main() -> None:
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    place = Path(tempfile.mkdtemp())
    folder = place / "26-11-23-bench"
    table: list[tuple[str, int | None, float]] = []
    try:
        rows = expand_grid(grid_of(num_rows)).rows
        table.append(
            (f"expand {len(rows):,} rows", 2, seconds(lambda: expand_grid(grid_of(num_rows))))
        )
        table.append((f"check {len(rows):,} rows", None, seconds(lambda: check_rows(rows))))
        plan = plan_batch(folder, rows, job_text="", common={})
        table.append((f"write {len(rows):,} folders", 10, seconds(lambda: write(plan, folder))))
        for row in plan.batch.rows:
            finish(row.folder)
        table.append(
            (
                f"report on {len(rows):,} runs",
                3,
                seconds(lambda: read_reports([folder])),
            )
        )
        if shutil.which("sbatch") and "SLURM_CONF" in os.environ:
            ask(["sinfo"])
            table.append((f"submit {num_rows // 10:,} rows", 5, submit(place, num_rows // 10)))
    finally:
        shutil.rmtree(place)
    print("| what | limit, s | median, s |\n|---|---|---|")
    for what, limit, taken in table:
        print(f"| {what} | {limit or '-'} | {taken:.2f} |")


def write(plan: Plan, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    write_batch(plan, ROOT)


if __name__ == "__main__":
    main()
