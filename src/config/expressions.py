"""Values spelled as expressions in YAML, computed by a walk that knows a few nodes and functions.

Not simpleeval: the size of a result has to be known before each operation on arrays,
which leaves only the parser of it, and that is Python's own `ast`.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from src.config.expression_functions import (
    CONSTANTS,
    FUNCTIONS,
    MOST_BITS,
    as_plain,
    broadcast,
    elements_of,
    exact,
    for_numpy,
    number_or_array,
    same_sequences,
    size_of,
    whole_number,
    with_string_keys,
)
from src.support import UserError, closest

MOST_WORK = 100_000  # elements read or made; a job file needs some hundreds
WORK_PER_NODE = 8  # a visited node takes about as long as so many elements,
WORK_PER_CALL = 64  # and a call of numpy as so many
MOST_CHARACTERS = 4_000
MOST_DEPTH = 80
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
        return Walk(text, rng).visit(_parse(text))


def is_expression(text: str) -> bool:
    """Whether text is meant to be computed: it parses, and holds a list or a call we know.

    '(8, 16)' and '{8, 16}' are lists too. Plain names ('tiny/lenet', 'train', 'a-b') are not,
    nor are '{name}', numbers and '0.9,0.99'.
    A true answer does not promise that `evaluate` succeeds: its error then tells why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nodes = list(ast.walk(_parse(text)))
    except ExpressionError:
        return False
    calls = [_dotted(node.func) for node in nodes if isinstance(node, ast.Call)]
    lists = (ast.List, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
    has_list = any(isinstance(node, lists) or _is_other_list(node) for node in nodes)
    return has_list or any(name in FUNCTIONS or name.startswith("np.") for name in calls)


def _is_other_list(node: ast.AST) -> bool:
    """A set, or a tuple in parentheses, that is not of names alone."""
    if not isinstance(node, ast.Tuple | ast.Set):
        return False
    if not node.elts or all(isinstance(element, ast.Name) for element in node.elts):
        return False
    start, first = (node.lineno, node.col_offset), node.elts[0]
    return start < (first.lineno, first.col_offset)  # without parentheses both are the same


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


class Walk:
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
            return as_plain(handle(self, node))
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
            raise ValueError(f"too large: at most some 4,000 rounds or {MOST_WORK:,} elements")
        self.work_left -= max(0, int(work))

    def read(self, *nodes: ast.expr) -> list[Any]:
        """Their values, paid for by all they hold: so no value ever holds more than the budget."""
        values = []
        for node in nodes:
            values.append(self.visit(node))
            self.spend(size_of(values[-1]))
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

    def set_display(self, node: ast.Set) -> list[Any]:
        return self.distinct(self.read(*node.elts))

    def distinct(self, values: list[Any]) -> list[Any]:
        """A set as a list in the order in which it is written: the same each time."""
        found: list[Any] = []
        for value in values:
            self.spend(size_of(found))
            if value not in found:  # no hashes, which can be made to collide
                found.append(value)
        return found

    def dict_display(self, node: ast.Dict) -> dict[str, Any]:
        if None in node.keys:
            raise ValueError("** is not allowed")
        keys = self.read(*(key for key in node.keys if key is not None))
        return with_string_keys(zip(keys, self.read(*node.values), strict=True))

    def unary(self, node: ast.UnaryOp) -> Any:
        (value,) = self.read(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        return UNARY[type(node.op)](number_or_array(value))

    def binary(self, node: ast.BinOp) -> Any:
        if (compute := BINARY.get(type(node.op))) is None:
            raise ValueError(f"{type(node.op).__name__} is not allowed")
        left, right = self.read(node.left, node.right)
        if isinstance(node.op, ast.Add) and same_sequences(left, right):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, str | list | tuple):
            self.spend(size_of(left) * whole_number(right))
            return left * right
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MOST_BITS:
                raise ValueError(f"too large: an integer of more than {MOST_BITS} bits")
            return left**right
        return self.numeric(compute, left, right)

    def numeric(self, compute: Callable[..., Any], *values: Any) -> Any:
        """compute(…) of numbers and arrays that broadcast; integers that overflow raise."""
        values = tuple(number_or_array(value) for value in values)
        if any(isinstance(value, np.ndarray) for value in values):
            values = tuple(for_numpy(value) for value in values)
        self.spend(broadcast(*values))
        return exact(compute, *values)

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
        return slice(*(None if part is None else whole_number(self.visit(part)) for part in parts))

    def list_comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> list[Any]:
        return [self.read(node.elt)[0] for _ in self.loops(node.generators)]

    def set_comprehension(self, node: ast.SetComp) -> list[Any]:
        return self.distinct([self.read(node.elt)[0] for _ in self.loops(node.generators)])

    def dict_comprehension(self, node: ast.DictComp) -> dict[str, Any]:
        return with_string_keys(
            self.read(node.key, node.value) for _ in self.loops(node.generators)
        )

    def loops(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Once for every round of the nested loops whose conditions hold, its names bound."""
        if not generators:
            yield
            return
        loop, outside = generators[0], self.names
        if loop.is_async:
            raise ValueError("async is not allowed")
        for value in elements_of(self.read(loop.iter)[0]):
            self.names = outside | _bound(loop.target, value)
            if all(self.visit(condition) for condition in loop.ifs):
                yield from self.loops(generators[1:])
        self.names = outside

    def call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "tolist":
            (value,) = self.read(node.func.value)
            return value.tolist() if isinstance(value, np.ndarray) else number_or_array(value)
        name = _dotted(node.func)
        if name == "map":
            return self.mapped(node)
        if (function := FUNCTIONS.get(name)) is None:
            raise ValueError(_unknown_function(name))
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not allowed")
        self.spend(WORK_PER_CALL if name.startswith("np.") else 0)
        keywords = {str(keyword.arg): self.read(keyword.value)[0] for keyword in node.keywords}
        return function(self, *self.read(*node.args), **keywords)

    def mapped(self, node: ast.Call) -> list[Any]:
        """map(float, [1, 2])"""
        name = _dotted(node.args[0]) if node.args else ""
        if (function := FUNCTIONS.get(name)) is None or len(node.args) < 2 or node.keywords:
            raise ValueError("map takes the name of a function that is allowed, then lists")
        values = []
        for elements in zip(*map(elements_of, self.read(*node.args[1:])), strict=False):
            self.spend(WORK_PER_NODE + (WORK_PER_CALL if name.startswith("np.") else 0))
            values.append(as_plain(function(self, *elements)))
            self.spend(size_of(elements) + size_of(values[-1]))
        return values


def _bound(target: ast.expr, value: Any) -> dict[str, Any]:
    """The names that `for target in …` binds."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple | ast.List):
        raise TypeError("loops over names only")
    names: dict[str, Any] = {}
    for part, element in zip(target.elts, elements_of(value), strict=True):
        names |= _bound(part, element)
    return names


def _unknown_function(name: str) -> str:
    hint = f", did you mean {close!r}?" if (close := closest(name, FUNCTIONS)) else ""
    return f"calls no function that is allowed{hint}"


NODES: dict[type, Callable[..., Any]] = {
    ast.Constant: Walk.constant,
    ast.Name: Walk.name,
    ast.Attribute: Walk.attribute,
    ast.List: Walk.list_display,
    ast.Tuple: Walk.tuple_display,
    ast.Set: Walk.set_display,
    ast.Dict: Walk.dict_display,
    ast.UnaryOp: Walk.unary,
    ast.BinOp: Walk.binary,
    ast.Compare: Walk.compare,
    ast.BoolOp: Walk.boolean,
    ast.IfExp: Walk.conditional,
    ast.Subscript: Walk.subscript,
    ast.Slice: Walk.slicing,
    ast.ListComp: Walk.list_comprehension,
    ast.GeneratorExp: Walk.list_comprehension,
    ast.SetComp: Walk.set_comprehension,
    ast.DictComp: Walk.dict_comprehension,
    ast.Call: Walk.call,
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
