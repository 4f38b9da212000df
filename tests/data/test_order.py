from itertools import islice

import numpy as np
import pytest
import torch

from src.data.order import batches_from, example_seeds, permutation, shard, shard_of_batch


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
    some, reordered = np.array([4, 9, 2]), np.array([2, 4])
    seeds = example_seeds(1, 0, some)
    assert example_seeds(1, 0, reordered).tolist() == [seeds[2], seeds[0]]
    everything = [
        s for seed in (0, 1) for p in (0, 1) for s in example_seeds(seed, p, np.arange(5000))
    ]
    assert len(set(everything)) > 19_990  # 20,000 draws from 2**32 hold about 0.05 doubles


def test_copies_of_an_example_come_in_a_row_and_a_pass_is_as_long_as_ever():
    keys = {"num_examples": 23, "batch_size": 6, "steps_per_pass": 4}
    plain, copied = flat(0, 8, **keys), flat(0, 8, repeats=3, **keys)
    assert [(p, len(i)) for p, i in copied] == [(p, len(i)) for p, i in plain]
    for number in (0, 1):
        seen = [x for p, indices in copied if p == number for x in indices]
        assert len(set(seen)) == 23  # each copy has a number, and augmentation, of its own
        first = [x for p, indices in plain if p == number for x in indices][:8]
        assert [x % 23 for x in seen] == [x for x in first for _ in range(3)][:23]
        assert [x // 23 for x in seen] == [0, 1, 2] * 7 + [0, 1]
    for _, indices in copied[:3]:
        assert sorted(x % 23 for x in indices)[::3] == sorted({x % 23 for x in indices})


@pytest.mark.parametrize(("batch_size", "steps_per_pass"), [(6, 4), (5, 5), (5, 4), (2, 12)])
def test_copies_continue_anywhere(batch_size, steps_per_pass):
    keys = {"num_examples": 23, "batch_size": batch_size, "steps_per_pass": steps_per_pass}
    whole = flat(0, 15, repeats=4, **keys)
    for step in range(15):
        assert flat(step, 15 - step, repeats=4, **keys) == whole[step:]


LENGTHS = torch.randint(1, 200, (1037,), generator=torch.Generator().manual_seed(0))


def grouped_by_length(step, count, batch_size=10, **keys):
    keys = {"num_examples": 1037, "lengths": LENGTHS, "steps_per_pass": 104} | keys
    return flat(step, count, batch_size=batch_size, **keys)


def padded(batches) -> int:
    return sum(int(LENGTHS[indices].max()) * len(indices) for _, indices in batches)


def test_batches_of_one_length_are_of_the_same_examples_and_hold_little_padding():
    plain = flat(0, 208, num_examples=1037, batch_size=10, steps_per_pass=104)
    batches = grouped_by_length(0, 208)
    assert [len(indices) for _, indices in batches] == [len(i) for _, i in plain]
    passes = [[x for p, indices in batches if p == number for x in indices] for number in (0, 1)]
    assert [sorted(seen) for seen in passes] == [list(range(1037))] * 2
    assert passes[0] != passes[1]
    tokens = 2 * int(LENGTHS.sum())
    assert padded(batches) < 1.05 * tokens < 1.5 * tokens < padded(plain)


def test_the_longest_batches_come_anywhere_and_the_short_last_one_is_of_any_length():
    batches = grouped_by_length(0, 104)
    means = torch.tensor([LENGTHS[indices].float().mean() for _, indices in batches])
    position = int(means.argmax())
    assert 0 < position < 103
    first = means[:52].mean() - means[52:103].mean()
    assert abs(first) < 20  # of 100: not sorted from long to short
    left_out = [i for p in range(30) for _, i in grouped_by_length(103 + 104 * p, 1)]
    assert {len(indices) for indices in left_out} == {7}
    mean = LENGTHS[[x for indices in left_out for x in indices]].float().mean()
    assert abs(mean - LENGTHS.float().mean()) < 15


@pytest.mark.parametrize("steps_per_pass", [104, 103])
def test_batches_of_one_length_continue_anywhere(steps_per_pass):
    whole = grouped_by_length(0, 320, steps_per_pass=steps_per_pass)
    for step in (1, 50, 103, 104, 210, 319):
        rest = grouped_by_length(step, 320 - step, steps_per_pass=steps_per_pass)
        assert rest == whole[step:]


def test_fewer_texts_than_a_batch_are_one():
    ((_, indices),) = grouped_by_length(0, 1, num_examples=5, batch_size=9, steps_per_pass=1)
    assert sorted(indices) == list(range(5))


def test_more_copies_than_examples_are_of_one():
    ((_, indices),) = flat(0, 1, num_examples=3, batch_size=9, steps_per_pass=1, repeats=5)
    assert len({x % 3 for x in indices}) == 1
    assert [x // 3 for x in indices] == [0, 1, 2]


# ---- Shares of several processes -------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_examples", [0, 1, 5, 7, 12, 100])
def test_shares_are_all_of_it_and_differ_by_one(num_examples, num_processes):
    shares = [shard(num_examples, rank, num_processes) for rank in range(num_processes)]
    assert [i for first, last in shares for i in range(first, last)] == [*range(num_examples)]
    sizes = [last - first for first, last in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("num_examples", [24, 23, 17, 9])
def test_what_the_processes_do_at_once_is_a_micro_batch(num_examples):
    """Cut as the loop cuts it, by the size of a full share."""
    indices, size, number = torch.randperm(num_examples), 8, 3
    own = [shard_of_batch(indices, rank, number, size) for rank in range(number)]
    sizes = [last - first for first, last in (shard(size, r, number) for r in range(number))]
    pieces = [part.split(cut) for part, cut in zip(own, sizes, strict=True)]
    for position, micro_batch in enumerate(indices.split(size)):
        together = torch.cat([of_one[position] for of_one in pieces if position < len(of_one)])
        assert torch.equal(together, micro_batch)
