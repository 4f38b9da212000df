"""Splits of other data sets: where they come from, and their classes in our numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from src.config import Config, make_config
from src.data.arrays import ArraySplit
from src.data.images import DatasetSplit
from src.data.registry import build_data, check_dataset
from src.data.splits import Data, Preprocessing
from src.data.splits_map import by_dataset, joined
from src.data.text import TextSplit
from src.support.errors import UserError

OURS = ("cat", "dog", "Tiger_Cat")


@pytest.mark.parametrize(
    ("spelling", "dataset", "rest"),
    [
        ("test", "tfds/y", "test"),
        ("train[:90%]+train[95%:]", "tfds/y", "train[:90%]+train[95%:]"),
        ("tfds/x:test", "tfds/x", "test"),
        ("tfds/x:test[:50%]", "tfds/x", "test[:50%]"),
        ("tfds/x:1.0.2:test[10:20]", "tfds/x:1.0.2", "test[10:20]"),
        ("hf/csv:a/b.csv:train", "hf/csv:a/b.csv", "train"),
        ("my_data.new:read:test", "my_data.new:read", "test"),
    ],
)
def test_a_split_names_its_data_set_before_the_colon(spelling, dataset, rest):
    found = by_dataset({"train": "train", "other": spelling}, "tfds/y")
    assert next(iter(found)) == "tfds/y"
    assert found[dataset]["other"] == rest


def arrays(targets: list[int], names: tuple[str, ...] | None = OURS, split: str = "test") -> Data:
    inputs = torch.arange(len(targets)).float()[:, None]
    classes = len(names) if names else max(targets) + 1
    return Data({split: ArraySplit(inputs, torch.tensor(targets))}, (1,), classes, names)


def images(targets: list[int], names: tuple[str, ...]) -> Data:
    split = DatasetSplit(Pictures(targets), picture, picture)
    return Data({"v2": split}, (1,), len(names), names)


class Pictures(torch.utils.data.Dataset):
    """Example i is an image of grey i; it counts how often it is read."""

    def __init__(self, targets: list[int]) -> None:
        self.labels, self.reads = targets, 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        return Image.new("L", (2, 2), index), self.labels[index]


def picture(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.array(image)[:1, 0]).float()


def texts(targets: list[int], names: tuple[str, ...]) -> Data:
    ends = torch.arange(1, len(targets) + 1)
    split = TextSplit(torch.arange(len(targets)).int(), ends - 1, ends, torch.tensor(targets))
    return Data({"v2": split}, (1,), len(names), names)


def examples(split) -> list[tuple[int, int]]:
    """(number of the example, class) of each."""
    if isinstance(split, ArraySplit):
        return list(zip(split.inputs[:, 0].int().tolist(), split.targets.tolist(), strict=True))
    if isinstance(split, TextSplit):
        numbers = split.tokens[split.starts].tolist()
        return list(zip(numbers, split.targets.tolist(), strict=True))
    read = (split.dataset[i] for i in range(len(split)))
    return [(int(picture(image)), target) for image, target in read]


def other(kind: str, targets: list[int], names: tuple[str, ...]) -> Data:
    return {"arrays": lambda *a: arrays(*a, "v2"), "images": images, "texts": texts}[kind](
        targets, names
    )


@pytest.mark.parametrize("kind", ["arrays", "images", "texts"])
@pytest.mark.parametrize(
    ("names", "class_map", "expected"),
    [
        (OURS, {}, [(0, 0), (1, 1), (2, 2), (3, 0)]),
        (("Dog", "tiger cat", "CAT"), {}, [(0, 1), (1, 2), (2, 0), (3, 1)]),
        (("dog", "lion", "cat"), {"lion": "Tiger_Cat"}, [(0, 1), (1, 2), (2, 0), (3, 1)]),
        (("dog", "lion", "cat"), {1: 0}, [(0, 1), (1, 0), (2, 0), (3, 1)]),
        (("dog", "lion", "cat"), {"lion": None}, [(0, 1), (2, 0), (3, 1)]),
        (("0", "1", "2"), {"0": None, "1": "dog", 2: "cat"}, [(1, 1), (2, 0)]),
    ],
)
def test_classes_get_our_numbers(kind, names, class_map, expected):
    theirs = other(kind, [0, 1, 2, 0], names)
    data = joined(arrays([0]), {"x": theirs}, {"v2": class_map}, ["test", "v2"])
    assert examples(data.splits["v2"]) == expected


def test_splits_come_in_the_order_of_the_configuration():
    theirs = arrays([0], split="v2")
    assert list(joined(arrays([0]), {"x": theirs}, {}, ["v2", "test"]).splits) == ["v2", "test"]


def test_classes_without_names_are_the_same_where_they_are_as_many():
    theirs = arrays([2, 0], None, "v2")
    data = joined(arrays([0]), {"x": theirs}, {}, ["test", "v2"])
    assert data.splits["v2"] is theirs.splits["v2"]


def test_sparse_examples_are_left_out_as_well():
    dense = torch.tensor([[1.0, 0], [0, 2], [3, 0]])
    theirs = Data({"v2": ArraySplit(dense.to_sparse_csr(), torch.tensor([0, 1, 2]))}, (2,), 3, OURS)
    ours = Data({"test": ArraySplit(dense, torch.tensor([0, 1, 2]))}, (2,), 3, OURS)
    kept = joined(ours, {"x": theirs}, {"v2": {"dog": None}}, ["v2"]).splits["v2"]
    assert kept.inputs.to_dense().tolist() == [[1, 0], [3, 0]]


def test_labels_that_a_dataset_lists_are_not_read():
    listing = Pictures([0, 1, 0])
    listing.targets = [0, 1, 0]
    whole = ConcatDataset([Subset(listing, [2, 1]), Subset(listing, range(1))])
    theirs = Data({"v2": DatasetSplit(whole, picture, picture)}, (1,), 2, ("cat", "lion"))
    kept = joined(arrays([0]), {"x": theirs}, {"v2": {"lion": None}}, ["v2"]).splits["v2"]
    assert listing.reads == 0
    assert examples(kept) == [(2, 0), (0, 0)]


@pytest.mark.parametrize("names", [("A", "a", "b"), ("crane", "dog", "crane")])
def test_the_same_names_are_the_same_classes_also_where_some_are_alike(names):
    theirs = arrays([0, 1, 2], names, "v2")
    ours = arrays([0], names)
    assert joined(ours, {"x": theirs}, {}, ["v2"]).splits["v2"].targets.tolist() == [0, 1, 2]


def test_a_name_to_the_letter_goes_before_one_that_is_nearly_it():
    ours, theirs = arrays([0], ("A", "a", "Big_b")), arrays([0, 1], ("a", "big B"), "v2")
    assert joined(ours, {"x": theirs}, {}, ["v2"]).splits["v2"].targets.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "class_map"),
    [
        (("crane", "dog", "crane"), ("crane", "dog"), {}),
        (("1", "2", "3"), ("x", "y", "z"), {"x": 1, "y": 2, "z": 0}),
    ],
)
def test_what_may_be_several_classes_is_asked(ours, theirs, class_map):
    theirs = arrays(list(range(len(theirs))), theirs, "v2")
    with pytest.raises(UserError, match=r"^data_class_map: v2 \(x\)"):
        joined(arrays([0], ours), {"x": theirs}, {"v2": class_map}, ["v2"])


def test_targets_of_another_shape_are_no_classes():
    """As those of QMNIST, eight numbers an image."""
    listing = Pictures([0, 1, 0])
    listing.targets = [[0, 5], [1, 5], [0, 5]]
    theirs = Data({"v2": DatasetSplit(listing, picture, picture)}, (1,), 2, ("cat", "lion"))
    kept = joined(arrays([0]), {"x": theirs}, {"v2": {"lion": None}}, ["v2"]).splits["v2"]
    assert examples(kept) == [(0, 0), (2, 0)]


@pytest.mark.parametrize(
    ("theirs", "class_map", "words"),
    [
        (
            arrays([0], ("cat", "doge"), "v2"),
            {},
            r"v2 \(x\) has 1 classes that are none of ours: 'doge'; say .* \{'doge': 'dog'\}",
        ),
        (arrays([0], None, "v2"), {}, "has 1 classes, ours are 3, and there are no names"),
        (arrays([0], OURS, "v2"), {"v2": {"cow": "cat"}}, "no class 'cow'"),
        (arrays([0], OURS, "v2"), {"v2": {"cat": "dgo"}}, "no class 'dgo'; did you mean 'dog'"),
        (arrays([0], OURS, "v2"), {"v2": {"cat": 3}}, "no class 3; there are 3"),
        (arrays([0], OURS, "v2"), {"v3": {}}, "data_class_map: got 'v3', expected a split of"),
        (arrays([0], OURS, "v2"), {"v2": {"cat": None}}, "of which some class is left"),
        (
            Data({"v2": ArraySplit(torch.ones(1, 1), torch.ones(1))}, (1,), None),
            {},
            "one has classes, the other real targets",
        ),
        (
            Data({"v2": ArraySplit(torch.ones(1, 2), torch.ones(1).long())}, (2,), 3, OURS),
            {},
            r"data_splits_map: got 'x', expected one with examples of shape \[1\]",
        ),
    ],
)
def test_what_does_not_map_is_named(theirs, class_map, words):
    with pytest.raises(UserError, match=words):
        joined(arrays([0]), {"x": theirs}, class_map, ["test", "v2"])


# ---- Through the configuration -----------------------------------------------------------


def config(**keys) -> Config:
    splits = {"train": "train", "test": "test", "wine": "sklearn/wine:test[:5]"}
    return make_config({"dataset": "sklearn/wine", "data_splits_map": splits} | keys)


def test_a_split_of_another_data_set_is_looked_at_as_ours(tmp_path):
    for name, classes in {"ours": "ab", "others": "ba"}.items():
        for part in "train", "test":
            for number, letter in enumerate(classes):
                folder = tmp_path / name / part / letter
                folder.mkdir(parents=True)
                grey = 50 if letter == "a" else 200
                Image.new("L", (6 + number, 6), grey).save(folder / "0.png")
    keys = {
        "dataset": "timm/folder/ours",
        "data_dir": str(tmp_path),
        "data_splits_map": {"train": "train", "o": "timm/folder/others:test"},
    }
    preprocessing = Preprocessing((1, 4, 4), (0.5,), (0.1,))
    split = build_data(make_config(keys), preprocessing).splits["o"]
    for index in range(2):
        image, target = split.dataset[index]
        expected = ((50, 200)[target] / 255 - 0.5) / 0.1
        torch.testing.assert_close(split.transform(image), torch.full((1, 4, 4), expected))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({}, 51 / 255), ({"data_mean": [0.5], "data_std": [0.1]}, (51 / 255 - 0.5) / 0.1)],
)
def test_beside_images_in_memory_those_of_files_look_as_they_do(tmp_path, keys, expected):
    (tmp_path / "grey" / "test" / "0").mkdir(parents=True)
    Image.new("L", (8, 8), 51).save(tmp_path / "grey" / "test" / "0" / "0.png")
    keys |= {"dataset": "sklearn/digits", "data_dir": str(tmp_path)}
    keys |= {"data_splits_map": {"train": "train", "o": "timm/folder/grey:test"}}
    data = build_data(make_config(keys), None)
    assert data.input_shape == (1, 8, 8)
    split = data.splits["o"]
    torch.testing.assert_close(
        split.transform(split.dataset[0][0]), torch.full((1, 8, 8), expected)
    )


def test_other_data_sets_are_checked_as_ours_are():
    unknown = {"train": "train", "other": "sklearn/wines:test"}
    with pytest.raises(UserError, match="unknown 'sklearn/wines'; did you mean 'sklearn/wine'"):
        check_dataset(config(data_splits_map=unknown))
    with pytest.raises(UserError, match="has no 'tset'"):
        check_dataset(config(data_splits_map={"train": "train", "o": "sklearn/iris:tset"}))
    with pytest.raises(UserError, match="expected train to be a part of sklearn/wine"):
        check_dataset(config(data_splits_map={"train": "sklearn/iris:train"}))
    with pytest.raises(UserError, match="data_normalize: got 'columns', expected rows or none"):
        build_data(config(data_splits_map={"train": "train", "o": "sklearn/iris:test"}), None)


def test_our_own_data_set_by_its_name_is_ours():
    data = build_data(config(), None)
    assert torch.equal(data.splits["wine"].inputs, data.splits["test"].inputs[:5])
