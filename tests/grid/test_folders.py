"""Batch folders: names that nothing trips over, rows that keep theirs, files that are read back."""

import os
import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.config import read_yaml_file
from src.grid.folders import (
    LONGEST_NAME,
    Batch,
    batch_name,
    check_writable,
    delete_batch,
    earlier_batches,
    open_batch,
    plan_batch,
    row_names,
    slug,
    write_batch,
)
from src.support.errors import UserError

ROOT = Path("/repository")
HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
HOSTILE = [
    "$(touch x)",
    "a'b\"c",
    "two words",
    "%j%a",
    "line\nbreak",
    "x" * 300,
    "ünï→😀",
    "",
    "-rf",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)


def plan(folder, grid, text="parameters: {}", **common):
    return plan_batch(folder, grid, job_text=text, common=common)


def write(folder, grid, text="parameters: {}", **common) -> Batch:
    wanted = plan(folder, grid, text, **common)
    write_batch(wanted, ROOT)
    return wanted.batch


@given(st.lists(st.dictionaries(st.text(min_size=1), values, max_size=6), max_size=3), st.text())
@settings(max_examples=300)
@example([{}], "_")
def test_a_name_means_nothing_to_shells_file_systems_and_slurm(rows, name):
    found = row_names(98, batch_name(name, date(2026, 11, 22)), rows)
    assert len(found) == len(rows)
    for number, row in enumerate(found, 98):
        assert HARMLESS.fullmatch(row)
        assert len(row.encode()) <= LONGEST_NAME
        assert row.startswith(f"{number:03d}_26-11-22-")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_slug_is_never_empty_nor_an_option(text):
    assert HARMLESS.fullmatch(slug(text, 20))
    assert len(slug(text, 20)) <= 20


def test_names_show_what_varies():
    grid = [
        {"model": "timm/resnet50", "base_lr": 0.1, "momentum": 0.9},
        {"model": "linear", "base_lr": 1e20, "momentum": 0.9, "clip_norm": None},
    ]
    names = [row.name for row in plan(Path("/r/26-11-22-nets"), grid).batch.rows]
    assert names == [
        "000_26-11-22-nets+model=timm-resnet50+base_lr=0.1",
        "001_26-11-22-nets+model=linear+base_lr=1e20",
    ]


def test_many_long_keys_are_shortened_until_all_rows_fit():
    rows = [{f"weight_decay_biases_{i}": "timm/resnet50.a1_in1k" for i in range(4)}]
    rows += [dict.fromkeys(rows[0], "short")]
    long, short = row_names(1, "26-11-22-x", rows)
    parts = [f"wei_dec_bia_{i}=" for i in range(4)]
    assert long == "001_26-11-22-x+" + "+".join(f"{part}timm-res" for part in parts)
    assert short == "002_26-11-22-x+" + "+".join(f"{part}short" for part in parts)


def test_a_number_is_rounded_but_never_cut():
    rows = [{"weight_decay": x, "a_long_key_that_fills_the_name_" * 3: "v"} for x in (3.35e-5, 0.2)]
    rows[0]["weight_decay"] = 3.3506230658509796e-05
    names = row_names(0, "26-11-22-x", rows)
    assert "=3.351e-05+" in names[0]
    assert "=0.2+" in names[1]


def test_a_spec_holds_the_row_and_its_folder(tmp_path):
    batch = write(tmp_path / "b", [{"base_lr": 0.1, "data_dir": "d"}], wandb=True)
    (row,) = batch.rows
    assert read_yaml_file(row.spec) == {
        "wandb": True,
        "base_lr": 0.1,
        "data_dir": str(ROOT / "d"),
        "output_dir": str(row.folder),
        "wandb_run_name": row.name,
    }


def test_a_tilde_in_a_folder_is_home_and_not_below_the_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (row,) = write(tmp_path / "b", [{"data_dir": "~/d", "model_weights": "~/w.pt"}]).rows
    spec = read_yaml_file(row.spec)
    assert (spec["data_dir"], spec["model_weights"]) == ("/home/me/d", "/home/me/w.pt")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_are_read_back_unchanged(tmp_path, text):
    (row,) = write(tmp_path / "b", [{"wandb_run_name": text}]).rows
    assert read_yaml_file(row.spec)["wandb_run_name"] == text
    assert open_batch(tmp_path / "b").rows == [row]


def test_a_larger_grid_adds_rows_and_leaves_those_that_are_there(tmp_path):
    first = write(tmp_path / "b", [{"base_lr": 1.0}, {"base_lr": 2.0}], text="a")
    (first.rows[1].spec).write_text("base_lr: 77\n")
    again = plan(tmp_path / "b", [{"base_lr": 4.0}, {"base_lr": 2}], text="b")
    write_batch(again, ROOT)
    assert again.num_new == 1
    assert again.num_others == 1
    assert [row.name[:3] for row in again.wanted] == ["002", "001"]
    assert [row.values["base_lr"] for row in open_batch(tmp_path / "b").rows] == [1.0, 2.0, 4.0]
    assert first.rows[1].spec.read_text() == "base_lr: 77\n"


def test_older_job_files_are_kept_in_their_order(tmp_path):
    for text in ("one", "two", "two", "three"):
        write(tmp_path / "b", [{"base_lr": 1.0}], text=text)
    kept = {path.name: path.read_text() for path in (tmp_path / "b").glob("job*")}
    assert kept == {"job.yaml": "three", "job.old.1.yaml": "one", "job.old.2.yaml": "two"}


def test_a_crash_between_the_folders_is_made_good(tmp_path):
    batch = write(tmp_path / "b", [{"base_lr": float(i)} for i in range(4)])
    for row in batch.rows[2:]:
        row.spec.unlink()
        row.folder.rmdir()
    assert write(tmp_path / "b", [{"base_lr": float(i)} for i in range(4)]) == batch
    assert all(row.spec.exists() for row in batch.rows)


def test_a_batch_without_index_is_its_specs(tmp_path):
    for name, text in (("000_x", "base_lr: 0.5\noutput_dir: o\n"), ("001_x", "base_lr: [")):
        (tmp_path / "b" / name).mkdir(parents=True)
        (tmp_path / "b" / name / "spec.yaml").write_text(text)
    assert [row.values for row in open_batch(tmp_path / "b").rows] == [{"base_lr": 0.5}, {}]


@pytest.mark.parametrize("content", [None, "", "not json\n", '{"folder": 3}\n'])
def test_no_batch_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content or "[]\n")
    with pytest.raises(UserError):
        open_batch(tmp_path)


def test_deleting_a_batch_leaves_what_its_links_lead_to(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    batch = write(tmp_path / "b", [{}])
    (batch.path / "code").mkdir()
    (batch.path / "code" / "data").symlink_to(tmp_path / "data")
    (batch.path / "code" / "train.py").touch(mode=0o444)
    delete_batch(batch)
    assert os.listdir(tmp_path) == ["data"]
    assert (tmp_path / "data" / "precious").exists()


def test_where_nothing_can_be_written_is_said_before(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    check_writable(tmp_path / "new" / "newer")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="not a folder"):
        check_writable(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="a link to nothing"):
        check_writable(tmp_path / "link" / "x")


def test_earlier_days_of_a_name_are_found(tmp_path):
    for name in ("26-11-20-x", "26-11-21-x", "26-11-21-x-2", "x", "26-11-22-xx"):
        (tmp_path / name).mkdir()
    assert [p.name for p in earlier_batches(tmp_path, "x")] == ["26-11-21-x", "26-11-20-x"]
    assert earlier_batches(tmp_path / "none", "x") == []
