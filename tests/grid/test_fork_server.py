"""Runs as forks of a warm process: each is what a process of its own would be."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml

from src.grid.folders import Batch, Row, plan_batch, write_batch
from src.grid.local import Machine, run_rows
from src.support import ROOT
from src.support.processes import start_time
from tests.waiting import wait_until
from tests.whole_runs import without_times

# What a program can see of how it was started.
SEES = """\
import atexit, os, random, sys, threading
import numpy, torch
if __name__ == "__main__":
    atexit.register(lambda: print("at exit", flush=True))
    print("own:", __file__, sys.argv, os.path.abspath(sys.path[0]), os.getcwd(), sorted(os.environ))
    print("own:", sys.modules["__main__"].__file__, sys.stdin.read(), os.getsid(0) == os.getpid())
    print("own:", torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], threading.active_count())
    print("own:", os.readlink("/proc/self/fd/1") == os.readlink("/proc/self/fd/2"))
    print("own:", [signal for signal in open("/proc/self/status") if signal.startswith("Sig")][1:])
    print("drawn:", random.random(), numpy.random.rand(), torch.rand(1).item())
    torch.ones(300, 300, requires_grad=True).exp().sum().backward()  # with all its threads
    sys.exit("an end in words")
"""
WAITS = """\
import os, signal, sys, time
def stop(number, frame):
    print("stopped", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", os.getpid(), os.getppid(), flush=True)
while not os.path.exists("go"): time.sleep(0.05)
"""


def batch_of(tmp_path: Path, program: str, number: int) -> tuple[Batch, Path]:
    code = tmp_path / "code"
    code.mkdir(exist_ok=True)
    (code / "train.py").write_text(program)
    grid = [{"dataset": f"d{i}"} for i in range(number)]
    plan = plan_batch(tmp_path / "batch", grid, job_text="", common={})
    write_batch(plan, tmp_path)
    return plan.batch, code


def lines(batch: Batch, start: str) -> list[list[str]]:
    logs = [row.log.read_text().splitlines() for row in batch.rows]
    return [[line for line in log if line.startswith(start)] for log in logs]


def are_ready(rows: Sequence[Row]) -> bool:
    return all(row.log.exists() and "ready" in row.log.read_text() for row in rows)


def pids(batch: Batch) -> list[int]:
    return [int(line[0].split()[1]) for line in lines(batch, "ready")]


def test_a_fork_sees_what_a_process_of_its_own_sees(tmp_path):
    batch, code = batch_of(tmp_path, SEES, 2)
    seen = []
    for is_warm in (True, False):
        assert run_rows(batch, batch.rows, Machine(1, [], is_warm), code=code) == {"failed": 2}
        seen.append([lines(batch, start) for start in ("own:", "drawn:", "at exit", "an end")])
        for row in batch.rows:
            row.log.unlink()
    (own, drawn, *ends), (fresh_own, fresh_drawn, *fresh_ends) = seen
    assert own == fresh_own
    assert len(own[0]) == 5
    assert ends == fresh_ends == [[["at exit"]] * 2, [["an end in words"]] * 2]
    draws = [line for run in (*drawn, *fresh_drawn) for line in run[0].split()[1:]]
    assert len(set(draws)) == 12  # what is not seeded differs in each


def test_what_starts_threads_is_not_forked(tmp_path, log_lines):
    program = "import threads, os, sys; print('ready', os.getppid())"
    batch, code = batch_of(tmp_path, program, 2)
    thread = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (code / "threads.py").write_text(f"import threading, time\n{thread}\n")
    assert run_rows(batch, batch.rows, Machine(1, []), code=code) == {"done": 2}
    assert [line[0] for line in lines(batch, "ready")] == [f"ready {os.getpid()}"] * 2
    assert "started by itself: an import of train.py starts threads" in log_lines[0]


def test_what_looks_for_a_gpu_is_not_forked(tmp_path, log_lines):
    """A fork could not use one."""
    batch, code = batch_of(tmp_path, "import gpus, os; print('ready', os.getppid())", 2)
    (code / "gpus.py").write_text("import torch\ntorch.cuda.is_available()\n")
    assert run_rows(batch, batch.rows, Machine(1, []), code=code) == {"done": 2}
    assert [line[0] for line in lines(batch, "ready")] == [f"ready {os.getpid()}"] * 2
    assert "started by itself: an import of train.py looks for a GPU" in log_lines[0]


def test_a_train_py_that_cannot_be_imported_says_so_in_each_log(tmp_path):
    batch, code = batch_of(tmp_path, "import json\nimport nothing_of_this_name\n", 2)
    assert run_rows(batch, batch.rows, Machine(1, []), code=code) == {"failed": 2}
    assert all(
        "No module named 'nothing_of_this_name'" in row.log.read_text() for row in batch.rows
    )


def test_runs_end_with_a_warm_process_that_is_killed_and_the_others_start_by_themselves(tmp_path):
    batch, code = batch_of(tmp_path, WAITS, 4)
    child = os.fork()
    if not child:
        ended = run_rows(batch, batch.rows, Machine(2, []), code=code)
        os._exit(0 if ended == {"interrupted": 2, "done": 2} else 1)
    first = batch.rows[:2]
    wait_until(lambda: are_ready(first))
    warm = {int(line[0].split()[2]) for line in lines(Batch(batch.path, first), "ready")}
    assert len(warm) == 1
    assert child not in warm
    os.kill(warm.pop(), signal.SIGKILL)
    wait_until(lambda: are_ready(batch.rows))
    (code / "go").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [len(stopped) for stopped in lines(batch, "stopped")] == [1, 1, 0, 0]
    assert [int(line[0].split()[2]) for line in lines(batch, "ready")[2:]] == [child] * 2


def test_runs_of_a_submission_that_is_killed_save_and_end(tmp_path):
    batch, code = batch_of(tmp_path, WAITS, 2)
    child = os.fork()
    if not child:
        run_rows(batch, batch.rows, Machine(2, []), code=code)
    wait_until(lambda: are_ready(batch.rows))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not any(start_time(pid) for pid in pids(batch)))
    assert lines(batch, "stopped") == [["stopped"]] * 2


@pytest.mark.slow
def test_a_grid_of_forks_gives_the_numbers_of_separate_processes(tmp_path):
    common = yaml.safe_load((ROOT / "test_cfg_digits_linear.yaml").read_text())
    common |= {"train_length": 2, "num_workers": 1, "output_dir": None}
    grid = [{"base_lr": 0.1, "model": "tiny/lenet"}, {"base_lr": 0.1}, {"base_lr": 0.2}]
    stats = []
    for is_warm in (True, False):
        common.pop("output_dir")
        plan = plan_batch(tmp_path / str(is_warm), grid, job_text="", common=common)
        write_batch(plan, ROOT)
        ended = run_rows(plan.batch, plan.batch.rows, Machine(1, [], is_warm), code=ROOT)
        assert ended == {"done": 3}
        frames = [pd.read_csv(row.folder / "stats.csv") for row in plan.batch.rows]
        stats.append([without_times(frame) for frame in frames])
        common["output_dir"] = None
    for warm, fresh in zip(*stats, strict=True):
        pd.testing.assert_frame_equal(warm, fresh, check_exact=True)
