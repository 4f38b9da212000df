"""Whole runs on augmented and mixed images: stopped, cut into micro-batches, by other workers."""

import numpy as np
import pandas as pd
import pytest
from whole_runs import end_of, run_through, without_times

from src.config import load_config, make_config
from src.runtime.signals import StopRequested
from src.support.errors import UserError
from tests.data.sources.written_sets import write_cifar, write_mnist
from train import run_experiment

MIXED = {"aug_mixup": 0.2, "aug_cutmix": 1.0, "aug_mix_prob": 0.8}
EVERYTHING = MIXED | {
    "aug_pad_crop": 2,
    "aug_hflip": 0.5,
    "aug_vflip": 0.5,
    "aug_auto": "rand-m9-mstd0.5-inc1",
    "aug_color_jitter": 0.4,
    "aug_noise": 0.1,
    "aug_erase": 0.5,
    "aug_repeats": 2,
    "aug_function": "tests.own_parts:shake",
}


@pytest.fixture
def fashion(tmp_path):
    """A Config for 30 noisy images: three epochs of four steps, of 9, 9, 9 and 3 examples."""
    write_mnist(tmp_path)

    def build(**keys):
        small = {
            "dataset": "timm/torch/fashion_mnist",
            "data_dir": str(tmp_path),
            "data_download": False,
            "model": "tiny/lenet",
            "optim_alg": "adam",
            "base_lr": 0.003,
            "batch_size": 9,
            "train_length": 3,
            "num_workers": 0,
            "seed_model": 1,
            "seed_training": 2,
            "save_plot": False,
        }
        return make_config(small | keys)

    return build


CROPPED = EVERYTHING | {"aug_pad_crop": 0, "aug_crop_scale": [0.3, 1.0], "aug_repeats": 4}


@pytest.mark.parametrize("keys", [EVERYTHING, CROPPED], ids=["everything", "cropped"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_anywhere_it_ends_the_same(fashion, tmp_path, interrupt, keys, num_workers):
    straight = fashion(output_dir=str(tmp_path / "straight"), **keys)
    run_experiment(straight)
    interrupt(2, 3, 7, 12)
    stopped = fashion(output_dir=str(tmp_path / "run"), num_workers=num_workers, **keys)
    assert run_through(stopped) > 3
    assert end_of(stopped) == end_of(straight)


@pytest.mark.parametrize("key", EVERYTHING)
def test_each_key_has_a_say_in_training_alone(fashion, key):
    others = {k: v for k, v in EVERYTHING.items() if k != key}
    some, all_on = (run_experiment(fashion(train_length=0.5, **k)) for k in (others, EVERYTHING))
    assert some["train/loss"].iloc[0] != all_on["train/loss"].iloc[0]
    unmoved = [
        run_experiment(fashion(train_length=0, **k))["test/last/loss"].iloc[0]
        for k in (others, EVERYTHING)
    ]
    assert unmoved[0] == unmoved[1]


@pytest.mark.parametrize("keys", [{}, {"loss_class_weights": [0.1, 1, 2, 3, 4, 5, 0.5, 0.5, 1, 7]}])
def test_micro_batches_of_mixed_images_train_as_the_whole_batch(fashion, keys):
    keys = MIXED | {"aug_hflip": 0.5, "label_smoothing": 0.1} | keys
    whole, cut = (
        run_experiment(fashion(grad_accum_steps=number, optim_alg="sgd", base_lr=0.01, **keys))
        for number in (1, 3)
    )
    np.testing.assert_allclose(without_times(whole), without_times(cut), rtol=2e-4)


def test_arrays_of_images_are_mixed_too(digits):
    keys = {"aug_cutmix": 1.0, "model": "tiny/lenet", "model_input_shape": [1, 32, 32]}
    keys |= {"output_dir": None, "train_length": 6, "base_lr": 0.003}
    stats = run_experiment(digits(**keys))
    assert stats["test/last/accuracy"].iloc[-1] > 0.85
    assert stats["train/accuracy"].iloc[-1] < stats["test/last/accuracy"].iloc[-1]
    assert stats["train/loss"].iloc[-1] > 0.5  # a mixed image is never sure


ARRAYS = {"aug_pad_crop": 1, "aug_hflip": 0.5, "aug_vflip": 0.5, "aug_noise": 0.1}
ARRAYS |= MIXED | {"aug_erase": 0.5, "aug_repeats": 2}


def test_a_run_on_changed_arrays_ends_the_same_stopped_anywhere(digits, tmp_path, interrupt):
    keys = {"model": "tiny/lenet", "model_input_shape": [1, 32, 32], "train_length": 0.5}
    keys |= ARRAYS | {"base_lr": 0.003}
    straight, stopped = (digits(output_dir=str(tmp_path / name), **keys) for name in "ab")
    run_experiment(straight)
    interrupt(2, 3, 6)
    assert run_through(stopped) > 3
    assert end_of(stopped) == end_of(straight)


@pytest.mark.parametrize("key", ARRAYS)
def test_each_key_has_a_say_in_training_on_arrays_alone(digits, key):
    others = {k: v for k, v in ARRAYS.items() if k != key}
    keys = {"output_dir": None, "train_length": 0.2, "train_length_unit": "epoch"}
    some, all_on = (run_experiment(digits(**keys | k)) for k in (others, ARRAYS))
    assert some["train/loss"].iloc[0] != all_on["train/loss"].iloc[0]
    unmoved = [run_experiment(digits(**keys | k | {"train_length": 0})) for k in (others, ARRAYS)]
    assert unmoved[0]["test/last/loss"].iloc[0] == unmoved[1]["test/last/loss"].iloc[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"aug_auto": "v0"}, "aug_auto: got 'v0', expected null, as aug_auto works one image"),
        ({"aug_hflip": 0.5, "model_input_shape": [64]}, "aug_hflip: got 0.5, expected 0, as the"),
        ({"aug_noise": -0.1}, "aug_noise: got -0.1"),
        ({"aug_repeats": 2}, "aug_repeats: got 2, expected 1, as copies"),
        ({"aug_mixup": 0.5, "loss": "mse"}, "loss: got 'mse', expected 'log'"),
        ({"aug_cutmix": 0.5, "model_input_shape": [64]}, "aug_cutmix: got 0.5, expected 0"),
        ({"aug_function": "noise"}, "aug_function: got 'noise', expected module.path:function"),
        (
            {"aug_function": "tests.own_parts:of_three"},
            r"can be called as of_three\(inputs, targets\): missing a required argument: 'three'",
        ),
        (
            {"aug_function": "tests.own_parts:nothing"},
            r"expected a function that gives \(inputs, targets\) of 100 examples, .*, not NoneType",
        ),
        (
            {"aug_function": "tests.own_parts:half_a_batch"},
            r"of 100 examples, .*, not torch.float32 \(50, 1, 8, 8\)",
        ),
    ],
)
def test_what_the_data_do_not_allow_is_refused(digits, keys, words):
    with pytest.raises(UserError, match=words):
        run_experiment(digits(output_dir=None, **keys))


def test_the_augmented_run_on_cifar10_works_on_its_files(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    overrides = [f"data_dir={tmp_path}", f"output_dir={tmp_path / 'run'}", "data_download=false"]
    overrides += ["train_length=1", "model=tiny/wrn_10_1", "num_workers=1"]
    stats = run_experiment(load_config("test_cfg_cifar10_wrn_augmented.yaml", overrides))
    assert stats["train/seen_examples"].tolist() == [50]


# ---- Held on the device ------------------------------------------------------------------

HELD = MIXED | {"aug_pad_crop": 2, "aug_hflip": 0.5, "aug_noise": 0.2, "aug_erase": 0.5}
HELD |= {"data_on_device": True}


def test_without_augmentation_held_images_give_the_very_stats_of_those_that_are_read(fashion):
    read, cached, auto = (
        without_times(run_experiment(fashion(data_on_device=value)))
        for value in (False, True, "auto")
    )
    pd.testing.assert_frame_equal(read, cached, check_exact=True)
    pd.testing.assert_frame_equal(read, auto, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_run_on_held_images_repeats_and_ends_the_same_stopped_anywhere(
    fashion,
    tmp_path,
    interrupt,
    repeats,
):
    keys = HELD | {"aug_repeats": repeats}
    straight, again = (fashion(output_dir=str(tmp_path / name), **keys) for name in "ab")
    run_experiment(straight)
    run_experiment(again)
    assert end_of(again) == end_of(straight)
    interrupt(2, 3, 7, 12)
    stopped = fashion(output_dir=str(tmp_path / "run"), num_workers=2, **keys)
    assert run_through(stopped) > 3
    assert end_of(stopped) == end_of(straight)


@pytest.mark.parametrize(
    "key", ["aug_pad_crop", "aug_hflip", "aug_noise", "aug_erase", "aug_cutmix"]
)
def test_each_key_has_a_say_in_training_on_held_images(fashion, key):
    others = {k: v for k, v in HELD.items() if k != key}
    some, all_on = (run_experiment(fashion(train_length=0.5, **k)) for k in (others, HELD))
    assert some["train/loss"].iloc[0] != all_on["train/loss"].iloc[0]


def test_what_auto_finds_is_kept_when_the_run_goes_on(fashion, tmp_path, interrupt, monkeypatch):
    """The memory that is free then has no say: other numbers would be drawn."""
    keys = HELD | {"data_on_device": "auto"}
    straight = fashion(output_dir=str(tmp_path / "straight"), **keys)
    run_experiment(straight)
    assert load_config(tmp_path / "straight" / "config.yaml").data_on_device is True
    config = fashion(output_dir=str(tmp_path / "run"), **keys)
    interrupt(5)
    with pytest.raises(StopRequested):
        run_experiment(config)
    monkeypatch.setattr("src.support.processes.free_memory", lambda _: 0)
    run_experiment(config)
    assert end_of(config) == end_of(straight)
    run_experiment(fashion(output_dir=str(tmp_path / "none"), **keys))
    assert load_config(tmp_path / "none" / "config.yaml").data_on_device is False
    assert end_of(fashion(output_dir=str(tmp_path / "none"))) != end_of(straight)
