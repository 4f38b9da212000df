"""train.py --list: each name that it shows exists."""

import sys

import pytest

from src.config import make_config
from src.data import check_dataset
from src.models import check_model
from src.runtime.names import NAMES, describe_names
from src.support import UserError
from train import main


@pytest.mark.parametrize("kind", ["schedules", "averages", "losses", "metrics", "optimizers"])
def test_small_tables_are_shown_whole(kind):
    key, names = NAMES[kind]
    assert describe_names(kind).splitlines() == list(names())
    assert key in make_config({"dataset": "sklearn/digits"}).__dict__


@pytest.mark.parametrize("pattern", ["^linear", "^tiny/[^w]", "^timm/resnet1", "^torchvision/vgg"])
def test_models_that_are_shown_exist(pattern):
    for name in describe_names("models", pattern).splitlines():
        check_model(make_config({"dataset": "sklearn/digits", "model": name}))


@pytest.mark.parametrize("pattern", ["^sklearn", "^libsvm/a9a", "^timm/torch/c", "^tfds/mnist$"])
def test_data_sets_that_are_shown_exist(pattern):
    for name in describe_names("datasets", pattern).splitlines():
        check_dataset(make_config({"dataset": name}))


def test_a_family_whose_library_is_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert describe_names("models", "^clip") == (
        "clip/… (model: clip/… needs `pip install open_clip_torch`)"
    )


def test_the_command_line_lists(capsys):
    assert main(["--list", "models", "TINY/LENET"]) == 0
    assert capsys.readouterr().out == "tiny/lenet\n"
    assert main(["--list", "model"]) == 2
    assert "--list: unknown 'model'; did you mean 'models'?" in capsys.readouterr().err
    assert main(["--list", "models", "("]) == 2
    assert "--list: got '(', expected a regular expression" in capsys.readouterr().err
    assert main(["--list", "models", "a", "b"]) == 2
    assert describe_names("losses", "crossentropy").startswith(
        "no name for loss matches 'crossentropy'; did you mean 'xentropy'?"
    )
    with pytest.raises(UserError, match="metrics"):
        describe_names("metric")
