"""What the README says to type in does what it says."""

import re
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
