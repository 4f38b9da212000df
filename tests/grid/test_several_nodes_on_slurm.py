"""One run on two nodes of a real Slurm cluster, by srun: as one process trains it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from src.grid.journal import Journal
from src.logging.records import Stats
from src.metrics import is_time
from src.runtime.checkpoints import CheckpointFiles
from tests.waiting import wait_until
from train import run_experiment

KEYS = {"dataset": "sklearn/digits", "model": "linear", "batch_size": 22, "averaging": "ema_0.9"}
KEYS |= {"seed_model": 0, "seed_training": 1, "base_lr": 0.05, "save_plot": False}
KEYS |= {"train_length_unit": "step", "steps_per_epoch": 1000, "checkpoint_minutes": 0.02}
KEYS |= {"device": "cpu"}
NODES = ("-N", "2", "--ntasks-per-node=1", "--gpus-per-node=0", "--mem=1G", "-p")

TASKS = """\
import os, signal, sys, time
from pathlib import Path

folder, rank = Path(sys.argv[1]).parent, os.environ["SLURM_PROCID"]
if (folder / "state").exists():
    (folder / "done").write_text('{"outcome": "finished"}')
    sys.exit()
if rank == "0":
    signal.signal(signal.SIGTERM, lambda *_: (folder / "state").touch() or sys.exit(75))
(folder / f"begun{rank}").touch()
time.sleep(100)
"""
RUNS_TASKS = """\
#!/bin/bash
#SBATCH --open-mode=append
exec "$EXPERIMENT_PYTHON" -m src.submit.attempt --srun tasks.py "$1"
"""


def await_step(row: Path, step: int, cluster) -> None:
    while json.loads(text_of(row / "status.json") or "{}").get("step", 0) < step:
        assert cluster.jobs("PD,R,CG"), text_of(row / "job.log")


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def submitted(cluster, repository, partition: str, **keys) -> tuple[Path, str]:
    """The folder and the job of a run on two nodes."""
    repository.job(json.dumps(KEYS | keys))
    arguments = ("job.yaml", "-s", "submit_multigpu.sh", "--no-array", "--", *NODES, partition)
    repository.submit(*arguments, env=cluster.env)
    (row,) = repository.rows()
    (call,) = Journal(repository.batch / "submissions").calls.values()
    return row, call.job


def preempt_by_another(cluster) -> None:
    """A job of a partition that goes first, on all nodes."""
    first = ("-p", "high", "-N", "4", "--exclusive", "--mem=0", "-o", "/dev/null")
    cluster.slurm("sbatch", *first, "--wrap", "sleep 3")


@pytest.mark.slow
def test_a_run_on_two_nodes_is_preempted_and_ends_as_one_process_does(
    cluster, repository, digits, tmp_path
):
    """By a requeue, and then by another job."""
    length = 6000
    row, job = submitted(cluster, repository, "killable", train_length=length)
    await_step(row, 500, cluster)
    cluster.slurm("scontrol", "requeue", job)
    wait_until(lambda: "attempt 2" in text_of(row / "training.log"))
    reached = json.loads(text_of(row / "status.json"))["step"]
    await_step(row, reached + 1, cluster)
    # The tasks are signalled when the time of grace begins, the script at its end.
    waits = "waiting for what Slurm does with the job"
    assert waits not in text_of(row / "job.log")
    preempt_by_another(cluster)
    cluster.wait()
    log, said = (row / "training.log").read_text(), (row / "job.log").read_text()
    assert (row / "done").exists(), said + log
    assert "attempt 3" in log
    assert log.count("stopped by SIGTERM") == 2
    assert waits in said
    assert "2 processes, a shard of each batch each" in log
    assert said.count("test/last/accuracy") == 1
    assert not list(row.glob("training.rank*"))
    one = digits(**KEYS, train_length=length, optim_alg="sgd", output_dir=str(tmp_path / "one"))
    run_experiment(one)
    stats, of_one = Stats.read(row), Stats.read(tmp_path / "one")
    kept = [c for c in of_one if not is_time(c)]
    pd.testing.assert_frame_equal(stats[kept], of_one[kept], rtol=1e-4)
    parts, of_one = (
        CheckpointFiles(path / "state").newest()["parts"] for path in (row, tmp_path / "one")
    )
    for name, tensor in of_one["model"].items():
        assert (parts["model"][name] - tensor).abs().max() < 1e-4


@pytest.mark.slow
def test_a_task_that_the_signal_kills_does_not_keep_the_others_from_going_on(cluster, repository):
    """A job that ended within its time of grace would not be started again."""
    repository.write("tasks.py", TASKS)
    repository.write("tasks.sh", RUNS_TASKS)
    repository.job(json.dumps(KEYS))
    arguments = ("job.yaml", "-s", "tasks.sh", "--no-array", "--", *NODES, "killable")
    repository.submit(*arguments, env=cluster.env)
    (row,) = repository.rows()
    while not all((row / f"begun{rank}").exists() for rank in (0, 1)):
        assert cluster.jobs("PD,R,CG"), text_of(row / "job.log")
    preempt_by_another(cluster)
    cluster.wait()
    assert (row / "done").exists(), text_of(row / "job.log")
    assert "Terminated" in text_of(row / "job.log")
