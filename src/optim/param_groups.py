"""Parameter groups: which parameter decays how much, and how fast each layer learns."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from src.support import bad_value

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    weight_decay_biases: float,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """The groups for an optimizer: first the weights, then whatever has `bias` in its name.

    Frozen parameters are in no group, and no group is empty. With layer_decay there are such
    groups for each layer, with the `lr_scale` that the learning rate is to be multiplied by.
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
        groups = [part for group in groups for part in _split_by_scale(group, scales)]
    return [group for group in groups if group["params"]]


def _split_by_scale(
    group: dict[str, Any], scales: dict[nn.Parameter, float]
) -> list[dict[str, Any]]:
    """One group for each scale, the first layers' (the smallest) first."""
    parts: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        parts.setdefault(scales[parameter], []).append(parameter)
    return [group | {"params": parts[scale], "lr_scale": scale} for scale in sorted(parts)]


def layer_scales(model: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """layer_decay ^ (number of layers above) for each parameter: 1 for the last layer (Clark et
    al. 2020, ELECTRA, appendix A). UserError for a model of a single layer."""
    numbers = layer_numbers(model)
    last = max(numbers.values(), default=0)
    if last == 0:
        expected = "null, as no layers are known of this model; a method group_matcher, as timm's"
        raise bad_value("layer_decay", layer_decay, f"{expected} networks have it, would say them")
    return {p: layer_decay ** (last - numbers[name]) for name, p in model.named_parameters()}


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Name of a parameter -> number of its layer, counted from the inputs: 0 is the first.

    A model with a method group_matcher is asked: timm's networks have it, ours of clip/… and
    hf/… too, and a network of your own may have it. Any other model's children are its layers,
    in the order in which they were made; of children that are lists the items are.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        return group_parameters(model, matcher(coarse=False), reverse=True)
    numbers: dict[str, int] = {}
    number, has_layer = 0, False
    known = dict(model.named_parameters())  # a shared parameter is listed under its first name
    for piece, has_weights in _pieces(model):
        names = [name for name in piece if name in known]
        is_layer = has_weights and bool(names)
        number += is_layer and has_layer
        has_layer = has_layer or is_layer
        numbers |= dict.fromkeys(names, number)
    return numbers


def _pieces(module: nn.Module, prefix: str = "") -> Iterator[tuple[list[str], bool]]:
    """Names of parameters that belong together, and whether they make a layer of their own.

    Normalisations, and parameters outside of child modules such as a table of positions, make
    none: they count to the layer before them.
    """
    yield [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)], False
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        # the encoder of torchvision's ViT is little more than a list of blocks
        is_encoder = not prefix and isinstance(getattr(child, "layers", None), LISTS)
        if is_encoder or isinstance(child, LISTS):
            yield from _pieces(child, path)
        elif names := [f"{path}{n}" for n, _ in child.named_parameters()]:
            yield names, "Norm" not in type(child).__name__
