"""A fork's own data set, by module and function."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import import_path, make_config
from src.data.registry import build_data
from src.data.splits import Preprocessing
from src.support.errors import UserError
from train import run_experiment

READ = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 90)
ROWS = RNG.normal(size=(90, 4)) + 4 * np.eye(4)[LABELS]


def rows(data_dir):
    assert data_dir.name == "data"
    return {"train": (ROWS[:60], LABELS[:60]), "test": (torch.tensor(ROWS[60:]), LABELS[60:])}


def regression(data_dir):
    return {"train": (ROWS, ROWS[:, 0])}


def several(data_dir):
    return {"train": (ROWS, np.eye(3)[LABELS])}


class Squares(Dataset):
    classes = ("dark", "bright")

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return Image.new("L", (12, 12), 200 if index % 2 else 50), index % 2


def images(data_dir):
    return {"train": Squares(), "test": Squares()}


def nothing(data_dir):
    return None


def arrays_alone(data_dir):
    return {"train": ROWS}


def short(data_dir):
    return {"train": (ROWS, LABELS[:5])}


def flat(data_dir):
    return {"train": (LABELS, LABELS)}


def negative(data_dir):
    return {"train": (ROWS, LABELS - 1)}


def unlike(data_dir):
    return {"train": (ROWS, LABELS), "test": (ROWS[:, :2], LABELS)}
"""


@pytest.fixture
def fork(tmp_path, monkeypatch) -> Path:
    """A repository that holds my_data/small.py."""
    (tmp_path / "my_data").mkdir()
    (tmp_path / "my_data" / "small.py").write_text(READ)
    monkeypatch.setattr(import_path, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_data"]:
        del sys.modules[name]


def config(name: str, **keys):
    of_all = {"dataset": f"my_data.small:{name}", "seed_model": 1, "seed_training": 1}
    return make_config(of_all | keys)


def test_arrays_are_cut_and_normalised(fork):
    splits = {"train": "train[:80%]", "val": "train[80%:]", "test": "test"}
    data = build_data(config("rows", data_splits_map=splits, data_normalize="columns"), None)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 48,
        "val": 12,
        "test": 30,
    }
    assert (data.input_shape, data.n_classes) == ((4,), 3)
    inputs = data.splits["train"].inputs
    torch.testing.assert_close(inputs.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    again = build_data(config("rows", data_splits_map=splits), None)
    module = sys.modules["my_data.small"]  # whose arrays are as they were
    expected = module.ROWS[:48].astype(np.float32)
    np.testing.assert_array_equal(again.splits["train"].inputs.numpy(), expected)


@pytest.mark.parametrize(
    ("name", "n_classes", "dtype"),
    [("regression", None, torch.float32), ("several", 3, torch.float32)],
)
def test_targets_say_what_is_to_be_learned(fork, name, n_classes, dtype):
    data = build_data(config(name, data_splits_map={"train": "train"}), None)
    assert (data.n_classes, data.splits["train"].targets.dtype) == (n_classes, dtype)


def test_images_are_prepared_as_others_are(fork):
    preprocessing = Preprocessing(input_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    data = build_data(config("images"), preprocessing)
    split = data.splits["test"]
    image, label = split.dataset[1]
    pixels = split.transform(image)
    assert (pixels.shape, label, data.n_classes) == ((3, 8, 8), 1, 2)
    torch.testing.assert_close(pixels, torch.full((3, 8, 8), (200 / 255 - 0.5) / 0.5))
    plain = build_data(config("images", data_normalize="none"), None)
    assert plain.splits["test"].transform(image).max() == pytest.approx(200 / 255)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("rows", {"model": "linear"}),
        ("images", {"model": "tiny/lenet", "num_workers": 0, "optim_alg": "adam", "base_lr": 0.01}),
    ],
)
def test_it_is_learned(fork, name, keys):
    stats = run_experiment(config(name, batch_size=10, train_length=10, **keys))
    assert stats["test/last/accuracy"].iloc[-1] > 0.9


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("rwos", {}, r"dataset: my_data.small has no function 'rwos'; did you mean '.*:rows'\?"),
        ("rows", {"data_splits_map": {"train": "trian"}}, r"has no 'trian', there is: .*'train'\?"),
        ("rows", {"data_normalize": "row"}, "data_normalize: got 'row'.*did you mean 'rows'"),
        ("rows", {"data_mean": [0.5], "data_std": [0.5]}, "data_mean, data_std: for images alone"),
        ("images", {"data_normalize": "rows"}, "data_normalize: got 'rows', expected null or none"),
        ("nothing", {}, "a function that gives part -> data, not NoneType"),
        (
            "arrays_alone",
            {},
            r"\(inputs, targets\) or a torch Dataset as part 'train', not ndarray",
        ),
        ("short", {}, r"as part 'train', not \(90, 4\) and \(5,\)"),
        ("flat", {}, r"inputs \(n, …\) and targets \(n,\) as part 'train', not \(90,\)"),
        ("negative", {}, "classes numbered from 0 up"),
        ("unlike", {}, "inputs of one shape in all parts, also in 'test'"),
    ],
)
def test_mistakes_are_reported(fork, name, keys, message):
    keys = {"data_splits_map": {"train": "train"}} | keys
    with pytest.raises(UserError, match=message):
        build_data(config(name, **keys), None)
