from itertools import islice

import pytest
import torch

from src.data.order import batches_from, example_seeds, permutation


def flat(step, count, **keys):
    keys = {"seed": 3, "num_examples": 25, "batch_size": 10, "steps_per_pass": 3} | keys
    return [(p, i.tolist()) for p, i in islice(batches_from(step, **keys), count)]


@pytest.mark.parametrize("steps_per_pass", [3, 2])
def test_starting_at_a_step_gives_what_comes_then(steps_per_pass):
    whole = flat(0, 12, steps_per_pass=steps_per_pass)
    for step in range(12):
        assert flat(step, 12 - step, steps_per_pass=steps_per_pass) == whole[step:]


def test_a_pass_holds_every_example_once():
    batches = flat(0, 6)
    assert [len(i) for _, i in batches] == [10, 10, 5] * 2
    for number in (0, 1):
        seen = [x for p, indices in batches if p == number for x in indices]
        assert sorted(seen) == list(range(25))


def test_passes_and_seeds_differ_and_repeat():
    assert torch.equal(permutation(1, 0, 1000), permutation(1, 0, 1000))
    orders = {tuple(permutation(s, p, 1000).tolist()) for s in (0, 1) for p in (0, 1)}
    assert len(orders) == 4


def test_large_seeds_do_not_fold_onto_small_ones():
    assert not torch.equal(permutation(5, 0, 100), permutation(5 + 2**32, 0, 100))


def test_seeds_of_examples_depend_on_seed_pass_and_index_alone():
    some, reordered = torch.tensor([4, 9, 2]), torch.tensor([2, 4])
    seeds = example_seeds(1, 0, some)
    assert example_seeds(1, 0, reordered).tolist() == [seeds[2], seeds[0]]
    everything = [
        s for seed in (0, 1) for p in (0, 1) for s in example_seeds(seed, p, torch.arange(5000))
    ]
    assert len(set(everything)) > 19_990  # 20,000 draws from 2**32 hold about 0.05 doubles
