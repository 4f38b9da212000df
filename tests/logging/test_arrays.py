"""arrays/: a row an epoch, whatever has been killed while it was written."""

import numpy as np
import pytest

from src.logging.records import Stats, append_arrays
from src.support.errors import UserError

COLUMN = "test/last/class_accuracy"


def append(folder, row, arrays):
    append_arrays(folder, row, {column: np.array(x, float) for column, x in arrays.items()})


def rows(folder, column=COLUMN):
    return Stats.read_arrays(folder)[column].tolist()


def test_an_array_is_a_row_an_epoch_that_numpy_reads(tmp_path):
    for row in range(3):
        append(tmp_path, row, {COLUMN: np.array([row, 0.5]), "train/norm": np.eye(2) * row})
    assert rows(tmp_path) == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    found = np.load(tmp_path / "arrays" / "test.last.class_accuracy.npy")
    assert found.dtype == np.float64
    assert Stats.read_arrays(tmp_path)["train/norm"].shape == (3, 2, 2)


def test_epochs_without_a_value_are_nan(tmp_path):
    append(tmp_path, 2, {COLUMN: [1.0]})
    append(tmp_path, 3, {})
    append(tmp_path, 4, {COLUMN: [2.0]})
    assert str(rows(tmp_path)) == "[[nan], [nan], [1.0], [nan], [2.0]]"


def test_a_resumed_run_writes_over_the_rows_of_the_killed_attempt(tmp_path):
    for row in range(4):
        append(tmp_path, row, {COLUMN: [row], "train/old": [row]})
    append(tmp_path, 1, {COLUMN: [10.0]})
    assert rows(tmp_path) == [[0.0], [10.0]]
    assert rows(tmp_path, "train/old") == [[0.0]]


def test_a_row_that_was_torn_does_not_count(tmp_path):
    for row in range(3):
        append(tmp_path, row, {COLUMN: [row, row]})
    path = tmp_path / "arrays" / "test.last.class_accuracy.npy"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\1\2\3")  # killed between the row and the header
    assert len(rows(tmp_path)) == 3
    path.write_bytes(whole[:-5])  # cut off by a disk that was full
    append(tmp_path, 3, {COLUMN: [3, 3]})
    assert str(rows(tmp_path)) == "[[0.0, 0.0], [1.0, 1.0], [nan, nan], [3.0, 3.0]]"
    path.write_bytes(b"")  # killed when it was made
    append(tmp_path, 1, {COLUMN: [1, 1]})
    assert str(rows(tmp_path)) == "[[nan, nan], [1.0, 1.0]]"


def test_another_shape_is_refused_and_nothing_is_lost(tmp_path):
    append(tmp_path, 0, {COLUMN: [1.0, 2.0]})
    with pytest.raises(UserError, match=r"^test/last/class_accuracy: .* \(3,\), and had \(2,\)"):
        append(tmp_path, 1, {COLUMN: [1.0, 2.0, 3.0]})
    assert rows(tmp_path) == [[1.0, 2.0]]


def test_files_of_others_stay_as_they_are(tmp_path):
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "mine.npy", np.arange(5))
    np.save(tmp_path / "arrays" / "train.mine.npy", np.arange(5))  # a name like ours
    (tmp_path / "arrays" / "train.empty.npy").write_bytes(b"")
    append(tmp_path, 0, {COLUMN: [1.0]})
    for name in ("mine", "train.mine"):
        assert np.load(tmp_path / "arrays" / f"{name}.npy").tolist() == [0, 1, 2, 3, 4]
    assert list(Stats.read_arrays(tmp_path)) == [COLUMN]


def test_names_of_splits_with_dots_come_back(tmp_path):
    append(tmp_path, 0, {"imagenet-v2.1/av/confusion": np.eye(2)})
    assert list(Stats.read_arrays(tmp_path)) == ["imagenet-v2.1/av/confusion"]


def test_many_classes_and_epochs_cost_what_they_weigh(tmp_path):
    for row in range(200):
        append(tmp_path, row, {COLUMN: np.full(1_000, row)})
    path = tmp_path / "arrays" / "test.last.class_accuracy.npy"
    assert path.stat().st_size < 1.001 * 200 * 1_000 * 8
    assert rows(tmp_path)[199][0] == 199
