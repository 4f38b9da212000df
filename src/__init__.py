"""The template's own code: what an idea changes, and the machinery behind doors.

An idea changes keys.py, losses.py, metrics.py, optim/, models/ and data/. The other folders are
machinery. The `__init__.py` of a folder is its door: it explains what is inside and names what
code outside the folder may import. Names are imported when they are first used, so that
`from src.grid import read_job` loads neither pandas nor torch.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


def lazy_names(package: str) -> Callable[[str], Any]:
    """`__getattr__` of a package (PEP 562): a name is imported when it is first used.

    The names are those that the package's `__init__.py` imports for type checkers and editors,
    under `if TYPE_CHECKING`. They are read from there, so each is written once.
    """
    names: dict[str, tuple[str, str]] = {}  # as it is called -> its module, its name there
    for node in ast.walk(ast.parse(Path(sys.modules[package].__file__ or "").read_text())):
        module = getattr(node, "module", None) or ""
        # `from src.support import processes` is a whole module, which Python finds by itself.
        if isinstance(node, ast.ImportFrom) and module.startswith("src.") and module != package:
            names |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}

    def import_name(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, name_there = names[name]
        value = getattr(import_module(module), name_there)
        setattr(sys.modules[package], name, value)
        return value

    return import_name


if TYPE_CHECKING:
    from src.config import Config  # notebooks of older copies begin with `from src import Config`
else:
    __getattr__ = lazy_names(__name__)
