"""Learning-rate schedules: pure functions of the optimizer step that give a factor of base_lr.

As they have no state, a resumed run needs nothing but the step for the right rate. To add one:
write it, and a line in SCHEDULES; or name it in YAML, `lr_schedule: my_schedules:triangle`.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from itertools import accumulate
from numbers import Real

from src.config import import_function, is_import_path
from src.support import UserError, bad_value, closest, short_repr

Schedule = Callable[[int], float]

FORMS = "constant, cosine, cosine_after_warmup, poly, poly_P, step, step_N_F, step_a,b,c_F"
MAX_DROPS = 100_000  # of step_N_F: a typing error is to be answered and not to fill the memory


def build_schedule(name: str, *, num_steps: int, warmup_steps: int = 0) -> Schedule:
    """factor(t) of base_lr at the optimizer steps t = 0 … num_steps - 1; UserError for bad names.

    Warm-up multiplies by 1/warmup_steps, 2/warmup_steps, … 1: never by 0, which would waste the
    first step, and by 1 from the step warmup_steps - 1 on.
    """
    # Most schedules run under the warm-up from step 0. This one is shifted and begins after it.
    shift = warmup_steps if name == "cosine_after_warmup" else 0
    num_steps = max(1, num_steps - shift)
    schedule = from_form("lr_schedule", name, SCHEDULES, FORMS, num_steps=num_steps)
    check_numbers("lr_schedule", name, schedule, at=(0, num_steps - 1))
    if not warmup_steps:
        return schedule
    return lambda t: schedule(max(0, t - shift)) * min(1.0, (t + 1) / warmup_steps)


def cosine(num_steps: int) -> Schedule:
    """From 1 to 0 at the end of the run (Loshchilov and Hutter 2017, equation 5, one period)."""
    return lambda t: 0.5 * (1 + math.cos(math.pi * t / num_steps))


def poly(num_steps: int, power: str = "0.5") -> Schedule:
    """(1 + t) ** -power, whatever the length of the run."""
    exponent = _positive(power)
    return lambda t: float((1 + t) ** -exponent)


def step(num_steps: int, spans: str = "4", drop: str = "0.1") -> Schedule:
    """The rate is multiplied by `drop` after every span but the last, which ends with the run.

    spans: 'a,b,c', in proportion to each other, or the number N of drops: N + 1 equal spans.
    """
    factor = _positive(drop)
    # As fractions: '0.1,0.2,0.7' of 10 steps drops at 3, not at 3.0000000000000004.
    lengths = [Fraction(span) for span in spans.split(",")]
    if len(lengths) == 1:
        if lengths[0] > MAX_DROPS:
            raise ValueError
        lengths = [Fraction(1)] * (int(spans) + 1)
    if min(lengths) <= 0:
        raise ValueError
    ends = list(accumulate(lengths))
    # The first step of each span but the first: the step at which it begins, rounded up.
    firsts = [math.ceil(num_steps * end / ends[-1]) for end in ends[:-1]]
    return lambda t: factor ** bisect_right(firsts, t)


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


# Each is called with the number of steps, then with the parameters in the name, as text, and gives
# a function of the step: step_4_0.1 -> step(num_steps, "4", "0.1"). A function of your own,
# module.path:function, is called in the same way; there are no parameters in its name.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": lambda num_steps: lambda t: 1.0,
    "cosine": cosine,
    "cosine_after_warmup": cosine,
    "poly": poly,
    "step": step,
}


def schedule_names() -> list[str]:
    """What `lr_schedule` takes, or its form."""
    return FORMS.split(", ")


def from_form(
    key: str, name: str, table: Mapping[str, Callable[..., Schedule]], forms: str, **arguments: int
) -> Schedule:
    """table[kind](*arguments, *parameters) for a name kind_parameter_parameter; of a name
    module.path:function, function(*arguments).

    UserError, with the closest name, for an unknown kind and for parameters that it does not take.
    """
    if is_import_path(name):
        return import_function(name, key, list(arguments))(*arguments.values())
    # The longest kind that fits: ema_debiased_0.9 is not ema with the parameter 'debiased'.
    kinds = [kind for kind in table if f"{name}_".startswith(f"{kind}_")]
    kind = max(kinds, key=len, default="")
    _, *parameters = name.removeprefix(kind).split("_")
    try:
        return table[kind](*arguments.values(), *parameters)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        # 'ema0.99', 'ema-0.99' and 'EMA_0.99' mean 'ema_0.99'.
        match = re.fullmatch(rf"({'|'.join(table)})[^\d.]?([\d.]+)", name.lower())
        near = "_".join(match.groups()) if match else closest(name.rstrip("0123456789._-"), table)
        hint = f"; did you mean {near!r}?" if near not in (None, kind, name) else ""
        raise UserError(f"{key}: got {short_repr(name)}, expected one of {forms}{hint}") from None


def check_numbers(key: str, name: str, function: Schedule, at: Iterable[int]) -> None:
    """UserError where what a function of your own has made does not give numbers at these steps."""
    wanted = "a function that gives a function of the step t, which gives a number"
    if not callable(function):
        raise bad_value(key, name, f"{wanted}, not {short_repr(function)}")
    for t in at:
        try:
            value = function(t)
        except TypeError as error:
            raise bad_value(key, name, f"{wanted}: {error}") from error
        if not isinstance(value, Real) or not math.isfinite(value):
            raise bad_value(key, name, f"{wanted}; at t={t} it gives {short_repr(value)}")
