"""The recipes: each patch applies to the code as it is, changes nothing by default, and holds.

A patch is applied to a copy of the code, and there `python -m tests.recipe_run` trains with it.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from src.support import ROOT
from tests.whole_runs import without_times
from train import run_experiment

pytestmark = pytest.mark.slow

RECIPES = ROOT / "recipes"
# Where every idea declares its keys: not counted
DECLARATIONS = {"src/keys.py", "src/config/defaults.yaml"}
# name -> (files, added lines) at most; columns of the last epoch and what they reach
COST = {
    "sam": (1, 25),
    "class_confidence": (1, 15),
    "distillation": (2, 22),
    "norms": (1, 10),
    "own_optimizers": (3, 125),
    "simclr": (3, 80),
    "adversarial": (2, 45),
    "gan": (4, 125),
}
REACHES = {
    "sam": {"test/last/accuracy": (0.955, 1)},
    "class_confidence": {"test/last/accuracy": (0.955, 1)},
    "distillation": {"test/last/accuracy": (0.93, 1)},  # without a teacher 0.9276
    "norms": {"train/grad_norm": (0.01, 1), "train/distance": (5, 50)},
    "own_optimizers": {"test/schedule_free/accuracy": (0.96, 1)},
    "simclr": {"test/last/knn_accuracy": (0.95, 1)},  # as it was initialised 0.908
    "gan": {"test/av/frechet_distance": (0, 0.3)},  # after one epoch 4
    "adversarial": {"test/last/robust_accuracy": (0.6, 1)},
}
TEACHER = ["test_cfg_digits_linear.yaml", "model=tiny/lenet", "base_lr=0.003", "train_length=15"]
DIGITS = {"dataset": "sklearn/digits", "model": "linear", "optim_alg": "adam", "base_lr": 0.01}
DIGITS |= {"averaging": "ema", "train_length": 3, "seed_model": 1, "seed_training": 2}


def patched(name: str, folder: Path) -> Path:
    """A copy of the code with the recipe."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for path in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / path).is_file() and not path.startswith(("tests/kept", "docs", "benchmarks")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes((ROOT / path).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    patch = ["git", "apply", str(RECIPES / f"{name}.patch")]
    done = subprocess.run(patch, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def added_lines(name: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in (RECIPES / f"{name}.patch").read_text().splitlines():
        if line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            found[path] += path not in DECLARATIONS
    return +found


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    """The stats of the digits without any recipe."""
    from src.config import make_config

    folder = tmp_path_factory.mktemp("plain") / "run"
    keys = DIGITS | {"output_dir": str(folder), "save_plot": False}
    return without_times(run_experiment(make_config(keys))).to_csv()


def test_every_recipe_is_tested_and_told():
    patches = {path.stem for path in RECIPES.glob("*.patch")}
    assert patches == COST.keys() == REACHES.keys()
    assert patches == {path.stem for path in RECIPES.glob("*.yaml")}
    text = (ROOT / "docs/recipes.md").read_text()
    for name in patches:
        lines = added_lines(name)
        row = f"| [`{name}`](#{name}) | {len(lines)} | {lines.total()} |"
        assert row in text
        assert f"## {name}\n" in text


@pytest.mark.parametrize("name", COST)
def test_a_recipe_costs_what_it_should_and_holds(name, plain, tmp_path):
    files, most = COST[name]
    lines = added_lines(name)
    assert len(lines) <= files
    assert lines.total() <= most

    code = patched(name, tmp_path / "code")
    config = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    if "teacher" in config:
        teacher = [sys.executable, "train.py", *TEACHER, f"output_dir={config['teacher']}"]
        subprocess.run(teacher, cwd=code, check=True, capture_output=True)
    answer = subprocess.run(
        [sys.executable, "-m", "tests.recipe_run", json.dumps(DIGITS), json.dumps(config)],
        cwd=code,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["default"] == plain
    for column, (low, high) in REACHES[name].items():
        assert low <= found["last"][column] <= high, found["last"]
    assert found["certificate"][0] == 0, found["certificate"][1]
    assert len(found["grid"]) == 2
