"""The notebook runs from top to bottom on a batch that was trained just now."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from notebooks import execute
from src.analysis import read_experiments
from tests.whole_runs import submit_here

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "view_results.ipynb"
JOB = ROOT / "jobs" / "digits-example.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A fork in which a batch was trained."""
    fork = tmp_path_factory.mktemp("fork") / "fork"
    listed = ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (fork / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, fork / name)
    text = JOB.read_text().replace("output_dir: results", f"output_dir: {fork / 'results'}")
    (fork / "job.yaml").write_text(text)
    assert submit_here(fork / "job.yaml") == 0
    return fork


@pytest.fixture(scope="module")
def executed(trained) -> nbformat.NotebookNode:
    return execute.executed(trained / "notebooks" / NOTEBOOK.name)


def outputs(notebook: nbformat.NotebookNode, source: str) -> list[nbformat.NotebookNode]:
    """Of the only code cell that begins so."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.startswith(source)]
    assert len(cells) == 1
    return cells[0].outputs


@pytest.mark.slow
def test_every_picture_is_shown_once(executed):
    drawn = ("learning_curves", "against", "heat_map", "tradeoff", "to_target", "summary")
    cells = [c for c in executed.cells if c.cell_type == "code" and c.source.startswith(drawn)]
    assert len(cells) == 7
    for cell in cells:
        pictures = [out for out in cell.outputs if "image/png" in out.get("data", {})]
        assert len(pictures) == 1, cell.source


@pytest.mark.slow
def test_nothing_is_complained_of(executed):
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", (cell.source, output.text)


@pytest.mark.slow
def test_the_table_has_every_run(executed):
    (shown,) = outputs(executed, "big_df = read_experiments")
    assert shown.data["text/html"].count("<tr") == 24 + 2  # a header, and the index's name
    assert "points to" in shown.data["text/html"]


@pytest.mark.slow
def test_the_alarm_sees_the_edge_of_the_grid(executed):
    (printed,) = outputs(executed, "print(edge_alarm(")
    assert "base_lr" in printed.text


def shape_of(notebook: nbformat.NotebookNode) -> list[tuple[str, list[Any]]]:
    """Each code cell, and of its outputs the kinds and the words of tables. Numbers, and sentences
    that follow from them, differ between processors."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [out.get("data", {}) for out in cell.outputs]
            texts = [re.sub(r"\S*(results|fork)\S*", "", x.get("text/plain", "")) for x in shown]
            words = [set(re.findall(r"[a-z_/]{3,}", text)) for text in texts]
            kinds = [(out.output_type, sorted(out.get("data", {}))) for out in cell.outputs]
            found.append((cell.source, list(zip(kinds, words, strict=True))))
    return found


@pytest.mark.slow
def test_the_outputs_that_are_kept_are_those_of_the_code(executed):
    kept = nbformat.read(NOTEBOOK, as_version=4)
    hint = "python notebooks/execute.py"
    for (source, shown), (_, expected) in zip(shape_of(kept), shape_of(executed), strict=True):
        assert shown == expected, f"{source}: {hint}"
    assert str(ROOT) not in NOTEBOOK.read_text()


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_the_rsync_line_brings_all_that_is_read_and_nothing_large(trained, tmp_path):
    text = nbformat.read(NOTEBOOK, as_version=4).cells[0].source
    line = re.search(r"^rsync.*? results/$", text, re.MULTILINE | re.DOTALL)[0]
    line = line.replace("cluster:my-fork/results/", f"{trained}/results/")
    subprocess.run(["bash", "-ec", line], cwd=tmp_path, check=True, capture_output=True)
    there = read_experiments("digits-example", results=trained / "results")
    here = read_experiments("digits-example", results=tmp_path / "results")
    pd.testing.assert_frame_equal(here, there)
    found = {path.name for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert found <= {
        *("job.yaml", "rows.jsonl", "spec.yaml", "config.yaml", "stats.csv", "status.json"),
        "done",
    }
