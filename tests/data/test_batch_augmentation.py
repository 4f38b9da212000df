"""Whole batches are changed as a loop over their images would, each as its seed says."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from src.data.batch_augmentation import (
    FILLING,
    _below,
    augmented,
    normals,
    not_in_batches,
    random_bits,
    rectangles,
    uniforms,
)
from src.data.splits import Augmentation
from src.data.transforms import ToNormalizedTensor
from src.support import random_state

SHAPE = (3, 9, 12)
WORD = 2**64 - 1
TO_TENSOR = ToNormalizedTensor((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
EVERYTHING = {"pad_crop": 2, "hflip": 0.5, "vflip": 0.3, "noise": 0.2, "erase": 0.7}
REQUESTED = {
    "nothing": {},
    "crop": {"pad_crop": 3},
    "flips": {"hflip": 0.5, "vflip": 0.5},
    "mean": {"erase": 0.8, "erase_mode": "const"},
    "colour": {"erase": 1, "erase_mode": "rand"},
    "colours": {"erase": 0.5},
    "noise": {"noise": 0.3},
    "everything": EVERYTHING,
}


def images(n: int = 40, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)


def seeds(n: int = 40) -> torch.Tensor:
    return torch.randint(0, 2**32, (n,), generator=torch.Generator().manual_seed(1))


def changed(requested: dict, n: int = 40) -> torch.Tensor:
    normalize = TO_TENSOR.normalize
    return augmented(images(n), Augmentation(**requested), seeds=seeds(n), normalize=normalize)


# ---- The slow way ------------------------------------------------------------------------


def word(seed: int, number: int) -> int:
    """SplitMix64's output, in whole numbers without a bound."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def uniform(seed: int, number: int) -> float:
    return (word(seed, number) >> 40) / 2**24


def normal(seed: int, number: int) -> float:
    angle = 2 * math.pi * (word(seed, number) % 2**24) / 2**24
    return math.sqrt(-2 * math.log(1 - uniform(seed, number))) * math.cos(angle)


def rectangle(seed: int, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Top, left, height and width, as timm's RandomErasing finds them."""
    for number in range(5, 45, 4):
        area, aspect, top, left = (uniform(seed, number + i) for i in range(4))
        area = (0.02 + (1 / 3 - 0.02) * area) * height * width
        aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * aspect)
        high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if high < height and wide < width:
            return int(top * (height - high + 1)), int(left * (width - wide + 1)), high, wide
    return None


def one_by_one(
    image: torch.Tensor, requested: Augmentation, seed: int, normalize: Callable
) -> torch.Tensor:
    channels, height, width = image.shape
    padding = requested.pad_crop
    padded = image.new_zeros(channels, height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = image
    top, left = (int(uniform(seed, i) * (2 * padding + 1)) for i in (0, 1))
    image = padded[:, top : top + height, left : left + width]
    if uniform(seed, 2) < requested.hflip:
        image = image.flip(2)
    if uniform(seed, 3) < requested.vflip:
        image = image.flip(1)
    inputs = normalize(image)
    noise = [normal(seed, FILLING + image.numel() + i) for i in range(image.numel())]
    inputs = inputs + requested.noise * torch.tensor(noise).view(image.shape)
    if uniform(seed, 4) < requested.erase and (found := rectangle(seed, height, width)):
        top, left, high, wide = found
        for c, y, x in np.ndindex(channels, high, wide):
            pixel = (c * height + top + y) * width + left + x
            number = FILLING + (pixel if requested.erase_mode == "pixel" else c)
            filling = 0.0 if requested.erase_mode == "const" else normal(seed, number)
            inputs[c, top + y, left + x] = filling
    return inputs


@pytest.mark.parametrize("kind", REQUESTED)
def test_a_batch_is_changed_as_its_images_are_one_by_one(kind):
    """Images as bytes, and arrays, which are float32 and nothing normalises."""
    requested = Augmentation(**REQUESTED[kind])
    arrays = TO_TENSOR.normalize(images())
    for whole, normalize in ((images(), TO_TENSOR.normalize), (arrays, None)):
        expected = [
            one_by_one(image, requested, seed, normalize or torch.clone)
            for image, seed in zip(whole, seeds().tolist(), strict=True)
        ]
        found = augmented(whole, requested, seeds=seeds(), normalize=normalize)
        torch.testing.assert_close(found, torch.stack(expected))


def test_rectangles_are_those_that_timm_would_find_also_where_few_fit():
    """In an image that is long and low, most attempts fail, and some images have none."""
    for height, width in ((3, 60), (2, 90), (9, 12), (32, 32)):
        numbers = seeds(400)
        draws = uniforms(random_bits(numbers, torch.arange(FILLING)))
        found = rectangles(draws, height, width).T.tolist()
        expected = [rectangle(seed, height, width) for seed in numbers.tolist()]
        assert found == [list(one or (0, 0, 0, 0)) for one in expected]
        assert height > 3 or None in expected


# ---- What is drawn -----------------------------------------------------------------------


def test_numbers_are_splitmix64_s():
    """Its first outputs from the seeds 0 and 1234567, as published for other languages."""
    published = {0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4], 1234567: [6457827717110365317]}
    for seed, outputs in published.items():
        bits = random_bits(torch.tensor([seed]), torch.arange(len(outputs)))[0]
        assert [number % 2**64 for number in bits.tolist()] == outputs
        assert [word(seed, number) for number in range(len(outputs))] == outputs


def test_draws_are_uniform_and_noise_is_normal_between_and_within_examples():
    for numbers, counters in ((seeds(20_000), torch.arange(2)), (seeds(2), torch.arange(20_000))):
        bits = random_bits(numbers, counters)
        bits = bits if len(bits) == 2 else bits.T
        for row, draws in zip(normals(bits), uniforms(bits), strict=True):
            assert stats.kstest(draws, "uniform").pvalue > 0.001
            assert stats.kstest(row, "norm").pvalue > 0.001
            assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03
        assert abs(np.corrcoef(uniforms(bits))[0, 1]) < 0.03
    extremes = uniforms(torch.tensor([0, -1]))  # of bits that are all zeros, and all ones
    assert extremes.tolist() == [0, 1 - 2**-24]
    assert normals(torch.tensor([0, -1])).isfinite().all()
    for bound in range(1, 5000):
        assert _below(bound, extremes).tolist() == [0, bound - 1]


def test_each_offset_of_the_crop_comes_as_often_in_both_directions():
    """One bright pixel in the middle tells where the image went."""
    n, padding = 20_000, 2
    pixels = torch.zeros(n, 1, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 1
    moved = augmented(pixels, Augmentation(pad_crop=padding), seeds=seeds(n), normalize=lambda x: x)
    assert (moved.sum((1, 2, 3)) == 1).all()
    counts = moved.sum((0, 1))[2:7, 2:7]
    assert int(counts.sum()) == n  # never farther than the padding
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 0.001


@pytest.mark.parametrize(("key", "axis"), [("hflip", 3), ("vflip", 2)])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_come_as_often_as_asked_for(key, axis, probability):
    pixels, requested = images(3000, (1, 3, 3)), Augmentation(**{key: probability})
    result = augmented(pixels, requested, seeds=seeds(3000), normalize=lambda x: x)
    is_flipped = (result == pixels.flip(axis)).all(-1).all(-1).all(-1)
    assert (is_flipped | (result == pixels).all(-1).all(-1).all(-1)).all()
    assert float(is_flipped.float().mean()) == pytest.approx(probability, abs=0.03)


def test_rectangles_are_as_large_and_as_many_as_timm_s():
    """Of white images, erased by zeros: how much is left, and of how many all."""
    from timm.data.random_erasing import RandomErasing

    n, size = 3000, 16
    white = torch.ones(n, 1, size, size)
    requested = Augmentation(erase=0.6, erase_mode="const")
    ours = augmented(white.clone(), requested, seeds=seeds(n), normalize=lambda x: x)
    with random_state.isolate_rng():
        random_state.seed_everything(0)
        theirs = RandomErasing(0.6, device="cpu")(white.clone())
    left, theirs_left = (x.sum((1, 2, 3)) for x in (ours, theirs))
    assert stats.ks_2samp(left, theirs_left).pvalue > 0.001
    assert float((left < size**2).float().mean()) == pytest.approx(0.6, abs=0.03)
    for axis in (2, 3):  # how far the sides reach, and where they are
        ours_side, theirs_side = (x.amin(axis).sum((1, 2)) for x in (ours, theirs))
        assert stats.ks_2samp(ours_side, theirs_side).pvalue > 0.001
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", REQUESTED)
def test_an_image_is_changed_alike_in_whatever_batch_it_comes(kind):
    whole = changed(REQUESTED[kind])
    requested, normalize = Augmentation(**REQUESTED[kind]), TO_TENSOR.normalize
    for which in (torch.arange(5, 6), torch.arange(7), torch.arange(39, 0, -3)):
        some = augmented(images()[which], requested, seeds=seeds()[which], normalize=normalize)
        assert torch.equal(some, whole[which])


def test_what_is_held_is_not_changed_and_no_generator_is_drawn_from():
    pixels, before = images(), torch.get_rng_state()
    augmented(pixels, Augmentation(**EVERYTHING), seeds=seeds(), normalize=TO_TENSOR.normalize)
    assert torch.equal(pixels, images())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_works_one_image_at_a_time_is_told():
    assert not_in_batches(*EVERYTHING) is None
    for name in ("crop_scale", "auto", "color_jitter"):
        obstacle = not_in_batches(*EVERYTHING, name)
        assert obstacle.startswith(f"aug_{name} works one image at a time, unlike aug_pad_crop")
