"""What expressions may call, and how large the values are that come and go.

A function of FUNCTIONS gets the walk of src/config/expressions.py first, to pay from its budget
before it allocates and to draw at random.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from src.config.expressions import Walk

MOST_BITS = 1_024  # of an integer: as far as floats go
MOST_DIGITS = 100  # of a number given as a string, or asked for when rounding

# What values hold and how large they are


def size_of(value: Any) -> int:
    """How many elements a value holds, those of its elements included."""
    if isinstance(value, np.ndarray):
        return _cells(value.shape)
    if isinstance(value, list | tuple):
        return 1 + sum(map(size_of, value))
    if isinstance(value, dict):
        return 1 + sum(map(size_of, value)) + sum(map(size_of, value.values()))
    return 1 + len(value) // 8 if isinstance(value, str) else 1


def _cells(shape: Any) -> int:
    """Of an array of this shape, given as `size=` is; (n, 0) counts as the n lists it becomes."""
    sides = shape if isinstance(shape, list | tuple) else () if shape is None else (shape,)
    return math.prod(max(1, whole_number(side)) for side in sides)


def broadcast(*values: Any) -> int:
    """The elements of what numbers and arrays broadcast to."""
    return _cells(np.broadcast_shapes(*map(np.shape, values)))


def as_plain(value: Any) -> Any:
    """A result as the walk knows it: numbers of Python; arrays of numbers; nothing that grows."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf":
            raise ValueError(f"arrays hold real numbers, got {value.dtype}")
        value = value.item() if value.ndim == 0 else value
    if isinstance(value, complex):
        raise ValueError("complex numbers are not allowed")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"too large: an integer of more than {MOST_BITS} bits")
    return value


def exact(compute: Callable[..., Any], *values: Any) -> Any:
    """compute(…); raises where numpy's 64-bit integers would wrap around in silence."""
    result = compute(*values)
    if isinstance(result, np.ndarray | np.integer) and result.dtype.kind in "iu":
        in_floats = compute(*(np.asarray(value, dtype=float) for value in values))
        if np.max(np.abs(in_floats), initial=0.0) >= 2.0**63:
            raise OverflowError("64-bit integers overflow: write one of them as a float")
    return result


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError(f"needs numbers, got {type(value).__name__}")
    return value


def number_or_array(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else _number(value)


def whole_number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"needs whole numbers, got {type(value).__name__}")
    return value


def for_numpy(value: Any) -> Any:
    """A number of 64 bits or an array, also from lists of them: never Python objects."""
    _check_fits(value)
    return np.array(value) if isinstance(value, list | tuple) else value


def _check_fits(value: Any) -> None:
    if isinstance(value, list | tuple):
        for element in value:
            _check_fits(element)
    elif isinstance(number_or_array(value), int) and not -(2**63) <= value < 2**63:
        raise OverflowError("64-bit integers overflow: write it as a float")


def elements_of(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else list(value)
    if not isinstance(value, list | tuple | str | dict):
        raise TypeError(f"needs a list, got {type(value).__name__}")
    return list(value)


def _sortable(*values: Any) -> list[Any]:
    """The elements of one list, or several values: all of them numbers or all strings."""
    elements = elements_of(values[0]) if len(values) == 1 else list(values)
    is_text = all(isinstance(element, str) for element in elements)
    return elements if is_text else [_number(element) for element in elements]


def same_sequences(left: Any, right: Any) -> bool:
    return type(left) is type(right) and isinstance(left, str | list | tuple)


def with_string_keys(pairs: Any) -> dict[str, Any]:
    """A dict; keys are strings, as colliding hashes of numbers could be made up."""
    result = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError(f"the keys of a dict are strings, got {type(key).__name__}")
        result[key] = value
    return result


# Functions: each gets the walk, to pay from its budget and to draw at random


def _short(value: Any) -> Any:
    """A number, or a string of one that is not too long to read."""
    if isinstance(value, str) and len(value) <= MOST_DIGITS:
        return value
    return _number(value)


def _digits(number: Any) -> int:
    if not -MOST_DIGITS <= whole_number(number) <= MOST_DIGITS:
        raise ValueError(f"rounds to at most {MOST_DIGITS} digits")
    return number


def _round(walk: "Walk", value: Any, ndigits: int | None = None) -> Any:
    if isinstance(value, np.ndarray):
        return np.round(value, _digits(ndigits or 0))
    return round(_number(value), None if ndigits is None else _digits(ndigits))


def _string(walk: "Walk", value: Any) -> str:
    if not (value is None or isinstance(value, str)):
        _number(value)
    return str(value)


def _range(walk: "Walk", *bounds: Any) -> list[int]:
    numbers = range(*map(whole_number, bounds))
    walk.spend(len(numbers))
    return list(numbers)


def _dict(walk: "Walk", pairs: Any = (), **items: Any) -> dict[str, Any]:
    pairs = pairs.items() if isinstance(pairs, dict) else map(elements_of, elements_of(pairs))
    return with_string_keys(pairs) | items


def _array_of_numbers(
    function: Callable[..., Any], length: Callable[..., Any]
) -> Callable[..., Any]:
    """np.function of numbers; length(…) of the same arguments says how many it returns."""

    def call(walk: "Walk", *args: Any, **keywords: Any) -> Any:
        for value in (*args, *keywords.values()):
            for_numpy(_number(value))
        walk.spend(length(*args, **keywords))
        return function(*args, **keywords)

    return call


def _arange_length(start: float, stop: float | None = None, step: float = 1) -> float:
    start, stop = (0, start) if stop is None else (start, stop)
    return (stop - start) / step


def _filled(walk: "Walk", shape: Any, value: Any) -> Any:
    walk.spend(_cells(shape))
    return np.full(shape, for_numpy(_number(value)))


def _of_arrays(
    function: Callable[..., Any], num_arrays: int = 1, size: Callable[..., int] = broadcast
) -> Callable[..., Any]:
    """np.function of so many arrays (lists, numbers), whose result is at most of this size."""

    def call(walk: "Walk", *args: Any) -> Any:
        if len(args) != num_arrays:
            raise TypeError(f"takes {num_arrays} argument(s), got {len(args)}")
        arrays = [for_numpy(value) for value in args]
        walk.spend(size(*arrays))
        return exact(function, *arrays)

    return call


def _draws(draw: Callable[..., Any], arguments: Callable[..., Any]) -> Callable[..., Any]:
    """np.random.draw; arguments(…) sorts what is given into (parameters, size)."""

    def call(walk: "Walk", *args: Any, **keywords: Any) -> Any:
        parameters, size = arguments(*args, **keywords)
        walk.spend(_cells(size))
        return draw(walk.rng, *(for_numpy(_number(value)) for value in parameters), size)

    return call


def _choice(walk: "Walk", a: Any, size: Any = None, replace: bool = True, p: Any = None) -> Any:
    values = _population(walk, a)
    walk.spend(_cells(size))
    return _taken(values, walk.rng.choice(len(values), size, bool(replace), p))


def _permutation(walk: "Walk", x: Any) -> Any:
    values = _population(walk, x)
    return _taken(values, walk.rng.permutation(len(values)))


def _population(walk: "Walk", values: Any) -> list[Any]:
    return _range(walk, values) if isinstance(values, int) else elements_of(values)


def _taken(values: list[Any], places: Any) -> Any:
    """values[places]: one of them, an array of numbers, or a list of anything else."""
    if np.ndim(places) == 0:
        return values[places]
    taken = [values[place] for place in places.flat]
    are_numbers = all(isinstance(value, int | float) for value in taken)
    return for_numpy(taken).reshape(places.shape) if are_numbers else taken


G = np.random.Generator


CONSTANTS = {"np.pi": np.pi, "np.e": np.e, "np.inf": np.inf, "np.nan": np.nan}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda walk, value: abs(number_or_array(value)),
    "dict": _dict,
    "enumerate": lambda walk, values, start=0: list(
        enumerate(elements_of(values), whole_number(start))
    ),
    "float": lambda walk, value: float(_short(value)),
    "int": lambda walk, value: int(_short(value)),
    "len": lambda walk, values: len(values),
    "list": lambda walk, values: elements_of(values),
    "max": lambda walk, *values: max(_sortable(*values)),
    "min": lambda walk, *values: min(_sortable(*values)),
    "range": _range,
    "round": _round,
    "set": lambda walk, values=(): walk.distinct(elements_of(values)),
    "sorted": lambda walk, values, reverse=False: sorted(_sortable(values), reverse=bool(reverse)),
    "str": _string,
    "sum": lambda walk, values: sum(map(_number, elements_of(values))),
    "tuple": lambda walk, values: tuple(elements_of(values)),
    "zip": lambda walk, *values: list(zip(*map(elements_of, values), strict=False)),
    # Arrays from numbers
    "np.arange": _array_of_numbers(np.arange, _arange_length),
    "np.geomspace": _array_of_numbers(np.geomspace, lambda start, stop, num=50: num),
    "np.linspace": _array_of_numbers(np.linspace, lambda start, stop, num=50, endpoint=True: num),
    "np.logspace": _array_of_numbers(
        np.logspace, lambda start, stop, num=50, endpoint=True, base=10.0: num
    ),
    "np.full": _filled,
    "np.ones": lambda walk, shape: _filled(walk, shape, 1.0),
    "np.zeros": lambda walk, shape: _filled(walk, shape, 0.0),
    # Arrays from arrays
    "np.array": lambda walk, values: for_numpy(values),
    "np.concatenate": lambda walk, parts: np.concatenate(
        [for_numpy(p) for p in elements_of(parts)]
    ),
    "np.round": _round,
    "np.abs": _of_arrays(np.abs),
    "np.ceil": _of_arrays(np.ceil),
    "np.clip": _of_arrays(np.clip, 3),
    "np.cumprod": _of_arrays(np.cumprod),
    "np.cumsum": _of_arrays(np.cumsum),
    "np.exp": _of_arrays(np.exp),
    "np.flip": _of_arrays(np.flip),
    "np.floor": _of_arrays(np.floor),
    "np.log": _of_arrays(np.log),
    "np.log10": _of_arrays(np.log10),
    "np.log2": _of_arrays(np.log2),
    "np.max": _of_arrays(np.max),
    "np.maximum": _of_arrays(np.maximum, 2),
    "np.mean": _of_arrays(np.mean),
    "np.min": _of_arrays(np.min),
    "np.minimum": _of_arrays(np.minimum, 2),
    "np.outer": _of_arrays(np.outer, 2, lambda a, b: _cells((np.size(a), np.size(b)))),
    "np.power": _of_arrays(np.power, 2),
    "np.prod": _of_arrays(np.prod),
    "np.sort": _of_arrays(np.sort),
    "np.sqrt": _of_arrays(np.sqrt),
    "np.square": _of_arrays(np.square),
    "np.std": _of_arrays(np.std),
    "np.sum": _of_arrays(np.sum),
    # With the index it sorts; without, it may hash, and hashes can be made to collide
    "np.unique": _of_arrays(lambda values: np.unique(values, return_index=True)[0]),
    # Random draws
    "np.random.choice": _choice,
    "np.random.permutation": _permutation,
    "np.random.lognormal": _draws(
        G.lognormal, lambda mean=0.0, sigma=1.0, size=None: ((mean, sigma), size)
    ),
    "np.random.normal": _draws(
        G.normal, lambda loc=0.0, scale=1.0, size=None: ((loc, scale), size)
    ),
    "np.random.rand": _draws(G.random, lambda *shape: ((), shape or None)),
    "np.random.randint": _draws(
        G.integers,
        lambda low, high=None, size=None: ((0, low) if high is None else (low, high), size),
    ),
    "np.random.randn": _draws(G.standard_normal, lambda *shape: ((), shape or None)),
    "np.random.uniform": _draws(
        G.uniform, lambda low=0.0, high=1.0, size=None: ((low, high), size)
    ),
}
