"""Batches made by hand, as runs would leave them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from src.grid.folders import Row, open_batch


def make_batch(folder: Path, rows: list[dict]) -> Path:
    """A batch with a row for each of the values."""
    (folder / "submissions").mkdir(parents=True)
    entries = [{"folder": f"{i:03d}_{folder.name}", "values": v} for i, v in enumerate(rows)]
    for entry in entries:
        (folder / entry["folder"]).mkdir()
        (folder / entry["folder"] / "spec.yaml").touch()
    (folder / "rows.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    return folder


def five_runs(folder: Path) -> Path:
    """Two runs done, two failed in the same way, one never started."""
    values = [{"lr": lr, "bs": bs} for lr, bs in ((0.1, 1), (0.2, 1), (0.1, 8), (0.2, 8), (0.3, 1))]
    rows = open_batch(make_batch(folder, values)).rows
    finish(rows[0], [0.5, 0.9, 0.7])
    finish(rows[1], [0.8, 0.6], outcome="diverged")
    fail(rows[2], "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    fail(rows[3], "OutOfMemoryError: CUDA out of memory. Tried to allocate 30 GiB")
    return folder


def finish(row: Row, values: list[float], *, outcome: str = "finished") -> None:
    """As a run of an hour would leave its folder."""
    lines = [f"{i},{i + 1},{i * 10},0.1,{v}" for i, v in enumerate(values)]
    header = ",epoch,step,test/last/loss,test/last/accuracy"
    (row.folder / "stats.csv").write_text("\n".join([header, *lines]) + "\n")
    now = datetime.now(UTC)
    started = (now - timedelta(hours=1)).isoformat(timespec="seconds")
    (row.folder / "status.json").write_text(json.dumps({"started": started, "host": "n1"}))
    end = {"outcome": outcome, "time": now.isoformat(timespec="seconds")}
    (row.folder / "done").write_text(json.dumps(end))


def fail(row: Row, error: str) -> None:
    facts = {"state": "failed", "error": error, "host": "n2", "progress": 0.5}
    (row.folder / "status.json").write_text(json.dumps(facts))


def spend(row: Row, cores: float, gpus: float = 0.0, *, lost: float = 0.0) -> None:
    """An attempt that took so many hours; lost: hours of cores wasted before it."""
    path = row.folder / "status.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    before = {"core_seconds": 3600 * lost, "gpu_seconds": 0.0}
    spent = {"core_seconds": 3600 * cores, "gpu_seconds": 3600 * gpus}
    current = {"cost": spent, "first_step": 0, "step": 10}
    cost = {"before": before, "lost": before, "waiting": None, "current": current}
    path.write_text(json.dumps(facts | {"cost": cost}))
