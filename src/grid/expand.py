"""The grid of a job file: what its `parameters` expand to, one mapping a run."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, product, repeat
from typing import Any
from zlib import crc32

import numpy as np

from src.config import ExpressionError, evaluate, is_expression
from src.grid.folders import count_runs, row_identity, same
from src.support import UserError, bad_value, unknown_name

MOST_RUNS = 1_000_000
MOST_KEYS = 1_000  # of a block; a run has some hundred
MOST_SHOWN = 3  # sets of equal rows, and rows of a set
LARGEST = 8e307  # of a bound: floats hold the difference of two
DRAWS = ("uniform", "loguniform", "choice")

Row = dict[str, Any]


@dataclass(frozen=True)
class Factor:
    """What varies together at one place of the job file, and how many ways."""

    keys: tuple[str, ...]
    count: int

    def __str__(self) -> str:
        names = ", ".join(self.keys)
        return f"{self.count:,} {names if len(self.keys) == 1 else f'({names})'}"


@dataclass(frozen=True)
class Grid:
    """rows: key -> value, keys in the order of the file. factors: those of more than one way."""

    rows: list[Row]
    factors: list[Factor]
    notes: list[str] = field(default_factory=list)  # what was merged

    def description(self) -> str:
        """'108 runs = 6 batch_size × 18 (base_lr, momentum)', or '1 run'."""
        runs = count_runs(len(self.rows))
        return f"{runs} = {' × '.join(map(str, self.factors))}" if self.factors else runs


@dataclass(frozen=True)
class Values:
    """A key, or the keys of a ZIP: `parts` are what they may be set to."""

    places: dict[str, str]  # each key -> where the file sets it
    parts: list[Row]

    @property
    def most(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class Union:
    """A LIST: any row of any of its blocks; one that several blocks have is there once."""

    where: str
    places: dict[str, str]
    blocks: list["Block"]

    @property
    def most(self) -> int:
        """How many parts there are at most, known before any is made."""
        return sum(map(_most, self.blocks))

    @cached_property
    def parts(self) -> list[Row]:
        distinct: dict[frozenset, Row] = {}
        for row in chain.from_iterable(map(_crossed, self.blocks)):
            distinct.setdefault(row_identity(row), row)
        return list(distinct.values())

    def notes(self) -> Iterator[str]:
        """A line where rows were merged, for this LIST and those in it."""
        for entry in chain.from_iterable(self.blocks):
            if isinstance(entry, Union):
                yield from entry.notes()
        given = sum(math.prod(len(entry.parts) for entry in block) for block in self.blocks)
        if merged := given - len(self.parts):
            equal = "run that equals another" if merged == 1 else "runs that equal others"
            yield f"{self.where}: merged {merged:,} {equal}"


Block = list[Values | Union]


def expand_grid(parameters: Mapping[str, Any]) -> Grid:
    """All rows of a grid without a mistake; see read_grid. Raises UserError, a line a mistake."""
    grid, errors, _ = read_grid(parameters)
    if errors:
        raise UserError("\n".join(errors))
    return grid


def read_grid(parameters: Mapping[str, Any]) -> tuple[Grid, list[str], set[str]]:
    """(grid, mistakes, keys that could not be read, which the rows lack).

    All rows: every key crossed with every other, LISTs united, ZIPs and draws included.

    They come as nested loops over the keys in the order of the file would give them, the last
    key fastest; a LIST runs through its blocks from the first to the last. A mistake (equal
    rows, a key set twice for one run, an empty list) is a line with its place.
    """
    block, mistakes = _read(parameters)
    if (count := _most(block)) > MOST_RUNS:
        error = f"parameters: {count:,} runs, expected at most {MOST_RUNS:,}"
        return Grid([], []), [*mistakes.lines, error], mistakes.unread
    rows = list(_crossed(block))
    factors = [Factor(_varying(e), len(e.parts)) for e in block if len(e.parts) > 1]
    notes = [note for entry in block if isinstance(entry, Union) for note in entry.notes()]
    if not mistakes.lines:  # else what makes them unequal may be missing
        with mistakes.noted():
            _refuse_equal(rows, factors)
    return Grid(rows, factors, notes), list(mistakes.lines), mistakes.unread


def places_of(parameters: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(each key that some row sets -> its first place, mistakes).

    {'momentum': 'parameters.LIST_optim[1].momentum'}
    """
    block, mistakes = _read(parameters)
    places: dict[str, str] = {}
    for key, place in chain.from_iterable(entry.places.items() for entry in block):
        places.setdefault(key, place)
    return places, list(mistakes.lines)


def _most(block: Block) -> int:
    return math.prod(entry.most for entry in block)


def _crossed(block: Block) -> Iterator[Row]:
    for parts in product(*(entry.parts for entry in block)):
        row: Row = {}
        for part in parts:
            row.update(part)
        yield row


def _varying(entry: Values | Union) -> tuple[str, ...]:
    """The keys that differ between its parts; all where none does, and the parts are equal."""
    different: dict[str, set] = {key: set() for key in entry.places}
    for part in entry.parts:
        for key, values in different.items():
            values.add(same(part.get(key)))
    return tuple(key for key, values in different.items() if len(values) > 1) or tuple(different)


# ---- Reading a block ---------------------------------------------------------------------


@dataclass
class Mistakes:
    """Of a whole file: what is wrong at one place does not hide what is wrong at others."""

    lines: dict[str, None] = field(default_factory=dict)  # in their order, each once
    unread: set[str] = field(default_factory=set)  # keys

    @contextmanager
    def noted(self, key: object = None, value: object = None) -> Iterator[None]:
        """A UserError becomes a line; key, or those in a block, count as not read."""
        try:
            yield
        except UserError as error:
            self.lines |= dict.fromkeys(str(error).splitlines())
            is_block = key is None or str(key).startswith(("LIST", "ZIP"))
            self.unread |= set(_keys_in(value)) if is_block else {str(key)}


def _keys_in(value: object) -> Iterator[str]:
    """At any depth."""
    if isinstance(value, Mapping):
        yield from map(str, value)
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _keys_in(item)


def _read(parameters: object) -> tuple[Block, Mistakes]:
    block: Block = []
    mistakes = Mistakes()
    with mistakes.noted():
        block = _read_block("parameters", parameters, mistakes)
    return block, mistakes


def _read_block(where: str, block: object, mistakes: Mistakes) -> Block:
    if not isinstance(block, Mapping):
        raise bad_value(where, block, "a mapping from keys to values")
    if len(block) > MOST_KEYS:
        raise UserError(f"{where}: {len(block):,} keys, expected at most {MOST_KEYS:,}")
    entries = []
    for key, value in block.items():
        with mistakes.noted(key, value):
            entries.append(_read_entry(f"{where}.{key}", key, value, mistakes))
    with mistakes.noted():
        _places(entries)
    return entries


def _places(block: Block) -> dict[str, str]:
    """Each key of the block -> its place; UserError where one run would set it twice."""
    places: dict[str, str] = {}
    for entry in block:
        for key, place in entry.places.items():
            if key in places:
                raise UserError(f"{key}: set twice for one run, at {places[key]} and at {place}")
            places[key] = place
    return places


def _read_entry(where: str, key: object, value: object, mistakes: Mistakes) -> Values | Union:
    if not isinstance(key, str):
        raise bad_value(where, key, "a name as the key (YAML reads on, off, yes, no as booleans)")
    if key.startswith("LIST"):
        return _read_list(where, value, mistakes)
    if key.startswith("ZIP"):
        return _read_zip(where, value, mistakes)
    return Values({key: where}, [{key: item} for item in _values(where, key, value)])


def _read_list(where: str, value: object, mistakes: Mistakes) -> Union:
    if not isinstance(value, list):
        raise bad_value(where, value, "a list of blocks")
    _refuse_empty(where, value)
    blocks: list[Block] = []
    places: dict[str, str] = {}
    for number, block in enumerate(value):
        with mistakes.noted(value=block):
            blocks.append(_read_block(f"{where}[{number}]", block, mistakes))
            for key, place in _places(blocks[-1]).items():
                places.setdefault(key, place)  # of a key in several blocks the first place is shown
    return Union(where, places, blocks or [[]])


def _read_zip(where: str, value: object, mistakes: Mistakes) -> Values:
    if not isinstance(value, Mapping) or not value:
        raise bad_value(where, value, "a mapping from keys to lists of one length")
    if nested := [key for key in value if str(key).startswith(("LIST", "ZIP"))]:
        raise bad_value(f"{where}.{nested[0]}", value[nested[0]], "no LIST and no ZIP inside a ZIP")
    entries = {}
    for key, values in value.items():
        with mistakes.noted(key, values):
            entries[key] = _read_entry(f"{where}.{key}", key, values, mistakes)
    counts = {key: len(entry.parts) for key, entry in entries.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} of {key}" for key, count in counts.items())
        raise UserError(f"{where}: expected lists of one length, got {lengths}")
    together = [
        {key: item for part in parts for key, item in part.items()}
        for parts in zip(*(entry.parts for entry in entries.values()), strict=True)
    ]
    return Values(_places(list(entries.values())), together or [{}])


# ---- The values of a key -----------------------------------------------------------------


def _values(where: str, key: str, value: object) -> list[Any]:
    """The list that a key goes through: given, drawn, computed, or of this one value."""
    if _is_draw(value):
        return _drawn(where, key, value)
    values = _computed(where, key, value) if isinstance(value, str) else value
    if not isinstance(values, list):
        return [value]
    _refuse_empty(where, values)
    return values


def _refuse_empty(where: str, values: list[Any]) -> None:
    if not values:
        raise bad_value(where, values, "at least one value: an empty list makes no runs")


def _computed(where: str, key: str, text: str) -> object:
    """The list that an expression yields; any other text as it is, for the run to read.

    What draws is seeded by the key, so that a second look at the file sees the same rows.
    """
    if not is_expression(text):
        return text
    try:
        value = evaluate(text, rng=np.random.default_rng(crc32(key.encode())))
    except ExpressionError as error:
        raise UserError(f"{where}: {error} (a text that is none stands in a list)") from None
    is_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    return _plain(value) if is_list else text


def _plain(value: Any) -> Any:
    """Arrays and tuples as the lists that YAML makes of them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


# ---- Random draws ------------------------------------------------------------------------


def _is_draw(value: object) -> bool:
    return isinstance(value, Mapping) and "n" in value and any(kind in value for kind in DRAWS)


def _drawn(where: str, key: str, draw: Any) -> list[Any]:
    """n values, the same for ever for one seed and key; another key draws others.

    uniform, loguniform: between the two bounds. choice goes through its options in random
    order, round after round: up to as many as there are they differ, more stay balanced.
    """
    kinds = [kind for kind in DRAWS if kind in draw]
    if len(kinds) > 1:
        raise bad_value(where, draw, f"one of {', '.join(DRAWS)}")
    kind = kinds[0]
    for name in draw:
        if name not in (known := (kind, "n", "seed")):
            raise unknown_name(where, str(name), known)
    n = _whole(f"{where}.n", draw["n"], least=1, most=MOST_RUNS)
    seed = _whole(f"{where}.seed", draw.get("seed", 0), least=0, most=2**32 - 1)
    # RandomState's numbers are frozen, those of default_rng may change with numpy
    rng = np.random.RandomState([seed, crc32(key.encode())])
    draw_from = {"uniform": _uniform, "loguniform": _loguniform, "choice": _choice}[kind]
    return draw_from(f"{where}.{kind}", draw[kind], n=n, rng=rng)


def _whole(where: str, value: object, *, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad_value(where, value, f"a whole number from {least} to {most}")
    return value


def _choice(where: str, options: object, *, n: int, rng: np.random.RandomState) -> list[Any]:
    if not isinstance(options, list) or not options:
        raise bad_value(where, options, "a list of options")
    rounds = (rng.permutation(len(options)) for _ in repeat(None))
    return [options[place] for place in islice(chain.from_iterable(rounds), n)]


def _uniform(where: str, bounds: object, *, n: int, rng: np.random.RandomState) -> list[Any]:
    return rng.uniform(*_bounds(where, bounds, above=-math.inf), n).tolist()


def _loguniform(where: str, bounds: object, *, n: int, rng: np.random.RandomState) -> list[Any]:
    low, high = _bounds(where, bounds, above=0)
    drawn = np.exp(rng.uniform(math.log(low), math.log(high), n))
    return np.clip(drawn, low, high).tolist()  # exp(log(low)) may be a little less


def _bounds(where: str, bounds: object, *, above: float) -> tuple[float, float]:
    match bounds:
        case [int() | float() as low, int() | float() as high] if above < low < high < LARGEST:
            if low > -LARGEST:
                return low, high
    raise bad_value(where, bounds, f"[low, high] with {above:g} < low < high < inf")


# ---- Equal rows --------------------------------------------------------------------------


def _refuse_equal(rows: list[Row], factors: list[Factor]) -> None:
    """UserError where two runs would be the same: a null sets as much as no key does."""
    seen: dict[frozenset, list[int]] = {}
    for number, row in enumerate(rows):
        seen.setdefault(row_identity(row), []).append(number)
    if len(seen) == len(rows):
        return
    keys = {key for factor in factors for key in factor.keys}
    equal = [numbers for numbers in seen.values() if len(numbers) > 1]
    lines = [_equal_rows(numbers, rows[numbers[0]], keys) for numbers in equal[:MOST_SHOWN]]
    if len(equal) > MOST_SHOWN:
        repeats = sum(len(numbers) - 1 for numbers in equal[MOST_SHOWN:])
        lines.append(f"and {repeats:,} more that repeat another")
    raise UserError(f"parameters: runs (counted from 0) are equal: {'; '.join(lines)}")


def _equal_rows(numbers: list[int], row: Row, keys: set[str]) -> str:
    """'0 and 2 with base_lr=0.1': of the keys those that vary in the grid."""
    more = len(numbers) - MOST_SHOWN
    shown = [str(number) for number in numbers[:MOST_SHOWN]] + [f"{more:,} more"] * (more > 0)
    values = ", ".join(f"{key}={row[key]!r}" for key in row if key in keys)
    return f"{', '.join(shown[:-1])} and {shown[-1]} with {values or 'no key set'}"
