"""What measures measures: benchmarks/."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.image_trainers import laps
from benchmarks.turns import times_as_fast

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(GPU), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_how_many_times_as_fast_is_the_median_over_the_turns():
    assert times_as_fast([1.0, 1.0, 1.0], [2.0, 0.5, 9.0]) == 2


def test_a_lap_has_so_many_steps_and_none_is_done_between_laps():
    done = []

    def fit(after_step):
        while True:
            done.append(1)
            after_step()

    segments = laps(fit, 3)
    next(segments)
    next(segments)
    assert len(done) == 6


def test_a_trainer_that_fails_is_not_waited_for():
    def fit(after_step):
        raise ValueError("out of steps")

    with pytest.raises(ValueError, match="out of steps"):
        next(laps(fit, 1))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_tables_of_a_gpu_are_refused_in_one_line_where_there_is_none():
    found = run()
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_tables_of_a_gpu_can_be_made_in_small_on_a_cpu():
    found = run("--device", "cpu", "--tiny")
    assert found.returncode == 0, found.stderr
    rows = [line for line in found.stdout.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 2 + 2 + 2
