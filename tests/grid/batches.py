"""Batches of runs that a train.py of the test's own runs."""

from pathlib import Path

from src.grid.folders import Batch, plan_batch, write_batch


def code_of(tmp_path: Path, program: str) -> Path:
    """A folder of code whose train.py this is."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(program)
    return tmp_path / "code"


def batch_of(tmp_path: Path, *names: str) -> Batch:
    """A run for each name, which the key dataset of its spec.yaml begins with."""
    grid = [{"dataset": f"{name}{i}"} for i, name in enumerate(names)]
    plan = plan_batch(tmp_path / "batch", grid, job_text="", common={})
    write_batch(plan, tmp_path)
    return plan.batch
