"""YAML as people mean it, and its mistakes explained."""

import re
from pathlib import Path
from typing import Any

import yaml

from src.names import UserError

# Those in C are ten times faster; PyYAML's wheels have them.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Loader(Loader):
    """YAML as people mean it: 1e-3 is a number, and a key stands once in a block."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(f"{key.value}: set twice in one block (line {line})")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(Dumper):
    """Writes the text '1e-3' in quotes, as the loader would take it for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def write_yaml(values: Any) -> str:
    """The text that read_yaml reads back as the same plain values, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_yaml(text: str, *, source: str = "YAML") -> Any:
    """The content of a YAML text; a syntax error is a UserError with its line."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except UserError as error:  # a key set twice
        raise UserError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{line}: not YAML: {problem}") from None


def read_yaml_file(path: str | Path) -> Any:
    """read_yaml of a file, which must exist and be text."""
    try:
        return read_yaml(Path(path).read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
