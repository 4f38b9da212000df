"""State files: whatever happens to them, what is read is what was written, or the one before."""

import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.runtime.checkpoints import CheckpointFiles, CorruptCheckpoint, read_state, write_state
from src.support.errors import UserError

ROOT = Path(__file__).parents[2]


OF_ANY_RUN = {"config": {"asked": {}, "in_force": {}}, "parts": {}, "generators": {}, "epoch": 1}
OF_ANY_RUN |= {"outcome": None, "reason": ""}
OF_ANY_RUN |= dict.fromkeys(("data_time", "training_seconds", "run_seconds"), 0.0)


def content(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return OF_ANY_RUN | {
        "step": step,
        "model": {"weight": torch.randn(20, 10, generator=generator)},
        "rows": [{"epoch": 1, "train/loss": float("nan"), "time": "2026"}],
        "rng": torch.get_rng_state(),
        "nothing": None,
    }


def assert_same(found: dict | None, step: int) -> None:
    assert found is not None
    assert found["step"] == step
    assert torch.equal(found["model"]["weight"], content(step)["model"]["weight"])


@pytest.fixture
def files(tmp_path) -> CheckpointFiles:
    files = CheckpointFiles(tmp_path / "state")
    for step in (10, 20, 30):
        files.save(step, content(step))
    return files


def test_the_two_newest_are_kept_and_the_newest_is_read(files):
    assert [path.name for path in files.paths()] == ["000000030.state", "000000020.state"]
    assert_same(files.newest(), 30)
    assert CheckpointFiles(files.folder / "none").newest() is None


def test_broken_bytes_are_never_believed(files):
    """200 truncations and bit flips of the newest: the one before it is read, each time."""
    newest = files.paths()[0]
    whole, draw = newest.read_bytes(), random.Random(0)
    for _ in range(100):
        newest.write_bytes(whole[: draw.randrange(len(whole))])
        assert_same(files.newest(), 20)
        position, bit = draw.randrange(len(whole)), draw.randrange(8)
        flipped = bytes([whole[position] ^ (1 << bit)])
        newest.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        assert_same(files.newest(), 20)
    newest.write_bytes(whole)
    assert_same(files.newest(), 30)


def test_torn_files_are_put_aside_and_newer_ones_take_their_place(files):
    torn = files.paths()[0]
    torn.write_bytes(torn.read_bytes()[:-1])
    assert_same(files.newest(), 20)
    for step in (22, 25):
        files.save(step, content(step))
    assert [path.stem for path in files.paths()] == ["000000025", "000000022"]
    assert torn.with_suffix(".broken").exists()


def unchanged(folder: Path) -> dict[str, bytes]:
    """What all files below the folder hold."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", [".state", ".broken"])
def test_a_run_none_of_whose_states_can_be_read_is_left_as_it_is(files, tmp_path, suffix):
    """And so at every start: a torn file is not renamed, or the next would start from scratch."""
    (tmp_path / "stats.csv").write_text(",epoch\n0,1\n1,2\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"weights")
    for path in files.paths():
        path.write_bytes(path.read_bytes()[:-1])
        path.rename(path.with_suffix(suffix))
    before = unchanged(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError) as info:
            files.newest()
        assert unchanged(tmp_path) == before
    words = str(info.value)
    assert len(words.splitlines()) == 1
    assert f"{files.folder}: none of the saved states of this run can be read" in words
    assert "000000030" in words
    assert "000000020" in words
    assert "its 2 rows of stats and 1 checkpoint are as they were" in words
    assert "another output_dir" in words
    assert f"delete {files.folder}" in words


def test_what_other_code_has_written_is_not_lost(files):
    """Nothing older serves: better to stop than to start from scratch and remove it."""
    for path in files.paths():
        path.write_bytes(path.read_bytes()[:16] + b"\2" + path.read_bytes()[17:])
    before = unchanged(files.folder)
    with pytest.raises(UserError, match=r"has version 2, this code reads 1.*delete .*scratch"):
        files.newest()
    assert unchanged(files.folder) == before


def test_a_state_counts_by_the_step_inside_it_not_by_its_name(files):
    newest = files.paths()[0]
    renamed = newest.rename(newest.with_name("999999999.state"))
    assert_same(files.newest(), 20)  # and the renamed one is out of the way
    files.save(25, content(25))
    assert [path.name for path in files.paths()] == ["000000025.state", "000000020.state"]
    assert renamed.with_suffix(".broken").exists()
    for path in files.paths():
        path.unlink()
    renamed.with_suffix(".broken").rename(renamed)
    with pytest.raises(UserError, match=r"999999999\.state holds step 30, not that of its name"):
        files.newest()
    renamed.rename(newest)
    assert_same(files.newest(), 30)


def test_states_are_put_in_order_as_numbers(files):
    files.paths()[1].rename(files.folder / "20.state")
    assert [path.stem for path in files.paths()] == ["000000030", "20"]
    assert_same(files.newest(), 30)


NO_STATES = [[1], {}, {"config": 5}, None, "text", 7, torch.zeros(3)]
NO_STATES += [{k: v for k, v in content(30).items() if k != key} for key in (*OF_ANY_RUN, "step")]
NO_STATES += [content(30) | {key: {5}} for key in OF_ANY_RUN]
NO_STATES += [content(30) | {"config": config} for config in ({}, {"asked": 1})]


@pytest.mark.parametrize("value", NO_STATES, ids=range(len(NO_STATES)))
def test_what_is_no_state_of_a_run_is_told_so(files, value):
    newest, older = files.paths()
    write_state(newest, value)
    assert_same(files.newest(), 20)
    write_state(newest, value)
    older.unlink()
    with pytest.raises(UserError, match=r"000000030\.state holds no state of a run"):
        files.newest()


def test_what_is_wrong_with_a_file_is_said(tmp_path, files):
    path = files.paths()[0]
    whole = path.read_bytes()
    for data, words in {
        b"": "is no state file",
        whole[:16] + b"\2" + whole[17:]: "has version 2, this code reads 1",
        whole[:-1]: "has a wrong checksum",
    }.items():
        path.write_bytes(data)
        with pytest.raises(CorruptCheckpoint, match=words):
            read_state(path)
    with pytest.raises(CorruptCheckpoint, match="No such file"):
        read_state(tmp_path / "none")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    write_state(tmp_path / "x.state", {"x": Harmful()})
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        read_state(tmp_path / "x.state")
    assert not (tmp_path / "owned").exists()


def test_a_disk_that_is_full_costs_no_state(files):
    """A limit on the size of files, which the system reports as it does a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError):
            files.save(40, content(40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "000000020.state",
        "000000030.state",
    ]
    assert_same(files.newest(), 30)


@pytest.mark.slow
def test_a_kill_while_it_is_written_costs_no_state(files):
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from src.runtime.checkpoints import CheckpointFiles\n"
        "files = CheckpointFiles(Path(sys.argv[1]))\n"
        f"content = {OF_ANY_RUN} | {{'step': 50, 'x': torch.zeros(4_000_000)}}\n"
        "print('go', flush=True)\n"
        "while True: files.save(50, content)\n"
    )
    for wait in (0.0, 0.01, 0.03):
        process = subprocess.Popen(
            [sys.executable, "-c", program, files.folder], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"go\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait)
        process.kill()
        process.wait()
        found = files.newest()
        assert found is not None
        assert found["step"] in (30, 50)
    files.save(60, content(60))
    names = {path.name for path in files.folder.iterdir()}
    assert names <= {"000000060.state", "000000050.state", "000000030.state"}
    assert len(names) == 2


def test_only_its_own_half_written_files_are_removed(files):
    others = {".mine.state.txt", ".000000007.state.old", ".7.state.1", ".backup.state.1"}
    for name in (*others, ".000000007.state.123"):
        (files.folder / name).touch()
    (files.folder / ".000000008.state.1").mkdir()
    files.save(9, {"step": 9})
    left = {path.name for path in files.folder.glob(".*")}
    assert left == others | {".000000008.state.1"}
