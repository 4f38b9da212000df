"""Who may import whom: the house stays a house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {
    "child_processes",
    "config",
    "keys",
    "names",
    "own_code",
    "expressions",
    "expression_functions",
    "durations",
    "files",
    "limits",
    "metrics",
    "processes",
    "ranking",
    "yaml_files",
}
BUILDERS = {"data.build", "models.build", "optim.build"}


def imports_of(path: Path) -> set[str]:
    """'optim.build' for every `from src.optim.optimizers import …`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("src"):
            module = (node.module or "").removeprefix("src").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                is_module = (ROOT / "src" / inner.replace(".", "/")).with_suffix(".py").exists()
                found.add(inner if is_module else module)
    return found


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / "src" / room).rglob("*.py"))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [ROOT / "src" / f"{m}.py" for m in sorted(GROUND)], ids=ids)
def test_the_ground_stands_on_itself(path):
    assert rooms(imports_of(path)) <= GROUND


@pytest.mark.parametrize("room", ["data", "models", "optim"])
def test_leaves_see_neither_config_nor_other_rooms(room):
    for path in modules(room):
        imported = imports_of(path)
        is_builder = path.name == "build.py" and path.parent.name == room
        allowed = {room, "names", "own_code", "files", "durations", "generators", "limits"}
        allowed |= {"config"} if is_builder else set()
        # what an image network wants of its images is said in the words of the data room
        shared = {"data.splits"}
        assert rooms(imported - shared) <= allowed, path


def test_the_engine_never_records_or_builds():
    for path in modules("engine"):
        imported = imports_of(path)
        assert "record" not in rooms(imported), path
        assert not imported & BUILDERS, path


def test_records_know_nothing_of_the_engine_the_data_and_the_models():
    for path in modules("record"):
        assert not rooms(imports_of(path)) & {"engine", "data", "models", "optim"}, path


def test_submitting_sees_the_configuration_and_what_a_run_leaves():
    """And the command line of train.py, which says where a run without output_dir is."""
    for path in modules("submit"):
        imported = rooms(imports_of(path)) - GROUND
        assert imported <= {"submit", "record", "command_line"}, path


def test_messages_see_what_is_submitted_and_drawn_and_nobody_sees_them():
    for path in sorted((ROOT / "src").rglob("*.py")):
        imported = rooms(imports_of(path)) - GROUND
        if path.parent.name == "notify":
            assert imported <= {"notify", "submit", "analysis"}, path
        else:
            assert "notify" not in imported, path


def test_only_the_story_and_the_lookup_of_names_meet_all():
    """What they import is built; nobody builds by importing them."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        assert "lookup" not in rooms(imports_of(path)), path
        if path.name != "build.py" and path.name != "lookup.py":
            assert not imports_of(path) & BUILDERS, path


@pytest.mark.parametrize(
    "module",
    [
        "submit_multiple",
        "report",
        "src.analysis.plots",
        "src.analysis.run_plot",
        "src.analysis.read",
        "src.analysis.edges",
        "src.analysis.page",
        "src.analysis.pairs",
        "src.logging.stats",
        "src.config.config",
    ],
)
def test_submitting_and_analysing_start_without_torch(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_notebooks_of_older_copies_import_config_and_nobody_pays_for_it():
    script = "import sys, src; assert not {'pydantic', 'numpy', 'torch'} & set(sys.modules)\n"
    script += "from src import Config; assert Config(base_lr=0.5).base_lr == 0.5\n"
    script += "assert 'torch' not in sys.modules\n"
    script += "try: from src import Konfig\nexcept ImportError as e: assert 'Konfig' in str(e)\n"
    script += "else: raise AssertionError"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
