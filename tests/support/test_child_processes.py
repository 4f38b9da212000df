"""Programs that are started together end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
PARENT = """
import os, sys
from src.support.child_processes import hold_signals, run_programs
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
