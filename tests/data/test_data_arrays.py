"""Rows, normalisation and shape of arrays, dense and CSR alike."""

from itertools import islice

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from sklearn.preprocessing import normalize

from src.data.arrays import (
    ArraySplit,
    csr_tensor,
    split_arrays,
    take,
    to_shape,
    warn_of_absent_classes,
    with_num_classes,
)
from src.data.splits import Augmentation, Data, LoaderConfig, Preprocessing
from src.data.splits_map import Range
from src.data.transforms import SWITCHES
from src.support.errors import UserError


def make(layout: str, n: int = 20, d: int = 7, seed: int = 0) -> tuple[ArraySplit, np.ndarray]:
    dense = sparse.random(n, d, 0.4, dtype=np.float32, random_state=seed).toarray()
    dense[3] = 0
    if layout == "csr":
        matrix = sparse.csr_matrix(dense)
        parts = (torch.from_numpy(a) for a in (matrix.indptr, matrix.indices, matrix.data))
        inputs = csr_tensor(*parts, d)
    else:
        inputs = torch.from_numpy(dense.copy())
    return ArraySplit(inputs, torch.arange(n) % 3), dense


def storage(split: ArraySplit) -> int:
    inputs = split.inputs
    values = inputs if inputs.layout == torch.strided else inputs.values()
    return values.untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_ranges_are_the_rows_in_order(layout):
    (train, x), (test, y) = make(layout), make(layout, n=9, seed=1)
    ranges = [Range("train", 5, 20), Range("test", 0, 9), Range("train", 0, 4)]
    got = take({"train": train, "test": test}, ranges)
    assert got.inputs.layout == train.inputs.layout
    np.testing.assert_array_equal(got.inputs.to_dense(), np.vstack([x[5:], y, x[:4]]))
    expected = torch.cat([train.targets[5:], test.targets, train.targets[:4]])
    assert torch.equal(got.targets, expected)


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_one_range_is_a_view(layout):
    whole, x = make(layout)
    for start, stop in [(0, 20), (2, 9)]:
        part = take({"train": whole}, [Range("train", start, stop)])
        assert storage(part) == storage(whole)
        np.testing.assert_array_equal(part.inputs.to_dense(), x[start:stop])


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_rows_get_unit_norm_in_place(layout, monkeypatch):
    monkeypatch.setattr("src.data.arrays.ROWS_AT_A_TIME", 6)  # several blocks, the last one short
    whole, x = make(layout)
    splits = split_arrays({"train": whole}, {"train": "train[:15]", "test": "train[10:]"}, "rows")
    np.testing.assert_allclose(splits["train"].inputs.to_dense(), normalize(x)[:15], rtol=1e-6)
    np.testing.assert_allclose(splits["test"].inputs.to_dense(), normalize(x)[10:], rtol=1e-6)
    assert storage(splits["test"]) == storage(whole)


def test_columns_are_standardised_by_our_train_split():
    whole, x = make("dense")
    x[:12, 2] = whole.inputs[:12, 2] = 5.0  # constant in train
    splits = split_arrays({"train": whole}, {"train": "train[:12]", "val": "train[8:]"}, "columns")
    mean, std = x[:12].mean(0), x[:12].std(0)
    std[std == 0] = 1
    np.testing.assert_allclose(splits["train"].inputs, ((x - mean) / std)[:12], atol=1e-5)
    np.testing.assert_allclose(splits["val"].inputs, ((x - mean) / std)[8:], atol=1e-5)


def test_sparse_columns_and_unknown_ways_are_refused():
    whole, _ = make("csr")
    with pytest.raises(UserError, match=r"data_normalize: got 'columns'.*sparse"):
        split_arrays({"train": whole}, {"train": "train"}, "columns")
    with pytest.raises(UserError, match="data_normalize: got 'row'"):
        split_arrays({"train": whole}, {"train": "train"}, "row")


def images(n_channels: int = 1) -> Data:
    split = ArraySplit(torch.rand(4, n_channels, 8, 8), torch.tensor([0, 1, 1, 0]))
    return Data({"train": split}, (n_channels, 8, 8), 2)


def test_images_take_the_shape_and_the_statistics_asked_for():
    wanted = Preprocessing((3, 16, 16), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    fitted = to_shape(images(), wanted, "x/y")
    plain = to_shape(images(), Preprocessing((1, 16, 16)), "x/y")
    inputs = fitted.splits["train"].inputs
    assert inputs.shape == (4, *fitted.input_shape) == (4, 3, 16, 16)
    torch.manual_seed(0)
    data = images()
    same = to_shape(data, Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), "x/y")
    expected = (data.splits["train"].inputs[:, 0] - 0.4) / 0.2
    torch.testing.assert_close(same.splits["train"].inputs[:, 1], expected)
    assert plain.splits["train"].inputs.shape == (4, 1, 16, 16)


def test_rows_take_shapes_with_as_many_elements():
    whole, x = make("dense", d=12)
    data = Data({"train": whole}, (12,), 3)
    shaped = to_shape(data, Preprocessing((3, 2, 2)), "x/y")
    np.testing.assert_array_equal(shaped.splits["train"].inputs[5, 1], x[5, 4:8].reshape(2, 2))
    with pytest.raises(UserError, match=r"model_input_shape: got \[3, 2, 3\], expected \[12\]"):
        to_shape(data, Preprocessing((3, 2, 3)), "x/y")
    assert to_shape(data, Preprocessing(mean=(0.5,), std=(0.5,)), "x/y") is data


def test_classes_may_be_more_but_not_fewer():
    data = images()
    assert with_num_classes(data, 5, "x/y").n_classes == 5
    assert with_num_classes(data, None, "x/y") is data
    with pytest.raises(UserError, match="data_n_classes: got 1, expected at least the 2"):
        with_num_classes(data, 1, "x/y")
    several = ArraySplit(torch.ones(4, 3), torch.tensor([[1.0, 0.0]] * 4))
    wider = with_num_classes(Data({"train": several}, (3,), 2), 4, "x/y")
    assert wider.splits["train"].targets.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 4
    with pytest.raises(UserError, match="regression"):
        with_num_classes(Data({"train": several}, (3,), None), 4, "x/y")


def test_a_train_split_without_a_class_is_told(log_lines):
    sorted_by_class = ArraySplit(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))
    warn_of_absent_classes(Data({"train": sorted_by_class}, (3,), 2))
    assert log_lines == []
    warn_of_absent_classes(Data({"train": sorted_by_class}, (3,), 3))
    assert "1 of 3 classes have no example" in log_lines[0]


# ---- Changed at random -------------------------------------------------------------------

CHANGED = Augmentation(pad_crop=2, hflip=0.5, vflip=0.3, noise=0.1, erase=0.6)


def passes(split: ArraySplit, *, first_step=0, seed=3, batch_size=5, **loader):
    """Two passes over 23 examples."""
    loader = LoaderConfig(batch_size, torch.device("cpu"), **loader)
    steps = -(-len(split) // batch_size)
    batches = split.training_batches(loader, seed=seed, steps_per_pass=steps, first_step=first_step)
    return list(islice(batches, 2 * steps - first_step))


def numbered_images() -> ArraySplit:
    return ArraySplit(torch.rand(23, 2, 6, 9), torch.arange(23))


def same(some, others) -> bool:
    pairs = list(zip(some, others, strict=True))
    return all(torch.equal(x, z) and torch.equal(y, t) for (x, y), (z, t) in pairs)


def by_number(batches) -> dict[int, torch.Tensor]:
    return {int(y): x for inputs, targets in batches for x, y in zip(inputs, targets, strict=True)}


def test_an_array_is_changed_by_seed_pass_and_index_alone():
    split, before = numbered_images(), torch.get_rng_state()
    unchanged = split.inputs.clone()
    whole = passes(split, augmentation=CHANGED)
    assert same(passes(split, first_step=7, augmentation=CHANGED), whole[7:])
    single = by_number(passes(split, batch_size=1, augmentation=CHANGED)[:23])
    first, second, other = (
        by_number(some)
        for some in (whole[:5], whole[5:], passes(split, seed=4, augmentation=CHANGED)[:5])
    )
    assert first.keys() == second.keys() == other.keys() == set(range(23))
    for i, image in first.items():
        assert torch.equal(image, single[i])
        assert not torch.equal(image, second[i])
        assert not torch.equal(image, other[i])
        assert not torch.equal(image, unchanged[i])
    assert torch.equal(split.inputs, unchanged)  # the data stay as they are
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("repeats", [1, 3])
def test_changed_arrays_of_several_processes_put_together_are_those_of_one(repeats):
    split, keys = numbered_images(), {"augmentation": CHANGED, "repeats": repeats}
    shards = [passes(split, rank=rank, num_processes=2, **keys) for rank in (0, 1)]
    together = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shards)]  # noqa: B905
    assert same(together, passes(split, **keys))


def test_copies_of_an_array_differ_and_the_first_is_as_without_copies():
    split = numbered_images()
    for augmentation in (CHANGED, Augmentation(noise=0.1)):
        copied = passes(split, batch_size=6, repeats=3, augmentation=augmentation)[0]
        inputs, targets = copied
        assert torch.equal(targets[::3], targets[1::3])
        assert len(inputs.flatten(1).unique(dim=0)) == 6
        alone, _ = passes(split, batch_size=6, augmentation=augmentation)[0]
        assert torch.equal(inputs[::3], alone[:2])


def test_rows_take_noise_of_the_deviation_asked_for():
    split = ArraySplit(torch.full((1000, 40), 5.0), torch.arange(1000))
    inputs, _ = passes(split, batch_size=1000, augmentation=Augmentation(noise=0.3))[0]
    noise = (inputs - 5) / 0.3
    assert stats.kstest(noise.flatten(), "norm").pvalue > 0.001
    assert abs(np.corrcoef(noise.T)).sum() < 40 + 40 * 39 * 0.03


def test_what_changes_arrays_depends_on_their_shape():
    rows = {"noise", "mixup"}
    images = {"pad_crop", "hflip", "vflip", "erase", "cutmix"} | rows
    splits = (make("csr")[0], set()), (make("dense")[0], rows), (numbered_images(), images)
    for split, allowed in splits:
        names = {*SWITCHES, "mixup", "cutmix"}
        assert {name for name in names if not split.augmentation_obstacle(name)} == allowed
