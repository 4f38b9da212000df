"""libsvm/NAME on caches of libsvmdata that are seeded here, and on svmlight files over HTTP."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import libsvmdata  # noqa: F401 - so that forks have it
import numpy as np
import pytest
import torch
from loguru import logger
from scipy import sparse
from sklearn.datasets import dump_svmlight_file
from sklearn.preprocessing import normalize

from src.data.sources import libsvm
from src.data.sources.fetch import alone
from src.support.errors import UserError
from tests.data.sources.loading import load_family
from tests.data.sources.written_sets import seed_cache, table
from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[3]
FORK = get_context("fork")
TRAIN = {"train": "train"}
BOTH = {"train": "train", "test": "test"}


def svmlight(inputs: np.ndarray, targets: np.ndarray) -> bytes:
    file = io.BytesIO()
    dump_svmlight_file(inputs, targets, file, zero_based=False)
    return file.getvalue()


def load(name: str, data_dir: Path, splits_map=TRAIN, mirror: str | None = None, **keys):
    """mirror: the address that the data are fetched from, instead of the site's."""
    with pytest.MonkeyPatch.context() as patched:
        if mirror:
            patched.setattr("libsvmdata.libsvm.LIBSVM_BASE_URL", mirror)
            keys["data_download"] = True
        return load_family(f"libsvm/{name}", data_dir, splits_map, None, **keys)


@pytest.mark.parametrize(("fill", "layout"), [(1.0, torch.strided), (0.05, torch.sparse_csr)])
def test_what_is_smaller_is_kept_and_rows_have_unit_norm(tmp_path, fill, layout):
    x = table(200, 123, fill=fill)
    seed_cache(tmp_path, "a1a", x, np.where(np.arange(200) % 3, 1, -1))
    data = load("a1a", tmp_path, {"train": "train[:150]", "test": "train[150:]"})
    for split, rows in [("train", slice(150)), ("test", slice(150, 200))]:
        inputs = data.splits[split].inputs
        assert (inputs.layout, inputs.dtype) == (layout, torch.float32)
        np.testing.assert_allclose(inputs.to_dense(), normalize(x)[rows], rtol=1e-5)
    assert (data.input_shape, data.n_classes) == ((123,), 2)
    plain = load("a1a", tmp_path, data_normalize="none").splits["train"].inputs
    np.testing.assert_allclose(plain.to_dense(), x, rtol=1e-6)


def test_labels_of_both_parts_are_numbered_together(tmp_path):
    seed_cache(tmp_path, "pendigits", table(6, 16), [7, 3, 3, 9, 7, 9])
    seed_cache(tmp_path, "pendigits_test", table(3, 16), [11, 9, 3])
    data = load("pendigits", tmp_path, BOTH)
    assert data.n_classes == 4
    assert data.splits["train"].targets.tolist() == [1, 0, 0, 2, 1, 2]
    assert data.splits["test"].targets.tolist() == [3, 2, 0]
    assert data.splits["test"].targets.dtype == torch.int64


@pytest.mark.parametrize("fill", [1.0, 0.05])
def test_both_parts_get_the_larger_number_of_features(tmp_path, fill):
    seed_cache(tmp_path, "w1a", table(30, 290, fill=fill), np.arange(30) % 2)
    seed_cache(tmp_path, "w1a_test", table(20, 300, fill=fill, seed=1), np.arange(20) % 2)
    data = load("w1a", tmp_path, BOTH)
    assert data.splits["train"].inputs.shape == (30, 300)
    assert data.splits["test"].inputs.shape == (20, 300)
    assert data.splits["train"].inputs.to_dense()[:, 290:].abs().sum() == 0


@pytest.mark.parametrize(
    ("fill", "layout"), [(1.0, torch.strided), (0.1, torch.sparse_csr)], ids=["dense", "sparse"]
)
def test_the_test_part_lies_in_memory_as_the_train_part_does(tmp_path, fill, layout):
    x = table(20, 60, fill=1.1 - fill)
    seed_cache(tmp_path, "splice", table(30, 60, fill=fill), np.arange(30) % 2)
    seed_cache(tmp_path, "splice_test", x, np.arange(20) % 2)
    data = load("splice", tmp_path, BOTH, data_normalize="none")
    assert {split.inputs.layout for split in data.splits.values()} == {layout}
    np.testing.assert_array_equal(data.splits["test"].inputs.to_dense(), x.astype(np.float32))


def test_regression_keeps_its_numbers(tmp_path):
    seed_cache(tmp_path, "abalone", table(5, 8), [3.5, -2, 3.5, 0.25, 7])
    data = load("abalone", tmp_path)
    assert data.n_classes is None
    assert data.splits["train"].targets.tolist() == [3.5, -2, 3.5, 0.25, 7]
    assert data.splits["train"].targets.dtype == torch.float32


def test_several_labels_become_zeros_and_ones(tmp_path):
    labels = sparse.csr_matrix(np.array([[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]))
    seed_cache(tmp_path, "yeast", table(3, 103), labels)
    data = load("yeast", tmp_path)
    assert data.splits["train"].targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert data.n_classes == 3


def test_errors_in_libsvmdatas_table_are_corrected(tmp_path, site):
    x, y = table(10, 256), np.arange(10)
    seed_cache(tmp_path, "usps", np.hstack([x, np.zeros((10, 7291 - 256))]), y)
    assert load("usps", tmp_path).input_shape == (256,)

    seed_cache(tmp_path, "w3a", table(2477, 300, fill=0.02), np.arange(2477) % 2)  # w1a's
    site.files["/binary/w3a"] = svmlight(table(40, 300), np.arange(40) % 2)
    data = load("w3a", tmp_path, mirror=site.address)
    assert len(data.splits["train"]) == 40


def test_a_start_from_prepared_arrays_needs_no_library(tmp_path):
    seed_cache(tmp_path, "a1a", table(20, 123, fill=0.05), np.arange(20) % 2)
    load("a1a", tmp_path)
    code = (
        "import sys; from src.config import make_config; from src.data import build_data\n"
        f"keys = {{'data_dir': {str(tmp_path)!r}, 'data_splits_map': {TRAIN!r}}}\n"
        "build_data(make_config(keys | {'dataset': 'libsvm/a1a'}), None)\n"
        "print([m for m in ('libsvmdata', 'scipy', 'sklearn', 'timm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")  # no warning of torch's either


def test_prepared_arrays_follow_the_files(tmp_path):
    folder = tmp_path / "libsvm"
    seed_cache(tmp_path, "a1a", table(20, 123), np.arange(20) % 2)
    assert not libsvm.current_meta(folder, "a1a")
    load("a1a", tmp_path)
    assert libsvm.current_meta(folder, "a1a")
    seed_cache(tmp_path, "a1a", table(20, 123, seed=5), np.arange(20) % 2)
    assert not libsvm.current_meta(folder, "a1a")
    expected = normalize(table(20, 123, seed=5))
    np.testing.assert_allclose(load("a1a", tmp_path).splits["train"].inputs, expected, rtol=1e-5)
    for file in libsvm.source_files(folder, "a1a"):
        file.unlink()
    assert libsvm.current_meta(folder, "a1a")


@pytest.mark.parametrize("file", ["meta.json", "values.npy", "targets.npy"])
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_half_written_arrays_are_made_again(tmp_path, file, damage):
    seed_cache(tmp_path, "a1a", table(20, 123), np.arange(20) % 2)
    load("a1a", tmp_path)
    path = tmp_path / "libsvm" / "prepared" / "a1a" / file
    path.write_bytes(path.read_bytes()[:-7]) if damage == "truncated" else path.unlink()
    assert not libsvm.current_meta(tmp_path / "libsvm", "a1a")
    assert len(load("a1a", tmp_path).splits["train"]) == 20


def damage_cache(folder: Path, damage: str) -> None:
    inputs, targets = libsvm.source_files(folder, "a1a")
    if damage == "half_X":
        inputs.write_bytes(inputs.read_bytes()[: inputs.stat().st_size // 2])
    elif damage == "empty_X":
        inputs.write_bytes(b"")
    elif damage == "half_y":
        targets.write_bytes(targets.read_bytes()[:-40])
    elif damage == "no_y":
        targets.unlink()
    elif damage == "stray":
        np.save(folder / "a1a_X.npy", np.ones((3, 123)))
    elif damage == "too_few_y":
        np.save(targets, np.ones(7))


DAMAGES = ("half_X", "empty_X", "half_y", "no_y", "stray", "too_few_y")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_cache_is_noticed(tmp_path, damage):
    seed_cache(tmp_path, "a1a", table(50, 123, fill=0.05), np.arange(50) % 2)
    damage_cache(tmp_path / "libsvm", damage)
    with pytest.raises(UserError, match=r"libsvm/a1a is broken \(.*data_download is false.*_X"):
        load("a1a", tmp_path)
    assert not libsvm.current_meta(tmp_path / "libsvm", "a1a")


@pytest.mark.parametrize("damage", ["half_X", "stray"])
def test_a_broken_cache_is_fetched_again(tmp_path, site, log_lines, damage):
    x, y = table(60, 123, fill=0.05), np.arange(60) % 2
    site.files["/binary/a1a"] = svmlight(x, y)
    seed_cache(tmp_path, "a1a", x[:50], y[:50])
    damage_cache(tmp_path / "libsvm", damage)
    data = load("a1a", tmp_path, mirror=site.address)
    np.testing.assert_allclose(data.splits["train"].inputs.to_dense(), normalize(x), rtol=1e-5)
    assert any("is broken" in line and "fetching" in line for line in log_lines)
    assert len(libsvm.source_files(tmp_path / "libsvm", "a1a")) == 2


def test_fetching_one_set_leaves_the_others(tmp_path, site):
    """libsvmdata by itself would delete both, as one's name ends like the other's."""
    seed_cache(tmp_path, "duke breast-cancer", table(4, 50), [1, 2, 1, 2])
    site.files["/binary/breast-cancer"] = svmlight(table(30, 10), np.arange(30) % 2 * 2 + 2)
    data = load("breast-cancer", tmp_path, mirror=site.address)
    assert (len(data.splits["train"]), data.n_classes) == (30, 2)
    assert len(libsvm.source_files(tmp_path / "libsvm", "duke breast-cancer")) == 2


@pytest.mark.parametrize("download", [True, False])
def test_without_data_the_error_names_set_folder_and_files(tmp_path, site, download):
    site.shutdown()
    site.server_close()
    with pytest.raises(UserError) as caught:
        load("rcv1.binary", tmp_path, mirror=site.address if download else None)
    for word in ("libsvm/rcv1.binary", str(tmp_path / "libsvm"), "rcv1.binary_X.npz", "_y.npy"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert download or not (tmp_path / "libsvm").exists()


def test_a_server_that_falls_silent_is_given_up(tmp_path, site, monkeypatch):
    monkeypatch.setattr("src.data.sources.fetch.NO_PROGRESS_SECONDS", 0.5)
    site.files["/binary/a1a"] = svmlight(table(60, 123), np.arange(60) % 2)
    site.stalls.set()
    with pytest.raises(UserError, match=r"could not be fetched .*timed out"):
        load("a1a", tmp_path, mirror=site.address)


def start_load(data_dir: Path, address: str):
    """A process that loads a1a, and its end of a pipe: examples and lines of the log, if any."""
    ours, theirs = FORK.Pipe()

    def child() -> None:
        lines: list[str] = []
        logger.add(lambda message: lines.append(message.record["message"]))
        data = load("a1a", data_dir, mirror=address)
        theirs.send((len(data.splits["train"]), lines))

    process = FORK.Process(target=child)
    process.start()
    return process, ours


def test_one_process_fetches_and_the_other_waits(tmp_path, site):
    site.files["/binary/a1a"] = svmlight(table(60, 123), np.arange(60) % 2)
    site.stalls.set()
    started = [start_load(tmp_path, site.address) for _ in range(2)]
    wait_until(lambda: len(site.requests) == 3)  # libsvmdata asks three times for one file
    time.sleep(0.5)
    site.ended.set()
    answers = [answer.recv() for _, answer in started if answer.poll(PATIENCE)]
    assert [size for size, _ in answers] == [60, 60]
    assert len(site.requests) == 3
    log = [line for _, lines in answers for line in lines]
    assert sum("waiting for another process that fetches" in line for line in log) == 1


def test_who_waited_uses_what_the_other_prepared(tmp_path, log_lines):
    folder = tmp_path / "libsvm"
    seed_cache(tmp_path, "a1a", table(20, 123), np.arange(20) % 2)
    with ThreadPoolExecutor(1) as pool:
        with alone(folder / "a1a.lock", "tests"):
            waiting = pool.submit(load, "a1a", tmp_path)
            wait_until(lambda: any("waiting for another process" in line for line in log_lines))
            libsvm.prepare(folder, "a1a")
            for file in libsvm.source_files(folder, "a1a"):
                file.unlink()
        assert len(waiting.result(PATIENCE).splits["train"]) == 20


def test_a_killed_fetch_leaves_nothing_that_matters(tmp_path, site):
    site.files["/binary/a1a"] = svmlight(table(60, 123), np.arange(60) % 2)
    site.stalls.set()
    process, _ = start_load(tmp_path, site.address)
    wait_until(lambda: len(site.requests) == 3)
    process.kill()
    process.join()
    assert libsvm.source_files(tmp_path / "libsvm", "a1a") == []
    site.stalls.clear()
    data = load("a1a", tmp_path, mirror=site.address)
    assert len(data.splits["train"]) == 60


@pytest.mark.parametrize(
    ("name", "near"),
    [("rcv1", "rcv1.binary"), ("covtype", "covtype.binary"), ("a9", "a9a"), ("HIGS", "HIGGS")],
)
def test_unknown_names_are_answered_with_the_closest(tmp_path, name, near):
    with pytest.raises(UserError, match=f"unknown 'libsvm/{name}'; did you mean 'libsvm/{near}'"):
        load(name, tmp_path)


def test_a_set_without_test_part_suggests_slices(tmp_path):
    with pytest.raises(UserError, match=r"libsvm/covtype.multiclass has no 'test'.*train\[80%:\]"):
        load("covtype.multiclass", tmp_path, BOTH)
