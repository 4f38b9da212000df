"""Kinds of data and models that share their code with others: each whole run through all the same,
from files in the real format."""

import tarfile

import numpy as np
import pytest
from PIL import Image
from whole_runs import certificate, grid_here, without_times

from src.config import make_config
from train import run_experiment

NUM_ROWS = 240
CLASSES = ("dark", "light")
SHAPE = (36, 40)  # height and width, another than the networks take
OWN = "tests.own_parts"
IMAGES = {"model": "tiny/lenet", "model_input_shape": [3, 32, 32], "aug_hflip": 0.5}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, dict]:
    """Kind -> the keys that it adds to those of all."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for part, number in {"train": 40, "test": 20}.items():
        for i in range(number):
            path = folder / "walls" / part / CLASSES[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 156, (*SHAPE, 3)) + 100 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / "tars").mkdir()
    for part in "train", "test":
        with tarfile.open(folder / "tars" / f"{part}.tar", "w") as tar:
            tar.add(folder / "walls" / part, arcname=".")
    rows = draw.normal(size=(NUM_ROWS, 2))
    lines = [f"{x:.6f},{y:.6f},{CLASSES[int(x > y)]}" for x, y in rows]
    (folder / "points.csv").write_text("\n".join(["x,y,label", *lines]))
    sliced = {"data_splits_map": {"train": "train[:200]", "test": "train[200:]"}}
    found = {
        "folder": IMAGES | {"dataset": "timm/folder/walls", "num_workers": 2},
        "tar": IMAGES | {"dataset": "timm/tar/tars", "num_workers": 2},
        "hf images": IMAGES | {"dataset": "hf/imagefolder:walls", "num_workers": 2},
        "timm hfds": IMAGES | {"dataset": f"timm/hfds/{folder / 'walls'}"},
        "hf table": sliced | {"dataset": "hf/csv:points.csv", "model": "linear", "base_lr": 0.03},
        "own": {
            "dataset": "tests.own_parts:read",
            "model": "tests.own_parts:build",
            "base_lr": 0.03,
        },
        "torchvision": IMAGES
        | {"dataset": "timm/folder/walls", "model": "torchvision/shufflenet_v2_x0_5"},
        "timm": IMAGES | {"dataset": "timm/folder/walls", "model": "timm/test_resnet"},
    }
    of_all = {"data_dir": str(folder), "base_lr": 0.003}
    return {kind: of_all | keys for kind, keys in found.items()}


ALL = {
    "data_download": False,
    "batch_size": 10,
    "optim_alg": "adam",
    "averaging": "ema_0.9",
    "seed_model": 1,
    "seed_training": 2,
    "save_plot": False,
}
KINDS = ("folder", "tar", "hf images", "timm hfds", "hf table", "own", "torchvision", "timm")
FAST = ("hf table", "own")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in FAST else [pytest.mark.slow]) for k in KINDS]
)
def test_it_learns(kinds, kind):
    stats = run_experiment(make_config(ALL | kinds[kind] | {"train_length": 15}))
    assert stats["test/last/accuracy"].iloc[-1] > 0.8
    assert stats["test/last/loss"].iloc[-1] < stats["test/last/loss"].iloc[0]


@pytest.mark.slow
def test_the_same_images_in_four_formats_are_the_same_run(kinds):
    """But for the order in which a format lists them."""
    runs = [
        run_experiment(make_config(ALL | kinds[kind] | {"train_length": 0}))
        for kind in ("folder", "tar", "hf images", "timm hfds")
    ]
    losses = [stats["test/last/loss"].iloc[0] for stats in runs]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "timm hfds"])
def test_kills_leave_no_trace(kinds, tmp_path, kind):
    length = {"hf table": 60, "own": 60, "torchvision": 12}.get(kind, 25)
    keys = ALL | kinds[kind] | {"train_length": length}
    returncode, text = certificate(keys, tmp_path, "--kills=4")
    assert returncode == 0, text


@pytest.mark.slow
def test_all_of_them_make_a_grid(kinds, tmp_path):
    values = [{key: [value] for key, value in keys.items()} for keys in kinds.values()]
    found = grid_here(ALL | {"train_length": 1, "LIST_kind": values}, tmp_path)
    assert len(found) == len(KINDS)
    for kind, stats in zip(kinds, found, strict=True):
        alone = run_experiment(make_config(ALL | kinds[kind] | {"train_length": 1}))
        assert without_times(stats).to_csv() == without_times(alone).to_csv(), kind
