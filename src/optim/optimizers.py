"""Optimizers, torch's by our names and all of timm's as timm/NAME, and their parameter groups:
which parameter decays how much, and how fast each layer learns.

To add one: a line in OPTIMIZERS; or name it in YAML, `optim_alg: my_optimizers:DoG`.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from src.config import Config, import_function, is_import_path
from src.support import UserError, bad_value, unknown_name

# name in YAML -> a class (or a function that gives an Optimizer), and further arguments. It is
# called with the parameter groups and lr=…; with momentum, nesterov, betas, eps and fused where its
# signature names them; and with optim_args. Your own, module.path:function, is called in the same
# way. The groups say weight_decay and, with layer_decay, lr_scale; train.py sets their lr.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "amsgrad": (Adam, {"amsgrad": True}),
    "amsgradw": (AdamW, {"amsgrad": True}),
}


def optimizer_names() -> list[str]:
    """What `optim_alg` takes."""
    from timm import optim

    return [*OPTIMIZERS, *(f"timm/{name}" for name in optim.list_optimizers())]


def build_optimizer(config: Config, model: nn.Module) -> Optimizer:
    """The optimizer `optim_alg` on the parameters of model that require gradients.

    Unknown names and arguments, a momentum that does not fit, and a model without such parameters
    raise UserError.
    """
    groups = param_groups(
        model,
        weight_decay=config.weight_decay,
        weight_decay_biases=config.weight_decay_biases,
        layer_decay=config.layer_decay,
    )
    if not groups:
        key = "model_freeze" if config.model_freeze else "model"
        expected = "to leave the optimizer a parameter that requires gradients; the model has none"
        raise bad_value(key, getattr(config, key), expected)
    make = _timm_optimizer if config.optim_alg.startswith("timm/") else _torch_optimizer
    try:
        return make(config, groups)
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, RuntimeError) as error:  # the optimizer's checks
        raise UserError(f"optim_alg {config.optim_alg!r}: {error}") from error


def describe_optimizer(optimizer: Optimizer) -> str:
    """'fused Adam'. Where the optimizer says neither fused nor foreach, torch chooses foreach on
    GPUs by itself."""
    ways = [way for way in ("fused", "foreach") if optimizer.defaults.get(way)]
    return " ".join([*ways, type(optimizer).__name__])


def _torch_optimizer(config: Config, groups: list[dict[str, Any]]) -> Optimizer:
    name = config.optim_alg
    if name not in OPTIMIZERS and not is_import_path(name):
        raise unknown_name("optim_alg", name, [*OPTIMIZERS, "timm/NAME", "module.path:function"])
    optimizer, arguments = OPTIMIZERS.get(name) or (import_function(name, "optim_alg"), {})
    known = _parameters(optimizer, config.optim_args)
    momenta = _momenta(config.momentum, 2 if "betas" in known else 1)
    # Nesterov's momentum costs no more and is at least as good; momentum 0 has none.
    of_keys: dict[str, Any] = {"momentum": momenta[0], "nesterov": momenta[0] > 0}
    of_keys |= {"betas": (*momenta, 0.999)[:2], "eps": config.ada_eps}
    if not config.optim_args.keys() & {"foreach", "fused", "differentiable"}:
        # One kernel for all parameters takes a half to a third of the time.
        parameters = [p for group in groups for p in group["params"]]
        of_keys["fused"] = all(
            p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
        )
    arguments = {key: x for key, x in of_keys.items() if key in known} | arguments
    if name in OPTIMIZERS and not config.compile and not config.optim_args.get("differentiable"):
        optimizer = _without_compiler(optimizer)
    made = optimizer(groups, **{"lr": float(config.base_lr), **arguments, **config.optim_args})
    if not isinstance(made, Optimizer):
        expected = f"one that gives a torch.optim.Optimizer, not {type(made).__name__}"
        raise bad_value("optim_alg", name, expected)
    return made


def _without_compiler(optimizer: Any) -> Any:
    """The class without what torch.compile of an optimizer needs, which imports torch._dynamo: more
    than a second of every start, and 140 MB."""
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    plain["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), plain)


def _timm_optimizer(config: Config, groups: list[dict[str, Any]]) -> Optimizer:
    """timm's own defaults, except for the keys that it shares with us; `lookahead_NAME` as well.

    A single `momentum` is the first of two betas (of three, as adan's, timm's defaults stay).
    `ada_eps` is not used; `optim_args` sets eps and all else.
    """
    from timm import optim

    name, known = config.optim_alg.removeprefix("timm/"), optim.list_optimizers()
    base_name = name.removeprefix("lookahead_")
    if base_name not in known:
        raise unknown_name("optim_alg", config.optim_alg, [f"timm/{name}" for name in known])
    info = optim.get_optimizer_info(base_name)
    if info.second_order:
        raise bad_value("optim_alg", config.optim_alg, "one that needs no second derivatives")
    try:
        optimizer = optim.get_optimizer_class(base_name, bind_defaults=False)
    except (AssertionError, ImportError) as error:  # those of NVIDIA's apex and of bitsandbytes
        raise bad_value("optim_alg", config.optim_alg, f"one that runs here: {error}") from error
    defaults = _parameters(optimizer, config.optim_args) | (info.defaults or {})
    momenta = _momenta(config.momentum, info.num_betas if info.has_betas else 1)
    arguments: dict[str, Any] = {}
    betas: Any = defaults.get("betas") or ()
    if info.has_momentum and len(momenta) == 1:
        arguments = {"momentum": momenta[0]}
    elif info.has_betas and len(momenta) == info.num_betas:
        arguments = {"betas": momenta}
    elif info.has_betas and len(betas) == 2:
        arguments = {"betas": (momenta[0], betas[1])}
    return optim.create_optimizer_v2(
        groups,
        name,
        lr=float(config.base_lr),
        weight_decay=config.weight_decay,
        **{**arguments, **config.optim_args},
    )


def _momenta(momentum: float | str, most: int) -> tuple[float, ...]:
    """0.9 or '0.9' -> (0.9,); '0.9,0.99' -> (0.9, 0.99): one number, or as many as `most`."""
    try:
        momenta = tuple(float(part) for part in str(momentum).split(","))
    except ValueError:
        momenta = ()
    if len(momenta) not in (1, most) or not all(0 <= m < 1 for m in momenta):
        pair = f" or {most} with commas between" if most > 1 else ""
        raise bad_value("momentum", momentum, f"a number{pair}, from 0 up to but not 1")
    return momenta


def _parameters(optimizer: Any, optim_args: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's parameters and their defaults; UserError for further arguments that it does
    not take: timm drops some in silence."""
    found = {k: p.default for k, p in inspect.signature(optimizer).parameters.items()}
    known = found.keys() - {"params", "lr", "weight_decay"}
    for name in optim_args:
        if name not in known:
            raise unknown_name("optim_args", name, known)
    return found


# ---- Parameter groups --------------------------------------------------------------------

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
    groups for each layer, first the first layer's, with the `lr_scale` that the learning rate is
    to be multiplied by: layer_decay ^ (number of layers above), 1 for the last layer (Clark et al.
    2020, ELECTRA, appendix A). UserError where the model has a single layer.
    """
    layer_decay = 1 if layer_decay is None else layer_decay
    numbers = {} if layer_decay == 1 else layer_numbers(model)
    last = max(numbers.values(), default=0)
    if layer_decay != 1 and last == 0:
        expected = "null, as no layers are known of this model; a method group_matcher, as timm's"
        raise bad_value("layer_decay", layer_decay, f"{expected} networks have it, would say them")
    parts: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # One group takes half the time of two, so there are two only where they differ.
            is_bias = "bias" in name and weight_decay != weight_decay_biases
            scale = layer_decay ** (last - numbers.get(name, last))
            parts.setdefault((is_bias, scale), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (is_bias, scale), parameters in sorted(parts.items(), key=lambda part: part[0]):
        decay = weight_decay_biases if is_bias else weight_decay
        groups.append({"params": parameters, "weight_decay": decay})
        if numbers:
            groups[-1]["lr_scale"] = scale
    return groups


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Name of a parameter -> number of its layer, counted from the inputs: 0 is the first.

    A model with a method group_matcher decides: timm's networks have it, ours of clip/… and
    hf/… too, and a network of your own may have it. Any other model's children are its layers,
    in the order in which they were made; of children that are lists the items are.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        return group_parameters(model, matcher(coarse=False), reverse=True)
    numbers: dict[str, int] = {}
    number = -1
    known = dict(model.named_parameters())  # a shared parameter is listed under its first name
    for block, is_layer in _blocks(model):
        names = [name for name in block if name in known]
        number += is_layer and bool(names)
        numbers |= dict.fromkeys(names, max(number, 0))
    return numbers


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[list[str], bool]]:
    """Names of parameters that belong together, and whether they make a layer of their own.

    Normalisations, and parameters outside of child modules such as a table of positions, make
    none: they count to the layer before them.
    """
    yield [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)], False
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        # The encoder of torchvision's ViT is little more than a list of blocks.
        is_encoder = not prefix and isinstance(getattr(child, "layers", None), LISTS)
        if is_encoder or isinstance(child, LISTS):
            yield from _blocks(child, path)
        elif names := [f"{path}{n}" for n, _ in child.named_parameters()]:
            yield names, "Norm" not in type(child).__name__
