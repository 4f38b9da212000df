"""Slices mean what TFDS means by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.splits_map import Range, bases_used, check_bases, resolve, resolve_all
from src.support.errors import UserError

SIZES = {"train": 1000, "test": 7}


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("train", [("train", 0, 1000)]),
        ("train[:]", [("train", 0, 1000)]),
        ("train[:90%]", [("train", 0, 900)]),
        ("train[100:200]", [("train", 100, 200)]),
        ("train[1_00:2_00]", [("train", 100, 200)]),
        ("train[-10:]", [("train", 990, 1000)]),
        ("train[:-10%]", [("train", 0, 900)]),
        ("train[12.5%:200]", [("train", 125, 200)]),
        ("train[0.5%:50]", [("train", 5, 50)]),
        (" train[10%:20%] + train[90%:]", [("train", 100, 200), ("train", 900, 1000)]),
        ("train+test", [("train", 0, 1000), ("test", 0, 7)]),
        ("test[:50%]", [("test", 0, 4)]),  # 3.5: to the even number, as in TFDS
        ("test[50%:]", [("test", 4, 7)]),
    ],
)
def test_spelling_means(spelling, expected):
    assert resolve(spelling, SIZES) == [Range(*e) for e in expected]


@given(size=st.integers(1, 10**7), percent=st.integers(1, 99))
def test_the_two_sides_of_a_percentage_share_out_all(size, percent):
    boundary = round(percent * size / 100)
    if 0 < boundary < size:
        assert resolve(f"train[:{percent}%]", {"train": size}) == [("train", 0, boundary)]
        assert resolve(f"train[{percent}%:]", {"train": size}) == [("train", boundary, size)]
    else:  # of very few examples one side gets all
        empty = f"train[:{percent}%]" if boundary == 0 else f"train[{percent}%:]"
        with pytest.raises(UserError, match="is empty"):
            resolve(empty, {"train": size})


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("train[:90", r"'train\[:90': the bracket \[ is not closed"),
        ("train:90]", r"'train:90\]': the bracket \] was not opened"),
        ("train[5]", "cannot read"),
        ("train[::2]", "cannot read"),
        ("train[:0.5]", "cannot read"),
        ("train[:" + "9" * 5000 + "]", "cannot read"),
        ("train[:" + "9" * 5000 + "%]", "cannot read"),
        ("train+", "cannot read ''"),
        ("", "cannot read"),
        ("test+train[:x]", r"cannot read 'train\[:x\]' in 'test\+train\[:x\]'"),
        ("train[50:50]", "is empty"),
        ("train[90%:10%]", "is empty"),
        ("test[:8]", "beyond the 7 examples"),
        ("test[-8:]", "beyond the 7 examples"),
        ("train[:101%]", "beyond the 1000 examples"),
    ],
)
def test_bad_spelling_is_named(spelling, words):
    with pytest.raises(UserError, match=words):
        resolve(spelling, SIZES)


def test_unknown_part_lists_those_there_are():
    with pytest.raises(UserError, match=r"val: 'tset'.*no 'tset'.*'train', 'test'.*mean 'test'"):
        check_bases({"train": "train", "val": "tset"}, ("train", "test"), "x/y")
    with pytest.raises(UserError, match=r"no 'test'.*there is: 'train'.*train\[80%:\]"):
        check_bases({"train": "train", "test": "test"}, ("train",), "x/y")


@pytest.mark.parametrize(
    ("splits_map", "said"),
    [
        ({"val": "train[90%:]", "test": "test"}, []),
        ({"val": "train[90:]"}, ["data_splits_map: 810 of 910 examples of val are in train"]),
        ({"a": "test+train[:7]", "b": "test"}, ["data_splits_map: 7 of 14 examples of a"]),
    ],
)
def test_examples_that_are_trained_on_and_evaluated_on_are_said(splits_map, said, log_lines):
    ranges = resolve_all({"train": "train[:90%]"} | splits_map, SIZES)
    assert ranges["train"] == [Range("train", 0, 900)]
    assert [line[: len(words)] for line, words in zip(log_lines, said, strict=True)] == said


def test_parts_of_train_come_first():
    assert bases_used({"val": "test[:5]", "train": "train+extra", "test": "test"}) == [
        "train",
        "extra",
        "test",
    ]
