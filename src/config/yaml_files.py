"""YAML as people mean it, bounded in size and depth, and its mistakes explained."""

import re
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml

from src.support import UserError, one_line

# Those in C are ten times faster; PyYAML's wheels have them.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

MOST_BYTES = 16 * 2**20
MOST_VALUES = 100_000  # keys and values, what an alias repeats counted each time
MOST_DEPTH = 50
MOST_DIGITS = 1_000
CHARACTERS_OF_A_VALUE = 200  # longer texts count as several
FIRST_TEXTS = 6  # shown of a text that holds too much
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
GUARDED = (":bool", ":int", ":float")
TEXT = ("timestamp", "value")  # a date is no value of any key: it stays what was typed
VALUES = yaml.ScalarEvent | yaml.AliasEvent | yaml.CollectionStartEvent


class _Loader(Loader):
    """YAML as people mean it: 1e-3 is a number, and a key stands once in a block."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(f"{one_line(key.value)}: set twice in one block (line {line})")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _UnreadableError(Exception):
    """A node that is refused."""

    def __init__(self, node: yaml.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def _construct_guarded(construct: Callable[..., Any], loader: Any, node: yaml.Node) -> Any:
    """For the types that a text may not be of, such as `!!int x`."""
    kind = node.tag.rpartition(":")[2]
    if kind != "bool" and len(node.value) > MOST_DIGITS:
        raise _UnreadableError(node, f"a number of {len(node.value):,} digits")
    try:
        return construct(loader, node)
    except (ValueError, LookupError, ArithmeticError) as error:
        raise _UnreadableError(node, f"{one_line(node.value)!r} is no {kind}") from error


class _Dumper(Dumper):
    """Writes the text '1e-3' in quotes, as the loader would take it for a number."""


FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
# Of the dumper these stay: other programs that read the file would take the text for a date.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in TEXT]
    for first, pairs in _Loader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: partial(_construct_guarded, construct) if str(tag).endswith(GUARDED) else construct
    for tag, construct in _Loader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in PLAIN
}


def write_yaml(values: Any) -> str:
    """The text that read_yaml reads back as the same plain values, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_yaml(text: str, *, source: str = "YAML", most_values: int = MOST_VALUES) -> Any:
    """The content of a YAML text in plain values; what can't be read is a UserError of one line
    that names the line and the key."""
    root = None
    try:
        if len(text) >= 2 * most_values:  # before each value takes memory and time
            values = (event for event in yaml.parse(text, Loader) if isinstance(event, VALUES))
            if len(first := list(islice(values, most_values + 1))) > most_values:
                texts = (one_line(x.value) for x in first if isinstance(x, yaml.ScalarEvent))
                begins = ", ".join(islice(texts, FIRST_TEXTS))
                raise UserError(f"more than {most_values:,} values; it begins {begins}, …")
        loader = _Loader(text)
        if (root := loader.get_single_node()) is None:
            return None
        if _weight(root, 0, {}) > most_values:
            raise UserError(f"more than {most_values:,} values, as what its aliases repeat counts")
        return loader.construct_document(root)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except _UnreadableError as error:
        line = error.node.start_mark.line + 1
        key = _place(root, error.node, set()) or ""
        raise UserError(f"{source}, line {line}: {key}{': ' * bool(key)}{error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{where}: not YAML: {one_line(problem)}") from None
    except UnicodeEncodeError:
        raise UserError(f"{source}: not a text in UTF-8") from None


def _weight(node: yaml.Node, depth: int, weights: dict[int, int]) -> int:
    """The number of keys and values of a node, itself included, what an alias repeats counted each
    time, as whoever walks through them meets it each time. Refuses cycles and deep nesting."""
    if depth > MOST_DEPTH:
        raise _UnreadableError(node, f"nested deeper than {MOST_DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value) // CHARACTERS_OF_A_VALUE
    if (known := weights.get(id(node))) is not None:
        if not known:
            raise _UnreadableError(node, "an alias stands inside what it stands for")
        return known
    weights[id(node)] = 0
    is_list = isinstance(node, yaml.SequenceNode)
    parts = node.value if is_list else chain.from_iterable(node.value)
    weights[id(node)] = 1 + sum(_weight(part, depth + 1, weights) for part in parts)
    return weights[id(node)]


def _place(node: yaml.Node | None, wanted: yaml.Node, seen: set[int]) -> str | None:
    """'job_details.name' or 'base_lr[2]': where the node stands; '' for the root."""
    if node is wanted:
        return ""
    if node is None or isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return None
    seen.add(id(node))
    is_list = isinstance(node, yaml.SequenceNode)
    parts = enumerate(node.value) if is_list else ((k.value, v) for k, v in node.value)
    for name, part in parts:
        inner = _place(part, wanted, seen)
        if inner is not None:
            own = f"[{name}]" if is_list else one_line(name)
            return own + ("." * (inner[:1] not in ("", "["))) + inner
    return None


def read_yaml_file(path: str | Path, *, most_values: int = MOST_VALUES) -> Any:
    """read_yaml of a file, which must exist and be text."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise UserError.from_os(error, path) from None
    except ValueError:  # no UTF-8, or a name with a zero byte
        raise UserError(f"{one_line(path)}: not a text file") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES // 2**20} MB, which no settings are")
    return read_yaml(text, source=str(path), most_values=most_values)
