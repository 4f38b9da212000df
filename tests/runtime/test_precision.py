"""Precision, compilation, memory format: what is close, what is the same, what is refused."""

import os
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
import torch
from several_processes import together
from torch import nn
from whole_runs import certificate

from src.logging.records import Stats
from src.runtime import precision as computing
from src.runtime.certificate import first_differences
from src.runtime.checkpoints import CheckpointFiles
from src.runtime.precision import Compiled, Precision
from src.support.errors import UserError
from tests.waiting import PATIENCE
from train import run_experiment

ROOT = Path(__file__).parents[2]
OWN = {"dataset": "tests.own_parts:read", "model": "tests.own_parts:build"}
CPU = torch.device("cpu")


class Doubled(nn.Module):
    """Says how often it was run as Python, which compiled code is not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        if not torch.compiler.is_compiling():
            self.calls += 1
        return 2 * self.weight * inputs


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_by_default_the_network_is_called_itself():
    model = network()
    chosen = Precision.on(CPU, "fp32", False, False)
    assert chosen.forward(chosen.compiled(chosen.to_memory_format(model), 4)) is model
    assert not chosen.scaler().is_enabled()


@pytest.mark.parametrize(("precision", "distance"), [("bf16", 2e-2), ("fp16", 3e-3)])
def test_in_half_precision_outputs_and_gradients_are_float32_and_close(precision, distance, images):
    model, plain = network(), network()
    outputs = Precision(CPU, precision).forward(model)(images)
    expected = plain(images)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, expected, rtol=distance, atol=distance)
    assert not torch.equal(outputs, expected)
    outputs.square().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_channels_last_changes_the_memory_and_not_the_function(images):
    model = Precision(CPU, is_channels_last=True).to_memory_format(network())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    outputs = Precision(CPU, is_channels_last=True).forward(model)(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs, network()(images))


def full_and_short_batches() -> list[float]:
    model = Doubled()
    compiled = Compiled(model, "default", 4, [], fixed_shape=True)
    found = [compiled(torch.ones(4)).tolist(), model.calls]
    found += [compiled(torch.ones(3)).tolist(), model.calls]
    compiled(torch.ones(4)).sum().backward()
    return [*found, float(model.weight.grad)]


@pytest.mark.slow
def test_full_batches_are_compiled_and_others_not():
    # in a fork: where this process had compiled, no later test could train in one
    assert together(1, full_and_short_batches) == [[[2.0] * 4, 0, [2.0] * 3, 1, 8.0]]


@pytest.mark.slow
def test_names_in_checkpoints_are_those_of_the_network(digits, tmp_path):
    together(1, run_experiment, digits(compile=True, train_length=1))
    state = CheckpointFiles(tmp_path / "run" / "state").newest()
    assert list(state["parts"]["model"]) == ["weight", "bias"]


@pytest.mark.slow
def test_without_a_compiler_the_run_goes_on_and_says_so(digits, tmp_path):
    digits(compile=True).save(tmp_path / "cfg.yaml")
    done = subprocess.run(
        [sys.executable, "train.py", tmp_path / "cfg.yaml"],
        env=os.environ | {"CXX": "/no/such/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "compile: " in line]
    assert len(said) == 1
    assert "cannot be done here, the run continues without" in said[0]
    assert "No working C++ compiler" in said[0]
    assert "not compiled" in (tmp_path / "run" / "training.log").read_text()
    plain = run_experiment(digits(output_dir=None))
    assert list(Stats.read(tmp_path / "run")["test/last/loss"]) == list(plain["test/last/loss"])


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch, log_lines):
    model = Doubled()
    compiled = Compiled(model, "default", 4, [], fixed_shape=True)

    class Fails(nn.Module):
        def forward(self, inputs):
            raise torch._dynamo.exc.Unsupported("what is this\nand a page more")

    compiled.compiled = Fails()
    for _ in range(2):
        assert torch.equal(compiled(torch.ones(4)), 2 * torch.ones(4))
    assert model.calls == 2
    other = Compiled(Doubled(), "default", 4, compiled.failures)
    other.compiled = Fails()
    assert torch.equal(other(torch.ones(4)), 2 * torch.ones(4))
    said = [line for line in log_lines if "the run continues without" in line]
    assert len(said) == 1
    assert "what is this" in said[0]
    assert "page" not in said[0]


@pytest.mark.parametrize(
    ("precision", "device", "words"),
    [
        ("tf32", "cpu", "fp32, bf16 or fp16, as tf32 is of NVIDIA's GPUs, and the device is cpu"),
        ("tf32", "mps", "fp32, bf16 or fp16, as tf32 is of NVIDIA's GPUs, and the device is mps"),
        ("fp16", "mps", "fp32 or bf16 on mps"),
    ],
)
def test_a_precision_that_the_device_does_not_have_is_refused(precision, device, words):
    with pytest.raises(UserError, match=f"precision: got '{precision}', expected {words}"):
        Precision(torch.device(device), precision)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_tf32_is_for_ampere_and_later(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce RTX 2080 Ti")
    if capability < computing.AMPERE:
        with pytest.raises(UserError, match="as GeForce RTX 2080 Ti is older than Ampere"):
            Precision(torch.device("cuda"), "tf32")
        return
    before = torch.get_float32_matmul_precision()
    with Precision(torch.device("cuda"), "tf32").applied():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_fp16_keeps_gradients_that_are_too_small_for_it():
    gradients = []
    for scaler in (Precision(CPU).scaler(), Precision(CPU, "fp16").scaler()):
        model = nn.Linear(4, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        outputs = Precision(CPU, "fp16").forward(model)(torch.ones(1, 4))
        outputs.sum().backward(scaler.scale(torch.tensor(1e-9)))
        scaler.unscale_(optimizer)
        gradients.append(float(model.weight.grad.abs().max()))
    assert gradients == [0.0, pytest.approx(1e-9, rel=0.01)]


def test_fp16_goes_on_with_its_scale_to_the_bit(digits, tmp_path):
    keys = {"precision": "fp16", "batch_size": 10} | OWN
    for folder, lengths in {"a": [2], "b": [1, 2]}.items():
        for length in lengths:
            run_experiment(digits(**keys, train_length=length, output_dir=str(tmp_path / folder)))
    assert first_differences(tmp_path / "a", tmp_path / "b") == []
    scaler = CheckpointFiles(tmp_path / "b" / "state").newest()["parts"]["scaler"]
    assert scaler["_growth_tracker"] > 15  # steps since the scale was halved: of both epochs


# ---- Each with each ----------------------------------------------------------------------

ALLOWED = list(product(("fp32", "bf16", "fp16"), (False,), (1, 4), (1, 2), (True,)))
# Compiling takes long: each pair of values once.
for precision, pairs in (
    ("fp32", [(1, 1), (4, 2)]),
    ("bf16", [(1, 2), (4, 1)]),
    ("fp16", [(1, 2), (4, 1)]),
):
    ALLOWED += [(precision, True, *pair, True) for pair in pairs]
ALLOWED += list(product(("fp32", "bf16"), (False,), (1, 4), (2,), ("fsdp",)))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "compile", "accumulation", "processes", "kind"), ALLOWED)
def test_every_combination_learns_as_the_plain_one(
    precision, compile, accumulation, processes, kind, digits, tmp_path
):
    keys = {"model": "tiny/lenet", "batch_size": 32, "train_length": 40, "steps_per_epoch": 20}
    keys |= {"train_length_unit": "step", "base_lr": 0.003, "clip_norm": 5.0}
    plain = run_experiment(digits(**keys, output_dir=None))
    own = {"precision": precision, "compile": compile, "grad_accum_steps": accumulation}
    own |= {"multi_gpu": kind, "averaging": None if kind == "fsdp" else "ema_0.9"}
    own |= {"channels_last": accumulation == 4 and kind != "fsdp"}
    config = digits(**keys, **own)
    stats = together(processes, run_experiment, config)[0]
    assert len(stats) == 2
    last, expected = (frame["test/last/loss"].iloc[-1] for frame in (stats, plain))
    assert last == pytest.approx(expected, rel=0.05 if precision == "fp32" else 0.25)
    log = (tmp_path / "run" / "training.log").read_text()
    assert f"computes in {precision}" in log
    assert ("compiled (default)" if compile else "not compiled") in log
    assert (f"{processes} processes" in log) == (processes > 1)
    assert ("fully sharded" in log) == (kind == "fsdp")


REFUSED = [
    ({"multi_gpu": "fsdp", "precision": "fp16"}, "precision: got 'fp16', expected fp32, tf32 or"),
    ({"multi_gpu": "fsdp", "compile": True}, "compile: got True, expected false, as multi_gpu is"),
    ({"multi_gpu": "fsdp", "averaging": "ema"}, "averaging: got 'ema', expected null, as multi"),
    ({"multi_gpu": "fsdp", "channels_last": True}, "channels_last: got True, expected false, as"),
    ({"multi_gpu": "dp", "compile": "default"}, "compile: got 'default', expected false, as multi"),
    (
        {"compile": "reduce-overhead", "grad_accum_steps": 2},
        "compile: got 'reduce-overhead', expected true or max-autotune-no-cudagraphs, as",
    ),
    ({"compile": "fast"}, "compile: got 'fast', expected 'default', 'reduce-overhead'"),
    ({"precision": "fp8"}, "precision: got 'fp8', expected 'fp32', 'tf32', 'bf16' or 'fp16'"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_what_does_not_go_together_says_why(keys, words, digits):
    with pytest.raises(UserError) as caught:
        digits(**keys)
    assert words in str(caught.value)


def test_one_process_cannot_shard(digits):
    with pytest.raises(UserError, match="multi_gpu: got 'fsdp', expected true or false, as there"):
        run_experiment(digits(multi_gpu="fsdp"))


@pytest.mark.slow
def test_compiled_in_bf16_a_killed_run_ends_as_the_straight_one(digits, tmp_path):
    keys = {"model": "tiny/lenet", "compile": True, "precision": "bf16", "channels_last": True}
    keys |= {"train_length": 40, "averaging": "ema_0.9", "device": "cpu"}
    code, said = certificate(asdict(digits(**keys)), tmp_path, "--kills=1")
    assert code == 0, said
    assert "are equal" in " ".join(said.split())
