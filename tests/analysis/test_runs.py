"""The cache of a batch: what is read from it is what would be read without it."""

import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.results import generate
from src.analysis import read, read_experiments, runs

CACHE = ".big_df.npz"


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Of 200 runs, the least that can be generated, twenty."""
    batch = generate(tmp_path_factory.mktemp("generated"), 200)
    for run in sorted(path for path in batch.iterdir() if path.is_dir())[20:]:
        shutil.rmtree(run)
    return batch


@pytest.fixture
def batch(generated, tmp_path, monkeypatch) -> Path:
    """Twenty runs, of which some lack files, columns or epochs; they are few, but kept."""
    monkeypatch.setattr(read, "WORTH_KEEPING", 1)
    batch = shutil.copytree(generated, tmp_path / generated.name)
    runs = sorted(path for path in batch.iterdir() if path.is_dir())
    (runs[1] / "done").unlink()
    (runs[2] / "stats.csv").unlink()
    (runs[2] / "done").unlink()
    text = (runs[3] / "stats.csv").read_text().splitlines()
    (runs[3] / "stats.csv").write_text(
        "\n".join(line.rsplit(",", 2)[0] for line in text[:5]) + "\n"
    )
    with open(runs[4] / "config.yaml", "a") as file:
        file.write("mine: [1, {a: null}]\n")
    return batch


def reads(monkeypatch) -> list[str]:
    """The folders that are read from now on."""
    found = []

    def recorded(folder: str):
        found.append(Path(folder).name)
        return original(folder)

    original = read.read_run
    monkeypatch.setattr(read, "read_run", recorded)
    return found


def assert_same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    assert a.columns.tolist() == b.columns.tolist()
    assert a.dtypes.astype(str).tolist() == b.dtypes.astype(str).tolist()
    for name in a.columns:
        for x, y in zip(a[name], b[name], strict=True):
            if isinstance(x, pd.Series):
                pd.testing.assert_series_equal(x, y)
            else:
                np.testing.assert_equal(x, y)
    assert a.index.tolist() == b.index.tolist()


def without_cache(batch: Path, **options) -> pd.DataFrame:
    (batch / CACHE).unlink(missing_ok=True)
    return read_experiments(batch, **options)


@pytest.mark.parametrize("field", ["epoch", "time", "train/seen_examples"])
def test_a_second_reading_reads_no_run_and_finds_the_same(batch, monkeypatch, field):
    first = without_cache(batch, index_field=field)
    found = reads(monkeypatch)
    assert_same(read_experiments(batch, index_field=field), first)
    assert found == []
    assert first["mine"].iloc[4] == [1, {"a": None}]
    assert first["test/last/time"].isna().tolist() == [i in (2, 3) for i in range(20)]


def test_runs_whose_files_changed_are_read_again(batch, monkeypatch):
    without_cache(batch)
    runs = sorted(path for path in batch.iterdir() if path.is_dir())
    (runs[1] / "done").write_text("{}")
    stats = (runs[5] / "stats.csv").read_text()
    (runs[5] / "stats.csv").write_text(stats[: stats[:-1].rfind("\n") + 1])
    stat = (runs[6] / "config.yaml").stat()  # same size and time, but another file
    text = (runs[6] / "config.yaml").read_text()
    (runs[6] / "new").write_text(text.replace("momentum: 0.9", "momentum: 0.5"))
    os.utime(runs[6] / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(runs[6] / "new", runs[6] / "config.yaml")
    runs[7].rename(batch / "zzz")
    stat = (runs[8] / "config.yaml").stat()  # written over, and its time put back
    text = (runs[8] / "config.yaml").read_text()
    (runs[8] / "config.yaml").write_text(text.replace("momentum: 0.9", "momentum: 0.5"))
    os.utime(runs[8] / "config.yaml", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = reads(monkeypatch)
    again = read_experiments(batch)
    assert sorted(found) == sorted([*(runs[i].name for i in (1, 5, 6, 8)), "zzz"])
    assert again["state"].iloc[1] == "done"
    assert len(again["train/loss"].iloc[5]) == 19
    assert again.loc[runs[6].name, "momentum"] == 0.5
    assert again.index[-1] == "zzz"
    assert_same(again, without_cache(batch))


def test_only_some_runs_of_a_cached_batch(batch):
    whole = without_cache(batch)
    runs = sorted(path for path in batch.iterdir() if path.is_dir())
    part = read_experiments([runs[5], runs[2]])
    assert_same(part, whole.iloc[[5, 2]][part.columns])
    done = read_experiments(batch, only_done=True)
    assert_same(done, whole[whole["state"] == "done"])


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def other_version(path: Path) -> None:
    """Other code has another digest, which ends the file."""
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def pickled(path: Path) -> None:
    np.savez(path, facts=np.array([{}], dtype=object))


def other_lengths(path: Path) -> None:
    with np.load(path) as arrays:
        found = dict(arrays)
    found["lengths"] = found["lengths"] + 1
    np.savez(path, **found)


def no_archive(path: Path) -> None:
    path.write_text("hello")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version.npy", b"")


@pytest.mark.parametrize(
    "damage",
    [
        torn,
        flipped,
        other_version,
        pickled,
        other_lengths,
        no_archive,
        empty,
        without_arrays,
    ],
)
def test_a_broken_cache_is_thrown_away(batch, monkeypatch, damage):
    first = without_cache(batch)
    damage(batch / CACHE)
    found = reads(monkeypatch)
    assert_same(read_experiments(batch), first)
    assert len(found) == 20
    found.clear()
    read_experiments(batch)
    assert found == []


def test_values_that_json_does_not_hold_are_read_each_time(batch):
    run = next(path for path in sorted(batch.iterdir()) if path.is_dir())
    with open(run / "config.yaml", "a") as file:
        file.write("when: 2026-11-23\nsteps: {1: 2}\n")
    for _ in range(2):
        frame = read_experiments(batch)
        assert str(frame["when"].iloc[0]) == "2026-11-23"
        assert frame["steps"].iloc[0] == {1: 2}
    assert not (batch / CACHE).exists()


def test_a_folder_that_is_not_ours_to_write_in_is_read_all_the_same(batch, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runs, "write_atomically", refuse)  # tests may run as root
    assert len(read_experiments(batch)) == 20


def test_small_batches_get_no_cache(batch, monkeypatch):
    monkeypatch.setattr(read, "WORTH_KEEPING", 21)
    without_cache(batch)
    assert not (batch / CACHE).exists()


def test_what_a_kill_has_left_is_removed_later(batch):
    old, young = batch / f".{CACHE}.1", batch / f".{CACHE}.2"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    without_cache(batch)
    assert not old.exists()
    assert young.exists()  # somebody may be writing it
