"""Models in slices over processes (FSDP2), and the same as one process would have them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def whole(value: Tensor) -> Tensor:
    """The tensor that slices are of, put together by all processes; any other as it is."""
    return value.full_tensor() if _is_sharded(value) else value  # type: ignore[attr-defined]


def _is_sharded(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose module is slow to import


def sharded_like(value: Any, slices: Any) -> Any:
    """The slice of a whole tensor, cut as that one is; any other value as it is."""
    if not (isinstance(slices, Tensor) and _is_sharded(slices)):
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = slices
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


class ShardedModel:
    """A sharded model as a part of the state: whole tensors go in."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.model.state_dict()
        self.model.load_state_dict({k: sharded_like(v, own.get(k)) for k, v in state_dict.items()})


class ShardedOptimizer:
    """Its optimizer, whose momenta are cut as the weights that they belong to."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            number: {name: _cut(value, weights[number]) for name, value in of_one.items()}
            for number, of_one in state_dict["state"].items()
        }
        self.optimizer.load_state_dict(state_dict | {"state": state})


def _cut(value: Any, weight: torch.Tensor) -> Any:
    is_alike = isinstance(value, Tensor) and value.shape == weight.shape
    return sharded_like(value, weight) if is_alike else value
