import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger

from src.runtime import checkpoints as saving
from src.runtime.checkpoints import (
    CheckpointFiles,
    CheckpointManager,
    CorruptCheckpoint,
    read_state,
)
from src.runtime.signals import StopRequested
from src.runtime.train_state import TrainState
from src.support.errors import UserError
from tests.waiting import PATIENCE


class Part:
    """A weight that training changes in place."""

    def __init__(self) -> None:
        self.weight = torch.zeros(1000)

    def state_dict(self) -> dict:
        return {"weight": self.weight}

    def load_state_dict(self, state_dict: dict) -> None:
        self.weight = state_dict["weight"]


@pytest.fixture
def state() -> TrainState:
    return TrainState({"part": Part()}, {"asked": {}, "in_force": {}})


def saver_of(state: TrainState, folder: Path | None, **keys) -> CheckpointManager:
    return CheckpointManager(CheckpointFiles(folder), state, **{"minutes": 10} | keys)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.state"))


@pytest.fixture
def warnings():
    lines = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


def test_the_clock_decides_between_ends_of_epochs(state, tmp_path):
    with saver_of(state, tmp_path, minutes=0.1 / 60) as saver:
        began, until = time.perf_counter(), time.perf_counter() + PATIENCE
        while len(saved(tmp_path)) < 2:
            assert time.perf_counter() < until
            state.step += 1
            saver.by_the_clock()
        assert time.perf_counter() - began >= 0.2
    assert 0 < min(saved(tmp_path)) < max(saved(tmp_path))
    with saver_of(state, tmp_path / "never") as saver:
        saver.by_the_clock()
    assert saved(tmp_path / "never") == []


def test_ends_of_epochs_save_as_often_as_it_is_cheap(state, tmp_path, monkeypatch):
    """On a clock of the test's own: an epoch takes 1 s, saving 5, a quarter of the time at most."""
    write, times, now = saving.CheckpointFiles.save, [], 0.0

    def slow(files, step, content):
        nonlocal now
        times.append(now)
        now += 5
        write(files, step, content)

    monkeypatch.setattr(saving.CheckpointFiles, "save", slow)
    monkeypatch.setattr(saving, "MAX_COST", 1 / 4)
    monkeypatch.setattr(saving, "perf_counter", lambda: now)
    with saver_of(state, tmp_path) as saver:
        for _ in range(50):
            now += 1
            state.step += 1
            saver.at_epoch_end()
            if saver.thread:
                saver.thread.join()
    assert times == [1, 21, 41, 61]


def test_training_goes_on_while_a_state_is_written(state, tmp_path, monkeypatch):
    """And what it changes meanwhile is not in the file."""
    write, is_changed, was_changed = saving.CheckpointFiles.save, threading.Event(), []

    def slow(files, step, content):
        was_changed.append(is_changed.wait(PATIENCE))
        write(files, step, content)

    monkeypatch.setattr(saving.CheckpointFiles, "save", slow)
    with saver_of(state, tmp_path) as saver:
        saver.at_epoch_end()
        state.parts["part"].weight += 1
        state.step = 7
        is_changed.set()
    assert was_changed == [True]
    (path,) = tmp_path.glob("*.state")
    content = read_state(path)
    assert content["step"] == 0
    assert content["parts"]["part"]["weight"].sum() == 0


def test_what_no_file_can_hold_is_said_at_once(state, tmp_path, warnings):
    state.parts["part"].weight = {"path": Path("x")}
    with saver_of(state, tmp_path) as saver:
        saver.at_epoch_end()
        saver.at_end()
    assert "Unsupported global: GLOBAL pathlib" in warnings[0]
    assert "the run cannot be resumed" in warnings[0]
    assert saved(tmp_path) == []  # it would be in the way of a start from scratch


def test_every_kind_of_value_is_verified_to_be_readable_not_just_the_first_state_s(
    state, tmp_path, warnings
):
    """What a part comes to hold later as well; the state before it stays."""
    state.parts["part"].weight = {"best": 0.5, "rows": [{"loss": 1.0}]}
    with saver_of(state, tmp_path) as saver:
        saver._report(saver.save_now())
        for state.step in (10, 20, 30):
            state.parts["part"].weight["rows"].append({"loss": np.mean([1.0, 2.0])})
            saver._report(saver.save_now())
            assert saved(tmp_path) == [0]
        state.parts["part"].weight["rows"] = [{"loss": 2.0}, torch.zeros(1), {3, 4}]
        saver._report(saver.save_now())
    assert saved(tmp_path) == [0, 30]
    assert len(warnings) == 3
    assert "parts/part/weight/rows/1/loss" in warnings[0]
    assert "numpy.float64" in warnings[0]
    assert "00000.state is kept" in warnings[0]
    for path in tmp_path.glob("*.state"):
        read_state(path)


def test_a_state_of_known_kinds_is_not_read_again(state, tmp_path, monkeypatch):
    reads, read = [], saving.read_state
    monkeypatch.setattr(saving, "read_state", lambda *a, **k: reads.append(a) or read(*a, **k))
    with saver_of(state, tmp_path) as saver:
        for state.step in (10, 20, 30):
            assert saver.save_now() is None
    assert len(reads) == 1


def test_a_file_that_the_disk_does_not_read_now_is_kept(state, tmp_path, monkeypatch):
    def read(path, device):
        try:
            (path / "a file is no folder").read_bytes()
        except OSError as error:
            raise CorruptCheckpoint(f"cannot be read ({error.strerror})") from None

    monkeypatch.setattr(saving, "read_state", read)
    with saver_of(state, tmp_path) as saver:
        assert isinstance(saver.save_now(), CorruptCheckpoint)
    assert saved(tmp_path) == [0]


@pytest.mark.parametrize("content", [Path("x"), lambda: None])
def test_stopped_without_any_state_it_does_not_promise_to_go_on(state, tmp_path, content):
    state.parts["part"].weight = content
    words = "no state could be saved"
    with pytest.raises(UserError, match=words), saver_of(state, tmp_path):
        raise StopRequested(signal.SIGTERM)
    with pytest.raises(StopRequested), saver_of(state, None):
        raise StopRequested(signal.SIGTERM)


def test_a_full_disk_is_called_by_its_name(state, tmp_path, small_files, warnings):
    with saver_of(state, tmp_path) as saver:
        small_files(100)
        with pytest.raises(UserError, match=r"\(File too large\); start again when there is room"):
            saver.at_end()
        saver.at_epoch_end()
    with saver_of(state, tmp_path) as saver:
        saver._report(saver.save_now())
    small_files(None)
    assert "could not be saved (File too large); there is none yet" in warnings[-1]


def test_a_run_without_a_folder_saves_nothing(state, monkeypatch):
    monkeypatch.setattr(saving, "snapshot", lambda *_: pytest.fail("a copy for nothing"))
    with saver_of(state, None, minutes=1e-9) as saver:
        saver.by_the_clock()
        saver.at_epoch_end()


def test_the_parts_of_other_code_are_named(state):
    content = state.state_dict()
    other = TrainState({"part": Part(), "average": Part()}, {})
    with pytest.raises(UserError, match="differs in average"):
        other.load_state_dict(content)


def test_seconds_add_up_over_attempts(state):
    state.training.start()
    time.sleep(0.02)
    content = state.state_dict()
    again = TrainState({"part": Part()}, {})
    again.load_state_dict(content)
    before = again.training.seconds
    assert before >= 0.02
    again.training.start()
    time.sleep(0.02)
    again.training.stop()
    assert again.training.seconds >= before + 0.02
    again.end_epoch(3)
    assert (again.training.seconds, again.epoch) == (0.0, 3)
