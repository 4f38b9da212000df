"""What src/keys.py says of each key, for people and editors: train.py --keys, the JSON Schemas."""

import ast
import json
import re
import textwrap
from dataclasses import dataclass

from src.config.config import Config, nearest_key
from src.support import ROOT, bad_value

WIDTH = 80  # columns
NAMES = {
    "bool": "true or false",
    "int": "whole number",
    "Int": "whole number",
    "NonNegativeInt": "whole number, at least 0",
    "PositiveInt": "whole number, at least 1",
    "Seed": "whole number, at least 0",
    "float": "number",
    "Float": "number",
    "NonNegativeFloat": "number, at least 0",
    "PositiveFloat": "number above 0",
    "Probability": "number from 0 to 1",
    "str": "text",
    "Folder": "folder",
    "Any": "anything",
    "CompileMode": "default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs",
}


@dataclass(frozen=True)
class KeyNote:
    """group: the class in src/keys.py. kind: its type in words. default: as YAML. meaning: the
    comment above it."""

    name: str
    group: str
    kind: str
    default: str
    meaning: str


def key_notes() -> list[KeyNote]:
    """Of every key, in the order of src/keys.py."""
    text = (ROOT / "src/keys.py").read_text()
    lines, notes, defaults = text.splitlines(), [], Config()
    for group in ast.parse(text).body:
        for field in group.body if isinstance(group, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                first = field.lineno - 1
                while lines[first - 1].strip().startswith("#"):
                    first -= 1
                comment = " ".join(x.strip(" #") for x in lines[first : field.lineno - 1])
                name, kind = field.target.id, in_words(field.annotation)
                default = json.dumps(getattr(defaults, name))  # which is YAML in a line
                comment = comment or notes[-1].meaning  # one for two keys
                notes.append(KeyNote(name, group.name, kind, default, comment))
    return notes


def in_words(node: ast.AST) -> str:
    """A type of src/keys.py: PositiveInt | None -> whole number, at least 1, or null."""
    if isinstance(node, ast.BinOp):
        return f"{in_words(node.left)}, or {in_words(node.right)}"
    if isinstance(node, ast.Constant):
        return "null"
    if isinstance(node, ast.Name):
        return NAMES[node.id]
    assert isinstance(node, ast.Subscript)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    outside = node.value.id if isinstance(node.value, ast.Name) else ""
    if outside == "Literal":
        return ", ".join(str(ast.literal_eval(x)) for x in inside)
    if outside == "Annotated":
        bounds = [x for call in inside[1:] for x in getattr(call, "keywords", ())]
        signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        parts = [f"{signs[x.arg or '']} {ast.unparse(x.value)}" for x in bounds if x.arg in signs]
        return ", ".join([in_words(inside[0]), *parts]).replace("MAX_COUNT", "10**15")
    return f"list of ({in_words(inside[0])})" if outside == "list" else "mapping"


def describe_keys(pattern: str = "") -> str:
    """The keys whose name or meaning the regular expression matches, for a terminal.
    Raises UserError."""
    try:
        is_meant = re.compile(pattern, re.IGNORECASE).search
    except re.error as error:
        raise bad_value("--keys", pattern, f"a regular expression ({error})") from None
    lines: list[str] = []
    group = ""
    for note in key_notes():
        if not is_meant(f"{note.name} {note.meaning}"):
            continue
        if note.group != group:
            lines += ["", note.group] if lines else [note.group]
            group = note.group
        lines.append(f"  {note.name}: {note.default}")
        for text in (f"({note.kind})", note.meaning):
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if not lines:
        near = nearest_key(pattern)
        return f"no key matches {pattern!r}" + (f"; did you mean {near!r}?" if near else "")
    return "\n".join(lines)
