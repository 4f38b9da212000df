"""model_freeze: parameters that keep their values."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of any number of dimensions

from src.support import UserError, bad_value, closest

KEY = "model_freeze"


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take the parameters whose whole name matches a pattern out of training.

    A batch norm that is frozen goes on with the statistics it has. Raises UserError for a
    pattern that matches nothing, and where nothing would be left to train.
    """
    named = dict(model.named_parameters(remove_duplicate=False))  # shared ones by each name
    for pattern in patterns:
        matched = [name for name in named if _compiled(pattern).fullmatch(name)]
        if not matched:
            near = closest(pattern, named)
            hint = f"; the closest is {near!r}" if near else ""
            some = ", ".join(list(named)[:4])
            raise bad_value(KEY, pattern, f"a match among the parameters, {some}, …{hint}")
        for name in matched:
            named[name].requires_grad_(False)
    if patterns and not any(p.requires_grad for p in named.values()):
        raise UserError(f"{KEY}: {list(patterns)} leaves no parameter to train")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, BatchNorm) and own and not any(p.requires_grad for p in own):
            module.register_forward_pre_hook(_as_in_evaluation)


def check_patterns(patterns: Sequence[str]) -> None:
    """UserError for what is no regular expression."""
    for pattern in patterns:
        _compiled(pattern)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise bad_value(KEY, pattern, f"a regular expression ({error})") from None


def keeps_statistics(norm: nn.Module) -> bool:
    """Whether this batch norm, or the one that it is a copy of, is frozen."""
    return _as_in_evaluation in norm._forward_pre_hooks.values()


def _as_in_evaluation(module: nn.Module, _: Any) -> None:
    module.training = False
