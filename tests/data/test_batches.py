import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import Dataset

from src.data.arrays import ArraySplit, micro_batches
from src.data.batch_augmentation import Mixing
from src.data.images import LONGEST_SOCKET, SOCKET, DatasetSplit, identity
from src.data.splits import NO_TOKEN, Augmentation, LoaderConfig
from src.data.text import TextSplit
from src.losses import NextToken
from src.support.errors import UserError
from tests.waiting import PATIENCE

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
        inputs, targets = split.take(indices)
        assert torch.equal(inputs.to_dense(), dense[indices])
        assert torch.equal(targets, indices)
        assert inputs.col_indices().dtype == inputs.crow_indices().dtype == index_dtype
    for start, stop in ((0, 1), (0, 23), (4, 9), (20, 30)):
        inputs, targets = next(split.range_batches([(start, stop)], LoaderConfig(9, CPU)))
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
    batches = list(split.evaluation_batches(LoaderConfig(10, CPU)))
    assert [len(t) for _, t in batches] == [10, 10, 3]
    assert torch.equal(torch.cat([x for x, _ in batches]), split.inputs)
    assert batches[0][0].data_ptr() == split.inputs.data_ptr()  # a view, not a copy


class Numbers(Dataset):
    """Example i is the number i."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return float(index), index


def shuffled(split, loading, seed=3) -> list:
    """(inputs, targets) of a pass, dense."""
    batches = split.shuffled_batches(loading, seed=seed)
    return [(x.to_dense() if x.layout == torch.sparse_csr else x, y) for x, y in batches]


KINDS = ["dense", "sparse", "pixels", "read", "texts"]


def split_of(kind):
    """23 examples; the target of each is its number."""
    numbers = torch.arange(23)
    pixels = torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1).expand(23, 1, 4, 4)
    return {
        "dense": ArraySplit(torch.rand(23, 7), numbers),
        "sparse": sparse_split()[0],
        "pixels": ArraySplit(pixels, numbers, torch.Tensor.float),
        "read": DatasetSplit(Numbers(), noisy, torch.tensor),
        "texts": TextSplit(torch.arange(23).int() + 7, numbers, numbers + 1, numbers),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_that_nothing_tells_apart_are_the_example_itself(kind):
    split = split_of(kind)
    if kind == "read":
        split = replace(split, train_transform=split.transform)
    loading = LoaderConfig(8, CPU, repeats=2)
    for inputs, targets in islice(split.training_batches(loading, seed=0, steps_per_pass=2), 4):
        order = targets.tolist()
        assert order[::2] == order[1::2]
        assert len(set(order)) == 4
        dense = inputs.to_dense() if inputs.layout == torch.sparse_csr else inputs
        assert torch.equal(dense[::2], dense[1::2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_shuffled_pass_sees_every_example_once_and_as_it_is(kind):
    split, numbers = split_of(kind), torch.arange(23)
    before = torch.get_rng_state()
    changed = Augmentation(noise=1.0)
    loading = LoaderConfig(8, CPU, augmentation=changed, repeats=2, micro_batch_size=4)
    batches = shuffled(split, loading)
    assert torch.equal(torch.get_rng_state(), before)
    assert {len(targets) for _, targets in batches} == {4, 5}  # none of a single example
    order = torch.cat([targets for _, targets in batches])
    assert sorted(order.tolist()) == numbers.tolist()
    assert order.tolist() != numbers.tolist()
    inputs = torch.cat([x for x, _ in batches])
    expected = {
        "dense": lambda: split.inputs,
        "sparse": lambda: sparse_split()[1],
        "pixels": lambda: split.inputs.float(),
        "read": lambda: numbers.float(),
        "texts": lambda: numbers[:, None] + 7,
    }[kind]()
    assert torch.equal(inputs, expected[order])
    assert all(
        torch.equal(a, b) for a, b in zip(batches[1], shuffled(split, loading)[1], strict=True)
    )
    other = torch.cat([targets for _, targets in shuffled(split, loading, seed=4)])
    assert order.tolist() != other.tolist()


@pytest.mark.parametrize("number", [2, 3, 4])
def test_processes_take_turns_with_whole_batches(number):
    split = ArraySplit(torch.rand(23, 7), torch.arange(23))
    turns = [
        shuffled(split, LoaderConfig(8, CPU, rank=r, num_processes=number)) for r in range(number)
    ]
    assert len({len(batches) for batches in turns}) == 1
    assert all(len(inputs) for batches in turns for inputs, _ in batches)
    order = torch.cat([targets for batches in turns for _, targets in batches])
    assert sorted(order.tolist()) == list(range(23))


def noisy(number):
    """Draws from all three generators that an augmentation may use."""
    draws = [torch.rand(()).item(), np.random.rand(), random.random()]
    return torch.tensor([number, *draws])


def plain(number):
    return torch.tensor([number, 0, 0, 0])


def noisy_batches(num_workers, first_step=0, seed=5, count=6, repeats=1):
    split = DatasetSplit(Numbers(), train_transform=noisy, transform=plain)
    loading = LoaderConfig(10, CPU, num_workers, repeats=repeats)
    batches = split.training_batches(loading, seed=seed, steps_per_pass=3, first_step=first_step)
    return [torch.cat([x, t[:, None]], 1) for x, t in islice(batches, count)]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


class Broken(Numbers):
    def __getitem__(self, index):
        if index == 7:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


@pytest.mark.parametrize("transform", [plain, noisy])
def test_an_example_that_cannot_be_read_is_named(transform):
    split = DatasetSplit(Broken(), train_transform=transform, transform=plain)
    for batches in (
        split.training_batches(LoaderConfig(23, CPU), seed=0, steps_per_pass=1),
        split.evaluation_batches(LoaderConfig(23, CPU)),
    ):
        with pytest.raises(OSError, match="truncated") as raised:
            next(batches)
        assert raised.value.__notes__ == ["example 7 of 23"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_and_their_noise_do_not_depend_on_the_number_of_workers(num_workers):
    assert same(noisy_batches(num_workers), noisy_batches(0))


def test_batches_and_their_noise_continue_in_the_middle_of_a_pass():
    assert same(noisy_batches(2, first_step=4, count=2), noisy_batches(0)[4:])


def test_noise_differs_between_examples_passes_and_seeds():
    noise = torch.cat(noisy_batches(0) + noisy_batches(0, seed=6))[:, 1]
    assert len(noise.unique()) == len(noise)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_copies_of_an_example_differ_in_their_noise_alone(num_workers):
    whole = noisy_batches(num_workers, repeats=2)
    assert [len(batch) for batch in whole] == [10, 10, 3] * 2
    for batch in (*whole[:2], *whole[3:5]):
        number, target, noise = batch[:, 0], batch[:, 4], batch[:, 1:4]
        assert torch.equal(number, target)
        assert torch.equal(number[::2], number[1::2])
        assert len(number.unique()) == 5
        assert all(len(draws.unique()) == 10 for draws in noise.T)
    first_copies = torch.cat(whole[:3])[::2]
    alone = torch.cat(noisy_batches(0, count=3))[: len(first_copies)]
    assert torch.equal(first_copies, alone)
    assert same(noisy_batches(2, first_step=4, count=2, repeats=2), whole[4:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_generators_of_the_training_process_alone(num_workers):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    noisy_batches(num_workers)
    split = DatasetSplit(Numbers(), train_transform=noisy, transform=plain)
    seen = torch.cat([t for _, t in split.evaluation_batches(LoaderConfig(10, CPU, num_workers))])
    assert seen.tolist() == list(range(23))
    assert states() == before


def test_closing_ends_the_workers_of_mixed_batches():
    split = DatasetSplit(Numbers(), lambda _: torch.rand(1, 4, 4), str)
    loading = LoaderConfig(10, CPU, 2, mixing=Mixing(23, mixup=1.0))
    batches = split.training_batches(loading, seed=5, steps_per_pass=3)
    inputs, shares = next(batches)
    assert (inputs.shape, shares.shape) == ((10, 1, 4, 4), (10, 23))
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


TEXTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [18, 19, 20]]


def texts(with_targets: bool, is_grouped: bool = False) -> TextSplit:
    tokens = torch.tensor([token for text in TEXTS for token in text], dtype=torch.int32)
    ends = torch.tensor([len(text) for text in TEXTS]).cumsum(0)
    starts = ends - torch.tensor([len(text) for text in TEXTS])
    targets = torch.arange(len(TEXTS)) if with_targets else None
    return TextSplit(tokens, starts, ends, targets, is_grouped)


def padded_by_hand(chosen: list[list[int]]) -> list[list[int]]:
    longest = max(map(len, chosen))
    return [text + [NO_TOKEN] * (longest - len(text)) for text in chosen]


def test_texts_are_padded_to_the_longest_of_their_batch():
    for indices in ([0, 1, 2], [6], [3, 1], [1, 1]):
        inputs, targets = texts(True).take(torch.tensor(indices))
        assert inputs.tolist() == padded_by_hand([TEXTS[i] for i in indices])
        assert targets.tolist() == indices
        assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)


def test_the_targets_of_texts_alone_are_their_next_tokens():
    for indices in ([0, 2, 3], [6], [3, 4]):
        inputs, targets = texts(False).take(torch.tensor(indices))
        assert inputs.tolist() == padded_by_hand([TEXTS[i][:-1] for i in indices])
        assert targets.tolist() == padded_by_hand([TEXTS[i][1:] for i in indices])


@pytest.mark.parametrize("is_grouped", [False, True])
def test_batches_of_texts_hold_each_once_a_pass_and_continue_anywhere(is_grouped):
    def batches(first_step: int, count: int) -> list:
        loading = LoaderConfig(3, CPU)
        split = texts(True, is_grouped)
        made = split.training_batches(loading, seed=1, steps_per_pass=3, first_step=first_step)
        return list(islice(made, count))

    whole = batches(0, 6)
    assert [len(targets) for _, targets in whole] == [3, 3, 1] * 2
    for inputs, targets in whole:
        assert inputs.tolist() == padded_by_hand([TEXTS[i] for i in targets])
    for first in (0, 3):
        seen = torch.cat([targets for _, targets in whole[first : first + 3]])
        assert sorted(seen.tolist()) == list(range(7))
    for ours, theirs in zip(batches(4, 2), whole[4:], strict=True):
        assert same(ours, theirs)


def test_an_evaluation_of_texts_begins_with_the_longest():
    batches = list(texts(True).evaluation_batches(LoaderConfig(3, CPU)))
    assert [targets.tolist() for _, targets in batches] == [[3, 5, 0], [6, 2, 4], [1]]


def test_micro_batches_of_texts_add_up_to_their_loss():
    split, model = texts(False), torch.nn.Embedding(21, 21)
    indices = torch.tensor([0, 2, 3, 4, 5, 6])
    inputs, targets = split.take(indices)
    pieces = micro_batches(inputs, targets, 4)
    assert [len(y) for _, y in pieces] == [4, 2]
    loss = NextToken()
    by_hand = sum(
        torch.nn.functional.cross_entropy(model.weight[text[:-1]], torch.tensor(text[1:]))
        * (len(text) - 1)
        for text in (TEXTS[i] for i in indices)
    )
    whole = loss(model(inputs.clamp(min=0)), targets)
    parts = sum(loss(model(x.clamp(min=0)), y) for x, y in pieces)
    torch.testing.assert_close(whole, by_hand)
    torch.testing.assert_close(parts, by_hand)
    assert sum(int(loss.normalizer(y)) for _, y in pieces) == loss.normalizer(targets) == 13


SIGNALLED_WORKERS = """
import os, signal, torch
from src.data.splits import LoaderConfig
from src.data.images import DatasetSplit

class Numbers:
    def __len__(self): return 40
    def __getitem__(self, i): return torch.full((1, 2, 2), float(i)), i

def same(x): return x

os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
split = DatasetSplit(Numbers(), same, same)
loading = LoaderConfig(4, torch.device("cpu"), num_workers=2)
batches = split.training_batches(loading, seed=0, steps_per_pass=10)
print(sum(len(next(batches)[1]) for _ in range(10)))
batches.close()
"""


@pytest.mark.slow
def test_a_signal_that_comes_while_workers_start_does_not_kill_them():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_WORKERS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.returncode) == ("40\n", 0), done.stderr


LISTEN = "from multiprocessing.connection import Listener; Listener(family='AF_UNIX').close()"


def test_a_temporary_folder_without_room_for_sockets_is_refused(tmp_path, monkeypatch):
    """Workers would hand over nothing, and the run wait for ever."""
    most = LONGEST_SOCKET - len(SOCKET)
    split = DatasetSplit([(torch.zeros(1), 0)], identity, identity)
    order, loader = [torch.tensor([0])], LoaderConfig(1, torch.device("cpu"), num_workers=1)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        longest = Path(short) / ("x" * (most - len(short) - 1))
        longest.mkdir()
        env = os.environ | {"TMPDIR": str(longest)}
        subprocess.run([sys.executable, "-c", LISTEN], env=env, check=True)
        monkeypatch.setattr(tempfile, "tempdir", str(longest))
        assert len(list(split.batches(order, loader))) == 1
    monkeypatch.setattr(tempfile, "tempdir", f"{longest}x")
    with pytest.raises(UserError, match=f"^TMPDIR: got .* at most {most} characters"):
        next(split.batches(order, loader))
