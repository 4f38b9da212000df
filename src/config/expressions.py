"""Expressions: texts in YAML that are computed, such as "2.0 ** np.arange(3)".

A walk over the tree of Python's own parser knows a few nodes and functions and refuses all else:
a file runs no code and reaches no other file, and its results are of bounded size.

asteval 1.0.10 was tried: it refuses code and files too, but there 64-bit integers overflow in
silence, sets lose their order, `sum(x for x in y)` fails, and only an alarm in the main thread ends
a long loop. Each operator, set and loop would still be our own.
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from src.support import UserError, closest, one_line

MOST_WORK = 100_000  # elements made; a job file needs some hundreds
WORK_PER_NODE = 8  # a visited node takes about as long as so many elements
MOST_CHARACTERS = 4_000
MOST_BITS = 1_024  # of an integer: as far as floats go
MOST_DIGITS = 100  # for rounding
EXCERPT = 60  # characters of the text shown in an error
ARRAYS = int | float | np.ndarray
LISTS = ast.List | ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


def evaluate(text: str, *, rng: np.random.Generator | None = None) -> object:
    """The value of an expression: plain Python, or an array where it ends with one.

    numpy scalars become numbers; `range`, `zip`, `map`, `enumerate` and sets give lists.
    `np.random` draws from `rng` (None: a fresh one). Whatever is not allowed, and more than about
    4,000 elements of a comprehension or 45,000 of `np.linspace(…).tolist()`, raises UserError.

    >>> evaluate("[float(x) for x in 2.0 ** np.arange(-1, 2)]")
    [0.5, 1.0, 2.0]
    """
    with warnings.catch_warnings(), np.errstate(over="raise", divide="raise", invalid="raise"):
        warnings.simplefilter("error")  # numpy warns where it returns nonsense
        return _Evaluator(text.strip(), rng or np.random.default_rng()).visit(_parse(text))


def is_expression(text: str) -> bool:
    """Whether text is meant to be computed: it parses, and holds a list or a call we know.

    '(8, 16)' and '{8, 16}' are lists too. Plain names ('tiny/lenet', 'train', 'a-b') are not,
    nor are '{name}', numbers and '0.9,0.99'. Where it is true `evaluate` may still fail, and says
    why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nodes = list(ast.walk(_parse(text)))
    except UserError:
        return False
    for node in nodes:
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            if name in FUNCTIONS or name.startswith("np."):
                return True
        elif isinstance(node, ast.Tuple | ast.Set):
            # not of names alone; without parentheses a tuple begins where its first element does
            are_names = all(isinstance(element, ast.Name) for element in node.elts)
            begins = (node.lineno, node.col_offset)
            if not are_names and begins < (node.elts[0].lineno, node.elts[0].col_offset):
                return True
        elif isinstance(node, LISTS):
            return True
    return False


def _parse(text: str) -> ast.expr:
    excerpt = repr(one_line(text, EXCERPT))
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{excerpt}: {len(text)} characters, at most {MOST_CHARACTERS} are read")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "nested too deep"
        column = f"column {at}: " if (at := getattr(error, "offset", None)) else ""
        raise UserError(f"{excerpt}: {column}{reason}") from error


def _dotted(node: ast.expr) -> str:
    """'np.random.uniform' for such a chain of names, '' for any other node."""
    attributes = []
    while isinstance(node, ast.Attribute):  # no recursion: the chain may be long
        attributes.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(attributes)]) if isinstance(node, ast.Name) else ""


class _Evaluator:
    """One evaluation: what is left of its budget, and the names of its loops."""

    def __init__(self, text: str, rng: np.random.Generator) -> None:
        self.text = text
        self.functions = FUNCTIONS | _random_functions(rng)
        self.work_left = MOST_WORK
        self.names: dict[str, Any] = CONSTANTS

    def visit(self, node: Any) -> Any:
        """The value of a node, paid for by its size. A failure is an error that shows this node."""
        try:
            return self.paid(self.compute(node))
        except UserError:
            raise
        except Exception as error:  # of whatever the text calls
            part = ast.get_source_segment(self.text, node) or ""
            line = re.split(r"\r\n|\r|\n", self.text)[node.lineno - 1].encode()
            column = len(line[: node.col_offset].decode()) + 1  # ast counts bytes of UTF-8
            where = "" if part == self.text else f" in {one_line(self.text, EXCERPT)!r}"
            where = f"{one_line(part, EXCERPT)!r}{where}, column {column}"
            reason = re.sub(r"^\S+\(\) ", "", str(error))  # "<lambda>() missing …": not his name
            raise UserError(f"{where}: {reason or type(error).__name__}") from error

    def paid(self, value: Any) -> Any:
        """The value, when its size has been taken from the budget."""
        _check_size(work := WORK_PER_NODE + _size(value := _plain(value)), self.work_left)
        self.work_left -= work
        return value

    def compute(self, node: Any) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() | None):
                return node.value
            case ast.Name() | ast.Attribute() if (name := _dotted(node)) in self.names:
                return self.names[name]
            case ast.Name():
                raise ValueError("unknown name")
            case ast.Attribute():
                raise ValueError(f"no attributes but {', '.join(CONSTANTS)} and .tolist()")
            case ast.List():
                return [self.visit(element) for element in node.elts]
            case ast.Tuple():
                return tuple([self.visit(element) for element in node.elts])
            case ast.Set():
                return _distinct([self.visit(element) for element in node.elts])
            case ast.Dict() if None not in node.keys:  # that would be {**other}
                keys = [self.visit(key) for key in node.keys]
                return dict(zip(keys, map(self.visit, node.values), strict=True))
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                elements = [self.visit(node.elt) for _ in self.loops(node.generators)]
                return _distinct(elements) if isinstance(node, ast.SetComp) else elements
            case ast.DictComp():
                rounds = self.loops(node.generators)
                return {self.visit(node.key): self.visit(node.value) for _ in rounds}
            case ast.UnaryOp():
                return _operate(node.op, self.visit(node.operand))
            case ast.BinOp():
                return _operate(node.op, self.visit(node.left), self.visit(node.right))
            case ast.Compare():
                values = [self.visit(value) for value in (node.left, *node.comparators)]
                pairs = zip(node.ops, pairwise(values), strict=True)
                results = [_operate(kind, *pair) for kind, pair in pairs]
                return all(results) if len(results) > 1 else results[0]
            case ast.BoolOp():
                for part in node.values:
                    value = self.visit(part)
                    if bool(value) is isinstance(node.op, ast.Or):
                        break
                return value
            case ast.IfExp():
                return self.visit(node.body if self.visit(node.test) else node.orelse)
            case ast.Subscript():
                values, index = self.visit(node.value), self.visit(node.slice)
                if isinstance(values, np.ndarray):
                    for part in index if isinstance(index, tuple) else (index,):
                        _expect(part, int | slice)  # indices by arrays can make large ones
                return values[index]
            case ast.Slice():
                parts = (node.lower, node.upper, node.step)
                return slice(*(part and self.visit(part) for part in parts))
            case ast.Call():
                return self.call(node)
        raise ValueError(f"{type(node).__name__} is not allowed")

    def loops(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Once for every round of the nested loops whose conditions hold, its names bound."""
        if not generators:
            yield
            return
        loop, outside = generators[0], self.names
        for value in _elements(self.visit(loop.iter)):
            self.names = dict(outside)
            self.bind(loop.target, value)
            if all(self.visit(condition) for condition in loop.ifs):
                yield from self.loops(generators[1:])
        self.names = outside

    def bind(self, target: ast.expr, value: Any) -> None:
        """The names of `for target in …`."""
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for part, element in zip(target.elts, _elements(value), strict=True):
                self.bind(part, element)
        else:
            raise TypeError("loops over names only")

    def call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "tolist":
            value = _expect(self.visit(node.func.value), ARRAYS)
            return value.tolist() if isinstance(value, np.ndarray) else value
        name = _dotted(node.func)
        if is_map := name == "map":  # map(float, [1, 2])
            name = _dotted(node.args[0]) if node.args else ""
            if name not in self.functions or len(node.args) < 2 or node.keywords:
                raise ValueError("map takes the name of a function that is allowed, then lists")
        if name not in self.functions:
            hint = f", did you mean {near!r}?" if (near := closest(name, self.functions)) else ""
            raise ValueError(f"calls no function that is allowed{hint}")
        function, args = self.functions[name], node.args
        if is_map:
            rounds = zip(*[_elements(self.visit(arg)) for arg in args[1:]], strict=False)
            return [self.paid(function(*elements)) for elements in rounds]
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not allowed")
        # In this order: draws in keywords have always come before those in arguments.
        keywords = {str(keyword.arg): self.visit(keyword.value) for keyword in node.keywords}
        return function(*[self.visit(arg) for arg in args], **keywords)


# ---- Values: what they hold, and how large they are ---------------------------------------------


def _expect(value: Any, types: Any) -> Any:
    if not isinstance(value, types):
        raise TypeError(f"does not go with a {type(value).__name__}")
    return value


def _check_size(size: float, most: int = MOST_WORK) -> None:
    """ValueError if it is too large; called before anything large is made."""
    if not size <= most:  # NaN is too large as well
        raise ValueError(f"too large: at most some 4,000 rounds or {MOST_WORK:,} elements")


def _num_cells(shape: Any) -> int:
    """Of an array of this shape, given as `size=` is; (n, 0) counts as the n lists it becomes."""
    sides = shape if isinstance(shape, list | tuple) else () if shape is None else (shape,)
    return math.prod(max(1, _expect(side, int)) for side in sides)


def _size(value: Any) -> int:
    """How many elements a value holds, those of its elements included."""
    if isinstance(value, np.ndarray):
        return _num_cells(value.shape)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return 1 + sum(map(_size, value))
    return 1 + len(value) // 8 if isinstance(value, str) else 1


def _plain(value: Any) -> Any:
    """A result as we pass it on: numbers of Python; arrays of numbers; nothing that grows."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf":
            raise ValueError(f"arrays hold real numbers, got {value.dtype}")
        value = value.item() if value.ndim == 0 else value
    if isinstance(value, complex):
        raise ValueError("complex numbers are not allowed")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"too large: an integer of more than {MOST_BITS} bits")
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise TypeError("the keys of a dict are strings")
    return value


def _array(value: Any) -> Any:
    """A number or an array, also from lists of them."""
    return _plain(np.array(_expect(value, ARRAYS | list | tuple)))


def _elements(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    _check_size(len(_expect(value, list | tuple | str | dict | range | np.ndarray)))
    return list(value)


def _distinct(values: Any = ()) -> list[Any]:
    """A set as a list in the order in which it is written: the same each time."""
    found: list[Any] = []
    for value in _elements(values):
        if value not in found:  # lists can't be hashed
            found.append(value)
        _check_size(len(found) ** 2 / 2)
    return found


def _numeric(compute: Callable[..., Any], *values: Any) -> Any:
    """compute(…) of numbers and arrays that broadcast; integers that overflow raise."""
    if any(isinstance(value, np.ndarray | list | tuple) for value in values):
        values = tuple(_array(value) for value in values)
    shape = np.broadcast_shapes(*[np.shape(_expect(value, ARRAYS)) for value in values])
    _check_size(_num_cells(shape))
    result = compute(*values)
    if isinstance(result, np.ndarray | np.integer) and result.dtype.kind in "iu":
        in_floats = compute(*(np.asarray(value, dtype=float) for value in values))
        if np.max(np.abs(in_floats), initial=0.0) >= 2.0**63:
            raise OverflowError("64-bit integers overflow: write one of them as a float")
    return result


def _operate(kind: ast.AST, *values: Any) -> Any:
    """The result of an operator; its size is checked before."""
    if type(kind) not in OPERATORS:
        raise ValueError(f"{type(kind).__name__} is not allowed")
    compute, types = OPERATORS[type(kind)], {type(value) for value in values}
    is_sequence = isinstance(values[0], str | list | tuple)
    if is_sequence and compute is operator.mul:
        _check_size(_size(values[0]) * _expect(values[1], int))
    elif compute is operator.pow and types <= {int, bool}:
        if values[0].bit_length() * values[1] > MOST_BITS:
            raise ValueError(f"too large: an integer of more than {MOST_BITS} bits")
    elif not (
        (is_sequence and compute is operator.add and len(types) == 1)
        or (isinstance(kind, ast.cmpop | ast.Not) and np.ndarray not in types)
    ):
        return _numeric(compute, *(_expect(value, ARRAYS) for value in values))
    return compute(*values)


# ---- Functions that expressions call ------------------------------------------------------------


def _arange(start: Any, stop: Any = None, step: Any = 1) -> Any:
    start, stop = (0, start) if stop is None else (start, stop)
    _check_size((stop - start) / step)
    return np.arange(start, stop, step)


def _round(value: Any, ndigits: int | None = None) -> Any:
    if abs(_expect(ndigits or 0, int)) > MOST_DIGITS:
        raise ValueError(f"rounds to at most {MOST_DIGITS} digits")
    is_array = isinstance(_expect(value, ARRAYS), np.ndarray)
    return np.round(value, ndigits or 0) if is_array else round(value, ndigits)


def _sized(function: Callable[..., Any], position: int, *args: Any, **keywords: Any) -> Any:
    """function(…), whose argument at this position or of such a name is a length or shape.

    Its other arguments are numbers or arrays, with which numpy broadcasts: no names of types.
    """
    names = ("num", "shape", "size")
    shapes = [*args[position : position + 1], *map(keywords.get, names)]
    others = [*args[:position], *args[position + 1 :]]
    others += [value for name, value in keywords.items() if name not in (*names, "p")]
    sizes = [np.size(_expect(value, ARRAYS | list | tuple)) for value in others]
    _check_size(math.prod(max(1, size) for size in (*map(_num_cells, shapes), *sizes)))
    return function(*args, **keywords)


def _random_functions(rng: np.random.Generator) -> dict[str, Callable[..., Any]]:
    """Those of np.random, which draw from this generator."""

    def picked(draw: Callable[..., Any], values: Any, *args: Any, **keywords: Any) -> Any:
        """One of the values, an array of numbers, or a list of anything else."""
        if isinstance(values, int):
            _check_size(values)
            return _sized(draw, 1, values, *args, **keywords)
        values = _elements(values)
        if np.ndim(places := _sized(draw, 1, len(values), *args, **keywords)) == 0:
            return values[places]
        taken = [values[place] for place in places.flat]
        are_numbers = all(isinstance(value, int | float) for value in taken)
        return np.reshape(taken, places.shape) if are_numbers else taken

    return {
        **{f"np.random.{name}": partial(_sized, getattr(rng, name), 2) for name in LAWS},
        "np.random.choice": partial(picked, rng.choice),
        "np.random.permutation": partial(picked, rng.permutation),
        "np.random.rand": lambda *shape: _sized(rng.random, 0, shape or None),
        "np.random.randint": partial(_sized, rng.integers, 2),
        "np.random.randn": lambda *shape: _sized(rng.standard_normal, 0, shape or None),
    }


CONSTANTS = {"np.pi": np.pi, "np.e": np.e, "np.inf": np.inf, "np.nan": np.nan}
LAWS = ("lognormal", "normal", "uniform")  # of two parameters
SIZED = dict.fromkeys(("full", "ones", "zeros"), 0)  # -> the position of the length or shape
SIZED |= dict.fromkeys(("geomspace", "linspace", "logspace"), 2)
OF_ARRAYS = """abs ceil clip cumprod cumsum exp flip floor log log10 log2 max maximum mean min
    minimum power prod sort sqrt square std sum unique"""
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (dict, float, int, len, str)},
    "abs": lambda value: _numeric(abs, value),
    "enumerate": lambda values, start=0: list(enumerate(_elements(values), start)),
    "list": _elements,
    "max": lambda *values: max(_elements(values[0]) if len(values) == 1 else values),
    "min": lambda *values: min(_elements(values[0]) if len(values) == 1 else values),
    "range": lambda *bounds: _elements(range(*bounds)),
    "round": _round,
    "set": _distinct,
    "sorted": lambda values, reverse=False: sorted(_elements(values), reverse=reverse),
    "sum": lambda values: sum(_expect(value, int | float) for value in _elements(values)),
    "tuple": lambda values: tuple(_elements(values)),
    "zip": lambda *values: list(zip(*map(_elements, values), strict=False)),
    "np.arange": _arange,
    "np.array": _array,
    "np.concatenate": lambda parts: np.concatenate([_array(p) for p in _elements(parts)]),
    "np.outer": lambda a, b: _numeric(operator.mul, np.reshape(a, (-1, 1)), np.reshape(b, (1, -1))),
    "np.round": _round,
    **{f"np.{name}": partial(_sized, getattr(np, name), at) for name, at in SIZED.items()},
    **{f"np.{name}": partial(_numeric, getattr(np, name)) for name in OF_ARRAYS.split()},
}
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Not: operator.not_,
    **{ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Pow: operator.pow},
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le},
    **{ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b},
}
