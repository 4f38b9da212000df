"""Which parameter decays how much, and which learns how fast."""

from typing import Any

from torch import nn

from src.optim.layers import layer_numbers
from src.support import bad_value


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    weight_decay_biases: float,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the weights, then whatever has `bias` in its name.

    Frozen parameters are in neither; a group without parameters is left out, and one
    group holds all where both decay alike. With layer_decay, such groups for each layer, whose
    `lr_scale` the learning rate is to be multiplied by.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if weight_decay == weight_decay_biases:  # one group takes half the time of two
        groups = [{"params": [p for _, p in named], "weight_decay": weight_decay}]
    else:
        weights = [p for name, p in named if "bias" not in name]
        biases = [p for name, p in named if "bias" in name]
        groups = [
            {"params": weights, "weight_decay": weight_decay},
            {"params": biases, "weight_decay": weight_decay_biases},
        ]
    if layer_decay not in (None, 1):
        scales = layer_scales(model, layer_decay)
        groups = [part for group in groups for part in _by_scale(group, scales)]
    return [group for group in groups if group["params"]]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """layer_decay^(layers after it) for each parameter: 1 for the last layer (Clark et al. 2020,
    ELECTRA, appendix A). UserError where there is one layer alone."""
    numbers = layer_numbers(model)
    last = max(numbers.values(), default=0)
    if last == 0:
        expected = "null, as no layers are known of this model; a method group_matcher, as timm's"
        raise bad_value("layer_decay", layer_decay, f"{expected} networks have it, would say them")
    return {p: layer_decay ** (last - numbers[name]) for name, p in model.named_parameters()}


def _by_scale(group: dict[str, Any], scales: dict[nn.Parameter, float]) -> list[dict[str, Any]]:
    """The group cut into one a scale, the largest last."""
    parts: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        parts.setdefault(scales[parameter], []).append(parameter)
    return [group | {"params": parts[scale], "lr_scale": scale} for scale in sorted(parts)]
