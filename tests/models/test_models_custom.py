"""A network of your own, by module and function."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import import_path
from src.models.registry import build_model, check_model
from src.support.errors import UserError
from train import main

ROOT = Path(__file__).parents[2]
NET = """
import math
import random

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, n_outputs):
        super().__init__()
        n_inputs = math.prod(input_shape)
        self.body, self.head = nn.Linear(n_inputs, 32), nn.Linear(32, n_outputs)

    def forward(self, inputs):
        return self.head(self.body(inputs.flatten(1)).relu())


def build(input_shape, n_outputs):
    return Net(input_shape, n_outputs), "head"


def by_keys(input_shape, n_outputs, config):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, config.batch_size), nn.Linear(7, n_outputs))


def headless(input_shape, n_outputs):
    return Net(input_shape, n_outputs)


def random_one():
    raise AssertionError("it is not called")


def no_module(input_shape, n_outputs):
    return 1


def by_numpy(input_shape, n_outputs):
    net = Net(input_shape, n_outputs)
    net.head.bias.data = torch.tensor(np.random.rand(n_outputs) + random.random()).float()
    return net


def wrong_head(input_shape, n_outputs):
    return Net(input_shape, n_outputs), "tail"
"""


@pytest.fixture
def fork(tmp_path, monkeypatch) -> Path:
    """A repository that holds my_nets/wide.py."""
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "wide.py").write_text(NET)
    monkeypatch.setattr(import_path, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_nets"]:
        del sys.modules[name]


def test_its_function_makes_the_model(config, fork):
    model = build_model(config("my_nets.wide:build", model_head_init="zero"), (64,), 10)
    assert torch.equal(model(torch.rand(2, 64)), torch.zeros(2, 10))
    again = build_model(config("my_nets.wide:headless"), (64,), 10).state_dict()
    same = build_model(config("my_nets.wide:headless"), (64,), 10).state_dict()
    assert all(torch.equal(again[name], same[name]) for name in again)


def test_its_function_sees_the_keys_if_it_asks_for_them(config, fork):
    model = build_model(config("my_nets.wide:by_keys", batch_size=7), (64,), 10)
    assert model(torch.rand(2, 64)).shape == (2, 10)


def test_its_start_is_the_seed_s_whatever_it_draws_from(config, fork):
    random.seed(3)
    np.random.seed(3)
    own = random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (
        build_model(config("my_nets.wide:by_numpy", seed_model=s), (64,), 10).head.bias
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets.wide:buidl", r"my_nets.wide has no function 'buidl'; did you mean '.*:build'\?"),
        ("my_nets.narrow:build", r"a module of this repository; there is no .*my_nets/narrow.py"),
        ("my_nets.wede:build", r"there is no .*wede.py; did you mean 'wide'\?"),
        ("my_nets.wide:random_one", r"called as random_one\(input_shape, n_outputs\): too many"),
        ("os:system", "a module of this repository; there is no"),
        ("my_nets.wide:", "expected module.path:function"),
        ("../other:build", r"unknown '\.\.'"),
        ("my_nets/wide.py:build", "expected module.path:function"),
        ("my_nets.wide:no_module", "gives a torch.nn.Module, not int"),
        ("my_nets.wide:wrong_head", "'tail' is none"),
    ],
)
def test_what_is_not_there_is_reported(config, fork, name, message):
    with pytest.raises(UserError, match=f"^model: .*{message}"):
        build_model(config(name), (64,), 10)


def test_pretrained_weights_are_refused(config, fork):
    with pytest.raises(UserError, match=r"no pretrained weights for 'my_nets.wide:build'"):
        check_model(config("my_nets.wide:build", model_pretrained=True))


def test_a_module_elsewhere_of_the_same_name_is_not_run(config, fork):
    (fork / "json").mkdir()  # which Python has, and has loaded
    (fork / "json" / "tool.py").write_text("def build(shape, n): raise AssertionError")
    with pytest.raises(UserError, match=r"another name than that of .*json"):
        build_model(config("json.tool:build"), (64,), 10)


def test_the_command_line_finds_modules_beside_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["test_cfg_digits_linear.yaml", f"output_dir={tmp_path / 'run'}"]
    assert main([*arguments, "model=examples.best_of_three:missing"]) == 2
    assert "examples.best_of_three has no function 'missing'" in capsys.readouterr().err
