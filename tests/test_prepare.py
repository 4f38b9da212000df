"""prepare.py: what runs need is at hand before they start."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import prepare
from src.data import registry as build

ROOT = Path(__file__).parents[1]


def written(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture
def loads(monkeypatch):
    """The data sets that are loaded, in order."""
    names = []
    real = prepare.build_data

    def counted(config, preprocessing):
        names.append(config.dataset)
        return real(config, preprocessing)

    monkeypatch.setattr(prepare, "build_data", counted)
    return names


def test_a_configuration_is_prepared(tmp_path, capsys):
    path = written(tmp_path / "cfg.yaml", {"dataset": "sklearn/digits", "model": "tiny/lenet"})
    assert prepare.main([path]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1/1 sklearn/digits, tiny/lenet\n  1,438 train, 359 test, ")
    assert out.endswith("everything is there\n")


def test_each_data_set_of_a_grid_is_loaded_once(tmp_path, loads, capsys):
    grid = {"dataset": ["sklearn/iris", "sklearn/wine"], "base_lr": [0.1, 1], "seed_model": [1, 2]}
    assert prepare.main([written(tmp_path / "job.yaml", {"parameters": grid})]) == 0
    assert loads == ["sklearn/iris", "sklearn/wine"]
    assert prepare.main([str(tmp_path / "job.yaml"), "dataset=sklearn/iris"]) == 0
    assert loads[2:] == ["sklearn/iris"]


def test_models_that_want_the_same_data_share_them(tmp_path, loads):
    grid = {
        "dataset": "sklearn/digits",
        "model": ["tiny/lenet", "timm/tf_efficientnet_lite0"],
    }
    assert prepare.main([written(tmp_path / "job.yaml", {"parameters": grid})]) == 0
    assert loads == ["sklearn/digits"]


def test_weights_are_tried(tmp_path, capsys, efficientnet):
    keys = {"dataset": "sklearn/digits", "model": "timm/tf_efficientnet_lite0"}
    keys |= {"model_input_shape": [3, 32, 32]}
    path = written(tmp_path / "cfg.yaml", keys | {"model_weights": efficientnet})
    assert prepare.main([path]) == 0
    assert "359 test, weights, " in capsys.readouterr().out
    assert prepare.main([path, "model_weights=nowhere.pt"]) == 2
    assert "model_weights: " in capsys.readouterr().err


def test_what_cannot_be_had_is_said_once_and_hinders_nothing_else(tmp_path, loads, capsys):
    splits = {"train": "train", "test": "test"}
    grid = {
        "dataset": ["timm/folder/nowhere", "sklearn/iris"],
        "model": ["linear", "linear/no_bias"],
        "data_dir": str(tmp_path),
        "data_splits_map": [splits],
    }
    assert prepare.main([written(tmp_path / "job.yaml", {"parameters": grid})]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("timm/folder/nowhere has no folder train") == 1
    assert "sklearn/iris, linear\n  120 train, 30 test" in captured.out
    assert "everything is there" not in captured.out
    assert loads == ["timm/folder/nowhere", "sklearn/iris"]


def test_being_asked_to_fetch_it_fetches(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build.libsvm, "build", lambda c, *_: asked.append(c.data_download))
    path = written(tmp_path / "cfg.yaml", {"data_download": False, "data_dir": str(tmp_path)})
    assert prepare.main([path]) == 2  # there are no data after all
    assert asked == [True]


def test_what_a_function_of_one_s_own_raises_hinders_nothing_else(tmp_path, monkeypatch, capsys):
    def read(data_dir):
        raise FileNotFoundError("no such points")

    monkeypatch.setattr("tests.own_parts.read", read)
    grid = {"dataset": ["tests.own_parts:read", "sklearn/iris"]}
    assert prepare.main([written(tmp_path / "job.yaml", {"parameters": grid})]) == 2
    captured = capsys.readouterr()
    assert captured.err == "tests.own_parts:read: FileNotFoundError: no such points\n"
    assert "120 train, 30 test" in captured.out


@pytest.mark.parametrize(
    ("content", "overrides", "words"),
    [
        ({"modle": "linear"}, [], "did you mean 'model'"),
        ({"parameters": {"model": ["linear"], "base_lrr": [1]}}, [], "did you mean 'base_lr'"),
        ({"model": "linear"}, ["model"], "expected key=value"),
    ],
)
def test_mistakes_are_answered_in_a_line(tmp_path, capsys, content, overrides, words):
    assert prepare.main([written(tmp_path / "x.yaml", content), *overrides]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_ends_it_in_a_line(tmp_path):
    path = written(tmp_path / "job.yaml", {"parameters": {"dataset": ["sklearn/iris"]}})
    script = "import sys, signal, prepare; prepare.build_data = lambda *_: signal.raise_signal(2)"
    script += f"; sys.exit(prepare.main([{path!r}]))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command resumes\n"
