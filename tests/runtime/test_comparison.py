"""Whatever differs between two runs is found, and named."""

import copy
import math
from pathlib import Path

import pytest
import torch

from src.runtime.certificate import final_state, first_difference, first_differences
from src.runtime.checkpoints import CorruptCheckpoint, write_state

ROW = {"epoch": 1, "step": 10, "timestamp": "10:00", "train/loss": 0.1, "train/time": 2.0}
ROWS = [ROW, ROW | {"epoch": 2, "step": 20, "train/loss": math.nan, "test/last/data_time": 0.5}]
TEXT = ",epoch,train/loss,test/last/time\n0,1,0.1,2.0\n1,2,,3.0\n"


def state() -> dict:
    layer = torch.tensor([[0.5, -0.0, math.nan], [1.0, 2.0, 3.0]])
    moments = {0: {"step": torch.tensor(20.0), "exp_avg": torch.ones(4)}}
    groups = [{"lr": 0.1, "params": [0]}]
    return {
        "config": {"asked": {"output_dir": "a"}},
        "step": 20,
        "outcome": "finished",
        "data_time": 1.0,
        "generators": {"torch": torch.arange(5, dtype=torch.uint8), "cuda": [], "mps": None},
        "parts": {
            "model": {"layer.weight": layer, "count": torch.tensor(7)},
            "optimizer": {"state": moments, "param_groups": groups},
            "stats": {"rows": copy.deepcopy(ROWS)},
            "av": {"t": 20, "model": {"layer.weight": torch.zeros(2, dtype=torch.bfloat16)}},
            "best": {"value": math.nan, "epoch": 0},
        },
    }


def write_run(folder: Path, content: dict, *, stats: str = TEXT) -> Path:
    (folder / "state").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    write_state(folder / "state" / "000000020.state", content)
    (folder / "stats.csv").write_text(stats)
    torch.save({"epoch": 2, "last": content["parts"]["model"]}, folder / "checkpoints" / "best.pt")
    return folder


@pytest.fixture
def differences(tmp_path):
    """differences(change): what is found where change(state) made another state."""
    straight = write_run(tmp_path / "straight", state())

    def of(change=lambda content: None, **kwargs) -> list[str]:
        content = state()
        change(content)
        return first_differences(straight, write_run(tmp_path / "killed", content, **kwargs))

    return of


def test_equal_runs_may_differ_in_times_and_places(differences):
    def change(content):
        content["config"]["asked"]["output_dir"] = "b"
        content["data_time"] = 2.0
        content["parts"]["stats"]["rows"][0] |= {"timestamp": "11:00", "train/time": 3.0}
        content["parts"]["stats"]["rows"][0]["train/examples_per_second"] = 5.0
        content["parts"]["stats"]["rows"][1]["train/peak_share"] = 0.5
        content["parts"]["stats"]["rows"][1]["test/last/data_time"] = 0.1

    assert differences(change, stats=TEXT.replace("2.0", "2.5")) == []


def test_a_weight_is_named_by_place_and_values(differences):
    def change(content):
        content["parts"]["model"]["layer.weight"][1, 1:] += 1

    line = "layer.weight[1, 1]: 2.0 and 3.0; 2 of 6 values differ"
    assert differences(change) == [f"weights {line}", f"best.pt last {line}"]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("parts", "av", "t"), 21, "av t: 20 and 21"),
        (
            ("parts", "av", "model", "layer.weight"),
            torch.tensor([0.0, -0.0], dtype=torch.bfloat16),
            "av model layer.weight[1]: 0.0 and -0.0; 1 of 2 values differ",
        ),
        (
            ("parts", "optimizer", "state", 0, "step"),
            torch.tensor(19.0),
            "optimizer state 0 step: 20.0 and 19.0; 1 of 1 values differ",
        ),
        (("parts", "optimizer", "state"), {}, "optimizer state: the names differ in 0"),
        (
            ("generators", "torch"),
            torch.tensor([0, 1, 2, 3, 5], dtype=torch.uint8),
            "random generators torch[4]: 4 and 5; 1 of 5 values differ",
        ),
        (("generators", "cuda"), [0], "random generators cuda: 0 and 1 entries"),
        (("parts", "best", "value"), 0.5, "best value: nan and 0.5"),
        (("parts", "best"), None, "best: dict and None"),
        (("outcome",), "diverged", "outcome: 'finished' and 'diverged'"),
        (
            ("parts", "stats", "rows", 1, "train/loss"),
            0.25,
            "stats: epoch 2, train/loss: nan and 0.25",
        ),
    ],
)
def test_every_part_is_compared(differences, path, value, line):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    assert differences(change) == [line]


def test_a_part_that_only_one_has_and_a_row_that_one_lacks(differences):
    def change(content):
        del content["parts"]["best"], content["parts"]["stats"]["rows"][1]

    assert differences(change) == ["best: dict and None", "stats: 2 and 1 rows"]


def test_a_value_of_stats_csv(differences):
    found = differences(stats=TEXT.replace("0.1", "0.10000001"))
    assert found == ["stats.csv: epoch 1, train/loss: '0.1' and '0.10000001'"]


def test_checkpoints_of_one_side_only(tmp_path):
    runs = [write_run(tmp_path / name, state()) for name in "ab"]
    (runs[0] / "checkpoints" / "best.pt").unlink()
    assert first_differences(*runs) == ["checkpoints: best.pt on one side only"]


@pytest.mark.parametrize(
    ("one", "other", "line"),
    [
        (torch.zeros(2), torch.zeros(3), "x: float32 (2,) and float32 (3,)"),
        (torch.zeros(2), torch.zeros(2).double(), "x: float32 (2,) and float64 (2,)"),
        (torch.tensor(True), torch.tensor(False), "x: True and False; 1 of 1 values differ"),
        (torch.zeros(0), torch.zeros(0), None),
        (1, 1.0, "x: 1 and 1.0"),
        (0.0, -0.0, "x: 0.0 and -0.0"),
    ],
)
def test_kinds_of_values(one, other, line):
    assert first_difference(one, other, "x") == line


def test_a_folder_without_a_state(tmp_path):
    with pytest.raises(CorruptCheckpoint, match="state cannot be read"):
        final_state(tmp_path)
