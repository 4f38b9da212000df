"""Training images are changed as timm changes them, each as its seed says, and no others are."""

import pickle
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from src.config import make_config
from src.data.images import DatasetSplit
from src.data.registry import build_data, check_dataset
from src.data.splits import Augmentation, LoaderConfig, Preprocessing
from src.data.transforms import check_policy, image_transforms, policy
from src.support import random_state
from src.support.errors import UserError

CPU = torch.device("cpu")
SIZE = (24, 32)
LOOKS = {
    "RGB": Preprocessing((3, *SIZE), (0.5, 0.45, 0.4), (0.25, 0.25, 0.2), "bicubic"),
    "L": Preprocessing((1, *SIZE), (0.3,), (0.35,), "bicubic"),
}
# our keys, and timm's arguments for the same
CROP, TIMM_CROP = {"crop_scale": (0.2, 0.9)}, {"scale": (0.2, 0.9)}
KINDS: dict[str, tuple[dict, dict]] = {
    "crop": ({}, {}),
    "ratio": ({"crop_ratio": (0.4, 2.5)}, {"ratio": (0.4, 2.5)}),
    "flips": ({"hflip": 0.5, "vflip": 0.3}, {"hflip": 0.5, "vflip": 0.3}),
    "RandAugment": ({"auto": "rand-m7-n3-mstd0.2"}, {"auto_augment": "rand-m7-n3-mstd0.2"}),
    "harder": ({"auto": "rand-m7-inc1"}, {"auto_augment": "rand-m7-inc1"}),
    "weighted": ({"auto": "rand-m5-tweights"}, {"auto_augment": "rand-m5-tweights"}),
    "AutoAugment": ({"auto": "original-mstd0.5"}, {"auto_augment": "original-mstd0.5"}),
    "AutoAugment v0r": ({"auto": "v0r"}, {"auto_augment": "v0r"}),
    "AugMix": ({"auto": "augmix-m5-w4-d2"}, {"auto_augment": "augmix-m5-w4-d2"}),
    "jitter": ({"color_jitter": 0.4}, {"color_jitter": 0.4}),
    "3-Augment": (
        {"auto": "3a", "color_jitter": 0.3, "hflip": 0.5},
        {"auto_augment": "3a", "color_jitter": 0.3, "hflip": 0.5},
    ),
    "erasing": ({"erase": 0.7, "erase_mode": "const"}, {"re_prob": 0.7, "re_mode": "const"}),
    "erasing by a colour": ({"erase": 1, "erase_mode": "rand"}, {"re_prob": 1, "re_mode": "rand"}),
    "erasing by noise": ({"erase": 1}, {"re_prob": 1, "re_mode": "pixel"}),
    "everything": (
        {"auto": "rand-m7-inc1", "hflip": 0.5, "vflip": 0.5, "erase": 0.5},
        {"auto_augment": "rand-m7-inc1", "hflip": 0.5, "vflip": 0.5, "re_prob": 0.5}
        | {"re_mode": "pixel"},
    ),
}


def picture(mode: str, seed: int = 0, size: tuple[int, int] = (40, 50)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5) if mode == "L" else (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def augmented(mode: str, *, resize: bool = True, **requested):
    """Our transform for training."""
    preprocessing = Preprocessing(**vars(LOOKS[mode]) | {"augmentation": Augmentation(**requested)})
    return image_transforms(preprocessing, resize=resize)[0]


def drawn(transform, image: Image.Image, seed: int) -> torch.Tensor:
    with random_state.isolate_rng():
        random_state.seed_everything(seed)
        return transform(image)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_changed_as_timm_does_from_the_same_seed(kind, mode):
    ours, timms = KINDS[kind]
    preprocessing = LOOKS[mode]
    transform = augmented(mode, **CROP, **ours)
    expected = create_transform(
        preprocessing.input_shape,
        is_training=True,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        use_prefetcher=False,
        **({"hflip": 0.0, "color_jitter": None} | TIMM_CROP | timms),
    )
    results = []
    for seed in range(20):
        image = picture(mode, seed)
        results.append(drawn(transform, image, seed))
        assert results[-1].shape == preprocessing.input_shape
        torch.testing.assert_close(results[-1], drawn(expected, image, seed))
    assert any(not torch.equal(a, b) for a, b in pairwise(results))
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301 - for workers that are spawned
    assert torch.equal(drawn(again, picture(mode), 0), results[0])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_small_images_are_padded_and_cropped_as_torchvision_does(mode):
    preprocessing = LOOKS[mode]
    usual = [RandomCrop(SIZE, padding=3), RandomHorizontalFlip(), ToTensor()]
    usual = Compose([*usual, Normalize(preprocessing.mean, preprocessing.std)])
    transform = augmented(mode, resize=False, pad_crop=3, hflip=0.5)
    seen = set()
    for seed in range(20):
        result = drawn(transform, picture(mode, size=SIZE), seed)
        torch.testing.assert_close(result, drawn(usual, picture(mode, size=SIZE), seed))
        seen.add(result.numpy().tobytes())
    assert len(seen) > 10


def test_images_of_another_size_are_resized_before_they_are_padded():
    white = Image.new("L", (100, 60), 255)
    preprocessing = Preprocessing(
        (1, 20, 20), (0.0,), (1.0,), augmentation=Augmentation(pad_crop=4)
    )
    transform, _ = image_transforms(preprocessing, resize=True)
    shares = [float(drawn(transform, white, seed).mean()) for seed in range(30)]
    assert max(shares) > 0.9  # only what was padded is black
    assert 0.6 < min(shares) < 0.8


def test_evaluations_see_images_as_they_are_and_training_too_where_nothing_is_requested():
    image, plain = picture("RGB"), LOOKS["RGB"]
    train, test = image_transforms(plain, resize=True)
    assert train is test  # the loader then draws nothing
    idle = Augmentation(crop_ratio=(0.5, 2.0), erase_mode="rand")
    train, _ = image_transforms(Preprocessing(**vars(plain) | {"augmentation": idle}), resize=True)
    assert torch.equal(train(image), test(image))
    requested = Augmentation(hflip=1.0, crop_scale=(0.1, 0.2), auto="v0r", erase=1.0)
    preprocessing = Preprocessing(**vars(plain) | {"augmentation": requested})
    assert torch.equal(image_transforms(preprocessing, resize=True)[1](image), test(image))


# ---- Policies ----------------------------------------------------------------------------


def test_a_policy_may_leave_no_bits_of_an_image():
    """Pillow refuses from version 13 on; of RandAugment it comes with one image in hundreds."""
    for name in ("rand-m10-inc1-n4-p1", "rand-m0-n4-p1", "v0"):
        for mode in ("L", "RGB"):
            made = policy(name, size=SIZE, mean=(0.4,) * len(mode), interpolation="bilinear")
            for seed in range(100):
                with random_state.isolate_rng():
                    random_state.seed_everything(seed)
                    assert made(picture(mode)).mode == mode


@pytest.mark.parametrize("name", ["rand-m9-mstd0.5-inc1", "augmix-m3"])
def test_policies_are_told_what_timm_tells_them(name):
    made = policy(name, size=SIZE, mean=LOOKS["RGB"].mean, interpolation="bicubic")
    timm = create_transform(
        LOOKS["RGB"].input_shape,
        is_training=True,
        mean=LOOKS["RGB"].mean,
        interpolation="bicubic",
        auto_augment=name,
        hflip=0,
    )
    assert [op.hparams for op in made.ops] == [op.hparams for op in timm.transforms[1].ops]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_policies_take_every_way_to_resize(interpolation):
    made = policy("rand-n4-p1", size=SIZE, mean=(0.4,) * 3, interpolation=interpolation)
    with random_state.isolate_rng():
        random_state.seed_everything(0)
        for _ in range(50):
            made(picture("RGB"))


@pytest.mark.parametrize(
    "name",
    [
        *("rand-m9-mstd0.5-inc1", "rand-m7-n3", "rand-t3a", "rand-p0.3-mmax20", "rand"),
        *("original", "originalr", "v0", "v0r", "3a", "original-mstd0.5", "rand-mstd101"),
        *("augmix", "augmix-m3-w3", "augmix-d2-b1-a0.5"),
    ],
)
def test_policies_of_timm_are_known(name):
    check_policy(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random", "a policy of timm, such as rand-m9"),
        ("rand-m9-k2", r"such as .* \(Unknown RandAugment config section\)"),
        ("rand-m9.5", "invalid literal for int"),
        ("autoaugment", "Unknown AA policy autoaugment"),
        ("rand-n20-tweights", "larger sample than population"),  # known when it draws
        # what timm passes over without a word
        ("rand-m9-inc", "there is no part 'inc'"),
        ("rand-m9-tweight", "there is no part 'tweight'"),
        ("rand-m9-t3", "there is no part 't3'"),
        ("rand-m9-", "there is no part ''"),
        ("augmix-d-1", "there is no part 'd'"),
        ("original-jitter", "there is no part 'jitter'"),
        ("rand-mstd0.5-mstd1", "a single part 'mstd'"),
    ],
)
def test_policies_that_timm_has_not_are_refused_before_there_are_data(name, words):
    config = make_config({"dataset": "timm/torch/cifar10", "data_dir": "no", "aug_auto": name})
    with pytest.raises(UserError, match=rf"^aug_auto: got '{name}', expected .*{words}") as error:
        check_dataset(config)
    assert error.value.__cause__ is None  # it is no fault of this machine's


# ---- Keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"aug_crop_scale": [0.08]}, r"aug_crop_scale: got \[0.08\], expected two fractions"),
        ({"aug_crop_scale": [0.9, 0.5]}, "aug_crop_scale: got"),
        ({"aug_crop_scale": [0.5, 1.5]}, "aug_crop_scale: got"),
        ({"aug_crop_ratio": [1.5, 0.5]}, "aug_crop_ratio: got"),
        ({"aug_crop_scale": [0.5, 1], "aug_pad_crop": 4}, "two ways to crop"),
        ({"aug_repeats": 3}, "aug_repeats: got 3, expected 1, as copies"),
        ({"aug_repeats": 3, "aug_mixup": 0.2}, "aug_repeats: got 3, expected 1, as copies"),
        ({"aug_mixup": 0.2, "loss": "mse"}, "loss: got 'mse', expected 'log', as aug_mixup"),
        ({"aug_cutmix": 1, "loss": "bce"}, "loss: got 'bce', expected 'log'"),
    ],
)
def test_values_without_a_meaning_are_refused_before_there_are_data(keys, words):
    config = make_config({"dataset": "timm/torch/cifar10", "data_dir": "nowhere"} | keys)
    with pytest.raises(UserError, match=words):
        check_dataset(config)


ONE_AT_A_TIME = {"aug_crop_scale": [0.5, 1], "aug_auto": "v0", "aug_color_jitter": 0.4}
OF_IMAGES = {"aug_pad_crop": 4, "aug_hflip": 0.5, "aug_vflip": 1.0, "aug_erase": 0.1}


@pytest.mark.parametrize("key", ONE_AT_A_TIME | OF_IMAGES)
def test_what_cannot_change_arrays_is_refused_before_there_are_data(key):
    keys = {"data_dir": "nowhere", key: (ONE_AT_A_TIME | OF_IMAGES)[key]}
    flat = {"dataset": "sklearn/digits", "model_input_shape": [64]}
    for dataset in ({"dataset": "sklearn/iris"}, flat):
        with pytest.raises(UserError, match=rf"^{key}: got .*, expected (0|null), as"):
            check_dataset(make_config(keys | dataset))
    shaped = {"dataset": "sklearn/iris", "model_input_shape": [1, 2, 2]}
    for dataset in ({"dataset": "sklearn/digits"}, shaped):
        config = make_config(keys | dataset)
        if key in OF_IMAGES:
            check_dataset(config)
        else:
            with pytest.raises(UserError, match=rf"^{key}: got .* as {key} works one image at a"):
                check_dataset(config)


def test_keys_of_our_data_set_are_not_asked_of_those_of_other_splits():
    maps = {"train": "train", "other": "sklearn/digits:test"}
    keys = {"dataset": "timm/torch/cifar10", "data_dir": "nowhere", "data_splits_map": maps}
    check_dataset(make_config(keys | {"aug_auto": "v0"}))


def test_arrays_of_one_s_own_are_changed_as_their_shape_allows(tmp_path, monkeypatch):
    (tmp_path / "in_memory.py").write_text(
        "import numpy as np\n"
        "def images(data_dir):\n    return {'train': (np.zeros((6, 3, 4, 4)), np.arange(6))}\n"
        "def rows(data_dir):\n    return {'train': (np.zeros((6, 4)), np.arange(6))}\n"
    )
    monkeypatch.setattr("src.config.import_path.ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"data_splits_map": {"train": "train"}}
    images, rows = ({"dataset": f"in_memory:{name}"} | keys for name in ("images", "rows"))
    assert build_data(make_config(images | OF_IMAGES), None).input_shape == (3, 4, 4)
    assert build_data(make_config(rows | {"aug_noise": 0.1}), None).input_shape == (4,)
    with pytest.raises(UserError, match=r"aug_hflip: got 0\.5, expected 0, as the examples have"):
        build_data(make_config(rows | {"aug_hflip": 0.5}), None)
    with pytest.raises(UserError, match=r"aug_auto: got 'v0', expected null, as aug_auto works"):
        build_data(make_config(images | {"aug_auto": "v0"}), None)


def test_noise_is_added_to_normalised_images_before_a_part_is_erased():
    plain = augmented("RGB")
    requested = {"noise": 0.3, "erase": 1.0, "erase_mode": "const"}
    noise = drawn(augmented("RGB", **requested), picture("RGB"), 0) - plain(picture("RGB"))
    erased = (plain(picture("RGB")) + noise == 0).all(0)
    assert 0 < erased.float().mean() < 0.5
    assert float(noise[:, ~erased].std()) == pytest.approx(0.3, rel=0.1)


# ---- Which worker does it ----------------------------------------------------------------


class Pictures(Dataset):
    def __len__(self):
        return 13

    def __getitem__(self, index):
        return picture("RGB", index), index


LOADED = {kind: CROP | ours for kind, (ours, _) in KINDS.items()} | {
    "pad and crop": {"pad_crop": 3, "hflip": 0.5},
    "usual RandAugment": {"auto": "rand-m9-mstd0.5-inc1"},
}


def batches(transform, num_workers, *, first_step=0, repeats=1):
    split = DatasetSplit(Pictures(), transform, str)
    loading = LoaderConfig(5, CPU, num_workers, repeats=repeats)
    made = split.training_batches(loading, seed=3, steps_per_pass=3, first_step=first_step)
    taken = [(x.numpy().tobytes(), y.tolist()) for x, y in islice(made, 6 - first_step)]
    made.close()
    return taken


@pytest.mark.parametrize("kind", LOADED)
def test_an_image_is_changed_alike_whoever_reads_it_and_where_the_run_goes_on(kind):
    transform = augmented("RGB", **LOADED[kind])
    alone = batches(transform, 0)
    assert len({inputs for inputs, _ in alone}) == 6
    np.random.seed(5)  # what else is drawn has no say
    torch.rand(9)
    assert batches(transform, 1) == alone
    assert batches(transform, 2, first_step=4) == alone[4:]
    copies = batches(transform, 0, repeats=3)
    assert batches(transform, 2, first_step=2, repeats=3) == copies[2:]
