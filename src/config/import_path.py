"""module.path:function in YAML: what a fork adds without a line in any of our tables."""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.support import ROOT, UserError, bad_value, closest


def is_import_path(name: str) -> bool:
    """Whether a name in YAML is meant so, unlike hf/csv:PATH and others of family/…:…"""
    path, colon, _ = name.partition(":")
    return bool(colon) and ("/" not in path or path.endswith(".py"))


def import_function(
    name: str, key: str, parameters: Sequence[str] | None = None
) -> Callable[..., Any]:
    """'my_nets.wide:build' -> the function (or class) build of my_nets/wide.py.

    Only modules of this repository are imported: a YAML file should run no other code. UserError
    where there is no such module or function, or where it can't be called with these parameters,
    in this order; None: its caller checks that. What the module raises is raised.
    """
    path, _, function = name.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", path) or not function.isidentifier():
        raise bad_value(key, name, "module.path:function")
    stem = ROOT / path.replace(".", "/")
    files = [stem.with_suffix(".py"), stem / "__init__.py"]
    if not any(file.is_file() for file in files):
        near = closest(stem.name, [file.stem for file in stem.parent.glob("*.py")])
        hint = f"; did you mean {near!r}?" * bool(near)
        raise bad_value(key, name, f"a module of this repository; there is no {files[0]}{hint}")
    module = importlib.import_module(path)
    if module.__file__ is None or Path(module.__file__) not in files:
        raise bad_value(key, name, f"another name than that of {module.__file__}")
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        hint = f"; did you mean '{path}:{near}'?" if (near := closest(function, known)) else ""
        raise UserError(f"{key}: {path} has no function {function!r}{hint}")
    if parameters is not None:
        try:
            inspect.signature(found).bind(*parameters)
        except TypeError as error:
            wanted = f"a function that can be called as {function}({', '.join(parameters)})"
            raise bad_value(key, name, f"{wanted}: {error}") from None
    return found
