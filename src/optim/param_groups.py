"""Which parameter decays how much."""

from typing import Any

from torch import nn


def param_groups(
    model: nn.Module, *, weight_decay: float, weight_decay_biases: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the weights, then whatever has `bias` in its name.

    Frozen parameters are in neither; a group without parameters is left out, and one
    group holds all where both decay alike.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if weight_decay == weight_decay_biases:  # one group takes half the time of two
        return [{"params": [p for _, p in named], "weight_decay": weight_decay}]
    groups = [
        {"params": [p for name, p in named if "bias" not in name], "weight_decay": weight_decay},
        {"params": [p for name, p in named if "bias" in name], "weight_decay": weight_decay_biases},
    ]
    return [group for group in groups if group["params"]]
