"""Images that are cached on the device give the batches of a loader, or say why they cannot be."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from src.config import make_config
from src.data.arrays import ArraySplit
from src.data.batch_augmentation import Mixing
from src.data.images import DatasetSplit, image_data
from src.data.registry import check_dataset
from src.data.splits import Augmentation, Data, LoaderConfig, Preprocessing
from src.support import UserError, processes

CPU = torch.device("cpu")
EVERYTHING = {"pad_crop": 2, "hflip": 0.5, "vflip": 0.3, "noise": 0.2, "erase": 0.7}
CHANGED = Augmentation(**EVERYTHING)


class Pictures(Dataset):
    """Of different sizes, unless `size` is given; class number i."""

    def __init__(self, mode: str = "RGB", size: tuple[int, int] | None = (12, 9)) -> None:
        self.mode, self.size = mode, size

    def __len__(self):
        return 23

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        width, height = self.size or (int(rng.integers(10, 30)), 20)
        shape = (height, width) if self.mode == "L" else (height, width, 3)
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)), index


def split_of(dataset: Dataset, shape=None, **requested) -> DatasetSplit:
    preprocessing = Preprocessing(shape, augmentation=Augmentation(**requested))
    names = tuple(map(str, range(23)))
    return image_data({"train": dataset}, preprocessing, name="pictures", class_names=names).splits[
        "train"
    ]


def cached(split: DatasetSplit, device: torch.device, **keys) -> ArraySplit:
    return split.cached_on_device(device, **{"num_workers": 0, "name": "train"} | keys)


def should_cache(requested, splits: dict, device: torch.device) -> bool:
    return Data(splits, (1,), None).should_cache_on_device(requested, device)


def to_device(splits: dict, device: torch.device, **keys) -> dict:
    return Data(splits, (1,), None).to_device(device, **keys)


def passes(split, *, first_step=0, batch_size=5, seed=3, **loading):
    steps = -(-23 // batch_size)
    loading = LoaderConfig(batch_size, CPU, **loading)
    made = split.training_batches(loading, seed=seed, steps_per_pass=steps, first_step=first_step)
    taken = list(islice(made, 2 * steps - first_step))
    made.close()
    return taken


def same(some, others) -> bool:
    pairs = list(zip(some, others, strict=True))
    return all(torch.equal(x, z) and torch.equal(y, t) for (x, y), (z, t) in pairs)


# ---- The batches -------------------------------------------------------------------------

DATASETS = {
    "colours": (Pictures(), None),
    "grey": (Pictures("L"), None),
    "resized": (Pictures(size=None), (3, 16, 16)),
    "made grey": (Pictures(size=None), (1, 8, 11)),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_without_augmentation_batches_are_those_of_the_loader_bit_for_bit(kind):
    dataset, shape = DATASETS[kind]
    split = split_of(dataset, shape)
    for num_workers in (0, 2):
        pixels = cached(split, CPU, num_workers=num_workers)
        assert pixels.inputs.dtype == torch.uint8
        assert same(passes(pixels), passes(split))
        evaluated = [list(s.evaluation_batches(LoaderConfig(10, CPU))) for s in (pixels, split)]
        assert [len(targets) for _, targets in evaluated[0]] == [10, 10, 3]
        assert same(*evaluated)


def test_an_evaluation_does_not_see_the_augmentation():
    split = split_of(Pictures(), **EVERYTHING)
    pixels = cached(split, CPU)
    evaluated = [list(s.evaluation_batches(LoaderConfig(10, CPU))) for s in (pixels, split)]
    assert same(*evaluated)
    assert not same(passes(pixels, augmentation=CHANGED), passes(pixels))


def test_certain_changes_are_those_of_the_loader():
    """Flips that always come leave nothing to chance but rounding."""
    split = split_of(Pictures(), hflip=1.0, vflip=1.0)
    changed = Augmentation(hflip=1.0, vflip=1.0)
    assert same(passes(cached(split, CPU), augmentation=changed), passes(split))


def test_batches_repeat_and_continue_anywhere_and_differ_by_pass_and_seed():
    pixels = cached(split_of(Pictures()), CPU)
    whole = passes(pixels, augmentation=CHANGED)
    assert same(passes(pixels, augmentation=CHANGED), whole)
    assert same(passes(pixels, augmentation=CHANGED, first_step=7), whole[7:])
    first, second, other = (
        {int(i): x for inputs, targets in some for x, i in zip(inputs, targets, strict=True)}
        for some in (whole[:5], whole[5:], passes(pixels, augmentation=CHANGED, seed=4)[:5])
    )
    assert first.keys() == second.keys() == other.keys() == set(range(23))
    assert all(not torch.equal(first[i], second[i]) for i in first)
    assert all(not torch.equal(first[i], other[i]) for i in first)


def test_an_image_is_changed_alike_in_large_batches_and_in_small_ones():
    pixels = cached(split_of(Pictures()), CPU)
    (large, *_), small = (passes(pixels, augmentation=CHANGED, batch_size=n) for n in (23, 1))
    small = small[:23]
    assert torch.equal(torch.cat([inputs for inputs, _ in small]), large[0])


def test_copies_of_an_image_differ_and_the_first_is_as_without_copies():
    split = split_of(Pictures(), **EVERYTHING)
    pixels = cached(split, CPU)
    copied = passes(pixels, augmentation=CHANGED, batch_size=6, repeats=3)
    assert [y.tolist() for _, y in copied] == [
        y.tolist() for _, y in passes(split, batch_size=6, repeats=3)
    ]
    inputs, targets = copied[0]
    assert torch.equal(targets[::3], targets[1::3])
    assert not torch.equal(inputs[::3], inputs[1::3])
    alone = passes(pixels, augmentation=CHANGED, batch_size=6)[0][0]
    assert torch.equal(inputs[::3], alone[:2])


def test_images_are_mixed_as_those_of_the_loader():
    split = split_of(Pictures())
    both = Mixing(23, mixup=0.3, cutmix=1.0)
    assert same(passes(cached(split, CPU), mixing=both), passes(split, mixing=both))
    pixels = cached(split, CPU)
    before = pixels.inputs.clone()
    passes(pixels, mixing=both)
    assert torch.equal(pixels.inputs, before)  # mixing changes its inputs in place


def test_an_image_that_cannot_be_read_is_named():
    class Broken(Pictures):
        def __getitem__(self, index):
            if index == 17:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="truncated") as raised:
        cached(replace(split_of(Pictures()), dataset=Broken()), CPU)
    assert raised.value.__notes__ == ["example 17 of 23"]


# ---- Whether -----------------------------------------------------------------------------

ARRAYS = {"train": ArraySplit(torch.rand(4, 2), torch.arange(4))}


def test_all_splits_of_images_are_cached_where_that_is_asked_for():
    split = split_of(Pictures(), **EVERYTHING)
    splits = {"train": split, "test": split_of(Pictures())}
    for requested in (True, "auto"):
        assert should_cache(requested, splits, CPU) is True
    made = to_device(splits, CPU, is_cached=True, num_workers=0)
    assert list(made) == ["train", "test"]
    assert all(one.inputs.dtype == torch.uint8 for one in made.values())
    assert should_cache(False, splits, CPU) is False
    assert to_device(splits, CPU, is_cached=False, num_workers=0) == splits


@pytest.mark.parametrize("requested", [True, "auto", False])
def test_arrays_live_there_already_and_nothing_is_said(requested, log_lines):
    assert should_cache(requested, ARRAYS, CPU) is bool(requested)
    made = to_device(ARRAYS, CPU, is_cached=bool(requested), num_workers=0)
    assert torch.equal(made["train"].inputs, ARRAYS["train"].inputs)
    assert log_lines == []


ONE_BY_ONE = [("crop_scale", (0.1, 1.0)), ("auto", "v0"), ("color_jitter", 0.4)]


@pytest.mark.parametrize(("name", "value"), ONE_BY_ONE)
def test_what_is_done_one_image_at_a_time_keeps_them_from_it(name, value, log_lines):
    splits = {"train": split_of(Pictures(), **{name: value})}
    words = f"aug_{name} works one image at a time"
    with pytest.raises(UserError, match=f"^data_on_device: got True, expected auto .*{words}"):
        should_cache(True, splits, CPU)
    assert should_cache("auto", splits, CPU) is False
    (line,) = log_lines
    assert line.startswith(f"images are read one at a time, not cached on cpu: {words}")


@pytest.mark.parametrize(("name", "value"), ONE_BY_ONE)
def test_that_is_known_before_there_are_data(name, value):
    value = list(value) if isinstance(value, tuple) else value
    keys = {"dataset": "timm/torch/cifar10", "data_dir": "nowhere", f"aug_{name}": value}
    check_dataset(make_config(keys | {"data_on_device": "auto"}))
    with pytest.raises(UserError, match=f"^data_on_device: got True, .*aug_{name}"):
        check_dataset(make_config(keys | {"data_on_device": True}))


def test_transforms_of_one_s_own_keep_them_from_it(log_lines):
    usual = split_of(Pictures(), hflip=0.5)
    own = DatasetSplit(Pictures(), torch.as_tensor, torch.as_tensor)
    for split in (
        own,
        replace(usual, train_transform=torch.as_tensor),
        replace(usual, train_transform=replace(usual.train_transform, augmentation=None)),
    ):
        with pytest.raises(UserError, match=r"^data_on_device: .* test has a transform of its own"):
            should_cache(True, {"train": usual, "test": split}, CPU)
        assert should_cache("auto", {"train": usual, "test": split}, CPU) is False
    assert len(log_lines) == 3


def test_auto_asks_for_four_times_their_memory_and_true_for_none(monkeypatch, log_lines):
    splits = {"train": split_of(Pictures()), "test": split_of(Pictures())}
    needed = 2 * 23 * 3 * 9 * 12
    for free, is_enough in ((4 * needed, True), (4 * needed - 1, False), (None, False)):
        monkeypatch.setattr(processes, "free_memory", lambda _=None, free=free: free)
        assert should_cache("auto", splits, CPU) is is_enough
        assert should_cache(True, splits, CPU) is True
    assert [line.rpartition(": ")[2] for line in log_lines] == [
        "they take 0.0 MB, more than 1/4 of the free memory, 0.1 MB",
        "they take 0.0 MB, more than 1/4 of the free memory, unknown",
    ]


def test_images_that_do_not_fit_are_told_in_one_line():
    class Endless(Pictures):
        def __len__(self):
            return 2**46

    with pytest.raises(UserError, match=r"^data_on_device: got True, .* GB of images do not fit"):
        cached(replace(split_of(Pictures()), dataset=Endless()), CPU)
