"""The notebook runs from top to bottom on a batch that was trained just now."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from src.analysis import read_experiments
from tests.waiting import PATIENCE
from tests.whole_runs import submit_here

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "view_results.ipynb"
# jobs/digits-example.yaml with fewer values and shorter runs
JOB = """\
job_details: {name: digits-example, output_dir: OUT}
parameters:
  dataset: sklearn/digits
  data_splits_map: {train: 'train[:80%]', val: 'train[80%:]', test: test}
  LIST_optimizer:
    - {optim_alg: sgd, base_lr: 0.05}
    - {optim_alg: adamw, base_lr: [0.001, 0.004, 0.008]}
  LIST_model:
    - {model: linear, train_length: 4}
    - {model: tiny/lenet, train_length: 2}
  seed_model: [1, 2]
  seed_training: 1
  num_workers: 0
  save_plot: false
"""


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
    (fork / "job.yaml").write_text(JOB.replace("OUT", str(fork / "results")))
    assert submit_here(fork / "job.yaml") == 0
    return fork


@pytest.fixture(scope="module")
def executed(trained) -> nbformat.NotebookNode:
    notebook = nbformat.read(trained / "notebooks" / NOTEBOOK.name, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(trained / "notebooks")}},
    )
    return client.execute()  # a cell that raises ends the test


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
    assert shown.data["text/html"].count("<tr") == 16 + 2  # a header, and the index's name
    assert "points to" in shown.data["text/html"]


@pytest.mark.slow
def test_the_alarm_sees_the_edge_of_the_grid(executed):
    (printed,) = outputs(executed, "print(edge_alarm(")
    assert "base_lr" in printed.text


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


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
