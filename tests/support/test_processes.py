"""Which processes live, programs that end together, and what a machine leaves to a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.support.processes import Memory, memories, num_cores, start_time
from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
NOTHING = Path("/proc/self/none")  # of the machine


def test_a_process_lives_until_it_ends_even_if_nobody_waits_for_it():
    program = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        first = start_time(process.pid)
        assert first is not None
        time.sleep(0.05)
        assert start_time(process.pid) == first
        process.stdin.close()
        # a zombie, as we have not asked how it ended
        wait_until(lambda: start_time(process.pid) is None)
    assert start_time(process.pid) is None


def test_two_processes_began_at_two_times():
    assert start_time(os.getpid()) != start_time(1)


@pytest.mark.parametrize("pid", [0, -1, None, "1", 2**22 + 1, 10**30])
def test_what_is_no_process_does_not_live(pid):
    assert start_time(pid) is None


PARENT = """
import os, sys
from src.support.processes import hold_signals, run_programs
hold_signals()
print("ready", flush=True)
code, heard = run_programs(
    sys.executable, ["-c", sys.argv[1]], [os.environ | {"RANK": str(i)} for i in range(3)]
)
print("code", code, "heard", sorted(heard))
"""


def started(program: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, f"import os, signal, sys, time\n{program}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def end_of(process: subprocess.Popen) -> str:
    return process.communicate(timeout=PATIENCE)[0].splitlines()[-1]


def test_when_all_are_done_the_code_is_0():
    assert end_of(started("pass")) == "code 0 heard []"


@pytest.mark.parametrize("rank", [0, 2])
def test_when_one_fails_the_others_are_ended_and_its_code_counts(rank):
    program = f"if os.environ['RANK'] == '{rank}': sys.exit(3)\ntime.sleep(10_000)"
    assert end_of(started(program)) == "code 3 heard []"


def test_a_child_that_was_killed_counts_as_failed():
    program = "if os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(10_000)"
    assert end_of(started(program)) == "code -9 heard []"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_reach_each_of_them_once(number, tmp_path):
    """One that has stopped does not end the others, who may still be saving."""
    program = f"""
got = []
signal.signal({int(number)}, lambda number, _: got.append(number))
open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w").close()
while not got: time.sleep(0.01)
time.sleep(0.5 * int(os.environ["RANK"]))
open({str(tmp_path)!r} + "/saved" + os.environ["RANK"] + "-" + str(len(got)), "w").close()
sys.exit(75)
"""
    process = started(program)
    while len(list(tmp_path.iterdir())) < 3:
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert end_of(process) == f"code 75 heard [{int(number)!r}]".replace(
        f"[{int(number)!r}]", f"[{number!r}]"
    )
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved0-1", "saved1-1", "saved2-1"}


def test_a_hang_up_that_nohup_ignores_ends_nothing():
    program = "time.sleep(1)\nsys.exit(0 if signal.getsignal(signal.SIGHUP) == 1 else 9)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started(program)
    finally:
        signal.signal(signal.SIGHUP, before)
    os.kill(process.pid, signal.SIGHUP)
    assert end_of(process) == "code 0 heard []"


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_this_machine_has_memory_and_cores():
    assert all(1e6 < m.limit < 1e14 and 0 <= m.free <= m.limit for m in memories())
    assert memories()
    assert 0 < num_cores() < 10_000


def test_memory_of_the_machine_is_read_in_bytes(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nHugePages: 0\nMemAvailable:    300 kB\n")
    (memory,) = memories(tmp_path / "meminfo", tmp_path / "own")
    assert memory == Memory(900 * 1024, 300 * 1024, "this machine")
    assert memory.used_share == pytest.approx(2 / 3)
    assert memories(tmp_path / "none", tmp_path / "own") == []


def test_a_job_of_slurm_is_bounded_by_the_cgroups_around_it(tmp_path):
    (tmp_path / "own").write_text("0::/slurm/job_1/step_0\n")
    write(tmp_path / "slurm", memory__max=300, memory__current=500)
    write(tmp_path / "slurm/job_1", memory__max=1000, memory__current=400)
    write(tmp_path / "slurm/job_1/step_0", memory__max="max", memory__current=10)
    found = [(m.limit, m.free) for m in memories(NOTHING, tmp_path / "own", tmp_path)]
    assert found == [(1000, 600), (300, 0)]


def test_pages_of_files_that_were_read_are_no_memory_in_use(tmp_path):
    (tmp_path / "own").write_text("0::/job\n")
    stat = "anon 100\nfile 260\nactive_file 50\ninactive_file 200\nslab 1"
    write(tmp_path / "job", memory__max=1000, memory__current=400, memory__stat=stat)
    assert [m.free for m in memories(NOTHING, tmp_path / "own", tmp_path)] == [850]
    stat = "active_file 1\ninactive_file 2\ntotal_active_file 20\ntotal_inactive_file 30"
    write(tmp_path / "job", memory__stat=stat)
    assert [m.free for m in memories(NOTHING, tmp_path / "own", tmp_path)] == [650]


def test_older_cgroups_count_too_also_where_a_container_sees_its_own_alone(tmp_path):
    (tmp_path / "own").write_text("5:cpu:/x\n4:memory:/outside/container\n0::/\n")
    write(tmp_path / "memory", memory__limit_in_bytes=900, memory__usage_in_bytes=100)
    assert [m.free for m in memories(NOTHING, tmp_path / "own", tmp_path)] == [800]
    write(tmp_path / "memory", memory__limit_in_bytes=2**63 - 4096)
    assert memories(NOTHING, tmp_path / "own", tmp_path) == []
    assert memories(NOTHING, tmp_path / "none", tmp_path) == []


def test_a_share_of_the_time_counts_as_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    (tmp_path / "own").write_text("3:cpu,cpuacct:/job\n0::/job\n")
    write(tmp_path, cpu__max="max 100000")
    write(tmp_path / "cpu,cpuacct/job", cpu__cfs_quota_us=400000, cpu__cfs_period_us=100000)
    write(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert num_cores(tmp_path / "own", tmp_path) == 4.0
    write(tmp_path / "job", cpu__max="150000 100000")
    assert num_cores(tmp_path / "own", tmp_path) == 1.5
    assert num_cores(tmp_path / "none", tmp_path) == 8.0
