"""A batch that was moved, copied or damaged: who runs its rows, and what is made again."""

import json
import os
import platform
import shutil
from pathlib import Path

import pytest

from src.config import read_yaml_file
from src.grid.folders import Batch, is_copy, is_elsewhere, open_batch, plan_batch, write_batch
from src.grid.journal import Journal, queued_rows, script_of, spec_for_slurm
from src.grid.local import runner
from src.grid.repair import repair_batch
from src.grid.slurm import QueuedJob
from src.grid.status import ask_queue, row_statuses
from src.logging.provenance import FROZEN
from src.support.processes import start_time


def made(folder: Path, root: Path, num_rows: int = 2) -> Batch:
    grid = [{"base_lr": float(i), "data_dir": "d"} for i in range(num_rows)]
    text = "job_details: {trackers: [tensorboard]}\nparameters: {}\n"
    plan = plan_batch(folder, grid, job_text=text, common={"trackers": ["tensorboard"]})
    write_batch(plan, root)
    return plan.batch


@pytest.fixture
def original(tmp_path) -> Batch:
    return made(tmp_path / "old" / "results" / "B", tmp_path / "old")


def copied(batch: Batch, to: Path) -> Batch:
    shutil.copytree(batch.path, to, symlinks=True)
    return open_batch(to)


def states(batch: Batch) -> list[str]:
    return [status.state for status in row_statuses(batch, ask_queue(batch))]


def test_a_link_to_a_batch_is_no_other_place(original, tmp_path):
    (tmp_path / "link").symlink_to(original.path)
    assert not any(is_elsewhere(row.folder) for row in open_batch(tmp_path / "link").rows)
    original.path.rename(tmp_path / "moved")
    original.path.symlink_to(tmp_path / "moved")
    assert repair_batch(open_batch(tmp_path / "moved"), tmp_path).moved == []


def test_what_runs_in_the_original_does_not_run_in_its_copy(original, tmp_path):
    """Its runs are known by live processes of this machine, its jobs by Slurm."""
    here = {"pid": os.getpid(), "host": platform.node(), "began": start_time(os.getpid())}
    for row in original.rows:
        (row.folder / "status.json").write_text(json.dumps({"state": "running", **here}))
        (row.folder / "claim").write_text("7\n" + json.dumps(here))
    names = [row.name for row in original.rows]
    (original.submissions / "local.json").write_text(
        json.dumps({**here, "rows": names, "batch": str(original.path)})
    )
    journal = Journal(original.submissions)
    array = journal.begin(names[:1], pack=1, script="s.sh", extra=[])
    journal.accepted(array, "1")
    journal.accepted(journal.begin(names[1:], pack=1, script="s.sh", extra=[], is_array=False), "2")
    spec = spec_for_slurm(original, names[1])
    jobs = [
        QueuedJob("1_0", "1", 0, "RUNNING", "", "", "", str(script_of(array, journal))),
        QueuedJob("2", "2", None, "RUNNING", "", "", "", f"/x/s.sh {spec}"),
    ]
    assert set(queued_rows(original, journal, jobs)) == set(names)

    copy = copied(original, tmp_path / "copy")
    assert all(is_copy(row.folder) for row in copy.rows)
    for _ in range(2):  # before it is repaired and after
        assert Journal(copy.submissions).calls == {}
        assert queued_rows(copy, Journal(copy.submissions), jobs) == {}
        assert runner(copy) is None
        assert states(copy) == ["lost", "lost"]
        repair_batch(copy, tmp_path)
    assert not any((row.folder / "claim").exists() for row in copy.rows)

    assert runner(original)
    assert all((row.folder / "claim").exists() for row in original.rows)
    assert len(Journal(original.submissions).calls) == 2


def test_what_the_copy_asks_of_slurm_is_its_own(original, tmp_path):
    journal = Journal(original.submissions)
    names = [row.name for row in original.rows]
    journal.accepted(journal.begin(names, pack=1, script="s.sh", extra=[]), "1")
    copy = copied(original, tmp_path / "copy")
    text = (copy.submissions / "journal.jsonl").read_text()
    repair_batch(copy, tmp_path)
    own = Journal(copy.submissions)
    own.accepted(own.begin(names[1:], pack=1, script="s.sh", extra=[]), "5")
    shutil.rmtree(copy.rows[0].folder)
    repair_batch(copy, tmp_path)
    assert [call.job for call in Journal(copy.submissions).calls.values()] == ["5"]
    assert (copy.submissions / "journal.old.1.jsonl").read_text() == text


def test_a_repository_that_was_moved_takes_its_batches_along(original, tmp_path):
    code = original.path / "code"
    for folder in (code, tmp_path / "old" / "data", tmp_path / "old" / "d"):
        folder.mkdir()
    (code / FROZEN).write_text(json.dumps({"copied_from": str(tmp_path / "old")}))
    (code / "data").symlink_to(tmp_path / "old" / "data")
    (code / "other").symlink_to("/nowhere")
    new = (tmp_path / "old").rename(tmp_path / "new")
    batch = open_batch(new / "results" / "B")
    done = repair_batch(batch, new)
    assert done.moved == [row.name for row in batch.rows]
    assert not done.broken
    assert os.readlink(batch.path / "code" / "data") == str(new / "data")
    assert os.readlink(batch.path / "code" / "other") == "/nowhere"
    for row in batch.rows:
        spec = read_yaml_file(row.spec)
        assert (spec["output_dir"], spec["data_dir"]) == (str(row.folder), str(new / "d"))
    assert repair_batch(batch, new).moved == []


def test_older_batches_without_index_work_too(tmp_path):
    for name, place in (("a", "/gone/a"), ("b", str(tmp_path / "B" / "b")), ("c", "[")):
        (tmp_path / "B" / name).mkdir(parents=True)
        (tmp_path / "B" / name / "spec.yaml").write_text(f"base_lr: 1.0\noutput_dir: {place}\n")
    batch = open_batch(tmp_path / "B")
    assert repair_batch(batch, tmp_path).moved == ["a"]
    assert read_yaml_file(batch.rows[0].spec) == {
        "base_lr": 1.0,
        "output_dir": str(batch.rows[0].folder),
    }


def test_rows_are_made_again_as_they_were(original, tmp_path):
    row = original.rows[1]
    text = row.spec.read_text()
    for damage in (lambda: shutil.rmtree(row.folder), lambda: row.spec.write_text("")):
        damage()
        assert repair_batch(original, tmp_path / "old", is_dry=True).made_again == [row.name]
        assert repair_batch(original, tmp_path / "old").made_again == [row.name]
        assert row.spec.read_text() == text


@pytest.mark.parametrize("kind", ["file", "loop", "spec"])
def test_a_broken_row_stops_no_others(original, tmp_path, kind):
    broken, other = original.rows
    shutil.rmtree(broken.folder)
    if kind == "file":
        broken.folder.touch()
    elif kind == "loop":
        broken.folder.symlink_to(broken.folder)
    else:
        (broken.folder / "spec.yaml").mkdir(parents=True)
    copy = copied(original, tmp_path / "copy")
    done = repair_batch(copy, tmp_path)
    assert other.name in done.moved
    assert kind == "spec" or list(done.broken) == [broken.name]


def test_a_line_of_the_index_hides_no_other_row(original):
    index = original.path / "rows.jsonl"
    lines = index.read_text().splitlines()
    for damaged in ("{", "[" * 100_000, '{"folder": "../x", "values": {}}', "3"):
        index.write_text("\n".join([damaged, lines[1]]))
        assert open_batch(original.path).rows[1] == original.rows[1]
        assert "rows.jsonl: cannot be read" in open_batch(original.path).damage
        assert open_batch(original.path).rows[0].folder == original.rows[0].folder
        shutil.move(original.rows[0].folder, original.path.parent)
        assert open_batch(original.path).rows == [original.rows[1]]
        shutil.move(original.path.parent / original.rows[0].name, original.path)


@pytest.mark.parametrize("line", ["[1]", "3", "{}", "[" * 100_000, '{"call": 1, "state": "open"}'])
def test_a_damaged_line_of_the_journal_hides_no_others(original, line):
    journal = Journal(original.submissions)
    journal.accepted(journal.begin(["a"], pack=1, script="s.sh", extra=[]), "1")
    text = journal.path.read_text()
    journal.path.write_text(f"{line}\n{text}")
    assert [call.job for call in Journal(original.submissions).calls.values()] == ["1"]


@pytest.mark.parametrize("text", ["3", "[" * 100_000, '{"script": 3, "extra": [], "pack": 1}'])
def test_how_rows_were_asked_for_may_be_damaged(original, text):
    (original.submissions / "asked.json").write_text(text)
    assert Journal(original.submissions).last_options.script == "local"
