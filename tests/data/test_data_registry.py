"""build_data: what the keys of the configuration do, whatever the family."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from src.config import Config, make_config
from src.data.registry import build_data, check_dataset
from src.data.sources.sklearn import stratified_split
from src.data.splits import Preprocessing
from src.support.errors import UserError


def config(**keys) -> Config:
    return make_config({"dataset": "sklearn/digits", "data_dir": "nowhere"} | keys)


@pytest.mark.parametrize(
    ("name", "shape", "n_classes", "n"),
    [
        ("digits", (1, 8, 8), 10, 1797),
        ("breast_cancer", (30,), 2, 569),
        ("wine", (13,), 3, 178),
        ("iris", (4,), 3, 150),
        ("diabetes", (10,), None, 442),
    ],
)
def test_bundled_sets(name, shape, n_classes, n):
    data = build_data(config(dataset=f"sklearn/{name}"), None)
    train, test = data.splits["train"], data.splits["test"]
    assert (data.input_shape, data.n_classes) == (shape, n_classes)
    assert (len(train) + len(test), train.inputs.shape[1:]) == (n, shape)
    assert train.inputs.dtype == torch.float32
    if n_classes is None:
        assert train.targets.dtype == torch.float32
        return
    whole = torch.bincount(torch.cat([train.targets, test.targets]))
    assert (torch.bincount(test.targets) - 0.2 * whole).abs().max() <= 0.5
    if len(shape) == 1:
        torch.testing.assert_close(train.inputs.mean(0), torch.zeros(shape), atol=1e-5, rtol=0)
        torch.testing.assert_close(train.inputs.std(0, correction=0), torch.ones(shape))
    else:
        assert (train.inputs.min(), train.inputs.max()) == (0, 1)


def test_the_split_of_bundled_sets_never_changes():
    train, test = stratified_split(load_digits().target)
    assert sorted([*train, *test]) == list(range(1797))
    assert train[:5].tolist() == [1093, 522, 620, 1369, 704]
    assert test[:5].tolist() == [1081, 1707, 927, 713, 262]


def test_each_example_keeps_its_label():
    inputs, targets = load_wine(return_X_y=True)
    data = build_data(config(dataset="sklearn/wine", data_normalize="none"), None)
    labels = dict(zip(map(tuple, inputs.astype(np.float32)), targets, strict=True))
    for split in data.splits.values():
        for row, label in zip(split.inputs.numpy(), split.targets.tolist(), strict=True):
            assert labels[tuple(row)] == label


def test_slices_share_out_the_part():
    whole = build_data(config(data_splits_map={"train": "train"}), None).splits["train"]
    splits_map = {"train": "train[:75%]", "val": "train[75%:]"}
    data = build_data(config(data_splits_map=splits_map), None)
    both = torch.cat([data.splits["train"].inputs, data.splits["val"].inputs])
    assert torch.equal(both, whole.inputs)


def test_the_config_overrules_the_network():
    network = Preprocessing((3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert build_data(config(), network).input_shape == (3, 16, 16)
    data = build_data(config(model_input_shape=[1, 8, 8], data_mean=[0.3], data_std=[2]), network)
    plain = build_data(config(), None)
    torch.testing.assert_close(data.splits["test"].inputs, (plain.splits["test"].inputs - 0.3) / 2)


def test_found_values_given_again_change_nothing():
    first = build_data(config(), None)
    again = build_data(
        config(model_input_shape=list(first.input_shape), data_n_classes=first.n_classes), None
    )
    assert torch.equal(first.splits["train"].inputs, again.splits["train"].inputs)
    assert build_data(config(data_n_classes=12), None).n_classes == 12


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dataset": "sklearns/digits"}, r"dataset: unknown 'sklearns'; did you mean 'sklearn'"),
        ({"dataset": "sklearn/digit"}, r"dataset: unknown '.*'; did you mean 'sklearn/digits'"),
        ({"dataset": "digits"}, r"dataset: unknown 'digits'"),
        ({"data_n_classes": 9}, "data_n_classes: got 9, expected at least the 10"),
        ({"data_mean": [0.5]}, "data_mean, data_std: give both"),
        ({"dataset": "sklearn/iris", "data_mean": [0.5], "data_std": [1]}, "for images alone"),
        ({"dataset": "sklearn/iris", "model_input_shape": [5]}, r"model_input_shape: got \[5\]"),
        (
            {"dataset": "timm/torch/mnist", "data_normalize": "rows"},
            "data_normalize: got 'rows', expected null",
        ),
        (
            {
                "dataset": "timm/torch/mnist",
                "data_normalize": "none",
                "data_mean": [0.1],
                "data_std": [0.3],
            },
            "data_mean and data_std are given",
        ),
    ],
)
def test_contradictions_and_unknown_values_are_named(keys, words):
    with pytest.raises(UserError, match=words):
        build_data(config(**keys), None)


@pytest.mark.parametrize(
    "dataset",
    ["sklearn/iris", "libsvm/a9a", "timm/torch/cifar10", "timm/folder/nowhere"],
)
def test_names_are_checked_without_the_data(tmp_path, dataset):
    folder = tmp_path / "data"
    check_dataset(config(dataset=dataset, data_dir=str(folder), data_download=True))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dataset": "mnist"}, "dataset: unknown 'mnist'"),
        ({"dataset": "sklearn/irsi"}, "dataset: unknown '.*'; did you mean 'sklearn/iris'"),
        ({"dataset": "libsvm/a99a"}, "dataset: unknown 'libsvm/a99a'; did you mean 'libsvm/a9a'"),
        ({"dataset": "timm/torchs/mnist"}, "dataset: unknown 'timm/torchs/mnist'"),
        ({"dataset": "timm/torch/cifar"}, "dataset: unknown 'cifar'; did you mean 'cifar10'"),
        ({"data_splits_map": {"train": "trian"}}, "sklearn/digits has no 'trian'"),
        ({"dataset": "libsvm/abalone"}, "libsvm/abalone has no 'test'"),
        ({"dataset": "timm/torch/imagenet"}, "timm/torch/imagenet has no 'test'"),
        ({"data_std": [0.5]}, "data_mean, data_std: give both"),
        ({"dataset": "libsvm/a9a", "data_mean": [1], "data_std": [1]}, "for images alone"),
        ({"dataset": "timm/torch/mnist", "data_normalize": "rows"}, "data_normalize: got 'rows'"),
    ],
)
def test_what_shows_without_the_data_is_refused_without_them(keys, words):
    with pytest.raises(UserError, match=words):
        check_dataset(config(**keys))


@pytest.mark.parametrize("dataset", ["sklearn/digits", "timm/torch/mnist", "tests.own_parts:read"])
def test_a_version_of_data_that_have_none_is_refused(dataset):
    with pytest.raises(UserError, match=r"^data_version: got '9.9', expected null, as "):
        check_dataset(config(dataset=dataset, data_version="9.9"))


def test_images_in_memory_are_resized_as_asked():
    def resized(how: str) -> torch.Tensor:
        keys = {"model_input_shape": [1, 12, 12], "data_interpolation": how}
        return build_data(config(**keys), None).splits["test"].inputs

    found = {how: resized(how) for how in ("nearest", "bilinear", "bicubic")}
    assert {how: len(images.unique()) for how, images in found.items()}["nearest"] <= 17
    assert len({images.sum().item() for images in found.values()}) == 3
