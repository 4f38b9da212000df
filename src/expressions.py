"""Values spelled as expressions in YAML, computed by a walk that knows a few nodes and functions.

Not simpleeval: the size of a result has to be known before each operation on arrays,
which leaves only the parser of it, and that is Python's own `ast`.
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from src.names import UserError, closest

MOST_WORK = 100_000  # elements read or made; a job file needs some hundreds
WORK_PER_NODE = 8  # a visited node takes about as long as so many elements,
WORK_PER_CALL = 64  # and a call of numpy as so many
MOST_CHARACTERS = 4_000
MOST_DEPTH = 80
MOST_BITS = 1_024  # of an integer: as far as floats go
MOST_DIGITS = 100  # of a number given as a string, or asked for when rounding
EXCERPT = 60  # characters of the text shown in an error


class ExpressionError(UserError):
    """The text is no expression that we compute; names the offending part and its column."""


def evaluate(text: str, *, rng: np.random.Generator | None = None) -> object:
    """The value of an expression: plain Python, or an array where it ends with one.

    numpy scalars become numbers; `range`, `zip` and `enumerate` give lists. `np.random`
    draws from `rng` (None: a fresh one). Whatever is not allowed raises ExpressionError,
    after at most 0.1 s and some megabytes. About 4,000 elements of a comprehension, or
    45,000 of `np.linspace(…).tolist()`, are within what it computes.

    >>> evaluate("[float(x) for x in 2.0 ** np.arange(-1, 2)]")
    [0.5, 1.0, 2.0]
    """
    with warnings.catch_warnings(), np.errstate(over="raise", divide="raise", invalid="raise"):
        warnings.simplefilter("error")  # numpy warns where it returns nonsense
        return _Walk(text, rng).visit(_parse(text))


def is_expression(text: str) -> bool:
    """Whether text is meant to be computed: it parses, and holds a list or a call we know.

    Plain names ('tiny/lenet', 'train', 'a-b') are not, nor are numbers and '0.9,0.99'.
    A true answer does not promise that `evaluate` succeeds: its error then tells why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nodes = list(ast.walk(_parse(text)))
    except ExpressionError:
        return False
    calls = [_dotted(node.func) for node in nodes if isinstance(node, ast.Call)]
    lists = (ast.List, ast.ListComp, ast.GeneratorExp, ast.DictComp)
    has_list = any(isinstance(node, lists) for node in nodes)
    return has_list or any(name in FUNCTIONS or name.startswith("np.") for name in calls)


def _parse(text: str) -> ast.expr:
    if len(text) > MOST_CHARACTERS:
        raise ExpressionError(
            f"{_excerpt(text)!r}: {len(text)} characters, at most {MOST_CHARACTERS} are read"
        )
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "nested too deep"
        column = f"column {at}: " if (at := getattr(error, "offset", None)) else ""
        raise ExpressionError(f"{_excerpt(text)!r}: {column}{reason}") from error


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _dotted(node: ast.expr) -> str:
    """'np.random.uniform' for such a chain of names, '' for any other node."""
    attributes = []
    while isinstance(node, ast.Attribute):  # no recursion: the chain may be long
        attributes.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(attributes)]) if isinstance(node, ast.Name) else ""


class _Walk:
    """One evaluation: what is left of its budget, the names in force, how deep it is."""

    def __init__(self, text: str, rng: np.random.Generator | None) -> None:
        self.text, self.rng = text.strip(), rng or np.random.default_rng()
        self.work_left = MOST_WORK
        self.depth = 0
        self.names: dict[str, Any] = {}

    def visit(self, node: ast.expr) -> Any:
        """The value of a node. Any failure becomes an ExpressionError that shows this node."""
        handle = NODES.get(type(node))
        self.depth += 1
        try:
            if handle is None:
                raise ValueError(f"{type(node).__name__} is not allowed")
            if self.depth > MOST_DEPTH:
                raise ValueError("nested too deep")
            self.spend(WORK_PER_NODE)
            return _plain(handle(self, node))
        except ExpressionError:
            raise
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError, Warning) as error:
            reason = re.sub(r"^\S+\(\) ", "", str(error))  # "<lambda>() missing …": not his name
            raise self.refused(node, reason or type(error).__name__) from error
        finally:
            self.depth -= 1

    def refused(self, node: ast.expr, reason: str) -> ExpressionError:
        part = ast.get_source_segment(self.text, node) or ""
        lines = self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        line = lines[node.lineno - 1].encode()  # ast counts bytes of UTF-8
        column = len(line[: node.col_offset].decode(errors="ignore")) + 1
        of_whole = "" if part == self.text else f" in {_excerpt(self.text)!r}"
        return ExpressionError(f"{_excerpt(part)!r}{of_whole}, column {column}: {reason}")

    def spend(self, work: float) -> None:
        """Takes work from the budget, before it is done; too much (or NaN) raises."""
        if not work <= self.work_left:
            raise ValueError(f"too large: more than {MOST_WORK} elements or steps")
        self.work_left -= max(0, int(work))

    def read(self, *nodes: ast.expr) -> list[Any]:
        """Their values, paid for by all they hold: so no value ever holds more than the budget."""
        values = []
        for node in nodes:
            values.append(self.visit(node))
            self.spend(_size(values[-1]))
        return values

    # Nodes

    def constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, bytes | complex) or node.value is ...:
            raise ValueError(f"{type(node.value).__name__} is not allowed")
        return node.value

    def name(self, node: ast.Name) -> Any:
        if node.id not in self.names:
            raise ValueError("unknown name")
        return self.names[node.id]

    def attribute(self, node: ast.Attribute) -> float:
        if (name := _dotted(node)) not in CONSTANTS:
            raise ValueError(f"no attributes but {', '.join(CONSTANTS)} and .tolist()")
        return CONSTANTS[name]

    def list_display(self, node: ast.List) -> list[Any]:
        return self.read(*node.elts)

    def tuple_display(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.read(*node.elts))

    def dict_display(self, node: ast.Dict) -> dict[str, Any]:
        if None in node.keys:
            raise ValueError("** is not allowed")
        keys = self.read(*(key for key in node.keys if key is not None))
        return _string_keys(zip(keys, self.read(*node.values), strict=True))

    def unary(self, node: ast.UnaryOp) -> Any:
        (value,) = self.read(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        return UNARY[type(node.op)](_number_or_array(value))

    def binary(self, node: ast.BinOp) -> Any:
        if (compute := BINARY.get(type(node.op))) is None:
            raise ValueError(f"{type(node.op).__name__} is not allowed")
        left, right = self.read(node.left, node.right)
        if isinstance(node.op, ast.Add) and _same_sequences(left, right):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, str | list | tuple):
            self.spend(_size(left) * _whole(right))
            return left * right
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MOST_BITS:
                raise ValueError(f"too large: an integer of more than {MOST_BITS} bits")
            return left**right
        return self.numeric(compute, left, right)

    def numeric(self, compute: Callable[..., Any], *values: Any) -> Any:
        """compute(…) of numbers and arrays that broadcast; integers that overflow raise."""
        values = tuple(_number_or_array(value) for value in values)
        if any(isinstance(value, np.ndarray) for value in values):
            values = tuple(_for_numpy(value) for value in values)
        self.spend(_broadcast(*values))
        return _exact(compute, *values)

    def compare(self, node: ast.Compare) -> Any:
        values = self.read(node.left, *node.comparators)
        result: Any = True
        for kind, left, right in zip(node.ops, values, values[1:], strict=False):
            if (compute := COMPARISONS.get(type(kind))) is None:
                raise ValueError(f"{type(kind).__name__} is not allowed")
            if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
                result = self.numeric(compute, left, right)
            else:
                result = compute(left, right)
            if len(values) > 2 and not result:
                return False
        return result

    def boolean(self, node: ast.BoolOp) -> Any:
        value = None
        for part in node.values:
            value = self.visit(part)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def conditional(self, node: ast.IfExp) -> Any:
        return self.visit(node.body if self.visit(node.test) else node.orelse)

    def subscript(self, node: ast.Subscript) -> Any:
        values, index = self.read(node.value, node.slice)
        parts = index if isinstance(index, tuple) else (index,)
        if isinstance(values, np.ndarray) and not all(isinstance(i, int | slice) for i in parts):
            raise ValueError("arrays are indexed by whole numbers and slices")
        return values[index]

    def slicing(self, node: ast.Slice) -> slice:
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if part is None else _whole(self.visit(part)) for part in parts))

    def list_comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> list[Any]:
        return [self.read(node.elt)[0] for _ in self.loops(node.generators)]

    def dict_comprehension(self, node: ast.DictComp) -> dict[str, Any]:
        return _string_keys(self.read(node.key, node.value) for _ in self.loops(node.generators))

    def loops(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Once for every round of the nested loops whose conditions hold, its names bound."""
        if not generators:
            yield
            return
        loop, outside = generators[0], self.names
        if loop.is_async:
            raise ValueError("async is not allowed")
        for value in _elements(self.read(loop.iter)[0]):
            self.names = outside | _bound(loop.target, value)
            if all(self.visit(condition) for condition in loop.ifs):
                yield from self.loops(generators[1:])
        self.names = outside

    def call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "tolist":
            (value,) = self.read(node.func.value)
            return value.tolist() if isinstance(value, np.ndarray) else _number_or_array(value)
        name = _dotted(node.func)
        if (function := FUNCTIONS.get(name)) is None:
            raise ValueError(_unknown_function(name))
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not allowed")
        self.spend(WORK_PER_CALL if name.startswith("np.") else 0)
        keywords = {str(keyword.arg): self.read(keyword.value)[0] for keyword in node.keywords}
        return function(self, *self.read(*node.args), **keywords)


# What values hold and how large they are


def _size(value: Any) -> int:
    """How many elements a value holds, those of its elements included."""
    if isinstance(value, np.ndarray):
        return _cells(value.shape)
    if isinstance(value, list | tuple):
        return 1 + sum(map(_size, value))
    if isinstance(value, dict):
        return 1 + sum(map(_size, value)) + sum(map(_size, value.values()))
    return 1 + len(value) // 8 if isinstance(value, str) else 1


def _cells(shape: Any) -> int:
    """Of an array of this shape, given as `size=` is; (n, 0) counts as the n lists it becomes."""
    sides = shape if isinstance(shape, list | tuple) else () if shape is None else (shape,)
    return math.prod(max(1, _whole(side)) for side in sides)


def _broadcast(*values: Any) -> int:
    """The elements of what numbers and arrays broadcast to."""
    return _cells(np.broadcast_shapes(*map(np.shape, values)))


def _plain(value: Any) -> Any:
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


def _exact(compute: Callable[..., Any], *values: Any) -> Any:
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


def _number_or_array(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else _number(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"needs whole numbers, got {type(value).__name__}")
    return value


def _for_numpy(value: Any) -> Any:
    """A number of 64 bits or an array, also from lists of them: never Python objects."""
    _check_fits(value)
    return np.array(value) if isinstance(value, list | tuple) else value


def _check_fits(value: Any) -> None:
    if isinstance(value, list | tuple):
        for element in value:
            _check_fits(element)
    elif isinstance(_number_or_array(value), int) and not -(2**63) <= value < 2**63:
        raise OverflowError("64-bit integers overflow: write it as a float")


def _elements(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else list(value)
    if not isinstance(value, list | tuple | str | dict):
        raise TypeError(f"needs a list, got {type(value).__name__}")
    return list(value)


def _sortable(*values: Any) -> list[Any]:
    """The elements of one list, or several values: all of them numbers or all strings."""
    elements = _elements(values[0]) if len(values) == 1 else list(values)
    is_text = all(isinstance(element, str) for element in elements)
    return elements if is_text else [_number(element) for element in elements]


def _same_sequences(left: Any, right: Any) -> bool:
    return type(left) is type(right) and isinstance(left, str | list | tuple)


def _bound(target: ast.expr, value: Any) -> dict[str, Any]:
    """The names that `for target in …` binds."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple | ast.List):
        raise TypeError("loops over names only")
    names: dict[str, Any] = {}
    for part, element in zip(target.elts, _elements(value), strict=True):
        names |= _bound(part, element)
    return names


def _string_keys(pairs: Any) -> dict[str, Any]:
    """A dict; keys are strings, as colliding hashes of numbers could be made up."""
    result = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError(f"the keys of a dict are strings, got {type(key).__name__}")
        result[key] = value
    return result


def _unknown_function(name: str) -> str:
    hint = f", did you mean {close!r}?" if (close := closest(name, FUNCTIONS)) else ""
    return f"calls no function that is allowed{hint}"


# Functions: each gets the walk, to pay from its budget and to draw at random


def _short(value: Any) -> Any:
    """A number, or a string of one that is not too long to read."""
    if isinstance(value, str) and len(value) <= MOST_DIGITS:
        return value
    return _number(value)


def _digits(number: Any) -> int:
    if not -MOST_DIGITS <= _whole(number) <= MOST_DIGITS:
        raise ValueError(f"rounds to at most {MOST_DIGITS} digits")
    return number


def _round(walk: _Walk, value: Any, ndigits: int | None = None) -> Any:
    if isinstance(value, np.ndarray):
        return np.round(value, _digits(ndigits or 0))
    return round(_number(value), None if ndigits is None else _digits(ndigits))


def _string(walk: _Walk, value: Any) -> str:
    if not (value is None or isinstance(value, str)):
        _number(value)
    return str(value)


def _range(walk: _Walk, *bounds: Any) -> list[int]:
    numbers = range(*map(_whole, bounds))
    walk.spend(len(numbers))
    return list(numbers)


def _dict(walk: _Walk, pairs: Any = (), **items: Any) -> dict[str, Any]:
    pairs = pairs.items() if isinstance(pairs, dict) else map(_elements, _elements(pairs))
    return _string_keys(pairs) | items


def _array_of_numbers(
    function: Callable[..., Any], length: Callable[..., Any]
) -> Callable[..., Any]:
    """np.function of numbers; length(…) of the same arguments says how many it returns."""

    def call(walk: _Walk, *args: Any, **keywords: Any) -> Any:
        for value in (*args, *keywords.values()):
            _for_numpy(_number(value))
        walk.spend(length(*args, **keywords))
        return function(*args, **keywords)

    return call


def _arange_length(start: float, stop: float | None = None, step: float = 1) -> float:
    start, stop = (0, start) if stop is None else (start, stop)
    return (stop - start) / step


def _filled(walk: _Walk, shape: Any, value: Any) -> Any:
    walk.spend(_cells(shape))
    return np.full(shape, _for_numpy(_number(value)))


def _of_arrays(
    function: Callable[..., Any], num_arrays: int = 1, size: Callable[..., int] = _broadcast
) -> Callable[..., Any]:
    """np.function of so many arrays (lists, numbers), whose result is at most of this size."""

    def call(walk: _Walk, *args: Any) -> Any:
        if len(args) != num_arrays:
            raise TypeError(f"takes {num_arrays} argument(s), got {len(args)}")
        arrays = [_for_numpy(value) for value in args]
        walk.spend(size(*arrays))
        return _exact(function, *arrays)

    return call


def _draws(draw: Callable[..., Any], arguments: Callable[..., Any]) -> Callable[..., Any]:
    """np.random.draw; arguments(…) sorts what is given into (parameters, size)."""

    def call(walk: _Walk, *args: Any, **keywords: Any) -> Any:
        parameters, size = arguments(*args, **keywords)
        walk.spend(_cells(size))
        return draw(walk.rng, *(_for_numpy(_number(value)) for value in parameters), size)

    return call


def _choice(walk: _Walk, a: Any, size: Any = None, replace: bool = True, p: Any = None) -> Any:
    values = _population(walk, a)
    walk.spend(_cells(size))
    return _taken(values, walk.rng.choice(len(values), size, bool(replace), p))


def _permutation(walk: _Walk, x: Any) -> Any:
    values = _population(walk, x)
    return _taken(values, walk.rng.permutation(len(values)))


def _population(walk: _Walk, values: Any) -> list[Any]:
    return _range(walk, values) if isinstance(values, int) else _elements(values)


def _taken(values: list[Any], places: Any) -> Any:
    """values[places]: one of them, an array of numbers, or a list of anything else."""
    if np.ndim(places) == 0:
        return values[places]
    taken = [values[place] for place in places.flat]
    are_numbers = all(isinstance(value, int | float) for value in taken)
    return _for_numpy(taken).reshape(places.shape) if are_numbers else taken


G = np.random.Generator

NODES: dict[type, Callable[..., Any]] = {
    ast.Constant: _Walk.constant,
    ast.Name: _Walk.name,
    ast.Attribute: _Walk.attribute,
    ast.List: _Walk.list_display,
    ast.Tuple: _Walk.tuple_display,
    ast.Dict: _Walk.dict_display,
    ast.UnaryOp: _Walk.unary,
    ast.BinOp: _Walk.binary,
    ast.Compare: _Walk.compare,
    ast.BoolOp: _Walk.boolean,
    ast.IfExp: _Walk.conditional,
    ast.Subscript: _Walk.subscript,
    ast.Slice: _Walk.slicing,
    ast.ListComp: _Walk.list_comprehension,
    ast.GeneratorExp: _Walk.list_comprehension,
    ast.DictComp: _Walk.dict_comprehension,
    ast.Call: _Walk.call,
}
UNARY: dict[type, Callable[..., Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
BINARY: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
CONSTANTS = {"np.pi": np.pi, "np.e": np.e, "np.inf": np.inf, "np.nan": np.nan}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda walk, value: abs(_number_or_array(value)),
    "dict": _dict,
    "enumerate": lambda walk, values, start=0: list(enumerate(_elements(values), _whole(start))),
    "float": lambda walk, value: float(_short(value)),
    "int": lambda walk, value: int(_short(value)),
    "len": lambda walk, values: len(values),
    "list": lambda walk, values: _elements(values),
    "max": lambda walk, *values: max(_sortable(*values)),
    "min": lambda walk, *values: min(_sortable(*values)),
    "range": _range,
    "round": _round,
    "sorted": lambda walk, values, reverse=False: sorted(_sortable(values), reverse=bool(reverse)),
    "str": _string,
    "sum": lambda walk, values: sum(map(_number, _elements(values))),
    "tuple": lambda walk, values: tuple(_elements(values)),
    "zip": lambda walk, *values: list(zip(*map(_elements, values), strict=False)),
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
    "np.array": lambda walk, values: _for_numpy(values),
    "np.concatenate": lambda walk, parts: np.concatenate([_for_numpy(p) for p in _elements(parts)]),
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
