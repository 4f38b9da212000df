"""Averages of the weights along the run, updated after every optimizer step.

Not torch.optim.swa_utils.AveragedModel: an update of a linear model costs it 34 to 41
microseconds on a CPU thread, ours 4, and it averages either all buffers or none.
"""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from src.support import UserError, closest, shown, unknown_name

FORMS = "ema, ema_G or ema_debiased_G with 0 ≤ G < 1, poly, poly_K with K ≥ 0"


class Average:
    """average ← (1 - c(t)) average + c(t) weights at the updates t = 1, 2, …

    `model` is a frozen copy in eval mode that holds the average. Floating-point buffers
    are averaged like weights, integer and infinite ones copied. The model may not move afterwards.
    """

    def __init__(self, model: nn.Module, coefficient: Callable[[int], float]) -> None:
        self.coefficient = coefficient
        self.t = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # parameters() and buffers() name a tensor that is shared once, in both models
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        floating = [pair for pair in pairs if _has_averages(pair[0])]
        others = [pair for pair in pairs if not _has_averages(pair[0])]
        self._averages, self._weights = [a for a, _ in floating], [w for _, w in floating]
        self._copies, self._originals = [a for a, _ in others], [w for _, w in others]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of now into the average: one or two multi-tensor operations."""
        self.t += 1
        torch._foreach_lerp_(self._averages, self._weights, self.coefficient(self.t))
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]
        self.model.load_state_dict(state["model"])


def _has_averages(tensor: Tensor) -> bool:
    """Not so whole numbers and, as in causal masks, infinite ones: of two the mean is nan."""
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def ema(decay: str = "0.99") -> Callable[[int], float]:
    """average ← decay · average + (1 - decay) · weights, from the initial weights on."""
    if not 0 <= (kept := float(decay)) < 1:
        raise ValueError
    return lambda t: 1 - kept


def ema_debiased(decay: str = "0.99") -> Callable[[int], float]:
    """The same without the initial weights: the weights of i steps ago count decay^i, and the sum
    of these counts is divided by, as Adam does with its means (Kingma and Ba 2015, section 3)."""
    if not 0 <= (kept := float(decay)) < 1:
        raise ValueError
    return lambda t: (1 - kept) / (1 - kept**t)


def poly(power: str = "0") -> Callable[[int], float]:
    """Polynomial-decay averaging, c = (K + 1) / (K + t) (Shamir and Zhang 2013, section 4).

    The first update forgets the initial weights; K = 0 is the plain mean of the rest.
    """
    if not 0 <= (k := float(power)) < float("inf"):
        raise ValueError
    return lambda t: (k + 1) / (k + t)


COEFFICIENTS: dict[str, Callable[..., Callable[[int], float]]] = {
    "ema": ema,
    "ema_debiased": ema_debiased,
    "poly": poly,
}


def build_averages(averaging: str | list[str] | None, model: nn.Module) -> dict[str, Average]:
    """The averages by the name they are evaluated under: av, av2, av3, … as they are listed.

    Build them after model is on its device; unknown names raise UserError.
    """
    names = [averaging] if isinstance(averaging, str) else averaging or []
    coefficients = [_coefficient(name) for name in names]  # before the first copy is made
    return {
        f"av{number}" if number > 1 else "av": Average(model, coefficient)
        for number, coefficient in enumerate(coefficients, start=1)
    }


def evaluated_models(
    models: dict[str, nn.Module], wanted: list[str] | None
) -> dict[str, nn.Module]:
    """Those of last, av, … that evaluate_models names."""
    for name in wanted or []:
        if name not in models:
            raise unknown_name("evaluate_models", name, models)
    return {name: models[name] for name in (models if wanted is None else wanted)}


def _coefficient(name: str) -> Callable[[int], float]:
    kinds = [kind for kind in COEFFICIENTS if f"{name}_".startswith(f"{kind}_")]
    kind = max(kinds, key=len, default="")
    _, *parameters = name.removeprefix(kind).split("_")
    try:
        return COEFFICIENTS[kind](*parameters)
    except (KeyError, TypeError, ValueError):
        close = _meant(name) or closest(name.rstrip("0123456789._-"), COEFFICIENTS)
        hint = f"; did you mean {close!r}?" if close not in (None, kind, name) else ""
        raise UserError(f"averaging: got {shown(name)}, expected one of {FORMS}{hint}") from None


def _meant(name: str) -> str | None:
    """'ema0.99', 'ema-0.99' or 'EMA_0.99' -> 'ema_0.99'."""
    match = re.fullmatch(rf"({'|'.join(COEFFICIENTS)})[^\d.]?([\d.]+)", name.lower())
    return match and "_".join(match.groups())
