"""One model in several processes, or on several GPUs of one: multi_gpu.

true: DistributedDataParallel (Li et al. 2020): each process has the whole model and a shard of
every batch; gradients are averaged during the backward pass. fsdp: fully_shard of torch
(FSDP2; Zhao et al. 2023): each has a shard of every weight, and gathers the rest layer by layer.
dp: DataParallel, one process for all GPUs of a machine. Whatever the number of processes, states
and checkpoints are those that one process would have.
"""

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar
from warnings import catch_warnings

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn
from torch.optim import Optimizer

from src.logging import Uses
from src.runtime.distributed import DistributedContext
from src.runtime.train_state import Stateful, is_sharded
from src.support import bad_value, random_state

T = TypeVar("T")
LAYERS = (nn.Sequential, nn.ModuleList)  # each of their items is sharded by itself


class Parallel:
    """How the processes of `distributed` share the work on one model.

    init_device: where the model is built. num_devices: that work on it, over all processes.
    """

    def __init__(
        self, distributed: DistributedContext, kind: str | bool, device: torch.device
    ) -> None:
        """kind: multi_gpu. UserError where the number of processes does not fit it."""
        self.distributed, self.device = distributed, device
        self.is_sharded = kind == "fsdp"
        if self.is_sharded and distributed.size == 1:
            expected = "true or false, as there is one process alone, which has the whole model"
            raise bad_value("multi_gpu", kind, expected)
        if kind == "dp" and distributed.size > 1:
            expected = f"true or fsdp, as there are {distributed.size} processes"
            raise bad_value("multi_gpu", kind, expected)
        self.num_devices = distributed.size
        if kind == "dp" and device.type == "cuda" and device.index is None:
            self.num_devices = torch.cuda.device_count()
        # not as a whole on a GPU that is too small for it
        self.init_device = torch.device("cpu") if self.is_sharded else device

    def prepare(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """Before there is an optimizer. With fsdp each process keeps its shard, in place."""
        if sync_bn and self.distributed.size > 1:
            if self.device.type != "cuda":
                raise bad_value("sync_bn", True, f"false, as torch has none for {self.device.type}")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if self.is_sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.distributed.size,))
            for block in (*_blocks(model), model):
                fully_shard(block, mesh=mesh)
        return model

    def as_stateful(self, part: Any) -> Stateful:
        """The part as it is saved: one process can read it, whatever number wrote it."""
        is_sharded = self.is_sharded and isinstance(part, nn.Module | Optimizer)
        return ShardedPart(part) if is_sharded else part

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is called in training."""
        self.network = network
        if self.distributed.size == 1 < self.num_devices:
            logger.info("each batch is spread over {} GPUs", self.num_devices)
            self.network = nn.DataParallel(network)
        elif self.distributed.size > 1 and not self.is_sharded:
            self.network = AccumulatingDDP(network)
        return self.network

    def synchronized(self, micro_batches: Sequence[T]) -> Iterator[T]:
        """The micro-batches of a batch; the gradients travel with the last one alone."""
        for number, micro_batch in enumerate(micro_batches, 1):
            is_last = number == len(micro_batches)
            if self.is_sharded:
                self.network.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            elif self.distributed.size > 1:
                self.network.is_last = is_last  # type: ignore[assignment]
            yield micro_batch

    def broadcast_buffers(self, models: Iterable[nn.Module]) -> None:
        """All take the main process's statistics of batch norms, which are of its shard alone."""
        if self.distributed.size > 1:
            for buffer in (buffer for model in models for buffer in model.buffers()):
                dist.broadcast(buffer, src=0)

    def uses(self) -> Uses:
        """What the run uses of this machine."""
        gpus: list[int] = []
        if self.device.type == "cuda":
            index = self.device.index
            gpus = [torch.cuda.current_device() if index is None else index]
            if self.distributed.size == 1 < self.num_devices:
                gpus = list(range(self.num_devices))
        known = [getattr(torch.cuda.get_device_properties(gpu), "uuid", None) for gpu in gpus]
        named = [f"GPU-{str(x).removeprefix('GPU-')}" for x in known if x is not None]
        size, here = self.distributed.size, platform.node()
        if size == 1:
            return Uses(None, tuple(named), len(gpus))
        hosts = self.distributed.gather_objects([here, *named])
        of_this_machine = [x for host, *theirs in hosts if host == here for x in theirs]
        return Uses(os.getppid(), tuple(of_this_machine), size if gpus else 0, size)

    def describe(self) -> str | None:
        """For the log; None: one process, one device."""
        if self.distributed.size == 1:
            visible = torch.cuda.device_count() if self.device.type == "cuda" else 1
            return f"one of {visible} GPUs" if visible > self.num_devices else None
        how = "fully sharded" if self.is_sharded else "a shard of each batch each"
        return f"{self.distributed.size} processes, {how}"


class AccumulatingDDP(nn.Module):
    """DistributedDataParallel that takes the gradients of a batch's micro-batches as one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        with catch_warnings(category=FutureWarning, action="ignore"):  # a name will change
            # static_graph: weights that the outputs do not depend on are left alone, as by one
            # process. Buffers do not matter in training; before evaluations all take the main
            # process's. The inputs are on the device already.
            self.network = nn.parallel.DistributedDataParallel(
                network, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
            )
        self.is_last, self.is_warm = True, False

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.is_warm:
            self._warm_up(inputs)
        with nullcontext() if self.is_last else self.network.no_sync():
            return self.network(inputs)

    @random_state.isolate_rng()
    def _warm_up(self, inputs: Tensor) -> None:
        """Discard the first pass, in which DDP learns which weights are used and in which order: it
        rounds differently, so that a resumed run would not be the same."""
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        # What made the inputs (a module before this one) keeps its graph for the real pass.
        outputs = self.network(inputs.detach().requires_grad_(inputs.requires_grad))
        with torch.autocast(inputs.device.type, enabled=False):
            outputs.float().sum().backward()
        with torch.no_grad():
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for parameter in self.network.parameters():
            parameter.grad = None
        self.is_warm = True


# ---- Sharded models (FSDP2) --------------------------------------------------------------


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The items of the outermost lists: the blocks of transformers and residual networks."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, LAYERS):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += _blocks(child)
    return found


class ShardedPart:
    """A sharded model or its optimizer as a part of the state, which holds whole tensors: momenta
    are sharded as their weights are."""

    def __init__(self, part: nn.Module | Optimizer) -> None:
        self.part = part

    def state_dict(self) -> dict[str, Any]:
        return self.part.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.part, nn.Module):
            own = self.part.state_dict()
            state_dict = {k: shard_like(x, own.get(k)) for k, x in state_dict.items()}
        else:
            weights = [p for group in self.part.param_groups for p in group["params"]]
            state = {
                number: {name: shard_like(x, weights[number]) for name, x in of_one.items()}
                for number, of_one in state_dict["state"].items()
            }
            state_dict = state_dict | {"state": state}
        self.part.load_state_dict(state_dict)


def shard_like(value: Any, like: Any) -> Any:
    """The whole tensor in shards as those of `like`; where that has none or another shape, the
    value as it is."""
    is_alike = isinstance(value, Tensor) and isinstance(like, Tensor) and value.shape == like.shape
    if not (is_alike and is_sharded(like)):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
