"""The optimizer that the configuration names."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from src.config import Config
from src.optim.param_groups import param_groups
from src.support import UserError, bad_value, split_family, unknown_name

TORCH_OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "amsgrad": (Adam, {"amsgrad": True}),
    "amsgradw": (AdamW, {"amsgrad": True}),
}


def build_optimizer(config: Config, model: nn.Module) -> Optimizer:
    """The optimizer `optim_alg` on the parameters of model that require gradients.

    Unknown names and arguments, and a momentum that does not fit, raise UserError.
    """
    groups = param_groups(
        model,
        weight_decay=config.weight_decay,
        weight_decay_biases=config.weight_decay_biases,
        layer_decay=config.layer_decay,
    )
    family, name = split_family(config.optim_alg)
    try:
        if family == "timm":
            return _timm_optimizer(name, config, groups)
        return _torch_optimizer(config, groups)
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, RuntimeError) as error:  # its own checks
        raise UserError(f"optim_alg {config.optim_alg!r}: {error}") from error


def in_words(optimizer: Optimizer) -> str:
    """'fused Adam'; foreach is torch's own choice on GPUs where nothing is said."""
    ways = [way for way in ("fused", "foreach") if optimizer.defaults.get(way)]
    return " ".join([*ways, type(optimizer).__name__])


def _torch_optimizer(config: Config, groups: list[dict[str, Any]]) -> Optimizer:
    if config.optim_alg not in TORCH_OPTIMIZERS:
        raise unknown_name("optim_alg", config.optim_alg, [*TORCH_OPTIMIZERS, "timm/NAME"])
    optimizer, arguments = TORCH_OPTIMIZERS[config.optim_alg]
    momenta = _momenta(config.momentum, 1 if optimizer is SGD else 2)
    if optimizer is SGD:
        arguments = {"momentum": momenta[0], "nesterov": momenta[0] > 0}
    else:
        beta2 = momenta[1] if len(momenta) > 1 else 0.999
        arguments = arguments | {"betas": (momenta[0], beta2), "eps": config.ada_eps}
    if not config.optim_args.keys() & {"foreach", "fused", "differentiable"}:
        arguments["fused"] = _can_fuse(groups)
    _check_arguments(config.optim_args, optimizer)
    return optimizer(groups, **{"lr": float(config.base_lr), **arguments, **config.optim_args})


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether torch updates all parameters in one kernel: a half to a third of the time."""
    parameters: list[torch.Tensor] = [p for group in groups for p in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def _timm_optimizer(name: str, config: Config, groups: list[dict[str, Any]]) -> Optimizer:
    """timm's own defaults, but for the keys that it shares with us; `lookahead_NAME` as well.

    A single `momentum` is the first of two betas (a third has no counterpart: adan keeps
    its own), `ada_eps` is not used; `optim_args` sets eps and all else.
    """
    from timm import optim

    base_name, known = name.removeprefix("lookahead_"), optim.list_optimizers()
    if base_name not in known:
        raise unknown_name("optim_alg", config.optim_alg, [f"timm/{name}" for name in known])
    info = optim.get_optimizer_info(base_name)
    if info.second_order:
        raise bad_value("optim_alg", config.optim_alg, "one that needs no second derivatives")
    try:
        optimizer = optim.get_optimizer_class(base_name, bind_defaults=False)
    except (AssertionError, ImportError) as error:  # NVIDIA's and bitsandbytes' own
        raise bad_value("optim_alg", config.optim_alg, f"one that runs here: {error}") from error
    arguments = _timm_momentum(info, optimizer, config.momentum)
    _check_arguments(config.optim_args, optimizer)
    return optim.create_optimizer_v2(
        groups,
        name,
        lr=float(config.base_lr),
        weight_decay=config.weight_decay,
        **{**arguments, **config.optim_args},
    )


def _timm_momentum(info: Any, optimizer: Any, momentum: float | str) -> dict[str, Any]:
    """The argument that stands for our `momentum`; empty where the optimizer has none."""
    momenta = _momenta(momentum, info.num_betas if info.has_betas else 1)
    if info.has_momentum and len(momenta) == 1:
        return {"momentum": momenta[0]}
    if not info.has_betas:
        return {}
    if len(momenta) == info.num_betas:
        return {"betas": momenta}
    default = _defaults(optimizer) | (info.defaults or {})
    betas = default["betas"]
    return {"betas": (momenta[0], betas[1])} if betas and len(betas) == 2 else {}


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


def _defaults(optimizer: Any) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(optimizer).parameters.items()}


def _check_arguments(optim_args: dict[str, Any], optimizer: Any) -> None:
    """timm drops some arguments that an optimizer does not take; here they raise."""
    known = _defaults(optimizer).keys() - {"params", "lr", "weight_decay"}
    for name in optim_args:
        if name not in known:
            raise unknown_name("optim_args", name, known)
