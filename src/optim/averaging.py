"""Averaged models: running averages of the weights along training, updated after every step.

To add one: a function that gives c(t), and a line in COEFFICIENTS; or name it in YAML,
`averaging: my_averages:tail`. An average that is no c(t) is a subclass of AveragedModel, made of
the model and named in the same way; what it must remember stands in its state_dict().

Not torch.optim.swa_utils.AveragedModel: an update of a linear model costs it 34 to 41
microseconds on a CPU thread, ours 4, and it averages either all buffers or none.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from src.config import import_function, is_import_path
from src.optim.schedules import check_numbers, from_form
from src.support import pick

FORMS = "ema, ema_G or ema_debiased_G with 0 ≤ G < 1, poly, poly_K with K ≥ 0"
Coefficient = Callable[[int], float]  # c(t) of the update t = 1, 2, …


class AveragedModel:
    """average ← (1 - c(t)) · average + c(t) · weights, at the updates t = 1, 2, …

    `model` is a frozen copy in eval mode that holds the average. It shares no memory with the
    original, whose tensors are remembered here: the original may not move to another device.
    """

    def __init__(self, model: nn.Module, coefficient: Coefficient) -> None:
        self.coefficient = coefficient
        self.t = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # parameters() and buffers() list a shared tensor once, in both models alike.
        copies = [*self.model.parameters(), *self.model.buffers()]
        originals = [*model.parameters(), *model.buffers()]
        # Running statistics of batch norms are averaged like weights. Integers (their counters)
        # have no mean, and that of two infinities, as in causal masks, is nan: these are copied.
        is_averaged = [a.is_floating_point() and bool(a.isfinite().all()) for a in copies]
        self._averages = [a for a, yes in zip(copies, is_averaged, strict=True) if yes]
        self._weights = [w for w, yes in zip(originals, is_averaged, strict=True) if yes]
        self._copies = [a for a, yes in zip(copies, is_averaged, strict=True) if not yes]
        self._originals = [w for w, yes in zip(originals, is_averaged, strict=True) if not yes]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average, in one or two multi-tensor operations."""
        self.t += 1
        torch._foreach_lerp_(self._averages, self._weights, self.coefficient(self.t))
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]
        self.model.load_state_dict(state["model"])


def ema(decay: str = "0.99") -> Coefficient:
    """average ← decay · average + (1 - decay) · weights, from the initial weights on."""
    if not 0 <= (kept := float(decay)) < 1:
        raise ValueError
    return lambda t: 1 - kept


def ema_debiased(decay: str = "0.99") -> Coefficient:
    """The same without the initial weights: the weights of i steps ago count decay^i, and the sum
    of these counts is divided by, as Adam does with its means (Kingma and Ba 2015, section 3)."""
    if not 0 <= (kept := float(decay)) < 1:
        raise ValueError
    return lambda t: (1 - kept) / (1 - kept**t)


def poly(power: str = "0") -> Coefficient:
    """Polynomial-decay averaging, c = (K + 1) / (K + t) (Shamir and Zhang 2013, section 4).

    The first update forgets the initial weights; K = 0 is the plain mean of the rest.
    """
    if not 0 <= (k := float(power)) < float("inf"):
        raise ValueError
    return lambda t: (k + 1) / (k + t)


# Each is called with the parameters in the name, as text, and gives c(t): ema_0.9 -> ema("0.9").
# A function of your own, module.path:function, is called without any.
COEFFICIENTS: dict[str, Callable[..., Coefficient]] = {
    "ema": ema,
    "ema_debiased": ema_debiased,
    "poly": poly,
}


def average_names() -> list[str]:
    """What an entry of `averaging` takes, or its form."""
    return ["ema_G", "ema_debiased_G", "poly", "poly_K"]


def build_averaged_models(
    averaging: str | list[str] | None, model: nn.Module
) -> dict[str, AveragedModel]:
    """The averaged models by the names they are evaluated under: av, av2, av3, … as listed.

    Call it when the model is on its device. Unknown names raise UserError.
    """
    names = [averaging] if isinstance(averaging, str) else averaging or []
    kinds: dict[str, Callable[[nn.Module], AveragedModel]] = {}
    for name in dict.fromkeys(names):
        found = import_function(name, "averaging") if is_import_path(name) else None
        if isinstance(found, type) and issubclass(found, AveragedModel):
            kinds[name] = import_function(name, "averaging", ["model"])
        else:
            coefficient = from_form("averaging", name, COEFFICIENTS, FORMS)
            check_numbers("averaging", name, coefficient, at=[1])
            kinds[name] = partial(AveragedModel, coefficient=coefficient)
    # All names have been looked up before the first copy of a large model is made.
    return {f"av{i}" if i > 1 else "av": kinds[name](model) for i, name in enumerate(names, 1)}


def evaluated_models(
    models: dict[str, nn.Module], wanted: list[str] | None
) -> dict[str, nn.Module]:
    """The models (last, av, …) that evaluate_models names; all of them where it is null."""
    names = models if wanted is None else wanted
    return {name: pick(models, name, "evaluate_models") for name in names}
