"""environment.yml brings with conda what pyproject.toml lists."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"bench", "tensorflow"}  # other trainers, and what prepares a few data sets of TFDS


def test_conda_installs_all_extras_but_those_that_few_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (line,) = pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", line)[1].split(",")
    assert set(extras) == project["optional-dependencies"].keys() - LEFT_OUT
    assert {"notebook", "track", "notify"} <= set(extras)
    assert len(extras) == len(set(extras))


def test_condas_python_is_one_that_the_project_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    python = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][0]
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= lowest
