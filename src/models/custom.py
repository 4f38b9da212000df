"""module.path:function: a network of your own, made by function(input_shape, n_outputs), or by
function(input_shape, n_outputs, config) where keys of yours have a say in it."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from src.config import Config, import_function
from src.support import bad_value


def resolve(name: str) -> Callable[..., Any]:
    """The function; UserError where there is none, or one that takes other parameters."""
    parameters = ["input_shape", "n_outputs"]
    if "config" in inspect.signature(import_function(name, "model")).parameters:
        parameters.append("config")
    return import_function(name, "model", parameters)


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int, config: Config
) -> tuple[nn.Module, tuple[str, ...]]:
    """'my_nets.wide:build', (3, 32, 32), 10 -> (model, names of its head).

    The function returns a module, or (a module, the names of the modules that make up its head),
    which model_head_init and model_weights need to know. UserError where it returns other things.
    """
    make = resolve(name)
    named = {"config": config} if "config" in inspect.signature(make).parameters else {}
    made = make(input_shape, n_outputs, **named)
    model, heads = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if not isinstance(model, nn.Module):
        given = f"a function that gives a torch.nn.Module, not {type(model).__name__}"
        raise bad_value("model", name, given)
    known = dict(model.named_modules())
    if missing := [head for head in heads if head not in known]:
        raise bad_value("model", name, f"a head among its modules; {missing[0]!r} is none")
    return model, heads
