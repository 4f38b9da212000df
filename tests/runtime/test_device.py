"""Memory that a step frees is there for the next one."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS, PIECES, BYTES, PAGE = 20, 50, 400_000, 4096
PROGRAM = f"""
import resource, sys
from src.runtime.precision import disable_malloc_trim

def step():
    pieces = [b"x" * {BYTES} for _ in range({PIECES})]
    while pieces:
        pieces.pop()

if sys.argv[1] == "kept":
    disable_malloc_trim()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_fetched(how: str) -> int:
    """By steps that allocate and free the same, in a process of their own: what was freed
    before counts too."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep it or cannot be told")
def test_steps_do_not_fetch_their_memory_anew():
    of_a_step = PIECES * BYTES // PAGE
    assert pages_fetched("not kept") > STEPS * of_a_step / 2
    assert pages_fetched("kept") < of_a_step / 2
