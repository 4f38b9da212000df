"""Operations counted against those worked out by hand, and the columns made of them."""

import copy
import os
import random
import signal
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import train
from src.data.arrays import ArraySplit
from src.data.images import DatasetSplit
from src.data.text import TextSplit
from src.models.hf import LanguageModel
from src.models.linear import Linear
from src.models.tiny import lenet
from src.runtime.run_length import StepSchedule
from src.runtime.signals import StopRequested
from src.runtime.throughput import (
    PEAKS,
    epoch_throughput,
    flops_per_example,
    peak_flops,
    seconds_at_peak,
)
from src.runtime.train_state import TrainState
from train import run_experiment

CPU = torch.device("cpu")


def images(*shape: int) -> DatasetSplit:
    return DatasetSplit([0] * 10, torch.tensor, torch.tensor)


def rows(*shape: int) -> ArraySplit:
    return ArraySplit(torch.zeros(5, *shape), torch.zeros(5, dtype=torch.int64))


def texts(*lengths: int, targets: torch.Tensor | None = None) -> TextSplit:
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.zeros(int(ends[-1]), dtype=torch.int32)
    return TextSplit(tokens, ends - torch.tensor(lengths), ends, targets)


# ---- What is counted ---------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_model_multiplies_once_forward_and_once_backward(has_bias):
    # no gradient of the inputs: 2 · 64 · 10 for the outputs, and as much for the weight's gradient
    found = flops_per_example(Linear(64, 10, has_bias=has_bias), rows(1, 8, 8), (1, 8, 8))
    assert found == 2 * 2 * 64 * 10


def test_lenet_by_hand():
    first = 28 * 28 * 6 * 5 * 5 * 1  # outputs × inputs of each, padded to the paper's size
    second = 10 * 10 * 16 * 5 * 5 * 6  # 14×14 after pooling
    dense = 5 * 5 * 16 * 120 + 120 * 84 + 84 * 10
    # forward, weights' gradients, and inputs' gradients but for the images'
    expected = 2 * (3 * (first + second + dense) - first)
    assert flops_per_example(lenet((1, 28, 28), 10), images(), (1, 28, 28)) == expected


def test_frozen_layers_need_no_gradients_of_weights():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    expected = 2 * (7 * 5 + 5 * 3 + 5 * 3)
    assert flops_per_example(model, rows(7), (7,)) == expected


def test_shared_weights_are_shared():
    layer = nn.Linear(5, 5, bias=False)
    expected = 2 * 25 * (2 + 2 + 1)
    assert flops_per_example(nn.Sequential(layer, layer), rows(5), (5,)) == expected


class Draws(nn.Module):
    """Batch norm, dropout, other draws, and a note about the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.last = None

    def forward(self, inputs):
        np.random.rand(), random.random(), torch.rand(3)
        self.last = self.layers(inputs)
        return self.last


def test_the_model_and_the_generators_are_left_as_they_were():
    model = Draws().eval()
    model.layers[0].weight.grad = torch.ones(4, 4)
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert flops_per_example(model, rows(4), (4,)) == 2 * 2 * 16
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert {p.device for p in [*model.parameters(), *model.buffers()]} == {CPU}
    assert torch.equal(model.layers[0].weight.grad, torch.ones(4, 4))
    assert [m.training for m in model.modules()] == [False] * 5
    assert model.last is None
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


class Asks(nn.Module):
    def forward(self, inputs):
        return inputs * 2 if inputs.sum() > 0 else inputs


def test_what_cannot_run_without_content_is_not_counted(log_lines):
    assert flops_per_example(Asks(), rows(4), (4,)) is None
    assert "the model can't be counted" in log_lines[-1]


def test_inputs_have_the_shapes_of_training():
    assert images().input_spec((3, 9, 8)) == ((3, 9, 8), torch.float32)
    assert rows(3, 4).input_spec((99,)) == ((3, 4), torch.float32)
    sparse = torch.eye(5).to_sparse_csr()
    assert ArraySplit(sparse, torch.zeros(5)).input_spec((5,)) is None
    packed = texts(9, 9, 9, 4)  # the last of packed ones is short
    assert packed.input_spec((8,)) == ((8,), torch.int64)
    assert texts(9, 9, targets=torch.zeros(2)).input_spec((9,)) == ((9,), torch.int64)
    assert texts(9, 8, 7).input_spec((8,)) is None


def test_a_language_model_by_hand():
    from transformers import GPT2Config, GPT2LMHeadModel

    n, d, v, layers = 8, 16, 40, 2
    settings = {"n_embd": d, "n_layer": layers, "n_head": 2, "vocab_size": v, "n_positions": 16}
    settings |= {"attn_implementation": "eager"}  # of others the backward computes some twice
    model = LanguageModel(GPT2LMHeadModel(GPT2Config(**settings)), padding=0)
    products = layers * (12 * n * d * d + 2 * n * n * d) + n * d * v
    assert flops_per_example(model, texts(9, 9), (8,)) == 2 * 3 * products


# ---- What devices can do -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp32", 14),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Tesla T4", "tf32", 8.1),
        ("NVIDIA GeForce RTX 2080 Ti", "fp16", 53.8),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "bf16", 312),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("NVIDIA RTX A6000", "fp32", 38.7),
        ("NVIDIA A40", "tf32", 74.8),
        ("NVIDIA GeForce RTX 4090", "fp32", 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp32", None),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp32", 67),
        ("NVIDIA H200 NVL", "fp32", None),
        ("NVIDIA GH200 480GB", "fp32", None),
        ("cpu", "fp32", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(name, precision, tera):
    assert peak_flops(name, precision) == (tera and tera * 1e12)
    assert sum(peak_flops(name, p) is not None for p in ("fp32", "tf32", "bf16", "fp16")) in (
        0,
        3,
        4,
    )


def test_nothing_is_counted_for_a_device_that_nobody_knows(monkeypatch):
    monkeypatch.setattr("src.runtime.throughput.flops_per_example", None)
    assert seconds_at_peak(Linear(64, 10), rows(64), (64,), CPU, "fp32") is None


def test_gpus_share_the_work(monkeypatch):
    monkeypatch.setitem(PEAKS, "cpu", {"bf16": 2.0})
    build = partial(seconds_at_peak, Linear(64, 10), rows(64), (64,), CPU, "bf16")
    alone, shared = (build(num_devices=number) for number in (1, 4))
    assert alone == 4 * shared == 2560 / 2e12


@pytest.mark.parametrize("is_rounded", [True, False])
def test_convolutions_of_fp32_are_counted_as_torch_computes_them(is_rounded, monkeypatch):
    """torch lets them round to tf32 by default; no share may pass 1."""
    monkeypatch.setitem(PEAKS, "cpu", {"fp32": 1.0, "tf32": 4.0})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", is_rounded)
    image = DatasetSplit([], None, None)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    found = seconds_at_peak(network, image, (1, 4, 4), CPU, "fp32")
    flops = flops_per_example(network, image, (1, 4, 4))
    assert found == flops / (4e12 if is_rounded else 1e12)
    rows_alone = seconds_at_peak(Linear(64, 10), rows(64), (64,), CPU, "fp32")
    assert rows_alone == 2560 / 1e12


# ---- The columns -------------------------------------------------------------------------


def state_after(step: int, seconds: float) -> TrainState:
    state = TrainState({}, {}, step=step, data_time=0.5)
    state.training.before = seconds
    return state


def test_an_epochs_examples_over_its_time():
    step_schedule = StepSchedule(95, 10)  # 10 steps a pass, the last of 5
    found = epoch_throughput(state_after(20, 4.0), step_schedule, range(10, 20), 2e-3)
    assert found == {
        "time": 4.0,
        "data_time": 0.5,
        "seen_examples": 190,
        "examples_per_second": 95 / 4,
        "peak_share": pytest.approx(95 * 2e-3 / 4),
    }
    diverged = epoch_throughput(state_after(13, 1.0), step_schedule, range(10, 20), None)
    assert (diverged["examples_per_second"], "peak_share" in diverged) == (30.0, False)


def test_a_run_has_the_share_where_the_device_is_known_alone(digits, tmp_path, monkeypatch):
    plain = run_experiment(digits(output_dir=str(tmp_path / "plain")))
    assert "train/peak_share" not in plain
    expected = 1438 / plain["train/time"]
    np.testing.assert_allclose(plain["train/examples_per_second"], expected)
    monkeypatch.setitem(PEAKS, "cpu", {"fp32": 0.1})
    known = run_experiment(digits())
    expected = 1438 * 2560 / (known["train/time"] * 1e11)
    np.testing.assert_allclose(known["train/peak_share"], expected)
    assert known["train/loss"].tolist() == plain["train/loss"].tolist()


def test_an_interrupted_epoch_counts_whole(digits, monkeypatch):
    calls, whole = 0, train.train_step

    def update(*arguments):
        nonlocal calls
        calls += 1
        if calls in (4, 20):
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    monkeypatch.setattr(train, "train_step", update)
    monkeypatch.setitem(PEAKS, "cpu", {"fp32": 0.1})
    for _ in range(2):
        with pytest.raises(StopRequested):
            run_experiment(digits())
    monkeypatch.delitem(PEAKS, "cpu")  # continues elsewhere
    stats = run_experiment(digits())
    np.testing.assert_allclose(stats["train/examples_per_second"] * stats["train/time"], 1438)
    assert stats["train/peak_share"].notna().tolist() == [True, False]
