"""Workers: each run of a batch is trained once, whatever becomes of those that share it."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import submit_multiple
from src.grid import slurm, submit_grid, workers
from src.grid.folders import Batch, Row, plan_batch, write_batch
from src.grid.run_queue import RunQueue
from src.grid.stacks import Task
from src.grid.status import row_statuses
from src.grid.submission import SubmitOptions
from src.grid.workers import MOST_DEATHS, WorkerSource
from src.logging import lease
from src.support import ROOT, UserError
from src.support.processes import start_time
from tests.waiting import wait_until

# A train.py that says who has run it, and does as its spec says.
PROGRAM = """\
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1]).parent
stopped = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: stopped.append(number))
with open(folder / "ran", "a") as file:
    print(os.getpid(), file=file)
text = Path(sys.argv[1]).read_text()
if "fail" in text:
    sys.exit("on purpose")
if "slow" in text and not (folder / "status.json").exists():
    while not stopped:
        time.sleep(0.05)
    (folder / "status.json").write_text(json.dumps({"step": 7, "state": "stopped"}))
    sys.exit(130 if stopped[0] == signal.SIGINT else 75)
time.sleep(0.05)
(folder / "done").write_text(json.dumps({"outcome": "finished"}))
"""
# A worker as Slurm starts it.
WORKER = "import sys; from src.config import CommandLine; CommandLine.answer_early(sys.argv[1:])"


@pytest.fixture
def code(tmp_path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(PROGRAM)
    return tmp_path / "code"


def batch_of(tmp_path, *names: str) -> Batch:
    grid = [{"dataset": f"{name}{i}"} for i, name in enumerate(names)]
    plan = plan_batch(tmp_path / "batch", grid, job_text="", common={})
    write_batch(plan, tmp_path)
    RunQueue(plan.batch.submissions).offer(plan.batch.rows)
    return plan.batch


def start(batch: Batch, code: Path, task: int, **variables: str) -> subprocess.Popen:
    folder = batch.submissions / "001-abcd" / str(task)
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.dumps({"output_dir": str(folder), "worker": str(batch.path)})
    (folder / "spec.yaml").write_text(spec)
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder / "spec.yaml")],
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def times_run(batch: Batch) -> list[int]:
    files = [row.folder / "ran" for row in batch.rows]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


def source(batch: Batch, number: int, kind: str = "cpu") -> WorkerSource:
    (batch.submissions / f"w/{number}").mkdir(parents=True, exist_ok=True)
    return WorkerSource(batch, f"w.{number}", kind)


def taken(found: WorkerSource) -> str:
    task = found.take(is_idle=False)
    return task.row.name[:3] if task else ""


def task_of(batch: Batch, number: int) -> Task:
    return Task([batch.rows[number]], batch.rows[number])


# ---- Together ----------------------------------------------------------------------------


def test_workers_share_the_runs(tmp_path, code):
    batch = batch_of(tmp_path, *["a"] * 20, "fail")
    running = [start(batch, code, task) for task in range(4)]
    outputs = [process.communicate()[0] for process in running]
    assert times_run(batch) == [1] * 21
    assert sorted(process.returncode for process in running) == [0, 0, 0, 1]  # one had the failure
    assert "".join(outputs).count("nothing more to take: ") == 4
    shared = RunQueue(batch.submissions)
    assert (shared.free_runs(), shared.taken_runs()) == ({}, {})
    statuses = Counter(status.state for status in row_statuses(batch, None))
    assert statuses == {"done": 20, "failed": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_worker_that_is_stopped_hands_its_run_on(tmp_path, code, number):
    batch = batch_of(tmp_path, "slow", "a", "a")
    process = start(batch, code, 0, SLURM_JOB_ID="5")
    shared = RunQueue(batch.submissions)
    wait_until(lambda: sum(times_run(batch)) == 3 or times_run(batch)[0] == 1)
    process.send_signal(number)
    process.wait()
    assert process.returncode == (130 if number == signal.SIGINT else 75)
    assert shared.taken_runs() == {}
    run = batch.rows[0].name
    assert shared.free_runs()[run] == f"{run}@cpu"  # it began on this kind of device
    assert json.loads((batch.submissions / "001-abcd/0/status.json").read_text())["step"] >= 7
    assert start(batch, code, 1).wait() == 0
    assert times_run(batch) == [2, 1, 1]
    assert "job 5 on" in batch.rows[0].log.read_text()


def test_a_worker_that_is_killed_loses_its_run_to_another(tmp_path, code):
    batch = batch_of(tmp_path, "slow")
    process = start(batch, code, 0)
    wait_until(lambda: times_run(batch) == [1])
    process.kill()
    process.wait()
    shared = RunQueue(batch.submissions)
    assert [*shared.taken_runs().values()] == ["001-abcd.0"]
    # its run is a fork of its warm process, and ends with that
    wait_until(lambda: (batch.rows[0].folder / "status.json").exists())
    assert start(batch, code, 1).wait() == 0
    assert times_run(batch) == [2]


def test_all_are_drained_while_workers_are_killed_at_random(tmp_path, code):
    batch = batch_of(tmp_path, *["a"] * 20)
    for round_ in range(MOST_DEATHS - 1):
        running = [start(batch, code, task) for task in range(3)]
        wait_until(lambda goal=6 * (round_ + 1): sum(x > 0 for x in times_run(batch)) >= goal)
        for process in running:
            process.kill()
            process.wait()
    assert start(batch, code, 7).wait() == 0
    assert all((row.folder / "done").exists() for row in batch.rows)


# ---- One worker --------------------------------------------------------------------------


def test_a_run_that_is_taken_is_nobody_elses(tmp_path):
    batch = batch_of(tmp_path, *["a"] * 40)
    found = [source(batch, number) for number in range(8)]
    runs = [taken(one) for _ in range(5) for one in found]
    assert sorted(runs) == [f"{n:03d}" for n in range(40)]
    assert max(int(run) for run in runs[:8]) < 8 + workers.SPREAD  # about in order
    assert [taken(one) for one in found] == [""] * 8


def test_a_run_prefers_the_kind_of_device_that_it_began_on(tmp_path):
    batch = batch_of(tmp_path, *["a"] * 3)
    shared, (first, _, third) = RunQueue(batch.submissions), batch.rows
    os.rename(shared.free / first.name, shared.free / f"{first.name}@H200")
    os.rename(shared.free / third.name, shared.free / f"{third.name}@cpu")
    own = source(batch, 0)
    assert [taken(own) for _ in range(3)] == ["002", "001", "000"]


def test_what_a_worker_dies_of_is_given_up(tmp_path):
    batch = batch_of(tmp_path, "a")
    for number in range(MOST_DEATHS):
        assert taken(source(batch, number)) == "000"
        idle = source(batch, 99)
        assert idle.take(is_idle=True) is None
        assert idle.is_over == (number == MOST_DEATHS - 1)  # else it looks again
    (status,) = row_statuses(batch, None)
    assert status.state == "failed"
    why = (
        "not continued after 3 restarts without a step: with each its worker was killed; -r runs it"
    )
    assert status.cause == why + " again"


def test_a_run_that_makes_steps_outlives_any_number_of_workers(tmp_path):
    batch = batch_of(tmp_path, "a")
    for number in range(3 * MOST_DEATHS):
        assert taken(source(batch, number)) == "000"
        (batch.rows[0].folder / "status.json").write_text(json.dumps({"step": number + 1}))
        source(batch, 99).take(is_idle=True)
    assert len(RunQueue(batch.submissions).free_runs()) == 1


def test_slots_that_find_nothing_look_seldom(tmp_path, monkeypatch):
    batch = batch_of(tmp_path, "a")
    own, looks = source(batch, 0), []
    whole = RunQueue.look
    monkeypatch.setattr(RunQueue, "look", lambda self: looks.append(1) or whole(self))
    assert taken(own)
    assert [own.take(is_idle=False) for _ in range(50)] == [None] * 50
    assert len(looks) == 2


def test_the_runs_of_a_living_worker_stay_its_own(tmp_path):
    batch = batch_of(tmp_path, "a")
    other = source(batch, 0)
    held = lease.Lease(batch.submissions / "w/0")
    held.take()
    taken(other)
    idle = source(batch, 1)
    assert idle.take(is_idle=True) is None
    assert idle.is_over
    held.release()
    again = source(batch, 2)
    assert again.take(is_idle=True) is None
    assert taken(again) == "000"


def test_a_run_in_whose_folder_somebody_is_is_left_to_him(tmp_path, capsys):
    batch = batch_of(tmp_path, "a", "a")
    held = lease.Lease(batch.rows[0].folder)
    held.take()
    own = source(batch, 0)
    assert [taken(own), taken(own)] == ["001", ""]
    assert "left to process" in capsys.readouterr().out
    held.release()
    assert taken(source(batch, 1)) == "000"


def test_what_is_done_already_is_not_taken(tmp_path):
    batch = batch_of(tmp_path, "a", "a")
    (batch.rows[0].folder / "done").write_text("{}")
    own = source(batch, 0)
    assert [taken(own), taken(own)] == ["001", ""]
    assert not RunQueue(batch.submissions).free_runs()


def test_a_run_that_does_not_fit_into_what_is_left_is_not_begun(tmp_path, monkeypatch):
    """Start-up and a save: 20 seconds and a minute. The first run of a worker is, as it has to do
    something."""
    batch = batch_of(tmp_path, "a", "a", "a")
    for row in batch.rows:
        row.spec.write_text(row.spec.read_text() + "checkpoint_minutes: 1\n")
        (row.folder / "status.json").write_text('{"seconds_to_start": 20}')
    own, now = source(batch, 0), time.time()
    ends = iter([now + 30, now + 85, now + 75])
    monkeypatch.setattr(workers, "end_of_job", lambda job: next(ends))
    monkeypatch.setattr(time, "time", lambda: now)
    assert taken(own)
    own.ended(task_of(batch, 0), "done")
    assert not own.is_over
    assert taken(own)
    own.ended(task_of(batch, 1), "done")
    assert (taken(own), own.is_over) == ("", True)


def test_nobody_takes_more_after_stop(tmp_path):
    batch = batch_of(tmp_path, "a", "a")
    own = source(batch, 0)
    taken(own)
    own.queue.stop.touch()
    assert (taken(own), own.is_over) == ("", True)
    RunQueue(batch.submissions).offer(batch.rows)  # --join
    assert taken(source(batch, 1))


def test_a_queue_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    batch = batch_of(tmp_path, "a")

    def rename(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(UserError, match=r"queue/000_.*: cannot be taken \(Permission denied\)"):
        taken(source(batch, 0))


def test_a_queue_that_cannot_be_made_is_one_line(tmp_path):
    batch = batch_of(tmp_path, "a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/queue").write_text("no folder")
    with pytest.raises(UserError, match=r"other/queue.*: (File exists|Not a directory)"):
        RunQueue(tmp_path / "other").offer(batch.rows)
    odd = Row(tmp_path / "a@b", {})
    with pytest.raises(UserError, match="a@b: workers take no run"):
        RunQueue(batch.submissions).offer([odd])


def test_a_batch_of_a_version_without_workers_is_not_joined(tmp_path):
    batch = batch_of(tmp_path, "a")
    (batch.path / "code").mkdir()
    (batch.path / "code/frozen.json").write_text("{}")
    options = SubmitOptions(join=str(batch.path), script="local")
    with pytest.raises(UserError, match=r"--join: the code in .*code is of a version without") as e:
        submit_grid.submit(options)
    assert "\n" not in str(e.value)


def test_a_number_that_is_somebody_elses_now_is_not_stopped(tmp_path, monkeypatch):
    """The claim of a worker that died before a reboot; it is old, so nobody is at the batch."""
    batch = batch_of(tmp_path, "a")
    folder = batch.submissions / "here-x-1"
    folder.mkdir()
    with subprocess.Popen(["sleep", "60"]) as innocent:
        facts = {"token": "x", "host": "x", "machine": "this host, before", "pid": innocent.pid}
        facts["began"] = start_time(innocent.pid)
        (folder / "claim").write_text("0\n" + json.dumps(facts))
        (folder / "worker.json").write_text(json.dumps({"host": platform.node(), **facts}))
        submit_grid.submit(SubmitOptions(stop=str(batch.path)))
        with pytest.raises(subprocess.TimeoutExpired):
            innocent.wait(0.3)
        innocent.kill()
    assert lease.is_claimed(folder)
    os.utime(folder / "claim", (0, 0))
    assert not lease.is_claimed(folder)
    assert [status.state for status in row_statuses(batch, None)] == ["unstarted"]


def test_stop_is_not_tried_out():
    with pytest.raises(UserError, match="--stop: goes with no other option"):
        submit_multiple.check_options(SubmitOptions(stop="x", dry_run=True))


def test_a_share_of_no_worker_is_no_share():
    options = SubmitOptions(script="a.sh", more_scripts=["local"], workers=1)
    assert [x.script for x in options.for_each_script] == ["a.sh"]


def test_free_runs_wait_where_there_is_a_worker(tmp_path):
    batch = batch_of(tmp_path, "a", "a")
    assert {status.state for status in row_statuses(batch, None)} == {"unstarted"}
    held = lease.Lease(batch.submissions / "here-x-1")
    held.path.parent.mkdir()
    held.take()
    own = WorkerSource(batch, "here-x-1", "cpu")
    run = taken(own)
    states = {status.row.name[:3]: status.state for status in row_statuses(batch, None)}
    assert states == {run: "running", **{n: "queued" for n in ("000", "001") if n != run}}
    held.release()


@pytest.mark.parametrize(
    ("scripts", "number", "shares"),
    [
        (["a.sh"], 3, {"a.sh": 3}),
        (["local", "a.sh", "b.sh"], 20, {"a.sh": 7, "b.sh": 7, "local": 6}),
    ],
)
def test_submit_scripts_have_equal_shares(scripts, number, shares):
    options = SubmitOptions(script=scripts[0], more_scripts=scripts[1:], workers=number)
    assert {x.script: x.workers for x in options.for_each_script} == shares


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784), ("2:03:04", 7384), ("9:58", 598), ("UNLIMITED", None), ("", None)],
)
def test_what_slurm_says_is_left(monkeypatch, text, seconds):
    monkeypatch.setattr(slurm, "ask", lambda command: f"{text}\n")
    assert slurm.seconds_left("7") == seconds
