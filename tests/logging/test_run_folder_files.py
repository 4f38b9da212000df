"""What a run may remove and write over: its own files by their exact names, in its own folder."""

import os
from pathlib import Path

import pytest

from src.config import make_config
from src.logging import run_folder
from src.logging.run_folder import RunFolder, check_run_folder
from src.logging.same_run import is_run_folder
from src.support.errors import UserError


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def fill(folder: Path, *names: str) -> None:
    """Files of these names, with their names in them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def begin(folder: Path) -> None:
    """A run that starts from scratch, up to its first step."""
    requested = make_config({"seed_model": 1, "seed_training": 2, "output_dir": str(folder)})
    with RunFolder(requested) as run:
        run.start(requested, facts=lambda: {"step": 0})


FOREIGN = (
    "notes.txt",
    "system.txt",
    "system.old.csv",
    ".notes.1",
    ".cache.2026",
    ".stats.csv.bak",
    ".env.123",
    "checkpoints/llama.pt",
    "checkpoints/epoch_best.pt",
    "checkpoints/epoch_1.pt",
    "checkpoints/.mine.7",
    "checkpoints/old/epoch_0001.pt",
    "trackers/mine.db",
    "trackers/wandb.txt",
)
OURS = (
    "stats.csv",
    "curves.png",
    "trace.json.gz",
    "system.csv",
    "system.12.csv",
    ".stats.csv.31",
    ".trace.json.31",
    "checkpoints/epoch_0001.pt",
    "checkpoints/epoch_10000.pt",
    "checkpoints/best.pt",
    "checkpoints/.epoch_0002.pt.31",
    "trackers/id",
    "trackers/wandb.json",
    "trackers/wandb.log",
    "trackers/wandb/run-1/file",
    "trackers/comet-online/file",
)


def test_a_run_that_starts_from_scratch_takes_its_own_files_away_and_no_others(tmp_path):
    fill(tmp_path, *FOREIGN, *OURS, "status.json")
    (tmp_path / ".status.json.1").mkdir()
    begin(tmp_path)
    left = content(tmp_path)
    assert {name: left.get(name) for name in FOREIGN} == {name: name for name in FOREIGN}
    assert not set(OURS) & left.keys()
    assert {"earlier-1/stats.csv", "earlier-1/checkpoints/epoch_0001.pt"} <= left.keys()
    assert (tmp_path / ".status.json.1").is_dir()


@pytest.mark.parametrize(("seed", "is_same"), [(7, True), (None, False)])
def test_to_trackers_a_run_that_starts_from_scratch_is_the_same_if_it_does_the_same(
    tmp_path, seed, is_same
):
    """Killed before its first state was saved: drawn seeds would splice two curves."""
    requested = make_config(
        {"seed_model": seed, "seed_training": seed, "output_dir": str(tmp_path)}
    )
    for _ in range(2):
        with RunFolder(requested) as run:
            run.start(requested, facts=lambda: {"step": 0})
            (tmp_path / "trackers").mkdir(exist_ok=True)
        identities = [*tmp_path.glob("trackers/id")]
        (tmp_path / "trackers" / "id").write_text("drawn once")
    assert bool(identities) is is_same


def test_folders_that_held_only_its_files_are_removed(tmp_path):
    fill(tmp_path, "status.json", "checkpoints/best.pt", "trackers/id")
    begin(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "trackers").exists()


def test_what_a_link_leads_to_stays(tmp_path):
    fill(tmp_path, "run/status.json", "disk/best.pt", "disk/mine.pt")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    begin(tmp_path / "run")
    assert set(content(tmp_path / "disk")) == {"mine.pt"}


@pytest.mark.parametrize("name", [*run_folder.FILES, *run_folder.FOLDERS])
def test_a_folder_of_others_in_which_a_name_is_taken_is_refused(tmp_path, name):
    fill(tmp_path, "notes.txt")
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"^output_dir: .* its {name} is in the way[^\n]*$"):
        begin(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "notes.txt"])


def test_other_files_are_no_reason_to_refuse(tmp_path):
    fill(tmp_path, "notes.txt", ".stats.csv.1")
    begin(tmp_path)
    assert content(tmp_path)["notes.txt"] == "notes.txt"


@pytest.mark.parametrize("below", ["lenet", "26-11-28-grid/000_lenet"])
@pytest.mark.parametrize("sign", run_folder.SIGNS)
def test_a_folder_that_holds_runs_is_refused_as_one(tmp_path, below, sign):
    fill(tmp_path, f"results/{below}/{sign}", "results/notes/x/y")
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"{below}\); write output_dir={tmp_path}/results/NAME$"):
        begin(tmp_path / "results")
    assert content(tmp_path) == before


def test_the_repository_is_no_run_folder(monkeypatch):
    monkeypatch.chdir(run_folder.ROOT)
    with pytest.raises(UserError, match=r"output_dir: \. is the repository.* output_dir=results/"):
        check_run_folder(Path("."))


def test_an_empty_output_dir_is_refused():
    with pytest.raises(UserError, match="output_dir: got '', expected"):
        make_config({"output_dir": ""})


@pytest.mark.parametrize("name", run_folder.FILES)
def test_a_folder_where_a_file_should_be_is_refused(tmp_path, name):
    fill(tmp_path, *(sign for sign in run_folder.SIGNS if sign not in (name, "claim")))
    (tmp_path / name).mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=rf"^output_dir: \S*/{name} is no file[^\n]*$"):
        begin(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", run_folder.FOLDERS)
def test_a_file_where_a_folder_should_be_is_refused(tmp_path, name):
    fill(tmp_path, "spec.yaml", name)
    with pytest.raises(UserError, match=rf"^output_dir: \S*/{name} is no folder"):
        begin(tmp_path)


def test_a_lease_that_is_a_link_to_nothing_is_refused(tmp_path):
    fill(tmp_path, "status.json")
    (tmp_path / "claim").symlink_to("nowhere")
    with pytest.raises(UserError, match="claim is no file"):
        begin(tmp_path)


@pytest.mark.parametrize("path", ["x" * 300, "x\0y", "x/" * 3000])
def test_paths_that_cannot_be_are_refused(tmp_path, path):
    assert not is_run_folder(tmp_path / path)
    with pytest.raises(UserError, match=r"^output_dir: cannot write to "):
        begin(tmp_path / path)


def test_runs_below_are_found_beside_folders_that_hold_many(tmp_path):
    for child in range(12):
        for number in range(1000):
            (tmp_path / f"classes {child}" / str(number)).mkdir(parents=True)
    run = tmp_path / "zz" / "000_x"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "done"}')
    with pytest.raises(UserError, match=r"holds folders of runs \(such as zz/000_x\)"):
        check_run_folder(tmp_path)
