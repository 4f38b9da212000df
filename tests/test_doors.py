"""Who may import whom: each folder of src/ has a door, and what starts quickly imports little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOORS = sorted(path.parent.name for path in ROOT.glob("src/*/__init__.py"))
# What others may use of a folder: a dozen names are learnt, more are looked up.
MOST_NAMES = 12
OF_USERS = [ROOT / name for name in ("train.py", "submit_multiple.py", "report.py", "prepare.py")]
OF_USERS += [ROOT / "verify_resume.py", *ROOT.glob("examples/*.py")]
# names that submit scripts and scripts of batches call
OUTSIDE_OF_DOORS = {ROOT / "src/submit/attempt.py", ROOT / "src/submit/continuation.py"}
OUTSIDE_OF_DOORS |= {ROOT / "src/notify/sending.py"}


def imports_of(path: Path) -> list[ast.ImportFrom]:
    """Every `from src… import …` of a file, also those inside functions."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [
        n for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("src")
    ]


def folder_of(path: Path) -> str | None:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


def names_at(door: str) -> list[str]:
    nodes = [n for n in imports_of(ROOT / "src" / door / "__init__.py") if n.module != "src"]
    return [alias.asname or alias.name for node in nodes for alias in node.names]


def code() -> list[Path]:
    return sorted({*ROOT.glob("src/**/*.py"), *OF_USERS} - OUTSIDE_OF_DOORS)


@pytest.mark.parametrize("path", code(), ids=lambda path: str(path.relative_to(ROOT)))
def test_code_outside_a_folder_imports_from_its_door_alone(path):
    for node in imports_of(path):
        folder, *inside = (node.module or "").split(".")[1:] or [""]
        if inside and folder != folder_of(path):
            names = ", ".join(alias.name for alias in node.names)
            raise AssertionError(
                f"{path.relative_to(ROOT)}:{node.lineno} imports {names} from the inside of "
                f"src/{folder}/. Import from its door: `from src.{folder} import {names}`. If "
                f"src/{folder}/__init__.py does not name it, ask whether this code belongs into "
                f"src/{folder}/; if not, name it there."
            )


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_narrow(door):
    names = names_at(door)
    assert len(names) <= MOST_NAMES, (
        f"src/{door}/__init__.py names {len(names)} things, and {MOST_NAMES} are the most. Code "
        f"that needs so much of {door} belongs into src/{door}/: move it there, behind one name."
    )


@pytest.mark.parametrize("door", DOORS)
def test_what_a_door_names_exists_and_is_used(door):
    package = __import__(f"src.{door}", fromlist=names_at(door))
    used = {
        alias.name
        for path in [*code(), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/**/*.py")]
        if folder_of(path) != door
        for node in imports_of(path)
        if node.module == f"src.{door}"
        for alias in node.names
    }
    for name in names_at(door):
        assert hasattr(package, name)
        assert name in used, f"nobody outside of src/{door}/ uses {name}: take it off the door"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_at_once(path: Path, modules: set[str]) -> set[str]:
    """The modules of src/ that a module imports at its top, also for type checkers alone; doors
    are seen through."""
    found, top = set(), ast.parse(path.read_text()).body
    for node in [
        *top,
        *(inner for block in top if isinstance(block, ast.If) for inner in block.body),
    ]:
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("src.")):
            continue
        behind = {}
        if node.module.count(".") == 1 and node.module not in modules:
            for inner in imports_of(ROOT / node.module.replace(".", "/") / "__init__.py"):
                behind |= {alias.asname or alias.name: inner.module for alias in inner.names}
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            found.add(inside if inside in modules else behind.get(alias.name, node.module))
    return found & modules


def test_no_module_imports_itself_by_way_of_others():
    paths = [p for p in ROOT.glob("src/**/*.py") if p.name != "__init__.py"]
    modules = {module_of(p) for p in paths}
    imports = {module_of(p): imported_at_once(p, modules) for p in paths}
    # What imports none of the rest, and what none of the rest imports, is in no circle.
    rest = set(imports)
    while free := {m for m in rest if not imports[m] & rest} | rest - set().union(
        *(imports[m] for m in rest)
    ):
        rest -= free
    assert not rest, f"these import each other: {sorted(rest)}"


@pytest.mark.parametrize("module", ["submit_multiple", "report"])
def test_command_lines_start_without_torch(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("door", ["analysis", "config", "grid", "logging"])
def test_submitting_and_analysing_need_no_torch(door):
    script = f"import sys\nfrom src.{door} import {', '.join(names_at(door))}\n"
    script += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_notebooks_of_older_copies_import_config_and_nobody_pays_for_it():
    script = "import sys, src; assert not {'pydantic', 'numpy', 'torch'} & set(sys.modules)\n"
    script += "from src import Config; assert Config(base_lr=0.5).base_lr == 0.5\n"
    script += "assert 'torch' not in sys.modules\n"
    script += "try: from src import Konfig\nexcept ImportError as e: assert 'Konfig' in str(e)\n"
    script += "else: raise AssertionError"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
