"""What a model's parameters start from: a file of weights, another start of its head."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from loguru import logger
from torch import Tensor, nn

from src.models.linear import Linear
from src.support import UserError, bad_value

MOST_TENSORS_SHOWN = 4


def load_weights(model: nn.Module, path: str, heads: tuple[str, ...]) -> None:
    """Copy a file's state dict into the model; a head of another shape stays as it is.

    heads: names of the modules that make up the head. UserError where any other tensor is
    missing, unexpected or of another shape, and where nothing would be left to load.
    """
    wanted, found = model.state_dict(), read_state_dict(path)
    if any(n in wanted and wanted[n].shape != found[n].shape for n in only_heads(found, heads)):
        dropped = only_heads(found, heads)
        shapes = {name: tuple(found[name].shape) for name in dropped}
        logger.info("model_weights: the head has another shape in {}, left out: {}", path, shapes)
        found = {n: t for n, t in found.items() if n not in dropped}
        wanted = {n: t for n, t in wanted.items() if n not in only_heads(wanted, heads)}
    refuse_differences(wanted, found, path)
    model.load_state_dict(found, strict=False)


def out_of_reach(
    model: str, error: Exception, instead: str = "a file as model_weights"
) -> UserError:
    """What to say of weights that a library neither has nor could fetch."""
    return UserError(
        f"model_pretrained: the weights of {model!r} are neither in the hub's cache nor could they "
        f"be fetched ({type(error).__name__}); run once where there is a network, or give {instead}"
    )


def read_state_dict(path: str) -> dict[str, Tensor]:
    """name -> tensor, from .safetensors or torch.save; UserError where the file isn't that."""
    if not Path(path).is_file():
        raise bad_value("model_weights", path, "a file that exists")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file brings to light
        reason = str(error).split("\n")[0]
        raise bad_value("model_weights", path, f"a readable state dict ({reason})") from error
    if isinstance(content, Mapping) and isinstance(content.get("last"), Mapping):
        content = content["last"]  # of a checkpoint of ours, which holds averages as well
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise bad_value("model_weights", path, f"names and tensors; the file holds {held}")
    return dict(content)


def only_heads(names: Iterable[str], heads: tuple[str, ...]) -> list[str]:
    """The tensors that belong to a head; '' is the model itself."""
    return [n for n in names if any(not h or n.startswith(f"{h}.") for h in heads)]


def refuse_differences(wanted: dict[str, Tensor], found: dict[str, Tensor], path: str) -> None:
    """UserError unless both hold the same names (at least one) with the same shapes."""
    differing = {
        "missing": [n for n in wanted if n not in found],
        "unexpected": [n for n in found if n not in wanted],
        "of another shape": [
            f"{n} {tuple(found[n].shape)} instead of {tuple(wanted[n].shape)}"
            for n in wanted
            if n in found and wanted[n].shape != found[n].shape
        ],
    }
    problems = [f"{len(n)} {what}: {shortened(n)}" for what, n in differing.items() if n]
    if problems or not found:
        what = "; ".join(problems) or "nothing but a head of another shape"
        raise UserError(f"model_weights: {path!r} does not fit the model: {what}")


def shortened(names: list[str]) -> str:
    """'a, b, c, d, …'"""
    return ", ".join(names[:MOST_TENSORS_SHOWN]) + (", …" if names[MOST_TENSORS_SHOWN:] else "")


def init_head(model: nn.Module, heads: tuple[str, ...], how: Literal["zero", "rand"]) -> None:
    """Zero the head's layers, or draw them anew as their kind of layer starts."""
    inside = [module for head in heads for module in model.get_submodule(head).modules()]
    # A normalisation inside a head keeps its start: with its scale at zero nothing would learn.
    layers = [m for m in inside if isinstance(m, Linear | nn.Linear | nn.Conv2d)]
    if not layers:
        raise bad_value("model_head_init", how, "null: this model has no linear head")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    if any(uses[id(p)] > 1 for layer in layers for p in layer.parameters()):
        expected = "null: the head of this model shares its weights with the embedding"
        raise bad_value("model_head_init", how, expected)
    for layer in layers:
        if how == "rand":
            layer.reset_parameters()
        else:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
