"""What the README and the documents say to type in does what it says."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.logging.records import Stats

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def section() -> str:
    """The README's section on one's own data and model."""
    return re.search(r"## Your own data and model\n(.*?)\n## ", README, re.DOTALL)[1]


def code(section: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


@pytest.mark.slow
def test_ones_own_data_and_model_train_as_the_readme_says(tmp_path, section):
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copy(ROOT / "train.py", tmp_path)
    for language in "python", "yaml":
        text = code(section, language)
        (tmp_path / text.split()[1]).write_text(text)
    program, *arguments = code(section, "bash").split()
    assert program == "python"
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True)
    assert Stats.read(tmp_path / "results/spirals")["test/last/accuracy"].iloc[-1] > 0.99


def test_that_takes_under_twenty_lines(section):
    lines = [line for line in code(section, "python").splitlines() if line.strip()]
    assert len(lines) < 20


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(page, word): run the block of Python in docs/page that holds this word; its names."""
    shutil.copy(ROOT / "test_cfg_digits_linear.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run_block(page: str, word: str) -> dict:
        found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
        (tmp_path / "block.py").write_text(next(text for text in found if word in text))
        return runpy.run_path(str(tmp_path / "block.py"))

    return run_block


def test_the_generator_and_earlier_runs_work_as_the_documents_say(tmp_path, run):
    stats = run("changing_the_code.md", "experiment_generator")["stats"]
    assert stats["test/last/accuracy"].iloc[-1] > 0.9
    (tmp_path / "results/mine").rename(tmp_path / "results/digits_linear")
    names = run("changing_the_code.md", "load_run")
    assert names["earlier"].stats["step"].tolist() == stats["step"].tolist()
    assert names["averaged"] is not names["earlier"].model
    assert len(run("run_folder.md", "read_csv")["stats"]) == len(stats) < 30


def test_a_csv_file_is_read_as_the_documents_say(tmp_path, run):
    (tmp_path / "my_table.csv").write_text("a,b,label\n1,2,dog\n3,4,cat\n5,6,dog\n")
    read = run("data_and_models.md", "read_csv")["read"]
    inputs, targets = read(tmp_path)["all"]
    assert sorted(zip(*inputs.T.tolist(), targets.tolist(), strict=True)) == [
        (1, 2, 1),
        (3, 4, 0),
        (5, 6, 1),
    ]
