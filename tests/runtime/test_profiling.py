"""A run that is profiled is the run that is not, and tells where its time goes."""

import gzip
import json
import os
import signal
from pathlib import Path

import pytest
import torch

import train
from src.data.splits import Split
from src.logging.lease import LeaseLost
from src.metrics import is_time
from src.runtime import evaluation, session, throughput
from src.runtime.signals import StopRequested
from src.runtime.throughput import TRACE, Profiler, table
from src.runtime.train_state import TrainState
from src.support.errors import UserError
from train import experiment_generator, run_experiment


def steps_of(folder: Path) -> list[int]:
    """The numbers of the steps in the trace."""
    events = json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]
    assert any(event["name"] == "aten::addmm" for event in events)
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return sorted(int(name.split()[1]) for name in marks if name.startswith("step "))


def names_of(folder: Path) -> set[str]:
    events = json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]
    return {event["name"] for event in events}


def share_of(lines: list[str]) -> float:
    (line,) = (line for line in lines if "training waited for data" in line)
    return float(line.split("%")[0]) / 100


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"profile": 4}, [6, 7, 8, 9]),
        ({"profile": 12}, [*range(6, 18)]),  # an epoch has 15 steps
        ({"profile": 4, "steps_per_epoch": 3}, [6, 7, 8, 9]),
        ({"profile": 28}, [*range(3, 31)]),  # a shorter warm-up
        ({"profile": 100}, [*range(1, 31)]),
    ],
)
def test_the_trace_holds_so_many_steps_after_a_warm_up(digits, tmp_path, keys, expected):
    keys = {"train_length": 30, "train_length_unit": "step"} | keys
    run_experiment(digits(**keys))
    assert steps_of(tmp_path / "run") == expected
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_evaluations_are_not_recorded(digits, tmp_path, monkeypatch):
    def evaluate(*arguments, **keys):
        with torch.profiler.record_function("evaluation"):
            return whole(*arguments, **keys)

    whole = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    run_experiment(digits(profile=20))
    assert steps_of(tmp_path / "run") == [*range(6, 26)]
    assert "evaluation" not in names_of(tmp_path / "run")


def test_the_log_names_ten_operations_and_the_share(digits, log_lines):
    run_experiment(digits(profile=3))
    first = next(i for i, line in enumerate(log_lines) if "own time on the CPU" in line)
    assert log_lines[first].startswith(f"3 steps were recorded in {TRACE}")
    operations = log_lines[first + 1 : first + 11]
    shares = [float(line.split("%")[0]) for line in operations]
    assert shares == sorted(shares, reverse=True)
    assert all(" ms " in line and " calls " in line for line in operations)
    assert not any(".step" in line for line in operations)  # the mark of the whole optimizer
    assert "training waited for data" in log_lines[first + 11]
    assert 0 <= share_of(log_lines) <= 1


def test_lines_of_the_table_fit_a_terminal():
    (line,) = table({"x" * 200: (123.456, 123_456)})
    assert len("12:34:56 | " + line) <= 80
    assert line == f"100.0%  123,456.00 ms    123,456 calls  {'x' * 27}…"


@pytest.mark.parametrize(("waiting", "computing"), [(5, 1), (0, 5)])
def test_slow_data_are_seen(digits, monkeypatch, log_lines, waiting, computing):
    """On a clock of the test's own, which a busy machine does not move."""
    now = 0.0

    def slow(*arguments, **keys):
        nonlocal now
        for batch in training_batches(*arguments, **keys):
            now += waiting
            yield batch

    def update(*arguments):
        nonlocal now
        now += computing
        return train_step(*arguments)

    for module in (session, throughput):
        monkeypatch.setattr(module, "perf_counter", lambda: now)

    training_batches, train_step = Split.training_batches, train.train_step
    monkeypatch.setattr(Split, "training_batches", slow)
    monkeypatch.setattr(train, "train_step", update)
    run_experiment(digits(profile=6, train_length=12, train_length_unit="step"))
    assert share_of(log_lines) == pytest.approx(waiting / (waiting + computing), abs=1e-3)


def test_the_numbers_are_those_of_a_run_without(digits, tmp_path):
    keys = {"model": "tiny/wrn_10_1_0.3", "data_splits_map": {"train": "train[:500]"}}
    frames = [
        run_experiment(digits(output_dir=str(tmp_path / str(steps)), profile=steps, **keys))
        for steps in (None, 7)
    ]
    plain, profiled = (f.drop(columns=[c for c in f if is_time(c)]).to_csv() for f in frames)
    assert plain == profiled
    assert not (tmp_path / "None" / TRACE).exists()


@pytest.fixture
def stop_in_step(monkeypatch):
    """stop_in_step(8, act): act() is called while the eighth step is made."""

    def at(number: int, act) -> None:
        count, whole = 0, train.train_step

        def update(*arguments):
            nonlocal count
            count += 1
            if count == number:
                act()
            return whole(*arguments)

        monkeypatch.setattr(train, "train_step", update)

    return at


def test_a_stop_while_recording_writes_what_there_is_and_the_run_goes_on(
    digits, tmp_path, stop_in_step
):
    stop_in_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StopRequested):
        run_experiment(digits(profile=20))
    assert steps_of(tmp_path / "run") == [6, 7, 8]
    stats = run_experiment(digits(profile=2))  # of the second attempt
    assert steps_of(tmp_path / "run") == [14, 15]
    straight = run_experiment(digits(output_dir=None))
    assert stats["train/loss"].tolist() == straight["train/loss"].tolist()


def test_an_error_while_recording_stays_the_error(digits, tmp_path, stop_in_step):
    def fail():
        raise RuntimeError("the dog ate it")

    stop_in_step(7, fail)
    with pytest.raises(RuntimeError, match="the dog ate it"):
        run_experiment(digits(profile=20))
    assert steps_of(tmp_path / "run") == [6, 7]
    stop_in_step(100, fail)
    run_experiment(digits())  # nothing records any more


def test_a_run_that_is_left_has_its_trace(digits, tmp_path):
    generator = experiment_generator(digits(profile=12, train_length=50))
    next(generator)
    generator.close()
    assert steps_of(tmp_path / "run") == [*range(6, 16)]


def test_a_full_disk_costs_the_trace_and_nothing_else(digits, tmp_path, log_lines):
    generator = experiment_generator(digits(profile=12))
    next(generator)
    (tmp_path / "run" / TRACE).mkdir()  # nothing can be written there
    assert len(list(generator)) == 1
    assert (tmp_path / "run" / "done").exists()
    assert any(line.startswith("no profile: IsADirectoryError") for line in log_lines)
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that is not there")
def test_a_profiler_that_fails_is_told_once_and_the_steps_go_on(tmp_path, log_lines):
    state = TrainState({}, {})
    with Profiler(3, tmp_path, torch.device("cuda")) as profiler:
        assert list(profiler.steps(range(12), state, 24)) == [*range(12)]
        assert list(profiler.steps(range(12, 24), state, 24)) == [*range(12, 24)]
    assert [line.startswith("no profile: ") for line in log_lines] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_lost_folder_gets_no_trace(digits, tmp_path, stop_in_step):
    def lose():
        raise LeaseLost("taken over")

    stop_in_step(8, lose)
    with pytest.raises(LeaseLost):
        run_experiment(digits(profile=20))
    assert not (tmp_path / "run" / TRACE).exists()


def test_without_a_folder_a_profile_is_refused(digits):
    with pytest.raises(UserError, match=r"profile: got 5, but output_dir is null"):
        run_experiment(digits(profile=5, output_dir=None))


def test_it_is_no_other_run(digits, tmp_path):
    run_experiment(digits(train_length=1))
    assert len(run_experiment(digits(profile=2, keep_state=True, train_length=2))) == 2
    assert steps_of(tmp_path / "run") == [21, 22]
