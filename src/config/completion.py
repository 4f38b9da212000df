"""What completion.sh offers: the keys, or the values of a key, a line each.

    python completion.py [KEY [PREFIX]]

A program by itself, as a shell waits for it: it reads schemas/config.json alone.
"""

import json
import sys
from pathlib import Path
from typing import Any


def offers(key: str = "", prefix: str = "") -> list[str]:
    """prefix: what stands before each value."""
    keys = json.loads((Path(__file__).parents[2] / "schemas/config.json").read_text())["properties"]
    return [prefix + x for x in values_of(keys.get(key, {}))] if key else [f"{x}=" for x in keys]


def values_of(schema: dict[str, Any]) -> list[str]:
    """Those that can be listed, as YAML."""
    values = [False, True] * (schema.get("type") == "boolean") + schema.get("enum", [])
    values += [schema["const"]] if "const" in schema else []
    found = [x if isinstance(x, str) else json.dumps(x) for x in values]
    return found + [value for one in schema.get("anyOf", ()) for value in values_of(one)]


if __name__ == "__main__":
    print("\n".join(offers(*sys.argv[1:])))
