"""Numbers that continue a row of tried ones: 1, 3, 10, 30 goes on with 100, 300."""

import math
from collections.abc import Sequence
from itertools import pairwise

ALIKE = 0.01  # steps or logarithms of ratios that differ by less are the same: 1, 3.16, 10
WIDE = 4  # values that span more go on by a factor
DIGITS = 6  # significant ones: 0.1 + 0.2 is 0.3


def beyond(key: str, row: Sequence[float]) -> list[float]:
    """At most two values that continue a row that rises or falls; whole ones stay whole.

    A momentum goes on in its distance from 1. What was never negative becomes positive.
    """
    if key == "momentum" and min(row) >= 0 and max(row) < 1:
        distances = _continued([1 - value for value in row])
        return [_rounded(1 - distance, 12) for distance in distances if 0 < distance <= 1]
    is_whole = all(isinstance(value, int) for value in row)
    values = [round(value) if is_whole else value for value in _continued(row)]
    return [value for value in values if value > 0 or min(row) < 0]


def _continued(row: Sequence[float]) -> list[float]:
    """Two more: by steps where they are even, by ratios where they repeat, else by typical ones."""
    step = (row[-1] - row[0]) / (len(row) - 1)
    stepped = _stepped(row[-1], step)
    if all(math.isclose(b - a, step, rel_tol=ALIKE) for a, b in pairwise(row)):
        return [_rounded(value, DIGITS) for value in stepped]
    positive = [value for value in row if value > 0]  # all, or all but a 0 at the start
    has_ratios = min(row) >= 0 and row[-1] > 0
    if has_ratios and (repeated := _repeated(positive)):
        return repeated
    if not has_ratios or 0 < max(row) <= WIDE * min(row):
        return _short(row[-1], stepped)
    factor = (positive[-1] / positive[0]) ** (1 / (len(positive) - 1))
    return _short(row[-1], [row[-1] * factor, row[-1] * factor**2])


def _stepped(value: float, step: float) -> list[float]:
    """Two steps on; instead of one that would reach 0, half of the way there."""
    found = [value]
    for _ in range(2):
        reaches_zero = step < 0 < found[-1] and found[-1] + step <= -ALIKE * step
        found.append(found[-1] / 2 if reaches_zero else found[-1] + step)
    return found[1:]


def _repeated(row: Sequence[float]) -> list[float]:
    """By the ratios of the row where they are constant or repeat: 1, 3, 10, 30; 1, 2, 5, 10."""
    for period, is_decade in ((1, False), (2, True), (3, True), (2, False)):
        logs = [math.log10(b / a) for a, b in zip(row, row[period:], strict=False)]
        mean = math.fsum(logs) / max(1, len(logs))
        is_regular = all(math.isclose(log, mean, rel_tol=ALIKE) for log in logs)
        is_ten = math.isclose(abs(mean), 1, rel_tol=1e-3)
        if is_regular and (is_ten if is_decade else len(logs) > 1):
            first = row[-period] * 10**mean
            second = (first if period == 1 else row[1 - period]) * 10**mean
            return [_rounded(first, DIGITS), _rounded(second, DIGITS)]
    return []


def _short(end: float, values: Sequence[float]) -> list[float]:
    """With two significant digits; with more, as far as they are needed to stay beyond the end."""
    pairs = [[_rounded(value, digits) for value in values] for digits in range(2, DIGITS + 1)]
    apart = [p for p in pairs if [end, *p] == sorted({end, *p}, reverse=values[0] < end)]
    return (apart or pairs[-1:])[0]


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
