"""Which layer of a network a parameter is in, counted from its inputs."""

from collections.abc import Iterator
from typing import Any

from torch import nn

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Parameter -> layer, 0 the first.

    As a method group_matcher says it, which timm's networks have, clip/ and hf/, and which any
    network may have. Else the model's children are its layers, in the order in which they were
    made, and of lists among them the items.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        return group_parameters(model, matcher(coarse=False), reverse=True)
    numbers: dict[str, int] = {}
    number, has_layer = 0, False
    known = dict(model.named_parameters())  # of a shared one the first name
    for piece, has_weights in _pieces(model):
        names = [name for name in piece if name in known]
        is_layer = has_weights and bool(names)
        number += is_layer and has_layer
        has_layer = has_layer or is_layer
        numbers |= dict.fromkeys(names, number)
    return numbers


def _pieces(module: nn.Module, prefix: str = "") -> Iterator[tuple[list[str], bool]]:
    """Names of parameters that belong together, and whether they make a layer.

    Normalisations and parameters without a module of their own, such as a table of positions,
    go with what comes before them.
    """
    own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
    yield own, False
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        # the encoder of torchvision's ViT is little more than a list of blocks
        is_encoder = not prefix and isinstance(getattr(child, "layers", None), LISTS)
        if is_encoder or isinstance(child, LISTS):
            yield from _pieces(child, path)
        elif names := [f"{path}{n}" for n, _ in child.named_parameters()]:
            yield names, "Norm" not in type(child).__name__
