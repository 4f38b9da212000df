"""How work on a model is shared: when gradients travel, what stays as it is."""

import os
from itertools import product

import pytest
import torch
from several_processes import together
from torch import nn
from torch.profiler import profile

from src.config import make_config
from src.runtime import command_line
from src.runtime.distributed import DistributedContext
from src.runtime.parallel import Parallel, _blocks
from src.support.errors import UserError
from src.support.processes import RankInfo, detect_rank
from train import experiment_generator

CPU = torch.device("cpu")
KEYS = {"dataset": "tests.own_parts:read", "model": "tests.own_parts:build", "batch_size": 40}
KEYS |= {"train_length": 1, "drop_last": True, "device": "cpu", "seed_model": 0}
KEYS |= {"data_splits_map": {"train": "train"}, "seed_training": 0}


def num_reductions(accumulation: int) -> int:
    """How often gradients travel in an epoch of five steps, whose lines come every 10."""
    with profile() as recorded:
        for _ in experiment_generator(make_config(KEYS | {"grad_accum_steps": accumulation})):
            pass
    counts = {event.key: event.count for event in recorded.key_averages()}
    return sum(count for name, count in counts.items() if name.endswith("all_reduce"))


def test_gradients_travel_once_a_step_however_many_micro_batches():
    few, many = (together(2, num_reductions, accumulation) for accumulation in (1, 5))
    assert few == many
    assert few[0] >= 5


class Noting(nn.Module):
    """A weight that nothing depends on, one that is used twice, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return self.used(self.used(inputs)) + torch.rand(())


def first_pass() -> dict:
    torch.manual_seed(0)
    with DistributedContext(detect_rank(os.environ)) as distributed:
        distributed.start(CPU)
        parallel = Parallel(distributed, True, CPU)
        model = Noting()
        network = parallel.wrap(model)
        drawn = torch.get_rng_state()
        inputs = torch.full((2, 3), float(distributed.rank))
        micro_batches = parallel.synchronized([inputs, inputs])
        network(next(micro_batches)).sum().backward()
        calls = float(model.calls)
        torch.set_rng_state(drawn)
        model.zero_grad()
        network(next(micro_batches)).sum().backward()
        shared = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
        parallel.broadcast_buffers([model])
        return {"calls": calls, "shared": shared, "buffer": float(model.calls)}


def test_the_warm_up_leaves_no_trace_and_unused_weights_have_no_gradient():
    first, second = together(2, first_pass)
    assert first["calls"] == second["calls"] == 1  # and not 2
    assert first["shared"] == second["shared"]
    assert [x is None for x in first["shared"]] == [False, False, True, True]
    torch.manual_seed(0)
    plain = Noting()
    for rank in range(2):
        (plain(torch.full((2, 3), float(rank))).sum() / 2).backward()
    torch.testing.assert_close(torch.tensor(first["shared"][0]), plain.used.weight.grad)
    assert first["buffer"] == second["buffer"] == 2


def test_synchronised_batch_norms_keep_their_names_and_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    distributed = DistributedContext(RankInfo(0, 2, 0, "127.0.0.1", "1"))
    made = Parallel(distributed, True, torch.device("cuda")).prepare(model, sync_bn=True)
    assert isinstance(made[1], nn.SyncBatchNorm)
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())
    alone = Parallel(DistributedContext(None), True, CPU)
    plain = nn.Sequential(nn.BatchNorm1d(3))
    assert alone.prepare(plain, sync_bn=True) is plain  # a batch is whole here


def test_blocks_are_the_items_of_the_outermost_lists():
    inner = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)))
    model = nn.ModuleDict({"stem": nn.Linear(1, 1), "layers": nn.ModuleList([inner, nn.ReLU()])})
    assert _blocks(model) == [inner]


@pytest.mark.parametrize(
    ("keys", "number"),
    [
        ({}, 4),
        ({"multi_gpu": "fsdp"}, 4),
        ({"multi_gpu": False}, 1),
        ({"multi_gpu": "dp"}, 1),
        ({"device": "cpu"}, 1),
        ({"device": "cuda:1"}, 1),
        ({"device": "cuda"}, 4),
        ({"dataset": "libsvm/a9a"}, 1),
        ({"dataset": "libsvm/a9a", "multi_gpu": "fsdp"}, 4),
    ],
)
def test_a_process_is_started_for_each_visible_gpu(keys, number, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    asked = {"multi_gpu": True, "device": None, "dataset": "timm/torch/cifar10"} | keys
    assert command_line.num_processes(**asked) == number
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun has started it
    if asked["multi_gpu"]:
        assert command_line.num_processes(**asked) == 1
    else:
        with pytest.raises(UserError, match="expected true or fsdp, as 2 processes were started"):
            command_line.num_processes(**asked)


@pytest.mark.parametrize(("kind", "size"), product((True, False, "dp", "fsdp"), (1, 2)))
def test_kinds_and_numbers_that_do_not_fit_are_refused(kind, size):
    distributed = DistributedContext(RankInfo(0, 2, 0, "127.0.0.1", "1") if size == 2 else None)
    if (kind, size) in (("dp", 2), ("fsdp", 1)):
        with pytest.raises(UserError, match=f"multi_gpu: got '{kind}', expected true or "):
            Parallel(distributed, kind, CPU)
    else:
        Parallel(distributed, kind, CPU)
