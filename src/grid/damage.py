"""What of a run folder cannot be read, and why: so that a report can say it, and show the rest.

The same files as src/analysis/run_files.py reads, without pandas and in a fraction of its time.
"""

import json
import re
from functools import lru_cache
from typing import Any

from src.config import read_yaml
from src.grid.failures import LONGEST_CAUSE
from src.support import UserError, one_line

# Of what a run writes most lines are a key and a word, path or number, which are YAML for sure.
# The others are the same in most runs of a batch, and parsed once for all of them.
OTHER_LINES = re.compile(
    r"^(?!\w+: (?:[A-Za-z_/][\w./+=-]{0,500}|-?\d{1,20}(?:\.\d{1,20})?(?:e[-+]\d{1,3})?)$).+$",
    re.MULTILINE | re.ASCII,
)


def read_json(folder: str, name: str) -> tuple[dict[str, Any] | None, str | None]:
    """(content, what is wrong with it). None: there is no such file; {}: it cannot be read as an
    object of JSON. Older experiments leave an empty file `done`, which is whole."""
    try:
        with open(f"{folder}/{name}", "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{name}: {error.strerror}"
    try:
        content = json.loads(text)
    except ValueError:
        return {}, f"{name}: no JSON, or cut off" if text or name != "done" else None
    except RecursionError:
        return {}, f"{name}: nested too deeply"
    if isinstance(content, dict):
        return content, None
    return {}, f"{name}: {type(content).__name__} instead of an object"


def problem_of_configuration(folder: str) -> str | None:
    """Of config.yaml, else of spec.yaml; None where it can be read, or neither is there."""
    for name in ("config.yaml", "spec.yaml"):
        try:
            with open(f"{folder}/{name}", "rb") as file:
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{name}: {error.strerror}"
        if not text.strip():  # a spec without a key asks for all defaults
            return f"{name}: nothing in it" if name == "config.yaml" else None
        others = "\n".join(OTHER_LINES.findall(text))
        if others and not _is_mapping(others):
            return _problem_of_yaml(text, name)  # what spans lines may be fine as a whole
        return None
    return None


@lru_cache(maxsize=4096)
def _is_mapping(text: str) -> bool:
    return _problem_of_yaml(text, "") is None


def _problem_of_yaml(text: str, name: str) -> str | None:
    try:
        content = read_yaml(text, source=name)
    except UserError as error:
        return one_line(str(error), LONGEST_CAUSE)
    except (ValueError, TypeError, RecursionError) as error:
        return one_line(f"{name}: {error}", LONGEST_CAUSE)
    return None if isinstance(content, dict) else f"{name}: no lines of the form `key: value`"


def problem_of_stats(folder: str, text: str, num_columns: int, *, is_done: bool) -> str | None:
    """text: that of stats.csv up to its last whole line, as it was read; '' where it was not."""
    lines = text.split("\n")
    if text:
        is_ragged = any(line.count(",") != num_columns - 1 for line in lines[1:])
        if is_ragged:
            return "stats.csv: lines of different lengths"
    else:
        try:
            open(f"{folder}/stats.csv", "rb").close()
        except FileNotFoundError:
            pass  # a run that has just begun has none
        except OSError as error:
            return f"stats.csv: {error.strerror}"
        else:
            return "stats.csv: nothing in it"
    return "stats.csv: nothing in it, though the run is done" if is_done and not lines[1:] else None
