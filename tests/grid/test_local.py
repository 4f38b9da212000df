"""Rows in worker processes on this machine."""

import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest

from src.grid import local, local_display
from src.grid.folders import Batch
from src.grid.local import Machine, default_jobs, run_rows
from src.grid.status import row_statuses, runner
from src.logging.machine_use import allotted
from src.support.processes import num_cores, start_time
from tests.grid.batches import batch_of, code_of
from tests.waiting import wait_until

# A train.py that tells what it was given, and does as its spec says.
PROGRAM = """\
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1]).parent
with open(folder / "span", "a") as file:
    print(time.time(), file=file, flush=True)
    try:
        given = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"]
        print("hello", *given, flush=True)
        time.sleep(0.3)
        text = Path(sys.argv[1]).read_text().split("dataset: ")[1][:5]
        if "fail" in text: sys.exit("on purpose")
        if "die" in text: os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in text: signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("ready", flush=True)
        while "sleep" in text or "hang" in text: time.sleep(0.1)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
    print(time.time(), file=file)
"""

WHY = ("on purpose", "killed by signal 9, perhaps out of memory")


@pytest.fixture
def code(tmp_path) -> Path:
    return code_of(tmp_path, PROGRAM)


def logs(batch: Batch) -> list[str]:
    return [row.log.read_text() for row in batch.rows]


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def spans(batch: Batch) -> list[tuple[float, float]]:
    return [tuple(map(float, (r.folder / "span").read_text().split())) for r in batch.rows]


def test_every_row_runs_once_and_as_many_at_a_time_as_asked(tmp_path, code):
    batch = batch_of(tmp_path, *"abcdef")
    assert run_rows(batch, batch.rows, Machine(2, []), code=code) == {"done": 6}
    edges = sorted([(a, 1) for a, _ in spans(batch)] + [(b, -1) for _, b in spans(batch)])
    at_once = [sum(step for _, step in edges[: i + 1]) for i in range(len(edges))]
    assert max(at_once) == 2
    assert all("--- ended: exit code 0 ---" in log for log in logs(batch))
    assert not (batch.submissions / "local.json").exists()


def test_rows_share_gpus_and_cores(tmp_path, code, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    batch = batch_of(tmp_path, *"abcd")
    run_rows(batch, batch.rows, Machine(2, ["3", "5"]), code=code)
    given = {log.split("hello ")[1].split()[0] for log in logs(batch)}
    assert given == {"3", "5"}
    threads = {log.split("hello ")[1].split()[1] for log in logs(batch)}
    assert threads == {str(max(1, math.ceil(num_cores()) // 2))}
    assert default_jobs(["3", "5"]) == 2


def test_a_row_that_fails_is_named_and_does_not_hold_up_the_others(tmp_path, code, capsys):
    batch = batch_of(tmp_path, "ok", "fail", "die", "ok")
    assert run_rows(batch, batch.rows, Machine(1, []), code=code) == {"done": 2, "failed": 2}
    ends = [log.rpartition("--- ended: ")[2] for log in logs(batch)]
    assert ends == [
        "exit code 0 ---\n",
        "exit code 1 ---\n",
        "killed by signal 9 ---\n",
        "exit code 0 ---\n",
    ]
    assert "on purpose" in logs(batch)[1]
    failed = [f"failed {row.name}: {why}" for row, why in zip(batch.rows[1:3], WHY, strict=True)]
    assert capsys.readouterr().err.splitlines() == failed
    assert logs(batch)[1].startswith("--- 20")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_rows_and_starts_no_others(tmp_path, code, number):
    batch = batch_of(tmp_path, "sleep", "sleep", "ok")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run_rows(batch, batch.rows, Machine(2, []), code=code)
        except KeyboardInterrupt:
            os._exit(42)
        os._exit(0)
    wait_until(lambda: all("ready" in text_of(row.log) for row in batch.rows[:2]))
    assert runner(batch)["pid"] == child
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    for row in batch.rows[:2]:
        assert "interrupted\n--- ended: exit code 130 ---" in row.log.read_text()
    assert not batch.rows[2].log.exists()
    assert runner(batch) is None


def test_a_row_that_does_not_stop_is_killed(tmp_path, code, monkeypatch):
    monkeypatch.setattr(local, "SECONDS_TO_STOP", 0.3)
    batch = batch_of(tmp_path, "hang")
    child = os.fork()
    if child == 0:
        try:
            run_rows(batch, batch.rows, Machine(1, []), code=code)
        except KeyboardInterrupt:
            os._exit(42)
    wait_until(lambda: "ready" in text_of(batch.rows[0].log))
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert "--- ended: killed by signal 9 ---" in logs(batch)[0]
    (status,) = row_statuses(batch, None)
    assert (status.state, status.kind) == ("interrupted", "interrupted")


def test_a_row_that_somebody_interrupts_has_not_failed(tmp_path, code, capsys, monkeypatch):
    (code / "train.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.setattr(local_display, "SECONDS_BETWEEN_LINES", 0.0)
    batch = batch_of(tmp_path, "a", "b")
    assert run_rows(batch, batch.rows, Machine(1, []), code=code) == {"interrupted": 2}
    assert "0/2 done, 2 interrupted, 0 running" in capsys.readouterr().err
    assert [status.state for status in row_statuses(batch, None)] == ["interrupted"] * 2


def test_a_second_runner_of_a_batch_is_refused_while_the_first_lives(tmp_path, code):
    batch = batch_of(tmp_path, "a")
    notice = batch.submissions / "local.json"
    facts = {"pid": os.getppid(), "began": start_time(os.getppid()), "host": os.uname().nodename}
    notice.write_text(json.dumps(facts | {"rows": []}))
    with pytest.raises(ValueError, match=f"process {os.getppid()}"):
        run_rows(batch, batch.rows, Machine(1, []), code=code)
    notice.write_text(json.dumps(facts | {"began": "7", "rows": []}))  # the number came again
    assert run_rows(batch, batch.rows, Machine(1, []), code=code) == {"done": 1}


def test_the_interpreter_is_ours(tmp_path, code):
    (code / "train.py").write_text("import sys; print(sys.executable)\n")
    batch = batch_of(tmp_path, "a")
    run_rows(batch, batch.rows, Machine(1, []), code=code)
    assert sys.executable in logs(batch)[0]


def test_rows_in_a_job_of_slurm_share_its_cost(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "16")
    assert allotted(Machine(8, []).variables(0)) == (2, 0)
