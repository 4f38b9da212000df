"""Optimizers: torch's by our names, all of timm's as timm/NAME."""

import inspect
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from src.config import Config
from src.optim.param_groups import param_groups
from src.support import UserError, bad_value, unknown_name

# name in YAML -> torch's class, and its arguments beside those that have keys of their own
OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
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
    family, _, name = config.optim_alg.partition("/")
    try:
        if family == "timm":
            return _timm_optimizer(name, config, groups)
        return _torch_optimizer(config, groups)
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
    if config.optim_alg not in OPTIMIZERS:
        raise unknown_name("optim_alg", config.optim_alg, [*OPTIMIZERS, "timm/NAME"])
    optimizer, arguments = OPTIMIZERS[config.optim_alg]
    momenta = _momenta(config.momentum, 1 if optimizer is SGD else 2)
    if optimizer is SGD:
        # Nesterov's momentum costs no more and is at least as good; momentum 0 has none.
        arguments = {"momentum": momenta[0], "nesterov": momenta[0] > 0}
    else:
        arguments = arguments | {"betas": (*momenta, 0.999)[:2], "eps": config.ada_eps}
    if not config.optim_args.keys() & {"foreach", "fused", "differentiable"}:
        # One kernel for all parameters takes a half to a third of the time.
        parameters = [p for group in groups for p in group["params"]]
        arguments["fused"] = all(
            p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters
        )
    _check_arguments(config.optim_args, optimizer)
    return optimizer(groups, **{"lr": float(config.base_lr), **arguments, **config.optim_args})


def _timm_optimizer(name: str, config: Config, groups: list[dict[str, Any]]) -> Optimizer:
    """timm's own defaults, except for the keys that it shares with us; `lookahead_NAME` as well.

    A single `momentum` is the first of two betas (of three, as adan's, timm's defaults stay).
    `ada_eps` is not used; `optim_args` sets eps and all else.
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
    except (AssertionError, ImportError) as error:  # those of NVIDIA's apex and of bitsandbytes
        raise bad_value("optim_alg", config.optim_alg, f"one that runs here: {error}") from error
    _check_arguments(config.optim_args, optimizer)

    momenta = _momenta(config.momentum, info.num_betas if info.has_betas else 1)
    arguments: dict[str, Any] = {}
    if info.has_momentum and len(momenta) == 1:
        arguments = {"momentum": momenta[0]}
    elif info.has_betas:
        betas: Any = (_defaults(optimizer) | (info.defaults or {}))["betas"] or ()
        if len(momenta) == info.num_betas:
            arguments = {"betas": momenta}
        elif len(betas) == 2:
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


def _defaults(optimizer: Any) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(optimizer).parameters.items()}


def _check_arguments(optim_args: dict[str, Any], optimizer: Any) -> None:
    """UserError for arguments that the optimizer does not take: timm drops some in silence."""
    known = _defaults(optimizer).keys() - {"params", "lr", "weight_decay"}
    for name in optim_args:
        if name not in known:
            raise unknown_name("optim_args", name, known)
