"""report.py compare: a verdict over pairs of runs with the same seeds."""

import json

import pytest

import report
from train import run_experiment

SPLITS = {"train": "train[:500]", "val": "train[500:700]", "test": "train[700:900]"}


@pytest.fixture
def kinds(digits, tmp_path):
    """Runs of three seeds, with a good learning rate and with one that learns next to nothing."""
    for name, rate in {"good": 0.01, "bad": 1e-5}.items():
        for seed in (1, 2, 3):
            folder = tmp_path / name / str(seed)
            keys = {"base_lr": rate, "seed_model": seed, "data_splits_map": SPLITS}
            run_experiment(digits(output_dir=str(folder), **keys))
    return tmp_path


def test_the_verdict_follows_the_pairs_on_the_split_that_chooses(kinds, capsys):
    folders = [str(kinds / "good"), str(kinds / "bad")]
    assert report.main(["compare", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["metric"]) == ("a", "val/last/accuracy")
    assert (found["num_pairs"], found["num_better"], found["num_equal"]) == (3, 3, 0)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["differing"] == {"base_lr": [0.01, 1e-5]}
    assert found["doubts"] == []
    assert report.main(["compare", *reversed(folders), "--metric", "val/last/loss"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: b"


def test_one_pair_and_equal_ones_decide_nothing(kinds, capsys):
    folders = [str(kinds / "good"), str(kinds / "bad")]
    assert report.main(["compare", *folders, "--a", "seed_model=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["num_pairs"], found["low"]) == ("undecided", 1, None)
    assert "2 of the 3 runs of b have no partner" in found["doubts"][0]
    assert report.main(["compare", folders[0], folders[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good"], "the following arguments are required: results/B"),
        (["good", "bad", "--a", "seed_model"], "compare: got 'seed_model', expected KEY=VALUE"),
        (["good", "bad", "--a", "sede_model=1"], "did you mean 'seed_model'"),
        (["good", "bad", "--metric", "acuracy"], "--metric: 'acuracy' matches none of"),
        (["good", "nothing"], "nothing"),
        (
            ["good", "bad", "--a", "seed_model=1", "--b", "seed_model=2"],
            "no run of a has a partner",
        ),
    ],
)
def test_a_mistake_is_one_line(kinds, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(kinds)
    assert report.main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
