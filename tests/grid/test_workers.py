"""Workers: each run of a batch is trained once, whatever becomes of those that share it."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import submit_multiple
from src.grid import slurm, submit_grid, workers
from src.grid.folders import Batch, Row, open_batch
from src.grid.journal import SubmitOptions
from src.grid.local import Machine
from src.grid.run_queue import RunQueue
from src.grid.stacks import Task, write_stack
from src.grid.status import row_statuses
from src.grid.workers import MOST_DEATHS, WorkerSource
from src.logging import lease
from src.support import ROOT, UserError
from src.support.processes import start_time
from tests.grid import batches
from tests.grid.batches import code_of
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
    return code_of(tmp_path, PROGRAM)


def batch_of(tmp_path, *names: str) -> Batch:
    """All of its runs are free."""
    batch = batches.batch_of(tmp_path, *names)
    RunQueue(batch.submissions).offer(batch.rows)
    return batch


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
    log = batch.rows[0].log.read_text()
    assert "job 5 on" in log
    # by the same signal, which decides whether Slurm is asked for another attempt
    assert f"ended: exit code {130 if number == signal.SIGINT else 75} ---" in log


@pytest.mark.parametrize("next_worker", [0, 1])
def test_a_worker_that_is_killed_loses_its_run(tmp_path, code, next_worker):
    """To another, or to itself where Slurm starts it again."""
    batch = batch_of(tmp_path, "slow")
    process = start(batch, code, 0)
    wait_until(lambda: times_run(batch) == [1])
    process.kill()
    process.wait()
    shared = RunQueue(batch.submissions)
    assert [*shared.taken_runs().values()] == ["001-abcd.0"]
    # its run is a fork of its warm process, and ends with that
    wait_until(lambda: (batch.rows[0].folder / "status.json").exists())
    assert start(batch, code, next_worker).wait() == 0
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
    why = "not continued after 3 ends without a step, by a signal or with its worker"
    assert (status.kind, status.cause) == ("killed", f"{why}; -r runs it again")


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


def test_who_is_not_watched_is_not_taken_for_dead(tmp_path):
    batch = batch_of(tmp_path, *["a"] * 9)
    others = [source(batch, number) for number in range(9)]
    held = [lease.Lease(batch.submissions / f"w/{number}") for number in range(9)]
    for own, other in zip(held, others, strict=True):
        own.take()
        taken(other)
    assert source(batch, 99).take(is_idle=True) is None
    assert len(RunQueue(batch.submissions).taken_runs()) == 9
    for own in held:
        own.release()


def test_who_comes_second_has_nothing(tmp_path):
    """Another worker takes the run between the look and the taking."""
    batch = batch_of(tmp_path, "a")
    late, run = source(batch, 0), batch.rows[0].name
    taken(source(batch, 1))
    late.queue.look = lambda: ({run: run}, False)
    assert taken(late) == ""


def test_who_has_lost_his_lease_takes_nothing(tmp_path):
    """Another attempt has the worker's name."""
    batch = batch_of(tmp_path, "a")
    folder = batch.submissions / "w/0"
    folder.mkdir(parents=True)
    held = lease.Lease(folder)
    held.take()
    own = WorkerSource(batch, "w.0", "cpu", held)
    (folder / "claim").write_text("0\n" + json.dumps({"token": "another", "host": "node9"}))
    held.verified = 0.0  # it looks now, not some seconds later
    assert (taken(own), own.is_over) == ("", True)
    held.release()


def test_a_signal_after_the_taking_gives_the_run_back(tmp_path, monkeypatch):
    batch = batch_of(tmp_path, "a")
    folder = batch.submissions / "w/0"
    folder.mkdir(parents=True)

    def run(self):
        assert self.source.take(is_idle=True)
        raise workers.Stop(signal.SIGTERM)

    monkeypatch.setattr(workers.Workers, "run", run)
    with pytest.raises(workers.Stop):
        workers.work(batch, folder, Machine(1, []), code=tmp_path)
    shared = RunQueue(batch.submissions)
    assert (len(shared.free_runs()), shared.taken_runs()) == (1, {})


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
    something, and none has ended well that would say how long they are."""
    batch = batch_of(tmp_path, "a", "a", "a")
    for row in batch.rows:
        row.spec.write_text(row.spec.read_text() + "checkpoint_minutes: 1\n")
        (row.folder / "status.json").write_text('{"seconds_to_start": 20}')
    own, now = source(batch, 0), time.time()
    ends = iter([now + 30, now + 85, now + 75])
    monkeypatch.setattr(workers, "end_of_job", lambda job: next(ends))
    monkeypatch.setattr(time, "time", lambda: now)
    assert taken(own)
    own.ended(task_of(batch, 0), "failed", is_ours=False)
    assert not own.is_over
    assert taken(own)
    own.ended(task_of(batch, 1), "failed", is_ours=False)
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


def test_a_batch_of_a_version_without_workers_is_not_joined(tmp_path, monkeypatch):
    batch = batch_of(tmp_path, "a")
    (batch.path / "code").mkdir()
    (batch.path / "code/frozen.json").write_text("{}")
    monkeypatch.setattr(submit_grid, "_check_scripts", lambda options: [])
    options = SubmitOptions(join=str(batch.path), script="a.sh")
    with pytest.raises(UserError, match=r"the code in .*code is of a version without .*--ref") as e:
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


def test_short_runs_are_begun_until_the_end(tmp_path, monkeypatch):
    """Two seconds are enough for one like that which took one, whatever the time between saves."""
    batch, now = batch_of(tmp_path, "a", "a", "a"), time.monotonic()
    own = source(batch, 0)
    monkeypatch.setattr(workers, "end_of_job", lambda job: time.time() + 3)
    assert taken(own)
    own.began[batch.rows[0].name] = 0, now - 1
    own.ended(task_of(batch, 0), "done", is_ours=False)
    assert taken(own)
    monkeypatch.setattr(workers, "end_of_job", lambda job: time.time() + 1)
    own.ended(task_of(batch, 1), "done", is_ours=False)
    assert (taken(own), own.is_over, own.num_left) == ("", True, 1)


def test_a_worker_whose_time_is_over_asks_for_another_attempt(tmp_path, monkeypatch, capsys):
    batch = batch_of(tmp_path, "a", "a")
    folder = batch.submissions / "001-abcd/0"
    asked = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(workers, "work", lambda *_, code: (Counter(done=3), 2))
    monkeypatch.setattr(workers, "request_attempt", lambda *given: asked.append(given))
    assert workers.run_worker({"output_dir": str(folder), "worker": str(batch.path)}) == 0
    assert asked == [("7", {str(folder / "spec.yaml"): folder})]
    words = "3 done; the time limit is near, and 2 runs free: another attempt"
    assert words in capsys.readouterr().out


def test_what_ends_by_a_signal_of_its_own_is_not_taken_for_ever(tmp_path, code):
    batch = batch_of(tmp_path, "slow", "a")
    (code / "train.py").write_text("import sys; sys.exit(75)")
    assert start(batch, code, 0).wait() == 0
    statuses = row_statuses(batch, None)
    assert [(status.state, status.kind) for status in statuses] == [("failed", "killed")] * 2
    assert [row.log.read_text().count("ended: exit code 75") for row in batch.rows] == [3, 3]


def test_a_run_whose_last_owner_still_saves_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LOOKS", 0.0)
    batch = batch_of(tmp_path, "a")
    held = lease.Lease(batch.rows[0].folder)
    held.take()
    own = source(batch, 0)
    assert own.take(is_idle=True) is None
    assert not own.is_over
    held.release()
    assert own.take(is_idle=True).row.name == batch.rows[0].name
    held = lease.Lease(batch.rows[0].folder)
    held.take()
    patient = source(batch, 1)
    RunQueue(batch.submissions).reset()
    assert patient.take(is_idle=True) is None
    monkeypatch.setattr(workers, "SECONDS_TO_SAVE", -1.0)  # somebody trains it for himself
    assert patient.take(is_idle=True) is None
    assert patient.is_over
    held.release()


def test_a_run_that_was_in_a_stack_has_a_log_of_its_own(tmp_path):
    batch = batch_of(tmp_path, "a")
    write_stack(batch.submissions / "stack-1", batch.rows)
    (batch.submissions / "stack-1/job.log").write_text("of all")
    assert batch.rows[0].log.read_text() == "of all"
    assert taken(source(batch, 0))
    assert not batch.rows[0].log.exists()


def test_other_files_in_the_queue_are_no_runs(tmp_path):
    batch = batch_of(tmp_path, "a")
    (batch.submissions / "queue/.nfs0001").touch()
    own = source(batch, 0)
    assert [taken(own), taken(own)] == ["000", ""]


def test_a_copy_knows_nothing_of_the_workers_of_the_original(tmp_path):
    batch = batch_of(tmp_path, "a", "a")
    folder = batch.submissions / "here-x-1"
    folder.mkdir()
    (folder / "worker.json").write_text(json.dumps({"kind": "cpu", "batch": str(batch.path)}))
    held = lease.Lease(folder)
    held.take()
    taken(WorkerSource(batch, "here-x-1", "cpu"))
    shutil.copytree(batch.path, tmp_path / "copy")
    copy = open_batch(tmp_path / "copy")
    states = [Counter(s.state for s in row_statuses(b, None)) for b in (batch, copy)]
    assert states == [{"running": 1, "queued": 1}, {"unstarted": 2}]
    RunQueue(copy.submissions).reset()
    assert len(RunQueue(copy.submissions).free_runs()) == 2
    held.release()


def test_without_slurm_workers_here_join_and_stop_all_the_same(tmp_path, monkeypatch, capsys):
    """What waits as a job of Slurm is left to it."""
    batch = batch_of(tmp_path, "a", "a")
    RunQueue(batch.submissions).free.joinpath(batch.rows[1].name).unlink()

    def ask_queue(batch):
        raise UserError("Slurm has runs of this batch and cannot be asked")

    monkeypatch.setattr(submit_grid, "ask_queue", ask_queue)
    options = SubmitOptions(join=str(batch.path), script="local", dry_run=True)
    assert submit_grid.submit(options) == 0
    assert "dry run: 1 run to share" in capsys.readouterr().out
    folder = batch.submissions / "here-x-1"
    folder.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = {"machine": lease._machine(), "pid": process.pid, "token": "x"}
        identity["began"] = start_time(process.pid)
        (folder / "claim").write_text("0\n" + json.dumps(identity))
        with pytest.raises(UserError, match="of this and other machines are told to stop, those"):
            submit_grid.submit(SubmitOptions(stop=str(batch.path)))
        assert process.wait() == -signal.SIGTERM


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
        (["a.sh", "b.sh", "local"], 20, {"a.sh": 7, "b.sh": 7, "local": 6}),
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
