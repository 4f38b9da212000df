"""The learning rate as a pure function of the optimizer step: a factor of the base rate."""

import math
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import accumulate

from src.support import UserError, closest

FORMS = "constant, cosine, cosine_after_warmup, poly, poly_P, step, step_N_F, step_a,b,c_F"

MOST_DROPS = 100_000

Schedule = Callable[[int], float]


def build_schedule(name: str, *, num_steps: int, warmup_steps: int = 0) -> Schedule:
    """factor(t) of the base learning rate at the optimizer steps t = 0 … num_steps - 1.

    Warm-up multiplies by 1/warmup_steps, 2/warmup_steps, … 1. Unknown names and bad
    parameters raise UserError.
    """
    if name == "cosine_after_warmup":  # the one form whose shape depends on the warm-up
        after = cosine(max(1, num_steps - warmup_steps))
        return lambda t: (t + 1) / warmup_steps if t < warmup_steps else after(t - warmup_steps)
    kind, *parameters = name.split("_")
    try:
        schedule = SCHEDULES[kind](num_steps, *parameters)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        close = closest(kind, SCHEDULES) if kind not in SCHEDULES else None
        hint = f"; did you mean {close!r}?" if close else ""
        raise UserError(f"lr_schedule: got {name!r}, expected one of {FORMS}{hint}") from None
    return partial(_warmed_up, schedule, warmup_steps) if warmup_steps else schedule


def _warmed_up(schedule: Schedule, warmup_steps: int, t: int) -> float:
    return schedule(t) * min(1.0, (t + 1) / warmup_steps)


def constant(num_steps: int) -> Schedule:
    return lambda t: 1.0


def cosine(num_steps: int) -> Schedule:
    """From 1 to 0 at the end of the run (Loshchilov and Hutter 2017, eq. 5, one period)."""
    return lambda t: 0.5 * (1 + math.cos(math.pi * t / num_steps))


def poly(num_steps: int, power: str = "0.5") -> Schedule:
    """(1 + t) ** -power, whatever the length of the run."""
    exponent = _positive(power)
    return lambda t: float((1 + t) ** -exponent)


def step(num_steps: int, spans: str = "4", drop: str = "0.1") -> Schedule:
    """Times `drop` after every span but the last; the last ends with the run.

    spans: 'a,b,c', in proportion to each other, or the number N of drops: N + 1 equal spans.
    """
    factor = _positive(drop)
    # As fractions: '0.1,0.2,0.7' of 10 steps drops at 3, not at 3.0000000000000004
    lengths = [Fraction(span) for span in spans.split(",")]
    if len(lengths) == 1:
        if lengths[0] > MOST_DROPS:
            raise ValueError
        lengths = [Fraction(1)] * (int(spans) + 1)
    if min(lengths) <= 0:
        raise ValueError
    ends = list(accumulate(lengths))
    drops = [num_steps * end / ends[-1] for end in ends[:-1]]
    firsts = [math.ceil(at) for at in drops]  # the first step of each span but the first
    return lambda t: factor ** bisect_right(firsts, t)


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "poly": poly,
    "step": step,
}
