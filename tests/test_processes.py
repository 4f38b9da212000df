"""Which processes live."""

import os
import subprocess
import sys
import time

import pytest

from src.processes import began
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
