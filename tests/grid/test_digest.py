"""Whole batches on this machine that tell of themselves."""

import base64
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from src.grid.messages import digest_of, main, picture_of
from src.grid.notices import Notices, kept_options
from src.grid.reports import Report, read_reports
from tests.mailbox import SECRET, mailbox
from tests.waiting import PATIENCE
from tests.whole_runs import ROOT

PARAMETERS = {
    "dataset": "sklearn/digits",
    "model": "linear",
    "train_length": 2,
    "batch_size": 100,
    "num_workers": 0,
    "save_plot": False,
    "seed_model": 1,
    "seed_training": 1,
}


def batch_of(folder: Path, blocks: list[dict], address: str) -> Path:
    return batch_and_words(folder, blocks, address)[0]


def batch_and_words(folder: Path, blocks: list[dict], address: str) -> tuple[Path, str]:
    """A grid of these rows, run on this machine, its messages sent to that address; and what
    the terminal has shown."""
    job = folder / "job.yaml"
    details = {"name": "told", "output_dir": str(folder / "results")}
    parameters = PARAMETERS | {"LIST": blocks}
    job.write_text(yaml.safe_dump({"job_details": details, "parameters": parameters}))
    done = subprocess.run(
        [sys.executable, "submit_multiple.py", job, "-s", "local", "--jobs", "2"],
        cwd=ROOT,
        env=os.environ | {"EXPERIMENT_NOTIFY": address, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return folder / "results" / f"{date.today():%y-%m-%d}-told", done.stdout + done.stderr


def report_of(batch: Path) -> Report:
    (report,), _ = read_reports([batch])
    return report


def body_of(report: Report) -> str:
    return digest_of(report)[1]


def everything_in(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file() and "code" not in path.parts]
    return b"".join(path.read_bytes() for path in files)


@pytest.mark.slow
def test_a_batch_with_failures_tells_of_the_first_and_of_its_end(tmp_path):
    blocks: list[dict] = [{"base_lr": lr / 10} for lr in range(1, 9)]
    blocks += [{"model_weights": f"/nowhere/{name}.pt"} for name in ("a", "b")]
    with mailbox() as box:
        batch = batch_of(tmp_path, blocks, box.address)
    first, digest = box.messages
    assert first["title"] == f"{batch.name}: a first run has failed"
    assert "model_weights" in first["message"]
    assert digest["title"] == f"{batch.name}: 8 done, 2 failed"
    words = digest["message"]
    assert words.startswith("10 runs: 8 done, 2 failed\n- 2 runs: error")
    assert "/nowhere/a.pt" in words
    assert "best by test/last/accuracy (chosen and reported on the same split):\n- 0.9" in words
    assert "cost: 0.0" in words
    assert "--only error" in words
    (picture,) = digest["attachments"]
    assert base64.b64decode(picture["base64"]).startswith(b"\x89PNG")
    assert SECRET.encode() not in everything_in(batch)
    assert "JSON: sent" in (batch / "submissions" / "notices" / "log").read_text()


def test_a_dead_address_changes_nothing_and_shows_nowhere(tmp_path):
    blocks = [{"base_lr": 0.1}, {"model_weights": "/nowhere/a.pt"}]
    address = f"json://user:{SECRET}@127.0.0.1:9/{SECRET}"
    batch = batch_of(tmp_path, blocks, address)
    assert len(list(batch.glob("*/done"))) == 1
    log = (batch / "submissions" / "notices" / "log").read_text()
    assert log.count("JSON: not delivered") == 2
    assert SECRET.encode() not in everything_in(batch)
    report = report_of(batch)
    title, body = digest_of(report)
    assert title == f"{batch.name}: 1 done, 1 failed"
    assert "1 run: error" in body
    with picture_of(report) as picture:
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert not picture.exists()

    # one round, one digest: whoever comes later is silent
    notices = Notices(batch)
    assert main(["digest", str(batch), notices.round]) == 0
    assert main(["digest", str(batch), "earlier"]) == 0
    assert main(["digest", str(tmp_path / "deleted"), "x"]) == 0


def test_an_address_that_cannot_be_read_is_told_when_rows_are_submitted(tmp_path):
    blocks = [{"model_weights": f"/nowhere/{name}.pt"} for name in ("a", "b")]
    batch, said = batch_and_words(tmp_path, blocks, f"jsn://{SECRET}")
    line = "no messages will be sent: EXPERIMENT_NOTIFY: apprise cannot read one of its addresses"
    assert said.count(line) == 1
    assert SECRET not in said
    assert not (batch / "submissions" / "notices" / "wanted.json").exists()


def test_kinds_of_failure_have_one_command_for_all(tmp_path):
    for number, status in enumerate(({"state": "failed", "error": "ValueError: x"}, None)):
        row = tmp_path / f"00{number}_x"
        row.mkdir()
        (row / "spec.yaml").write_text(f"base_lr: {number}\n")
        if status:
            (row / "status.json").write_text(json.dumps(status))
    words = body_of(report_of(tmp_path))
    assert "1 run: error" in words
    assert "1 run: never started" in words
    (command,) = [line for line in words.splitlines() if "submit_multiple.py -r" in line]
    assert "--only" not in command


def test_nothing_to_draw_is_no_picture(tmp_path):
    (tmp_path / "000_x").mkdir()
    (tmp_path / "000_x" / "spec.yaml").write_text("base_lr: 1.0\n")
    report = report_of(tmp_path)
    with picture_of(report) as picture:
        assert picture is None
    assert body_of(report).startswith("1 run: 1 unstarted\n- 1 run: never started, 000_x\n")


def test_the_digest_s_job_runs_where_the_rows_do():
    words = ["--partition=gpu", "--gpus=1", "-A", "lab", "-qlong", "--time", "1-0", "-p", "cpu"]
    assert kept_options(words) == ["--partition=cpu", "--account=lab", "--qos=long"]
    assert kept_options([]) == []


def test_a_picture_that_fails_keeps_no_words_back(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("src.analysis.read_experiments", broken)
    (tmp_path / "000_x").mkdir()
    (tmp_path / "000_x" / "spec.yaml").write_text("base_lr: 1.0\n")
    (tmp_path / "000_x" / "stats.csv").write_text(",epoch,test/last/loss\n0,1,2\n")
    (tmp_path / "000_x" / "status.json").write_text('{"state": "interrupted"}')
    with picture_of(report_of(tmp_path)) as picture:
        assert picture is None
    assert "no fonts" in capsys.readouterr().out
