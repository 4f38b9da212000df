"""Which processes live, and what they take."""

import os
import subprocess
import sys
import time

import pytest

from src.support.processes import ProcessorTime, began, seconds_since_start
from tests.waiting import wait_until


def test_a_process_lives_until_it_ends_even_if_nobody_waits_for_it():
    program = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        first = began(process.pid)
        assert first is not None
        time.sleep(0.05)
        assert began(process.pid) == first
        process.stdin.close()
        # a zombie, as we have not asked how it ended
        wait_until(lambda: began(process.pid) is None)
    assert began(process.pid) is None


def test_two_processes_began_at_two_times():
    assert began(os.getpid()) != began(1)


@pytest.mark.parametrize("pid", [0, -1, None, "1", 2**22 + 1, 10**30])
def test_what_is_no_process_does_not_live(pid):
    assert began(pid) is None


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
