"""What version 0.2.0 left on disk is read, resumed and retried: tests/kept/ holds folders of it.

stopped/: stopped after 8 of 15 steps. straight/: the stats of the same run, not stopped.
26-11-29-kept/: a batch with two runs that are done, and one that never started.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import report
import submit_multiple
from src.analysis import read_experiments
from src.config import load_config
from src.metrics import is_time
from src.runtime.checkpoints import read_state, write_state
from train import run_experiment

KEPT = Path(__file__).with_name("kept")
BATCH = "26-11-29-kept"


def test_a_stopped_run_resumes_and_ends_as_the_straight_one(tmp_path, monkeypatch):
    shutil.copytree(KEPT / "stopped", tmp_path / "stopped")
    monkeypatch.chdir(tmp_path)  # its output_dir is relative
    resumed = run_experiment(load_config("stopped/spec.yaml"))
    assert "| attempt 2 on " in Path("stopped/training.log").read_text()
    straight = pd.read_csv(KEPT / "straight" / "stats.csv", index_col=0)
    columns = [column for column in straight if not is_time(column)]
    assert list(resumed) == list(straight)
    # to rounding: another processor may sum in another order
    np.testing.assert_allclose(resumed[columns], straight[columns], rtol=1e-4)


def test_a_run_of_a_branch_with_another_key_resumes_where_that_is_null(tmp_path, monkeypatch):
    folder = shutil.copytree(KEPT / "stopped", tmp_path / "stopped")
    monkeypatch.chdir(tmp_path)
    for name in ("spec.yaml", "config.yaml"):
        (folder / name).write_text((folder / name).read_text() + "teacher: null\n")
    state = folder / "state" / "000000008.state"
    content = read_state(state)
    for config in content["config"].values():
        config["teacher"] = None
    write_state(state, content)
    assert len(read_experiments(folder)) == 1
    assert run_experiment(load_config("stopped/spec.yaml"))["step"].tolist() == [5, 10, 15]
    assert "| attempt 2 on " in Path("stopped/training.log").read_text()


@pytest.mark.slow
def test_a_finished_batch_is_read_and_what_lacks_is_run(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results" / BATCH
    shutil.copytree(KEPT / BATCH, folder)
    monkeypatch.chdir(tmp_path)
    done = {path: path.read_bytes() for path in folder.glob("*/stats.csv")}
    assert len(done) == 2
    assert read_experiments(folder)["outcome"].tolist()[:2] == ["finished"] * 2
    assert report.main([str(folder)]) == 0
    assert "1 run: never started" in capsys.readouterr().out
    assert submit_multiple.main(["-r", str(folder), "-s", "local", "--live", "--yes"]) == 0
    found = read_experiments(folder)
    assert found["base_lr"].tolist() == [0.01, 0.1, 1.0]
    assert found["outcome"].tolist() == ["finished"] * 3
    assert all(path.read_bytes() == content for path, content in done.items())
