"""Where a model's parameters start, and which of them are trained: model_weights,
model_head_init, model_freeze."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from loguru import logger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of any number of dimensions

from src.models.linear import Linear
from src.support import UserError, bad_value, closest, one_line

MAX_NAMES_SHOWN = 4
MAX_REASON = 200  # characters of an error of a library


def shortened(names: Sequence[str]) -> str:
    """'a, b, c, d, …'"""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + ", …" * (len(names) > MAX_NAMES_SHOWN)


def cannot_fetch(
    model: str, error: Exception, instead: str = "a file as model_weights"
) -> UserError:
    """The error for weights that a library neither has in its cache nor could download."""
    return UserError(
        f"model_pretrained: the weights of {model!r} are neither in the hub's cache nor could they "
        f"be fetched ({type(error).__name__}); run once where there is a network, or give {instead}"
    )


# ---- model_weights -----------------------------------------------------------------------


def load_weights(model: nn.Module, path: str, heads: tuple[str, ...]) -> None:
    """Copy what fits of a file's state dict into the model; a warning names what does not.

    So a checkpoint of another branch serves, whose code had a module more or less. A head of
    another shape stays as it is. heads: names of the modules that make it up, '' for the model
    itself. UserError where no more than half of all other tensors fit: that is another model.
    """
    wanted, found = model.state_dict(), read_state_dict(path)
    of_head = {n for n in wanted | found if any(not h or n.startswith(f"{h}.") for h in heads)}
    if any(n in wanted and wanted[n].shape != found[n].shape for n in of_head & found.keys()):
        # The file was trained on other classes: all but the head is used.
        shapes = {n: tuple(t.shape) for n, t in found.items() if n in of_head}
        logger.info("model_weights: the head has another shape in {}, left out: {}", path, shapes)
        found = {n: t for n, t in found.items() if n not in of_head}
        wanted = {n: t for n, t in wanted.items() if n not in of_head}
    fitting = {n: t for n, t in found.items() if n in wanted and wanted[n].shape == t.shape}
    differences = {
        "missing": [n for n in wanted if n not in found],
        "unexpected": [n for n in found if n not in wanted],
        "of another shape": [
            f"{n} {tuple(found[n].shape)} instead of {tuple(wanted[n].shape)}"
            for n in wanted
            if n in found and n not in fitting
        ],
    }
    problems = [f"{len(n)} {what}: {shortened(n)}" for what, n in differences.items() if n]
    what = "; ".join(problems) or "nothing but a head of another shape"
    if 2 * len(fitting) <= len(wanted | found):
        raise UserError(f"model_weights: {path!r} does not fit the model: {what}")
    if problems:
        rest = "fits in part, and the rest of the model stays as it was initialised"
        logger.warning("model_weights: {!r} {}: {}", path, rest, what)
    model.load_state_dict(fitting, strict=False)


def read_state_dict(path: str) -> dict[str, Tensor]:
    """name -> tensor, from .safetensors or torch.save; UserError where the file isn't that."""
    if not Path(path).is_file():
        raise bad_value("model_weights", path, "a file that exists")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file raises whatever its bytes lead to
        expected = f"a readable state dict ({one_line(error, MAX_REASON)})"
        raise bad_value("model_weights", path, expected) from error
    if isinstance(content, Mapping) and isinstance(content.get("last"), Mapping):
        content = content["last"]  # one of our checkpoints, which hold averaged models as well
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise bad_value("model_weights", path, f"names and tensors; the file holds {found}")
    return dict(content)


# ---- model_head_init ---------------------------------------------------------------------


def init_head(model: nn.Module, heads: tuple[str, ...], how: Literal["zero", "rand"]) -> None:
    """Zero the head's layers, or initialise them as layers of their kind are."""
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


# ---- model_freeze ------------------------------------------------------------------------


def compile_patterns(patterns: str | Sequence[str]) -> list[re.Pattern[str]]:
    """model_freeze, one regular expression or several; UserError for what is none."""
    try:
        return [re.compile(p) for p in ([patterns] if isinstance(patterns, str) else patterns)]
    except re.error as error:
        expected = f"a regular expression ({error})"
        raise bad_value("model_freeze", error.pattern, expected) from None


def freeze(model: nn.Module, patterns: str | Sequence[str]) -> None:
    """Exclude the parameters whose whole name matches a pattern from training.

    A frozen batch norm also keeps its running statistics, as it would in evaluation. Raises
    UserError for a pattern that matches nothing, and where nothing would be left to train.
    """
    named = dict(model.named_parameters(remove_duplicate=False))  # shared ones by each name
    for pattern in compile_patterns(patterns):
        matched = [parameter for name, parameter in named.items() if pattern.fullmatch(name)]
        if not matched:
            near = closest(pattern.pattern, named)
            hint = f"; the closest is {near!r}" if near else ""
            some = ", ".join(list(named)[:MAX_NAMES_SHOWN])
            expected = f"a match among the parameters, {some}, …{hint}"
            raise bad_value("model_freeze", pattern.pattern, expected)
        for parameter in matched:
            parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in named.values()):
        raise UserError(f"model_freeze: {patterns!r} leaves no parameter to train")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, BatchNorm) and own and not any(p.requires_grad for p in own):
            # A hook survives model.train(), which would put the norm back into training mode.
            module.register_forward_pre_hook(_use_running_statistics)


def keeps_statistics(norm: nn.Module) -> bool:
    """Whether this batch norm, or the one that it is a copy of, is frozen."""
    return _use_running_statistics in norm._forward_pre_hooks.values()


def _use_running_statistics(module: nn.Module, _: Any) -> None:
    module.training = False
