"""Stacks as tasks of a real Slurm: preempted in the middle, each run is the one that it is here."""

import json
import re

import pandas as pd
import pytest

from src.grid.journal import Journal
from src.logging import Stats
from tests.waiting import wait_until
from tests.whole_runs import without_times

JOB = """\
job_details: {name: x, output_dir: OUT}
parameters:
  dataset: sklearn/digits
  model: linear
  batch_size: [70, 80]
  base_lr: [0.1, 0.2, 1.0e+6]
  max_allowed_loss: 1.0e+5
  averaging: ema
  train_length: 500
  seed_model: 1
  seed_training: 2
  save_plot: false
"""


@pytest.mark.slow
def test_a_preempted_stack_ends_as_it_does_here(cluster, repository):
    repository.write("job.yaml", JOB.replace("OUT", "results"))
    arguments = ("job.yaml", "-s", "submit_cpu.sh", "--stack", "auto")
    planned = repository.submit(*arguments, "-d", env=cluster.env)
    assert "trained together: 2 stacks of 3 runs" in planned
    assert "--array=0-1" in planned
    output = repository.submit(*arguments, env=cluster.env)
    assert "submitted 6 runs as 1 job" in output
    rows = repository.rows()

    def progress(row: int) -> float:
        path = rows[row] / "status.json"
        return json.loads(path.read_text()).get("progress", 0) if path.exists() else 0

    wait_until(lambda: progress(0) > 0)
    (call,) = Journal(repository.batch / "submissions").calls.values()
    assert call.sizes == (3, 3)
    assert [name[:3] for name in call.rows_of_task(1)] == ["003", "004", "005"]
    cluster.slurm("scontrol", "requeue", f"{call.job}_0")
    cluster.wait()
    outcomes = [json.loads((row / "done").read_text())["outcome"] for row in rows]
    assert outcomes == ["finished", "finished", "diverged"] * 2
    logs = {(row / "job.log").resolve(): (row / "job.log").read_text() for row in rows}
    assert len(logs) == 2
    begun = [len(re.findall(r"^--- \S+ job \S+ on ", log, re.MULTILINE)) for log in logs.values()]
    assert begun == [2, 1]

    repository.write("here.yaml", JOB.replace("OUT", "here"))
    repository.submit("here.yaml", "-s", "local", "--stack", "auto")
    for row in rows:
        (twin,) = (repository.path / "here").glob(f"*/{row.name}")
        own, expected = (without_times(Stats.read(folder)) for folder in (row, twin))
        pd.testing.assert_frame_equal(own, expected, check_exact=True)
