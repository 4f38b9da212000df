"""Means over seeds and how far they can be trusted."""

import numpy as np

LEVEL = 0.95
INTERVAL = "95 % Student's t interval of the mean"  # in captions


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high), each (…), of values (seeds, …): Student's 95 % interval of the mean.

    mean ± t · s / √n, with the quantile t of n - 1 degrees of freedom (Student 1908). It holds
    from two seeds on where they are about normally distributed: of two it is 12.7 · s / √2 wide on
    each side. NaN where there is none: of one seed, of a NaN, and of values that are all equal,
    as those are that do not depend on the seed.
    """
    values = np.asarray(values, dtype=float)
    num, nothing = len(values), np.full(values.shape[1:], np.nan)
    if num < 2:
        return (values[0] if num else nothing), nothing, nothing
    from scipy.special import stdtrit  # later than a look without pictures needs

    mean = values.mean(axis=0)
    half = stdtrit(num - 1, (1 + LEVEL) / 2) * values.std(axis=0, ddof=1) / np.sqrt(num)
    half = np.where(np.ptp(values, axis=0) > 0, half, np.nan)
    return mean, mean - half, mean + half
