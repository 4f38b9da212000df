"""Twelve rows on a cluster on which all goes wrong end as the same rows on a quiet machine."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from src.grid.attempt import RestartCount
from src.runtime.certificate import first_differences
from tests.waiting import PATIENCE

JOB = """\
job_details: {name: x, output_dir: OUT}
parameters:
  dataset: sklearn/digits
  data_splits_map: {train: 'train[:600]', test: 'test[:200]'}
  model: tiny/wrn_10_1_0.3            # batch norm and dropout
  batch_size: 60
  grad_accum_steps: 2
  averaging: ema_0.9
  train_length: 12                    # of ten steps
  checkpoint_minutes: 0.03
  seed_model: 1
  seed_training: [1, 2, 3]
  LIST_optimizer:
    - {optim_alg: sgd, base_lr: 0.05}
    - {optim_alg: adam, base_lr: [0.001, 0.003, 0.01]}
"""
STEP = "    scaler.step(optimizer)\n"
YOUNG = 50  # steps of 120: with as many before it, a row outlives what happens to it
PAUSE = 'os.environ.get("PAUSE", 0)'  # seconds, so that few cores are enough for four nodes


class Misfortune:
    """What happens to the cluster; each strikes rows that have just begun to train."""

    def __init__(self, cluster, repository) -> None:
        self.cluster, self.repository = cluster, repository

    def training(self) -> list[tuple[str, str]]:
        """(job, node) of the rows that have begun to train, those with the fewest steps first."""
        jobs = [line.split() for line in self.cluster.jobs("R", "%i %N %j") if "_" in line]
        steps = {(job, node): self.steps_of(job) or 0 for job, node, *_ in jobs}
        young = [pair for pair in steps if 0 < steps[pair] <= YOUNG]
        return sorted(young, key=lambda pair: steps[pair])

    def steps_of(self, job: str) -> int | None:
        """The step that this job has reached in its present attempt."""
        log = self.row(job) / "training.log"
        last = log.read_text().rpartition("| attempt ")[2] if log.exists() else ""
        steps = re.findall(r"\| step (\d+)/", last)
        return int(steps[-1]) if steps and not (self.row(job) / "done").exists() else None

    def row(self, job: str) -> Path:
        return self.repository.rows()[int(job.partition("_")[2])]

    def victim(self, number: int = 0) -> tuple[str, str]:
        until = time.monotonic() + PATIENCE
        while len(found := self.training()) <= number:
            assert time.monotonic() < until, self.cluster.jobs("all", "%i %T %r %N")
            time.sleep(0.2)
        return found[0]

    def warning(self) -> Path:
        job, _ = self.victim()
        command = ["scancel", "--signal=USR1", "--batch", job]
        # Where the row is quicker to ask for its next attempt, scancel tries for minutes.
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=self.cluster.env, check=True, timeout=5)
        return self.row(job)

    def requeue(self) -> Path:
        job, _ = self.victim()
        self.cluster.slurm("scontrol", "requeue", job)
        return self.row(job)

    def preemption(self) -> None:
        """Somebody more important takes two nodes."""
        self.victim(1)
        options = ["-p", "high", "-N", "2", "--exclusive", "--output=/dev/null"]
        self.cluster.slurm("sbatch", *options, "--wrap", "sleep 5")

    def restart_of_controller(self) -> None:
        self.cluster.call("ctld-down")
        time.sleep(8)
        self.cluster.call("ctld-up")

    def loss_of_node(self) -> tuple[Path, str]:
        """slurmd dies; what runs there continues, though Slurm begins it again elsewhere.

        Slurm is informed, as it may find out only when the row has ended.
        """
        job, node = self.victim()
        pid = Path(self.cluster.folder, "run", f"{node}.pid").read_text()
        os.kill(int(re.sub(r"\D", "", pid)), signal.SIGKILL)
        self.cluster.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=dead")
        return self.row(job), node


@pytest.mark.slow
def test_all_rows_end_as_on_a_quiet_machine(start_cluster, repository):
    train = (repository.path / "train.py").read_text()
    assert STEP in train
    train = train.replace(STEP, f"{STEP}    import os, time; time.sleep(float({PAUSE}))\n")
    repository.write("train.py", train)
    repository.write("job.yaml", JOB.replace("OUT", "results"))
    repository.write("quiet.yaml", JOB.replace("OUT", "quiet"))

    cluster = start_cluster(GRACE="0")
    misfortune = Misfortune(cluster, repository)
    limits = ("--", "--time=1", "--signal=B:USR1@15", "--cpus-per-task=2", "--mem=1G")
    env = cluster.env | {"PAUSE": "0.4", "OMP_NUM_THREADS": "1"}
    repository.submit("job.yaml", "-s", "submit_cpu.sh", *limits, env=env)
    warned = misfortune.warning()
    requeued = misfortune.requeue()
    lost, node = misfortune.loss_of_node()
    misfortune.restart_of_controller()
    misfortune.preemption()
    time.sleep(60)
    cluster.call("node-up", node)
    cluster.wait(900)

    rows = repository.rows()
    undone = [row for row in rows if not (row / "done").exists()]
    assert not undone, [(row / "job.log").read_text()[-2000:] for row in undone]
    counts = {row: RestartCount.read(row) for row in rows}
    assert counts[warned].time_limits >= 1
    assert counts[requeued].preemptions >= 1
    assert counts[lost].preemptions >= 1
    # The run that Slurm began again met the one on the lost node, or what that had finished.
    met = re.findall("waits for process|this run is finished", (lost / "job.log").read_text())
    assert met
    assert sum(count.time_limits for count in counts.values()) >= 6
    assert sum(count.preemptions for count in counts.values()) >= 3
    attempts = [json.loads((row / "status.json").read_text())["attempt"] for row in rows]
    assert sum(attempts) >= 12 + 9

    repository.submit("quiet.yaml", "-s", "local", "--jobs", "2")
    for row in rows:
        (twin,) = (repository.path / "quiet").glob(f"*/{row.name}")
        assert first_differences(row, twin) == []
