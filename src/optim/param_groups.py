"""Which parameter decays how much."""

from typing import Any

from torch import nn


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
    if layer_decay is not None:
        scales = layer_scales(model, layer_decay)
        return [
            {**group, "params": [p for p in group["params"] if scales[p] == scale]}
            | {"lr_scale": scale}
            for group in param_groups(
                model, weight_decay=weight_decay, weight_decay_biases=weight_decay_biases
            )
            for scale in sorted(set(scales.values()))
            if any(scales[p] == scale for p in group["params"])
        ]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if weight_decay == weight_decay_biases:  # one group takes half the time of two
        return [{"params": [p for _, p in named], "weight_decay": weight_decay}]
    groups = [
        {"params": [p for name, p in named if "bias" not in name], "weight_decay": weight_decay},
        {"params": [p for name, p in named if "bias" in name], "weight_decay": weight_decay_biases},
    ]
    return [group for group in groups if group["params"]]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """layer_decay^(layers after it) for each parameter, with the layers that timm sees.

    timm's networks say which parameters make up a layer; of others each module with parameters
    of its own is one.
    """
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(model, layer_decay=layer_decay)
    return {p: group["lr_scale"] for group in groups for p in group["params"]}
