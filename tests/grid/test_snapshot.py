"""The frozen code: what is in it, what leads out of it, what it says of itself."""

import json
import os
import subprocess
import sys

import pytest

from src.grid import snapshot
from src.grid.snapshot import (
    changed_since_last_copy,
    freeze,
    frozen_copies,
    next_copy,
)
from src.logging.provenance import CodeState
from src.support.errors import UserError


def git(folder, *arguments):
    settings = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    (root / "src").mkdir(parents=True)
    for name, text in {
        "train.py": "print(1)\n",
        "src/a b.py": "x = 1\n",
        "gone.py": "",
        ".gitignore": "/data\n/results\n*.so\n.venv/\n__pycache__/\n",
    }.items():
        (root / name).write_text(text)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("train.py")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "x")
    (root / "train.py").write_text("print(2)\n")
    (root / "new.py").write_text("new = 1\n")
    (root / "gone.py").unlink()
    for name in (".venv", "__pycache__", "src/__pycache__", "results"):
        (root / name).mkdir()
    (root / "src" / "fast.so").write_text("binary")
    return root


def test_it_holds_what_is_tracked_or_new_as_it_is_now(repository, tmp_path):
    code = freeze(repository, tmp_path / "code")
    files = {str(p.relative_to(code)) for p in code.rglob("*") if not p.is_symlink()}
    own = {"frozen.json", "uncommitted.diff"}
    assert files - own == {"src", "src/a b.py", "train.py", "new.py", ".gitignore", "run.sh"}
    assert (code / "train.py").read_text() == "print(2)\n"
    assert os.access(code / "run.sh", os.X_OK)
    assert not (code / "train.py").stat().st_mode & 0o222
    assert os.readlink(code / "link") == "train.py"


def test_what_git_ignores_is_linked_but_for_caches(repository, tmp_path):
    code = freeze(repository, tmp_path / "code")
    links = {str(p.relative_to(code)): os.readlink(p) for p in code.rglob("*") if p.is_symlink()}
    del links["link"]
    assert links == {
        name: str(repository / name) for name in ("data", "results", ".venv", "src/fast.so")
    }
    (code / "data" / "set").mkdir()  # made where it was missing
    assert (repository / "data" / "set").is_dir()


def test_links_out_of_the_repository_still_lead_there(repository, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (repository / "out").symlink_to("../elsewhere")
    code = freeze(repository, tmp_path / "far" / "away" / "code")
    assert (code / "out").resolve() == (tmp_path / "elsewhere").resolve()


def test_a_repository_within_is_copied_too(repository, tmp_path):
    inner = repository / "inner"
    inner.mkdir()
    (inner / "module.py").write_text("y = 1\n")
    git(inner, "init")
    git(inner, "add", ".")
    git(inner, "commit", "-m", "inner")
    code = freeze(repository, tmp_path / "code")
    assert (code / "inner" / "module.py").read_text() == "y = 1\n"


def test_it_says_what_it_is_a_copy_of(repository, tmp_path):
    code = freeze(repository, tmp_path / "code")
    frozen, expected = CodeState.of_frozen_copy(code), CodeState.of_repository(repository)
    assert expected.facts["commit"]
    assert expected.facts["untracked_files"] == ["new.py"]
    hashes = frozen.facts.pop("files")
    assert frozen.facts == {**expected.facts, "copied_from": str(repository)}
    assert frozen.diff == expected.diff
    assert "+print(2)" in frozen.diff
    assert set(hashes) == {".gitignore", "link", "new.py", "run.sh", "src/a b.py", "train.py"}
    assert CodeState.of_frozen_copy(repository) is None


def test_changes_since_then_are_seen(repository, tmp_path):
    freeze(repository, tmp_path / "code")
    assert changed_since_last_copy(repository, tmp_path) == []
    (repository / "train.py").write_text("print(3)\n")
    (repository / "newer.py").write_text("")
    (repository / "new.py").unlink()
    assert changed_since_last_copy(repository, tmp_path) == ["new.py", "newer.py", "train.py"]


def test_the_newest_copy_of_a_batch_is_what_counts(repository, tmp_path):
    batch = tmp_path / "batch"
    assert changed_since_last_copy(repository, batch) == []
    freeze(repository, next_copy(batch))
    (repository / "train.py").write_text("print(3)\n")
    assert changed_since_last_copy(repository, batch) == ["train.py"]
    freeze(repository, next_copy(batch))
    assert changed_since_last_copy(repository, batch) == []


def test_data_that_git_does_not_ignore_is_refused(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_BYTES", 1000)
    (repository / "images.tar").write_bytes(bytes(2000))
    with pytest.raises(UserError, match=r"above all images\.tar"):
        freeze(repository, tmp_path / "code")
    assert os.listdir(tmp_path) == ["repository"]


def test_without_git_the_way_out_is_named(tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match="--live"):
        freeze(tmp_path / "plain", tmp_path / "code")


def test_a_failure_leaves_no_half_of_a_copy(repository, tmp_path, monkeypatch):
    def fail(root, copy):
        raise OSError("disk full")

    monkeypatch.setattr(snapshot, "_link_ignored", fail)
    with pytest.raises(UserError, match="disk full"):
        freeze(repository, tmp_path / "code")
    assert os.listdir(tmp_path) == ["repository"]


def test_what_runs_write_is_no_code(repository, tmp_path):
    """Though git does not ignore it: data with a tracked file in it, batches elsewhere."""
    (repository / ".gitignore").write_text("")
    for name in ("data/.gitkeep", "here/26-11-23-x/rows.jsonl", "here/26-11-23-x/000/spec.yaml"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x")
    git(repository, "add", "data")
    code = freeze(repository, tmp_path / "code")
    assert os.readlink(code / "data") == str(repository / "data")
    assert not (code / "here").exists()


def test_a_merge_that_is_not_settled_is_copied_as_it_lies(repository, tmp_path):
    git(repository, "checkout", "-q", "-f", "-b", "other")
    (repository / "train.py").write_text("print('other')\n")
    git(repository, "commit", "-qam", "other")
    git(repository, "checkout", "-q", "-")
    (repository / "train.py").write_text("print('ours')\n")
    git(repository, "commit", "-qam", "ours")
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "merge", "other")
    assert "<<<<<<<" in (freeze(repository, tmp_path / "code") / "train.py").read_text()


def test_a_copy_that_was_deleted_is_not_written_over(tmp_path):
    (tmp_path / "code.2").mkdir()
    assert next_copy(tmp_path).name == "code.3"


def test_copies_are_counted(tmp_path):
    assert next_copy(tmp_path).name == "code"
    for number in range(1, 12):
        next_copy(tmp_path).mkdir()
        assert len(frozen_copies(tmp_path)) == number
    assert frozen_copies(tmp_path)[-1].name == "code.11"


@pytest.mark.slow
def test_a_run_from_a_copy_tells_of_the_repository(digits, tmp_path):
    """The copy lies in an ignored folder of the repository, whose git would answer otherwise."""
    from src.logging.provenance import ROOT

    code = freeze(ROOT, tmp_path / "code")
    facts = json.loads((code / "frozen.json").read_text())
    (code / "frozen.json").chmod(0o644)
    (code / "frozen.json").write_text(json.dumps({**facts, "commit": "c0ffee"}))
    digits(train_length=1).save(tmp_path / "spec.yaml")
    subprocess.run([sys.executable, "train.py", tmp_path / "spec.yaml"], cwd=code, check=True)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["commit"] == "c0ffee"
    assert provenance["copied_from"] == str(ROOT)
