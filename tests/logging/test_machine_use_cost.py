"""What attempts cost, and how much of it was wasted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.logging.machine_use import (
    AttemptCost,
    Cost,
    CostMeter,
    ProcessorTime,
    RunCost,
    Uses,
    allotted,
    seconds_since_start,
)
from src.support.processes import LAUNCHER
from tests.several_processes import fork
from tests.waiting import PATIENCE, wait_until
from tests.whole_runs import ROOT
from train import run_experiment


def test_what_came_after_the_last_saved_state_is_wasted():
    attempt = AttemptCost(Cost(100.0, 10.0), first_step=20, step=120)
    assert attempt.wasted(120) == Cost(0.0, 0.0)
    assert attempt.wasted(95) == Cost(25.0, 2.5)
    assert attempt.wasted(20) == attempt.wasted(0) == attempt.cost
    assert attempt.wasted(500) == Cost()  # its last steps came after its last status


def test_an_attempt_without_a_step_is_wasted_as_a_whole():
    assert AttemptCost(Cost(7.0, 1.0), first_step=None).wasted(0) == Cost(7.0, 1.0)
    assert AttemptCost(Cost(7.0, 1.0), first_step=40, step=40).wasted(40) == Cost(7.0, 1.0)


def test_attempts_add_up():
    first = RunCost(current=AttemptCost(Cost(10.0, 1.0), first_step=0, step=100))
    second = first.next_attempt()
    assert second.total == Cost(10.0, 1.0)
    assert second.wasted == Cost()  # nobody knows yet
    died_early = RunCost(second.before, second.wasted, second.waiting, AttemptCost(Cost(3.0, 0.5)))
    third = died_early.next_attempt()
    assert (third.total, third.wasted) == (Cost(13.0, 1.5), Cost(3.0, 0.5))
    third = third.resumes(first_step=60)
    assert (third.total, third.wasted) == (Cost(13.0, 1.5), Cost(7.0, 0.9))
    assert third.waiting is None


@pytest.mark.parametrize(
    "status",
    [{}, {"cost": None}, {"cost": {}}, {"cost": {"before": 3}}, {"cost": {"before": {"x": 1}}}],
)
def test_a_status_without_costs_counts_nothing(status):
    assert RunCost.read(status) == RunCost()


def test_a_status_is_read_as_it_was_written(monkeypatch):
    monkeypatch.setattr("src.logging.machine_use.monotonic", iter([100.0, 160.0, 500.0]).__next__)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "4")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    meter = CostMeter({})
    meter.start(30, Uses(num_gpus=1))
    status = json.loads(json.dumps(meter.status(step=50)))
    costs = RunCost.read(status)
    assert costs.current == AttemptCost(Cost(240.0, 120.0), 30, 50)
    assert CostMeter(status).costs.waiting == costs.current


@pytest.mark.parametrize(
    ("variables", "cores_and_gpus"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "6"}, (6, 0)),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_CPUS_PER_NODE": "4(x2),8"}, (16, 0)),
        (
            {
                "SLURM_JOB_ID": "1",
                "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
                "SLURM_GPUS_ON_NODE": "4",
                "SLURM_JOB_NUM_NODES": "2",
                "EXPERIMENT_SHARES_JOB": "4",
            },
            (4, 2),
        ),
    ],
)
def test_what_slurm_has_allotted_counts_shared_by_the_runs_of_a_job(variables, cores_and_gpus):
    assert allotted(variables) == cores_and_gpus


def test_processes_of_one_run_and_its_gpus_count(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JOB_CPUS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("src.logging.machine_use.monotonic", iter([0.0, 10.0]).__next__)
    used = iter([1.0, 5.0]).__next__
    monkeypatch.setattr("src.logging.machine_use.ProcessorTime", lambda root: used)
    meter = CostMeter({})
    meter.start(0, Uses(num_gpus=3, num_processes=3))
    assert RunCost.read(meter.status(step=1)).total == Cost(12.0, 30.0)


def test_of_processes_that_one_has_started_all_count_as_they_are(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JOB_CPUS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    monkeypatch.setattr("src.logging.machine_use.monotonic", iter([50.0, 60.0]).__next__)
    monkeypatch.setattr("src.logging.machine_use.seconds_since_start", {os.getppid(): 20.0}.get)
    monkeypatch.setattr("src.logging.machine_use.ProcessorTime", lambda root: lambda: root)
    meter = CostMeter({})
    assert meter.start_up == 20.0
    meter.start(0, Uses(num_gpus=3, num_processes=3))
    assert RunCost.read(meter.status(step=1)).total == Cost(os.getppid(), 90.0)


TRAIN = """
import json, time
while time.process_time() < 0.5: pass  # as importing torch
from src.logging.machine_use import CostMeter, Uses
meter = CostMeter({})
meter.start(0, Uses())
while time.process_time() < 1: pass
print(json.dumps({"seconds_to_start": meter.start_up} | meter.status(1)))
"""


def test_the_whole_process_counts_from_its_first_instruction(tmp_path):
    """Also what it needs to import torch, which is most; not what it needs to end."""
    (tmp_path / "train.py").write_text(TRAIN)
    began_at, command = time.monotonic(), [sys.executable, tmp_path / "train.py"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    with process.stdout:
        status = json.loads(process.stdout.read())
    _, process.returncode, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began_at
    used = usage.ru_utime + usage.ru_stime
    assert used / 2 <= RunCost.read(status).total.core_seconds <= used + 0.1
    assert 0.5 <= status["seconds_to_start"] < seconds


def test_elsewhere_the_processor_time_counts(digits, tmp_path):
    before = sum(os.times()[:4])
    run_experiment(digits())
    used = sum(os.times()[:4]) - before
    costs = RunCost.read(json.loads((tmp_path / "run" / "status.json").read_text()))
    assert costs.total.core_seconds == pytest.approx(used, abs=0.3)
    assert costs.total.core_seconds > 0
    assert costs.current.step == 30


def test_a_run_that_is_killed_and_resumes_knows_what_it_wasted(digits, tmp_path):
    config = digits(model="tiny/lenet", train_length=1, steps_per_epoch=4000, log_interval=1)
    status = Path(config.output_dir) / "status.json"

    def costs() -> RunCost:
        return RunCost.read(json.loads(status.read_text()))

    process = fork.Process(target=run_experiment, args=(config,))
    process.start()
    wait_until(lambda: status.exists() and costs().current.step >= 100)
    process.kill()  # before any state was saved: all is wasted
    process.join()
    killed = costs().total
    assert killed.core_seconds > 0
    process = fork.Process(target=run_experiment, args=(config,))
    process.start()
    wait_until(
        lambda: json.loads(status.read_text())["attempt"] == 2 and costs().current.step >= 10
    )
    os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE)
    assert process.exitcode == 1
    assert costs().wasted == costs().before == killed
    assert costs().total.core_seconds > killed.core_seconds


BUSY = """
import sys, time
while time.process_time() < 0.4: pass
print("done", flush=True)
sys.stdin.read()
"""


def test_processes_below_one_count_while_they_live_and_once_when_they_have_ended():
    processor_time = ProcessorTime()
    before, own_before = processor_time(), sum(os.times()[:4])
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "done\n"
        processor_time.next_look = 0.0  # as if time had passed
        while_it_lives = processor_time() - before
        child.stdin.close()
    assert while_it_lives >= 0.3  # of 0.4, in ticks of a hundredth
    afterwards = processor_time() - before
    processor_time.next_look = 0.0
    assert processor_time() - before == pytest.approx(afterwards, abs=0.1)
    own_and_ended = sum(os.times()[:4]) - own_before
    assert afterwards == pytest.approx(own_and_ended, abs=0.2)


def test_a_process_knows_how_long_it_lives():
    before = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        time.sleep(0.3)
        assert 0.25 <= seconds_since_start(child.pid) <= time.monotonic() - before + 0.05
        child.stdin.close()
