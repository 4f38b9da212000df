import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import Dataset

from src.data.loaders import (
    Loading,
    evaluation_batches,
    micro_batches,
    take,
    take_range,
    training_batches,
)
from src.data.splits import ArraySplit, DatasetSplit

CPU = torch.device("cpu")


def sparse_split(index_dtype=torch.int32):
    rng = np.random.default_rng(0)
    dense = rng.random((23, 7)) * (rng.random((23, 7)) < 0.3)
    dense[[0, 5, 22]] = 0  # empty rows at the ends and within
    csr = scipy.sparse.csr_matrix(dense.astype(np.float32))
    rows, columns = (torch.tensor(a, dtype=index_dtype) for a in (csr.indptr, csr.indices))
    values = torch.tensor(csr.data)
    inputs = torch.sparse_csr_tensor(rows, columns, values, dense.shape, check_invariants=True)
    return ArraySplit(inputs, torch.arange(23)), torch.tensor(dense, dtype=torch.float32)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_rows_of_a_sparse_split_are_those_of_the_dense_one(index_dtype):
    split, dense = sparse_split(index_dtype)
    for indices in (torch.tensor([0]), torch.tensor([22, 3, 3, 0, 7]), torch.randperm(23)):
        inputs, targets = take(split, indices)
        assert torch.equal(inputs.to_dense(), dense[indices])
        assert torch.equal(targets, indices)
        assert inputs.col_indices().dtype == inputs.crow_indices().dtype == index_dtype
    for start, stop in ((0, 1), (0, 23), (4, 9), (20, 30)):
        inputs, targets = take_range(split, start, stop)
        assert torch.equal(inputs.to_dense(), dense[start:stop])
        assert torch.equal(targets, torch.arange(start, min(stop, 23)))


@pytest.mark.parametrize(
    "make", [lambda: sparse_split()[0], lambda: ArraySplit(torch.rand(23, 7), torch.arange(23))]
)
def test_micro_batches_put_together_are_the_batch(make):
    split = make()
    pieces = micro_batches(split.inputs, split.targets, 10)
    assert [len(targets) for _, targets in pieces] == [10, 10, 3]
    dense = [x.to_dense() if x.layout == torch.sparse_csr else x for x, _ in pieces]
    whole = split.inputs.to_dense() if split.inputs.layout == torch.sparse_csr else split.inputs
    assert torch.equal(torch.cat(dense), whole)


def test_an_evaluation_sees_every_example_once_in_order():
    split = ArraySplit(torch.rand(23, 7), torch.arange(23))
    batches = list(evaluation_batches(split, Loading(10, CPU)))
    assert [len(t) for _, t in batches] == [10, 10, 3]
    assert torch.equal(torch.cat([x for x, _ in batches]), split.inputs)
    assert batches[0][0].data_ptr() == split.inputs.data_ptr()  # a view, not a copy


class Numbers(Dataset):
    """Example i is the number i."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return float(index), index


def noisy(number):
    """Draws from all three generators that an augmentation may use."""
    draws = [torch.rand(()).item(), np.random.rand(), random.random()]
    return torch.tensor([number, *draws])


def plain(number):
    return torch.tensor([number, 0, 0, 0])


def noisy_batches(num_workers, first_step=0, seed=5, count=6):
    split = DatasetSplit(Numbers(), train_transform=noisy, transform=plain)
    loading = Loading(10, CPU, num_workers)
    batches = training_batches(split, loading, seed=seed, steps_per_pass=3, first_step=first_step)
    return [torch.cat([x, t[:, None]], 1) for x, t in islice(batches, count)]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_and_their_noise_do_not_depend_on_the_number_of_workers(num_workers):
    assert same(noisy_batches(num_workers), noisy_batches(0))


def test_batches_and_their_noise_continue_in_the_middle_of_a_pass():
    assert same(noisy_batches(2, first_step=4, count=2), noisy_batches(0)[4:])


def test_noise_differs_between_examples_passes_and_seeds():
    noise = torch.cat(noisy_batches(0) + noisy_batches(0, seed=6))[:, 1]
    assert len(noise.unique()) == len(noise)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_generators_of_the_training_process_alone(num_workers):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    noisy_batches(num_workers)
    split = DatasetSplit(Numbers(), train_transform=noisy, transform=plain)
    seen = torch.cat([t for _, t in evaluation_batches(split, Loading(10, CPU, num_workers))])
    assert seen.tolist() == list(range(23))
    assert states() == before


SIGNALLED_WORKERS = """
import os, signal, torch
from src.data.loaders import Loading, training_batches
from src.data.splits import DatasetSplit

class Numbers:
    def __len__(self): return 40
    def __getitem__(self, i): return torch.full((1, 2, 2), float(i)), i

def same(x): return x

os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
split = DatasetSplit(Numbers(), same, same)
loading = Loading(4, torch.device("cpu"), num_workers=2)
batches = training_batches(split, loading, seed=0, steps_per_pass=10)
print(sum(len(next(batches)[1]) for _ in range(10)))
batches.close()
"""


def test_a_signal_that_comes_while_workers_start_does_not_kill_them():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_WORKERS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("40\n", 0), done.stderr
