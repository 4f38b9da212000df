"""A job file: what a batch is called, where it goes, and the grid of its runs.

    job_details: {name: x, output_dir: results}    # and trackers for all runs
    parameters:                               # crossed with each other, the last key fastest
      base_lr: 2.0 ** np.arange(3)            # a value, a list, or an expression for a list
      momentum: {uniform: [0, 1], n: 3}       # n random draws; also loguniform, choice
      LIST: [{model: linear}, {model: tiny/lenet, batch_size: [8, 16]}]    # blocks side by side
      ZIP: {train_length: [1, 2], seed_model: [3, 4]}                      # keys that move together

try_job() reads the file, read_grid() expands its parameters to the rows of the grid, a mapping from
keys to values for each run. What is wrong at one place does not hide what is wrong at others.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, product, repeat
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from src.config import KEYS, evaluate, is_expression, read_yaml_file
from src.grid.folders import LONGEST_BATCH, count_runs, row_identity, same, slug
from src.support import UserError, bad_value, pick, unknown_name

MOST_RUNS = 1_000_000
MOST_KEYS = 1_000  # of a block; a run has some hundred
MOST_VALUES = 400_000  # of a file that lists some 10,000 runs one by one
MOST_NAMED = 5  # unknown keys
MOST_SHOWN = 3  # sets of equal rows, and rows of a set
LARGEST = 8e307  # of a bound: floats hold the difference of two
DRAWS = ("uniform", "loguniform", "choice")
TOP_KEYS = ("job_details", "parameters")
# keys of a run that are given once for the batch
PASSED_ON = ("trackers", "wandb", "wandb_project_name", "wandb_tags")
DETAILS = ("name", "output_dir", *PASSED_ON)

NOT_EMPTY = "at least one value: an empty list makes no runs"

Settings = dict[str, Any]  # key of a run -> value


@dataclass(frozen=True)
class Job:
    """The content of a job file, of which the parameters are not expanded yet."""

    name: str
    output_dir: str
    common: Settings  # that each run is given, next to its row
    parameters: Settings
    text: str  # the file as it is

    @property
    def batch_name(self) -> str:
        """What its batch folder is called, without the day."""
        return slug(self.name, LONGEST_BATCH - 9)

    def runs(self) -> list[Settings]:
        """The configuration of each run: keys and values that are not the defaults."""
        return [{**self.common, **row} for row in expand_grid(self.parameters).rows]


@dataclass
class Mistakes:
    """What is wrong in a file, a line each, and the keys whose values could not be read."""

    lines: dict[str, None] = field(default_factory=dict)  # in their order, each once
    unread: set[str] = field(default_factory=set)

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


def read_job(path: str | Path) -> Job:
    """The job of a YAML file. Raises UserError, a line a mistake, also of the grid's spelling."""
    job, errors = try_job(path)
    if errors:
        raise UserError("\n".join(errors))
    return job


def try_job(path: str | Path) -> tuple[Job, list[str]]:
    """(the job, mistakes); UserError for a file that is not there or is no job file."""
    content = read_yaml_file(path, most_values=MOST_VALUES)
    if isinstance(content, dict) and content.keys() & KEYS.keys():
        raise UserError(f"{path}: is the configuration of one run: python train.py {path}")
    if not isinstance(content, dict) or content.get("parameters") is None:
        raise UserError(f"{path}: expected `parameters:` with a line `key: values` for each key")
    errors = _unknown(str(path), content, TOP_KEYS)
    details = content.get("job_details") or {}
    if not isinstance(details, dict):
        expected = f"a mapping with keys of {', '.join(DETAILS)}"
        errors.append(str(bad_value("job_details", details, expected)))
        details = {}
    errors += _unknown("job_details", details, DETAILS)
    given = {key: value for key, value in details.items() if value is not None}
    texts = {"name": Path(path).stem, "output_dir": "results"}
    for key in texts:
        value = given.get(key, texts[key])
        if isinstance(value, str) and value.strip() and "\0" not in value:
            texts[key] = value
        else:
            error = bad_value(f"job_details.{key}", value, "a text that is not empty")
            errors.append(str(error))
    places, grid_errors = places_of(content["parameters"])
    errors += grid_errors
    common = {key: given[key] for key in PASSED_ON if key in given}
    for key in [key for key in common if key in places]:
        errors.append(f"{key}: set twice, at job_details.{key} and at {places[key]}")
    if place := places.get("output_dir"):
        where = "job_details.output_dir says where the batch goes"
        errors.append(f"{place}: each run gets its own folder; {where}")
    text = Path(path).read_bytes().decode()  # with its own line ends
    output_dir = os.path.expanduser(texts["output_dir"])
    job = Job(texts["name"], output_dir, common, content["parameters"], text)
    return job, list(dict.fromkeys(errors))


def _unknown(where: str, block: Mapping[Any, Any], known: Iterable[str]) -> list[str]:
    unknown = [str(key) for key in block if key not in known]
    lines = [str(unknown_name(where, key, known)) for key in unknown[:MOST_NAMED]]
    more = len(unknown) - len(lines)
    return lines + [f"{where}: … and {more:,} more"] * bool(more)


# ---- Parameters, expanded ----------------------------------------------------------------


@dataclass(frozen=True)
class Factor:
    """What the others are crossed with: the options of a key, of the keys of a ZIP, or of a LIST,
    which are the rows of its blocks; those that several blocks have are there once."""

    places: dict[str, str]  # each key that it sets -> where the file sets it
    given: list[Settings] = field(default_factory=list)
    where: str = ""  # the place of a LIST
    blocks: list[list["Factor"]] = field(default_factory=list)  # of a LIST

    @cached_property
    def options(self) -> list[Settings]:
        distinct: dict[frozenset, Settings] = {}
        for row in chain.from_iterable(map(_crossed, self.blocks)):
            distinct.setdefault(row_identity(row), row)
        return list(distinct.values()) if self.blocks else self.given

    @cached_property
    def varying(self) -> list[str]:
        """The keys in which the options differ; all where none does, and the options are equal."""
        return [
            key for key in self.places if len({same(o.get(key)) for o in self.options}) > 1
        ] or list(self.places)

    def notes(self) -> Iterator[str]:
        """A line where rows were merged, for this LIST and those in it."""
        for factor in chain.from_iterable(self.blocks):
            yield from factor.notes()
        num_rows = sum(math.prod(len(f.options) for f in block) for block in self.blocks)
        if self.blocks and (merged := num_rows - len(self.options)):
            equal = "run that equals another" if merged == 1 else "runs that equal others"
            yield f"{self.where}: merged {merged:,} {equal}"

    def __str__(self) -> str:
        names = ", ".join(self.varying)
        return f"{len(self.options):,} {names if len(self.varying) == 1 else f'({names})'}"


def _max_count(block: list[Factor]) -> int:
    """How many rows there are at most, known before any is made."""
    return math.prod(sum(map(_max_count, f.blocks)) if f.blocks else len(f.given) for f in block)


def _crossed(block: list[Factor]) -> Iterator[Settings]:
    for options in product(*(factor.options for factor in block)):
        yield dict(chain.from_iterable(option.items() for option in options))


@dataclass(frozen=True)
class Grid:
    """What the parameters of a job file expand to."""

    rows: list[Settings]  # one for each run, its keys in the order of the file
    factors: list[Factor]  # those of more than one option
    notes: list[str] = field(default_factory=list)  # what was merged

    def description(self) -> str:
        """'108 runs = 6 batch_size × 18 (base_lr, momentum)', or '1 run'."""
        runs = count_runs(len(self.rows))
        return f"{runs} = {' × '.join(map(str, self.factors))}" if self.factors else runs


def expand_grid(parameters: Mapping[str, Any]) -> Grid:
    """All rows of a grid without a mistake; see read_grid. Raises UserError, a line a mistake."""
    grid, errors, _ = read_grid(parameters)
    if errors:
        raise UserError("\n".join(errors))
    return grid


def read_grid(parameters: Mapping[str, Any]) -> tuple[Grid, list[str], set[str]]:
    """(grid, mistakes, keys that could not be read, which the rows lack).

    Every key is crossed with every other, as nested loops over the keys in the order of the file
    would do, the last key fastest; a LIST runs through its blocks from the first to the last. A
    mistake (equal rows, a key set twice for one run, an empty list) is a line with its place.
    """
    block, mistakes = _read(parameters)
    if (count := _max_count(block)) > MOST_RUNS:
        error = f"parameters: {count:,} runs, expected at most {MOST_RUNS:,}"
        return Grid([], []), [*mistakes.lines, error], mistakes.unread
    rows = list(_crossed(block))
    factors = [factor for factor in block if len(factor.options) > 1]
    notes = [note for factor in block for note in factor.notes()]
    errors = list(mistakes.lines)
    if not errors:  # else what makes them unequal may be missing
        errors = _equal_rows(rows, {key for factor in factors for key in factor.varying})
    return Grid(rows, factors, notes), errors, mistakes.unread


def places_of(parameters: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(each key that some row sets -> its first place, mistakes).

    {'momentum': 'parameters.LIST_optim[1].momentum'}
    """
    block, mistakes = _read(parameters)
    return dict(chain.from_iterable(f.places.items() for f in reversed(block))), [*mistakes.lines]


def _equal_rows(rows: list[Settings], varying: set[str]) -> list[str]:
    """The mistake where two runs would be the same: a null sets as much as no key does."""
    seen: dict[frozenset, list[int]] = {}
    for number, row in enumerate(rows):
        seen.setdefault(row_identity(row), []).append(number)
    equal = [numbers for numbers in seen.values() if len(numbers) > 1]
    parts = []
    for numbers in equal[:MOST_SHOWN]:
        row, more = rows[numbers[0]], len(numbers) - MOST_SHOWN
        shown = [*map(str, numbers[:MOST_SHOWN])] + [f"{more:,} more"] * (more > 0)
        values = ", ".join(f"{key}={row[key]!r}" for key in row if key in varying)
        parts.append(f"{', '.join(shown[:-1])} and {shown[-1]} with {values or 'no key set'}")
    if repeats := sum(len(numbers) - 1 for numbers in equal[MOST_SHOWN:]):
        parts.append(f"and {repeats:,} more that repeat another")
    return [f"parameters: runs (counted from 0) are equal: {'; '.join(parts)}"] if parts else []


# ---- Parameters, read --------------------------------------------------------------------


def _read(parameters: object) -> tuple[list[Factor], Mistakes]:
    block: list[Factor] = []
    mistakes = Mistakes()
    with mistakes.noted():
        block = _read_block("parameters", parameters, mistakes)
    return block, mistakes


def _read_block(where: str, block: object, mistakes: Mistakes) -> list[Factor]:
    if not isinstance(block, Mapping):
        raise bad_value(where, block, "a mapping from keys to values")
    if len(block) > MOST_KEYS:
        raise UserError(f"{where}: {len(block):,} keys, expected at most {MOST_KEYS:,}")
    factors = []
    for key, value in block.items():
        with mistakes.noted(key, value):
            factors.append(_read_factor(f"{where}.{key}", key, value, mistakes))
    with mistakes.noted():
        _places(factors)
    return factors


def _places(block: Iterable[Factor]) -> dict[str, str]:
    """Each key of the block -> its place; UserError where one run would set it twice."""
    places: dict[str, str] = {}
    for key, place in chain.from_iterable(factor.places.items() for factor in block):
        if places.setdefault(key, place) != place:
            raise UserError(f"{key}: set twice for one run, at {places[key]} and at {place}")
    return places


def _read_factor(where: str, key: object, value: object, mistakes: Mistakes) -> Factor:
    if not isinstance(key, str):
        raise bad_value(where, key, "a name as the key (YAML reads on, off, yes, no as booleans)")
    if key.startswith("ZIP"):
        return _read_zip(where, value, mistakes)
    if not key.startswith("LIST"):
        return Factor({key: where}, [{key: item} for item in _values(where, key, value)])
    if not isinstance(value, list):
        raise bad_value(where, value, "a list of blocks")
    if not value:
        raise bad_value(where, value, NOT_EMPTY)
    blocks: list[list[Factor]] = []
    places: dict[str, str] = {}
    for number, block in enumerate(value):
        with mistakes.noted(value=block):
            blocks.append(_read_block(f"{where}[{number}]", block, mistakes))
            places = _places(blocks[-1]) | places  # of a key in several blocks the first is shown
    return Factor(places, where=where, blocks=blocks or [[]])


def _read_zip(where: str, value: object, mistakes: Mistakes) -> Factor:
    if not isinstance(value, Mapping) or not value:
        raise bad_value(where, value, "a mapping from keys to lists of one length")
    if nested := [key for key in value if str(key).startswith(("LIST", "ZIP"))]:
        raise bad_value(f"{where}.{nested[0]}", value[nested[0]], "no LIST and no ZIP inside a ZIP")
    factors = {}
    for key, values in value.items():
        with mistakes.noted(key, values):
            factors[key] = _read_factor(f"{where}.{key}", key, values, mistakes)
    counts = {key: len(factor.given) for key, factor in factors.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} of {key}" for key, count in counts.items())
        raise UserError(f"{where}: expected lists of one length, got {lengths}")
    columns = (factor.given for factor in factors.values())
    together = [dict(chain(*map(dict.items, options))) for options in zip(*columns, strict=True)]
    no_key: list[Settings] = [{}]
    return Factor(_places(factors.values()), together or no_key)


# ---- The values of a key -----------------------------------------------------------------


def _values(where: str, key: str, value: object) -> list[Any]:
    """The list that a key goes through: given, drawn, computed, or of this one value; a text that
    computes no list is for the run to read.

    An expression that draws is seeded by the key, so that a second look at the file sees the same
    rows.
    """
    if isinstance(value, Mapping) and "n" in value and any(kind in value for kind in DRAWS):
        return _drawn(where, key, value)
    values: Any = value
    if isinstance(value, str) and is_expression(value):
        try:
            values = evaluate(value, rng=np.random.default_rng(crc32(key.encode())))
        except UserError as error:
            raise UserError(f"{where}: {error} (a text that is none stands in a list)") from None
        is_vector = isinstance(values, np.ndarray) and values.ndim == 1
        values = _plain(values) if is_vector or isinstance(values, list | tuple) else value
    if not isinstance(values, list):
        return [value]
    if not values:
        raise bad_value(where, values, NOT_EMPTY)
    return values


def _plain(value: Any) -> Any:
    """Arrays and tuples as the lists that YAML makes of them."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _drawn(where: str, key: str, draw: Mapping) -> list[Any]:
    """n values, the same for ever for one seed and key; another key draws others.

    uniform, loguniform: between the two bounds. choice goes through its options in random
    order, round after round: up to as many as there are they differ, more stay balanced.
    """
    kind, *others = [kind for kind in DRAWS if kind in draw]
    if others:
        raise bad_value(where, draw, f"one of {', '.join(DRAWS)}")
    for name in draw:
        pick(dict.fromkeys((kind, "n", "seed")), str(name), where)
    numbers = {"seed": 0, **draw}
    for name, least, most in (("n", 1, MOST_RUNS), ("seed", 0, 2**32 - 1)):
        if type(number := numbers[name]) is not int or not least <= number <= most:
            expected = f"a whole number from {least} to {most}"
            raise bad_value(f"{where}.{name}", number, expected)
    n, given, where = numbers["n"], draw[kind], f"{where}.{kind}"
    # RandomState's numbers are frozen, those of default_rng may change with numpy
    rng = np.random.RandomState([numbers["seed"], crc32(key.encode())])
    if kind == "choice":
        if not isinstance(given, list) or not given:
            raise bad_value(where, given, "a list of options")
        rounds = (rng.permutation(len(given)) for _ in repeat(None))
        return [given[place] for place in islice(chain.from_iterable(rounds), n)]
    above = 0 if kind == "loguniform" else -math.inf
    match given:
        case [int() | float() as low, int() | float() as high] if (
            max(above, -LARGEST) < low < high < LARGEST
        ):
            if kind == "uniform":
                return rng.uniform(low, high, n).tolist()
            drawn = np.exp(rng.uniform(math.log(low), math.log(high), n))
            return np.clip(drawn, low, high).tolist()  # exp(log(low)) may be a little less
    raise bad_value(where, given, f"[low, high] with {above:g} < low < high < inf")
