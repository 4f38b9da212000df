"""A batch that workers of two partitions and of this machine share, while all goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.grid.run_queue import RunQueue
from src.runtime.certificate import first_differences
from tests.waiting import PATIENCE, wait_until

JOB = """\
job_details: {name: x, output_dir: OUT}
parameters:
  dataset: sklearn/digits
  data_splits_map: {train: 'train[:300]', test: 'test[:100]'}
  model: linear
  batch_size: 60
  train_length: 8                      # of five steps
  base_lr: '[float(x) for x in np.linspace(0.01, 0.6, 30)]'
  optim_alg: [sgd, adam]
  checkpoint_minutes: 0.02
  seed_model: 1
  seed_training: 1
  save_plot: false
"""
STEP = "    scaler.step(optimizer)\n"
PAUSE = 'os.environ.get("PAUSE", 0)'  # seconds


def slowed(repository) -> None:
    train = (repository.path / "train.py").read_text()
    assert STEP in train
    train = train.replace(STEP, f"{STEP}    import os, time; time.sleep(float({PAUSE}))\n")
    repository.write("train.py", train)
    script = (repository.path / "submit_cpu.sh").read_text()
    repository.write("other.sh", script.replace("cpu-killable", "killable"))


def num_done(repository) -> int:
    return sum((row / "done").exists() for row in repository.rows())


def training(repository) -> set[str]:
    """The jobs that are in the middle of a run."""
    files = [row / "status.json" for row in repository.rows()]
    statuses = [json.loads(file.read_text()) for file in files if file.exists()]
    young = [s for s in statuses if s["state"] == "running" and 0 < s.get("step", 0) < 20]
    return {status["job"] for status in young if status.get("job")}


@pytest.mark.slow
def test_a_shared_batch_ends_as_a_plain_one(start_cluster, repository):
    slowed(repository)
    repository.write("job.yaml", JOB.replace("OUT", "results"))
    repository.write("plain.yaml", JOB.replace("OUT", "plain"))
    cluster = start_cluster(GRACE="0")
    env = cluster.env | {"PAUSE": "0.2", "OMP_NUM_THREADS": "1"}
    limits = ("--", "--time=30", "--cpus-per-task=2", "--mem=1G")
    scripts = ("-s", "submit_cpu.sh", "-s", "other.sh", "--workers", "4")
    output = repository.submit("job.yaml", *scripts, *limits, env=env)
    assert "60 runs, shared by 4 workers" in output
    assert output.count("submitted 2 workers as 1 job: ") == 2
    wait_until(lambda: num_done(repository) > 3)
    here = repository.start(
        "submit_multiple.py", "--join", str(repository.batch), "-s", "local", env=env
    )

    # Somebody more important takes two nodes, of workers that train.
    wait_until(lambda: len(training(repository)) == 4)
    options = ["-p", "high", "-N", "2", "--exclusive", "--output=/dev/null"]
    cluster.slurm("sbatch", *options, "--wrap", "sleep 5")
    time.sleep(8)
    # slurmd dies; what runs there continues, though Slurm begins it again elsewhere.
    running = [line.split() for line in cluster.jobs("R", "%N %o") if "submissions" in line]
    node = running[0][0]
    pid = Path(cluster.folder, "run", f"{node}.pid").read_text()
    os.kill(int(re.sub(r"\D", "", pid)), signal.SIGKILL)
    cluster.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=dead")
    time.sleep(3)
    cluster.call("ctld-down")
    time.sleep(4)
    cluster.call("ctld-up")
    output, errors = here.communicate(timeout=PATIENCE)
    assert here.returncode == 0, errors
    assert "nothing more to take" in output
    cluster.wait(300)
    cluster.call("node-up", node)

    rows = repository.rows()
    undone = [row for row in rows if not (row / "done").exists()]
    assert not undone, [(row / "job.log").read_text()[-2000:] for row in undone]
    shared = RunQueue(repository.batch / "submissions")
    assert (shared.free_runs(), shared.taken_runs()) == ({}, {})
    finished = [len(re.findall("^run folder", (row / "job.log").read_text(), re.M)) for row in rows]
    assert finished == [1] * 60
    logs = [(row / "job.log").read_text() for row in rows]
    kinds = {kind for log in logs for kind in re.findall(r"^--- \S+ (job|local) ", log, re.M)}
    assert kinds == {"job", "local"}
    jobs = {job for log in logs for job in re.findall(r"^--- \S+ job (\S+) ", log, re.M)}
    assert len(jobs) == 4
    again = sum(len(re.findall(r"^--- \S+ (?:job|local) ", log, re.M)) > 1 for log in logs)
    assert again  # some were interrupted, and resumed by another worker

    repository.submit("plain.yaml", "-s", "local", "--jobs", "2")
    for row in rows:
        (twin,) = (repository.path / "plain").glob(f"*/{row.name}")
        assert first_differences(row, twin) == []


@pytest.mark.slow
def test_workers_are_stopped_and_join_again(cluster, repository):
    slowed(repository)
    repository.write("job.yaml", JOB.replace("OUT", "results").replace("30)", "3)"))
    env = cluster.env | {"PAUSE": "0.3", "OMP_NUM_THREADS": "1"}
    repository.submit("job.yaml", "-s", "submit_cpu.sh", "--workers", "2", env=env)
    shared = RunQueue(repository.batch / "submissions")

    def report(*states: str) -> bool:
        output = subprocess.run(
            [sys.executable, "report.py", "--json", str(repository.batch)],
            cwd=repository.path,
            env=env,
            capture_output=True,
            text=True,
        ).stdout
        (batch,) = json.loads(output)
        return {run["state"] for run in batch["rows"]} == {*states}

    wait_until(lambda: len(shared.taken_runs()) == 2)
    wait_until(lambda: report("running", "queued"))
    output = repository.submit("--stop", str(repository.batch), env=env)
    assert "2 workers told to stop; 6 runs left, which --join continues" in output
    cluster.wait()
    assert len(shared.free_runs()) == 6
    assert shared.taken_runs() == {}
    command = ("--join", str(repository.batch), "-s", "submit_cpu.sh")
    assert "--array=0-0" in repository.submit(*command, "-d", env=env)
    repository.submit(*command, env=env)
    cluster.wait()
    assert num_done(repository) == 6


@pytest.mark.slow
def test_a_worker_that_is_warned_saves_and_is_started_again(cluster, repository):
    """Its time limit: the same worker resumes, as no other one is there."""
    slowed(repository)
    repository.write("job.yaml", JOB.replace("OUT", "results").replace("30)", "2)"))
    env = cluster.env | {"PAUSE": "0.3", "OMP_NUM_THREADS": "1"}
    output = repository.submit("job.yaml", "-s", "submit_cpu.sh", "--workers", "1", env=env)
    job = re.findall(r"as 1 job: (\d+)", output)[0]
    shared = RunQueue(repository.batch / "submissions")
    (worker,) = (repository.batch / "submissions").glob("0*/0")

    def is_training() -> bool:
        runs = [repository.batch / run / "status.json" for run in shared.taken_runs()]
        return any(
            path.exists() and json.loads(path.read_text()).get("step", 0) > 2 for path in runs
        )

    wait_until(is_training)
    cluster.slurm("scancel", "--signal=USR1", "--batch", f"{job}_0")
    cluster.wait()
    assert num_done(repository) == 4
    text = (worker / "job.log").read_text()
    assert "stopped by SIGUSR1; what it had is saved, and free for other workers" in text
    assert "Slurm was asked for another attempt" in text
    assert "nothing more to take: 4 done" in text or "nothing more to take: " in text
