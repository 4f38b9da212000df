"""module.path:function: a network of your own, made by function(input_shape, n_outputs)."""

from functools import partial

from torch import nn

from src.config import import_function
from src.support import bad_value

# the function; UserError where there is none
resolve = partial(import_function, key="model", parameters=("input_shape", "n_outputs"))


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """'my_nets.wide:build', (3, 32, 32), 10 -> (model, names of its head).

    The function returns a module, or (a module, the names of the modules that make up its head),
    which model_head_init and model_weights need to know. UserError where it returns other things.
    """
    made = resolve(name)(input_shape, n_outputs)
    model, heads = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if not isinstance(model, nn.Module):
        given = f"a function that gives a torch.nn.Module, not {type(model).__name__}"
        raise bad_value("model", name, given)
    known = dict(model.named_modules())
    if missing := [head for head in heads if head not in known]:
        raise bad_value("model", name, f"a head among its modules; {missing[0]!r} is none")
    return model, heads
