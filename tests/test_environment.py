"""environment.yml has what pyproject.toml lists, and the files of the repository agree."""

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


def test_citation_and_history_have_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    major, minor, _ = map(int, version.split("."))
    history = yaml.safe_load((ROOT / "src/config/defaults.yaml").read_text()).values()
    newest = max(tuple(map(int, entry["since"].split("."))) for entry in history)
    assert newest in (tuple(map(int, version.split("."))), (major, minor + 1, 0))


def test_a_forks_own_checks_run_what_ours_run():
    """The workflows install the packages of .ci/run, and call its commands."""
    commands = {}
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        (job,) = yaml.safe_load(path.read_text())["jobs"].values()
        commands[path.stem] = [step["run"] for step in job["steps"] if "run" in step]
    assert commands["tests"][-1] == "make test"
    assert commands["nightly"][-1] == ".ci/run"
    assert any("$(cat .ci/packages)" in command for command in commands["tests"])
    assert "packages=$(cat .ci/packages)" in (ROOT / ".ci/run").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text()
    for hook in hooks:
        assert hook["entry"].split()[0].removeprefix(".venv/bin/") in lint
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text())
