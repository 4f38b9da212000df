"""What is done to a batch of training examples at once, on the device of the batch.

First each example in memory is changed by itself: by the same distributions in the same order as
in src/data/transforms.py, for the keys IN_BATCHES. What is drawn for it is a pure function of its
seed (see order.example_seeds): not of the batch it comes in, nor of the device, rounding of noise
and of a rectangle's sides apart.

Then all are changed together: by aug_function, a function of your own; by mixup (Zhang et al. 2018)
and CutMix (Yun et al. 2019), which mix examples and classes in pairs.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.config import import_function
from src.data.order import example_seeds
from src.data.splits import Augmentation, Batches
from src.support import bad_value, random_state

IN_BATCHES = ("pad_crop", "hflip", "vflip", "noise", "erase", "mixup", "cutmix")
OF_ROWS = ("noise", "mixup")  # the others need images
MIXABLE_LOSSES = ("log", "xentropy")  # cross-entropy, which takes probabilities of classes

# Rectangles are erased as timm's RandomErasing draws them (Zhong et al. 2017): fractions of the
# image's area, a height over width that is uniform in its logarithm, and another try where a
# rectangle is as high or wide as the image.
AREAS = (0.02, 1 / 3)
LOG_ASPECTS = (math.log(0.3), math.log(1 / 0.3))
ATTEMPTS = 10

# Which number of an example's sequence is drawn for what: one an element of the example from
# FILLING on for what a rectangle is filled with, and as many after those for aug_noise
TOP, LEFT, HFLIP, VFLIP, ERASE, RECTANGLES = range(6)
FILLING = RECTANGLES + 4 * ATTEMPTS

# SplitMix64 (Steele, Lea and Flood 2014) in whole numbers of 64 bits with a sign, as torch has them
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
FLOAT_BITS = 24  # as many as a float32 holds exactly


def not_in_batches(*names: str) -> str | None:
    """Why one of these augmentations can't be done in batches, if one can't."""
    name = next((name for name in names if name not in IN_BATCHES), None)
    in_batches = ", ".join(f"aug_{other}" for other in IN_BATCHES)
    return name and f"aug_{name} works one image at a time, unlike {in_batches}"


def not_of_arrays(name: str, *, are_images: bool) -> str | None:
    """Why an augmentation can't change dense examples in memory, if it can't."""
    if name in IN_BATCHES and name not in OF_ROWS and not are_images:
        return "the examples have no shape [channels, height, width]; model_input_shape may give it"
    return not_in_batches(name)


def augmented_batches(
    inputs: Tensor,
    targets: Tensor,
    order: Iterable[tuple[int, Tensor]],
    augmentation: Augmentation,
    *,
    seed: int,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> Batches:
    """A batch for each (pass, indices) of examples in memory; see Split.augmented_batches()."""
    for pass_number, indices in order:
        wanted = (indices % len(targets)).to(inputs.device, non_blocking=True)  # of copies
        seeds = torch.from_numpy(example_seeds(seed, pass_number, indices.numpy()).astype(np.int64))
        batch = augmented(inputs[wanted], augmentation, seeds=seeds, normalize=normalize)
        yield batch, targets[wanted]


def augmented(
    inputs: Tensor,
    augmentation: Augmentation,
    *,
    seeds: Tensor,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A batch (n, *shape), changed at random; in place where nothing normalises it.

    seeds: (n,) int64, on the CPU. normalize: of images as bytes makes float32 ones; arrays were
    normalised when they were loaded. What is padded is 0 before that, what is erased 0 or
    standard normal after it. So padding is black, but the mean where arrays were normalised by
    columns or by data_mean.
    """
    device = inputs.device
    seeds_there = seeds.to(device, non_blocking=True)
    draws = uniforms(random_bits(seeds_there, torch.arange(FILLING, device=device)))  # (n, FILLING)
    if augmentation.pad_crop or augmentation.hflip or augmentation.vflip:
        inputs = moved(inputs, augmentation, draws)
    if normalize:
        inputs = normalize(inputs)
    if augmentation.noise:
        shape = inputs.shape[1:]
        noise = _noise(seeds_there, FILLING + math.prod(shape), shape)
        inputs.add_(noise, alpha=augmentation.noise)
    if augmentation.erase:
        # found on the CPU: how many they are is nothing to wait for on a GPU
        is_erased = uniforms(random_bits(seeds, torch.tensor([ERASE])))[:, 0] < augmentation.erase
        which = is_erased.nonzero()[:, 0].to(device, non_blocking=True)
        some = {"draws": draws[which], "seeds": seeds_there[which]}
        inputs[which] = erased(inputs[which], augmentation.erase_mode, **some)
    return inputs


def moved(images: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Padded by zeros, cut out and flipped, in one gather."""
    n, channels, height, width = images.shape
    padding = augmentation.pad_crop
    top, left = (_below(2 * padding + 1, draws[:, which]) for which in (TOP, LEFT))  # (n,)
    rows = top[:, None] + _places(height, draws[:, VFLIP] < augmentation.vflip)
    columns = left[:, None] + _places(width, draws[:, HFLIP] < augmentation.hflip)
    positions = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]  # (n, h, w)
    padded = F.pad(images, [padding] * 4).flatten(2)
    positions = positions.flatten(1)[:, None].expand(n, channels, height * width)
    return padded.gather(2, positions).view(n, channels, height, width)


def erased(inputs: Tensor, mode: str, *, draws: Tensor, seeds: Tensor) -> Tensor:
    """Normalised images with a rectangle of each filled as erase_mode says, where one fits."""
    height, width = inputs.shape[2:]
    top, left, high, wide = rectangles(draws, height, width).unsqueeze(-1)  # (n, 1) each
    rows, columns = (torch.arange(size, device=inputs.device) for size in (height, width))
    is_inside = ((rows >= top) & (rows < top + high))[:, :, None]
    is_inside = is_inside & ((columns >= left) & (columns < left + wide))[:, None, :]
    if mode == "const":  # the mean
        filling = inputs.new_zeros(())
    else:  # a colour an image, or one a pixel
        shape = (inputs.shape[1], 1, 1) if mode == "rand" else inputs.shape[1:]
        filling = _noise(seeds, FILLING, shape)
    return torch.where(is_inside[:, None], filling, inputs)


def rectangles(draws: Tensor, height: int, width: int) -> Tensor:
    """(4, n) int64: top, left, height and width of what is erased; 0 where none fits."""
    area, aspect, top, left = draws[:, RECTANGLES:FILLING].unflatten(1, (ATTEMPTS, 4)).unbind(2)
    area = height * width * (AREAS[0] + (AREAS[1] - AREAS[0]) * area)  # (n, ATTEMPTS)
    aspect = torch.exp(LOG_ASPECTS[0] + (LOG_ASPECTS[1] - LOG_ASPECTS[0]) * aspect)
    high, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (high < height) & (wide < width)
    found = torch.stack([_below(height + 1 - high, top), _below(width + 1 - wide, left)])
    found = torch.cat([found, torch.stack([high, wide]).long()])
    first = fits.long().argmax(1)  # the first of those that fit; 0 where there is none
    found = found.gather(2, first.expand(4, len(draws))[:, :, None])[:, :, 0]
    return found * fits.any(1)


def _noise(seeds: Tensor, first: int, shape: tuple[int, ...]) -> Tensor:
    """(n, *shape) standard normal float32, of the numbers `first`, … of the sequences."""
    counters = torch.arange(first, first + math.prod(shape), device=seeds.device)
    return normals(random_bits(seeds, counters)).unflatten(1, shape)


def _below(bound: Tensor | int, draws: Tensor) -> Tensor:
    """Whole numbers 0 … bound-1, of uniform draws."""
    return (draws * bound).long()  # never the bound itself: rounding stays below it


def _places(size: int, is_flipped: Tensor) -> Tensor:
    """(n, size): 0 … size-1, or from its end."""
    places = torch.arange(size, device=is_flipped.device)
    return torch.where(is_flipped[:, None], places.flip(0), places)


# ---- Random numbers ----------------------------------------------------------------------


def random_bits(seeds: Tensor, counters: Tensor) -> Tensor:
    """(n, k) int64 of 64 random bits: numbers `counters` of the sequences that start at `seeds`."""
    bits = seeds[:, None] + (counters + 1) * GOLDEN
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in; torch copies the sign."""
    return (bits >> by) & (2 ** (64 - by) - 1)


def uniforms(bits: Tensor) -> Tensor:
    """float32 in [0, 1), of the upper bits: the same on every device."""
    return _shifted(bits, 64 - FLOAT_BITS).float() * 2.0**-FLOAT_BITS


def normals(bits: Tensor) -> Tensor:
    """Standard normal float32: of upper and lower bits by Box and Muller (1958)."""
    lower = (bits & (2**FLOAT_BITS - 1)).float() * 2.0**-FLOAT_BITS
    return (-2 * (1 - uniforms(bits)).log()).sqrt() * (2 * math.pi * lower).cos()


# ---- All examples together ---------------------------------------------------------------


class Mixing:
    """mixing(inputs, targets, seed=…) -> mixed inputs, and the probabilities of their classes.

    inputs: (n, *shape), changed in place, on any device. targets: (n,) int64 -> (n, num_classes).
    The first is mixed with the last and so on, one weight a batch; the last of an odd number
    stays as it is. A function of the seed: the global generators are as they were afterwards.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
    ) -> None:
        """mixup, cutmix: parameters of Beta distributions, one of them above 0. prob: of a batch
        to be mixed. switch_prob: where both are given, of CutMix."""
        from timm.data.mixup import Mixup

        self.num_classes = num_classes
        self.mix = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=prob,
            switch_prob=switch_prob,
            label_smoothing=0.0,  # the loss smooths
            num_classes=num_classes,
        )

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        even = len(targets) - len(targets) % 2
        with random_state.isolate_rng():
            random_state.seed_everything(seed, cpu_only=True)
            mixed, soft_targets = self.mix(inputs[:even], targets[:even])
        if even == len(targets):
            return mixed, soft_targets
        last = F.one_hot(targets[even:], self.num_classes).to(soft_targets.dtype)
        return torch.cat([mixed, inputs[even:]]), torch.cat([soft_targets, last])


class OwnAugmentation:
    """aug_function: function(inputs, targets) -> (inputs, targets), of as many examples.

    It is called on the device with the batch (of several processes, with the shard of each) and may
    change it in place. All generators of torch, numpy and Python are seeded for each call and
    afterwards are as they were, so what it draws is a function of the seed, wherever it draws it.
    (That costs 0.1 to 0.3 ms a step; a torch.Generator as an argument would cost less, but
    transforms of libraries do not take one.)
    """

    def __init__(self, name: str, rank: int = 0) -> None:
        """rank: of the process, as each shard is to have noise of its own."""
        self.name, self.rank = name, rank
        self.function = import_function(name, "aug_function", ["inputs", "targets"])

    def __call__(self, inputs: Tensor, targets: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        num_examples, on_cpu = len(targets), targets.device.type == "cpu"
        with random_state.isolate_rng():
            random_state.seed_everything(seed + self.rank, cpu_only=on_cpu)
            made = self.function(inputs, targets)
        parts = made if isinstance(made, tuple) else (made,)
        is_batch = made is parts and [type(part) for part in parts] == [Tensor, Tensor]
        is_batch = is_batch and parts[0].dtype == inputs.dtype
        if not is_batch or any(len(part) != num_examples for part in parts):
            expected = f"a function that gives (inputs, targets) of {num_examples} examples, "
            expected += f"inputs of {inputs.dtype}, not " + ", ".join(
                f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                for x in parts
            )
            raise bad_value("aug_function", self.name, expected)
        return made
