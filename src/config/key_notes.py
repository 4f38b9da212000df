"""What src/keys.py says of each key, for people and editors: train.py --keys, the JSON Schemas."""

import ast
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from src.config.config import Config, nearest_key
from src.support import ROOT, bad_value

WIDTH = 80  # columns
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
DIALECT = "http://json-schema.org/draft-07/schema#"
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
    lines, defaults = text.splitlines(), Config()
    notes: list[KeyNote] = []
    for group in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
        for field in group.body:
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


# ---- JSON Schemas, which editors use to complete and check YAML ------------------------------


def config_schema() -> dict[str, Any]:
    """Of a YAML file for train.py."""
    schema = TypeAdapter(Config).json_schema()
    for note in key_notes():
        of_key = _with_bounds(schema["properties"][note.name])
        of_key.pop("title", None)
        of_key["description"] = note.meaning
    about = {"title": "A run of train.py", "description": "Keys of src/keys.py"}
    return {"$schema": DIALECT, **schema, **about}


def _with_bounds(schema: Any) -> Any:
    """In place, the bounds that pydantic leaves under its own names."""
    if isinstance(schema, dict):
        for own, name in BOUNDS.items():
            if own in schema:
                schema[name] = schema.pop(own)
    for inside in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(inside, dict | list):
            _with_bounds(inside)
    return schema


def job_schema() -> dict[str, Any]:
    """Of a job file for submit_multiple.py: a key has a value, a list, an expression or a draw."""
    config = config_schema()
    grid: dict[str, Any] = {"type": "object", "additionalProperties": False}
    grid["patternProperties"] = {
        "^LIST": {"type": "array", "items": {"$ref": "#/$defs/grid"}},
        "^ZIP": {"$ref": "#/$defs/grid"},
    }
    grid["properties"] = {
        name: {
            "description": of_key.pop("description"),
            "anyOf": [of_key, {"type": "array"}, {"type": "string"}, {"$ref": "#/$defs/draw"}],
        }
        for name, of_key in config["properties"].items()
    }
    number = {"type": ["number", "string"]}
    pair = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    draw = {
        "type": "object",
        "properties": {
            "uniform": pair,
            "loguniform": pair,
            "choice": {"type": ["array", "string"]},
            "n": {"type": "integer", "minimum": 1},
            "seed": {"type": "integer", "minimum": 0},
        },
        "required": ["n"],
        "additionalProperties": False,
    }
    common = ("trackers", "wandb", "wandb_project_name", "wandb_tags")
    details = {name: config["properties"][name] for name in common}
    details |= {"name": {"type": "string"}, "output_dir": {"type": "string"}}
    return {
        "$schema": DIALECT,
        "title": "A grid of submit_multiple.py",
        "type": "object",
        "properties": {
            "job_details": {
                "type": "object",
                "properties": details,
                "additionalProperties": False,
            },
            "parameters": {"$ref": "#/$defs/grid"},
        },
        "required": ["parameters"],
        "additionalProperties": False,
        "$defs": config.get("$defs", {}) | {"grid": grid, "draw": draw},
    }


def write_schemas(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, schema in {"config": config_schema(), "job": job_schema()}.items():
        (folder / f"{name}.json").write_text(json.dumps(schema, indent=1) + "\n")


if __name__ == "__main__":  # after a change of src/keys.py: python -m src.config.key_notes
    write_schemas(ROOT / "schemas")
