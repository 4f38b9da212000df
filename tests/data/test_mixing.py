"""Batches are mixed as timm mixes them, as a function of the seed and the step; and changed by a
function of one's own, as such a function too."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup

from src.config import make_config
from src.data.arrays import ArraySplit
from src.data.batch_augmentation import Mixing, OwnAugmentation
from src.data.order import step_seed
from src.data.registry import build_data, build_loader_config
from src.data.splits import LoaderConfig
from src.data.text import TextSplit
from src.support import random_state
from src.support.errors import UserError

CPU = torch.device("cpu")
CLASSES = 5
WAYS = {
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.4, "cutmix": 1.0},
    "rarely": {"mixup": 0.4, "cutmix": 1.0, "prob": 0.3, "switch_prob": 0.9},
}


def batch(n: int = 8):
    g = torch.Generator().manual_seed(n)
    return torch.rand(n, 3, 12, 10, generator=g), torch.randint(CLASSES, (n,), generator=g)


@pytest.mark.parametrize("way", WAYS)
def test_batches_are_mixed_as_timm_does_from_the_same_seed(way):
    keys = WAYS[way]
    renamed = {"mixup": "mixup_alpha", "cutmix": "cutmix_alpha"}
    timm = Mixup(
        **{"mixup_alpha": 0.0} | {renamed.get(k, k): v for k, v in keys.items()},
        num_classes=CLASSES,
        label_smoothing=0.0,
    )
    mixing = Mixing(CLASSES, **keys)
    are_mixed = []
    for seed in range(30):
        inputs, shares = mixing(*batch(), seed=seed)
        with random_state.isolate_rng():
            random_state.seed_everything(seed)
            expected, expected_shares = timm(*batch())
        assert torch.equal(inputs, expected)
        assert torch.equal(shares, expected_shares)
        are_mixed.append(not torch.equal(inputs, batch()[0]))
    assert 0 < sum(are_mixed) < 20 if way == "rarely" else sum(are_mixed) > 25


def test_shares_say_what_is_in_an_image():
    """Of mixup a pixel's, of cutmix the area's."""
    inputs = torch.eye(4)[:, :, None, None].expand(4, 4, 10, 10).clone()  # image i has colour i
    for way in ({"mixup": 5.0}, {"cutmix": 5.0}):
        mixed, shares = Mixing(4, **way)(inputs.clone(), torch.arange(4), seed=1)
        torch.testing.assert_close(mixed.mean((2, 3)), shares)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        assert 0 < shares[0, 3] < 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [1, 7])
def test_the_last_of_an_odd_batch_stays_as_it_is(way, n):
    inputs, targets = batch(n)
    mixed, shares = Mixing(CLASSES, **WAYS[way])(inputs.clone(), targets, seed=3)
    assert mixed.shape == inputs.shape
    assert shares.shape == (n, CLASSES)
    assert torch.equal(mixed[-1], inputs[-1])
    assert torch.equal(shares[-1], F.one_hot(targets, CLASSES)[-1].float())
    even, even_shares = Mixing(CLASSES, **WAYS[way])(inputs[:-1].clone(), targets[:-1], seed=3)
    assert torch.equal(mixed[:-1], even)
    assert torch.equal(shares[:-1], even_shares)


SHAKE = "tests.own_parts:shake"
CHANGES = {"mixing": Mixing(CLASSES, **WAYS["both"]), "own": OwnAugmentation(SHAKE)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_drawn_before_has_no_say_and_nothing_is_drawn_from_it(change):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    results = []
    for start in (1, 2):
        random_state.seed_everything(start)
        before = states()
        results.append(change(*batch(), seed=9))
        assert states() == before
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], change(*batch(), seed=10)[0])


def test_the_shards_of_a_batch_are_shaken_each_by_itself():
    first, second = (OwnAugmentation(SHAKE, rank)(*batch(), seed=9)[0] for rank in (0, 1))
    assert not torch.equal(first, second)


# ---- Batches of a run --------------------------------------------------------------------


def mixed_batches(split, first_step=0, seed=4, count=7):
    """Of a run that shakes them first, so the own function sees numbers of classes."""
    own = OwnAugmentation(SHAKE)
    loading = LoaderConfig(8, CPU, mixing=CHANGES["mixing"], own_augmentation=own)
    made = split.training_batches(loading, seed=seed, steps_per_pass=3, first_step=first_step)
    return [torch.cat([x.flatten(1), y], 1) for x, y in islice(made, count)]


@pytest.mark.parametrize("first_step", [1, 3, 5])
def test_a_run_that_goes_on_mixes_as_if_it_had_not_stopped(first_step):
    split = ArraySplit(*batch(21))
    whole = mixed_batches(split)
    rest = mixed_batches(split, first_step, count=7 - first_step)
    assert all(torch.equal(a, b) for a, b in zip(whole[first_step:], rest, strict=True))
    shares = torch.stack([b[0, -CLASSES:].amax() for b in whole])
    assert len(shares.unique()) > 4  # each step draws for itself
    assert not torch.equal(whole[0], mixed_batches(split, seed=5)[0])
    assert torch.equal(split.inputs, batch(21)[0])  # the data stay as they are


def test_seeds_of_steps_differ():
    seeds = [step_seed(seed, step) for seed in (0, 1, 2**40) for step in range(3000)]
    assert len(set(seeds)) > 8_990
    assert all(0 <= seed < 2**32 for seed in seeds)


def loading_of(**keys) -> LoaderConfig:
    config = make_config({"dataset": "sklearn/digits", "model_output_dim": 12} | keys)
    return build_loader_config(config, build_data(config, None), CPU)


def test_the_keys_say_how_batches_are_mixed():
    assert loading_of().mixing is None
    keys = {"aug_mixup": 0.3, "aug_cutmix": 0.7, "aug_mix_prob": 0.6, "aug_mix_switch_prob": 0.2}
    mixing = loading_of(**keys).mixing
    assert (mixing.mix.mixup_alpha, mixing.mix.cutmix_alpha) == (0.3, 0.7)
    assert (mixing.mix.mix_prob, mixing.mix.switch_prob) == (0.6, 0.2)
    assert mixing(*batch(), seed=0)[1].shape == (8, 12)  # as many as the model's outputs
    assert loading_of(dataset="sklearn/iris", aug_mixup=0.3).mixing  # rows mix as well


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dataset": "sklearn/iris", "aug_cutmix": 1}, r"aug_cutmix: got 1.*, .* have no shape"),
        (
            {"dataset": "sklearn/iris", "aug_cutmix": 1, "aug_mixup": 1},
            r"aug_cutmix: got 1\.0, expected 0, as the examples have no shape",
        ),
        ({"dataset": "sklearn/diabetes", "aug_mixup": 1, "loss": "mse"}, "loss: got 'mse'"),
        ({"aug_cutmix": 1, "loss": "square"}, "loss: got 'square', expected 'log'"),
    ],
)
def test_what_has_no_shares_of_classes_is_not_mixed(keys, words):
    with pytest.raises(UserError, match=words):
        loading_of(**keys)


def test_sparse_data_and_texts_are_not_mixed():
    rows = torch.eye(4).to_sparse_csr()
    sparse = ArraySplit(rows, torch.arange(4))
    assert "sparse" in sparse.augmentation_obstacle("mixup")
    ends = torch.tensor([2, 4])
    texts = TextSplit(torch.arange(4, dtype=torch.int32), ends - 2, ends, torch.tensor([0, 1]))
    assert texts.augmentation_obstacle("cutmix") == "texts cannot be augmented"
