"""Messages by the real apprise, to a web server on the loopback."""

import base64
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import report
import submit_multiple
from src.grid import messages, start
from src.grid.folders import Batch, Row, open_batch
from src.grid.local import Machine
from src.grid.messages import (
    VARIABLE,
    address_file,
    digest_of,
    fit,
    main,
    picture_of,
    send,
    wants_messages,
)
from src.grid.notices import Notices, report_failure, wait_until_sent
from src.grid.reports import Report, read_reports
from src.support.errors import UserError
from tests.made_batches import fail, make_batch
from tests.mailbox import SECRET, mailbox
from tests.waiting import PATIENCE
from tests.whole_runs import ROOT
from train import run_experiment

DEAD = f"json://user:{SECRET}@127.0.0.1:9/{SECRET}"  # the port of `discard`, where nobody listens


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_message_arrives_with_its_picture(tmp_path, monkeypatch):
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"\x89PNG of a kind")
    with mailbox() as box:
        monkeypatch.setenv(VARIABLE, box.address)
        assert send("a title", "words\nand lines", picture=picture, is_bad=True)
    (message,) = box.messages
    assert (message["title"], message["message"]) == ("a title", "words\nand lines")
    assert message["type"] == "failure"
    (attached,) = message["attachments"]
    assert base64.b64decode(attached["base64"]) == picture.read_bytes()


def test_a_service_that_raises_keeps_no_other_from_its_message(monkeypatch, capsys):
    def notify(**_):
        raise RuntimeError(SECRET)

    broken = SimpleNamespace(
        title_maxlen=99, body_maxlen=999, attachment_support=False, service_name="A", notify=notify
    )
    working = SimpleNamespace(**vars(broken) | {"notify": lambda **_: True, "service_name": "B"})
    monkeypatch.setattr(messages, "_servers", lambda: [broken, working])
    assert not send("t", "b", is_bad=False)
    dead = "A: not delivered: wrong, dead or out of reach\n"
    assert "".join(capsys.readouterr()) == f"{dead}B: sent\n"


def test_addresses_come_from_the_environment_or_a_file_of_the_user_s(monkeypatch):
    assert not wants_messages()
    with pytest.raises(UserError, match=f"^notify: no address: set {VARIABLE}, or write one into"):
        send("t", "b", is_bad=False)
    with mailbox() as first, mailbox() as second:
        address_file().parent.mkdir(parents=True)
        address_file().write_text(f"# mine\n{first.address}\n")
        assert wants_messages()
        send("by file", "b", is_bad=False)
        monkeypatch.setenv(VARIABLE, f"{second.address} {DEAD}")
        assert not send("by environment", "b", is_bad=False)
    assert [message["title"] for message in first.messages] == ["by file"]
    assert [message["title"] for message in second.messages] == ["by environment"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"nonsense://{SECRET}", "apprise cannot read one of its addresses \\(nonsense\\)"),
        (SECRET, "an address without ://"),
    ],
)
def test_an_address_that_is_none_is_refused_without_being_shown(address, words, monkeypatch):
    monkeypatch.setenv(VARIABLE, address)
    with pytest.raises(UserError, match=words) as error:
        send("t", "b", is_bad=False)
    assert SECRET not in str(error.value)


def test_a_file_without_an_address_is_refused(tmp_path):
    address_file().parent.mkdir(parents=True)
    address_file().write_text("# nothing yet\n")
    with pytest.raises(UserError, match="apprise finds no address in it"):
        send("t", "b", is_bad=False)


def test_the_command_says_what_became_of_it_and_shows_no_secret(monkeypatch, capfd):
    with mailbox() as box, mailbox(status=500) as refusing:
        monkeypatch.setenv(VARIABLE, f"{box.address} {refusing.address} {DEAD}")
        assert report.main(["notify", "--test"]) == 1
        monkeypatch.setenv(VARIABLE, box.address)
        assert report.main(["notify", "--test"]) == 0
    printed = "".join(capfd.readouterr())
    dead = "JSON: not delivered: wrong, dead or out of reach\n"
    assert printed == f"JSON: sent\n{dead}{dead}JSON: sent\n"
    assert [message["title"] for message in box.messages] == ["Experiment Starter"] * 2


@pytest.mark.parametrize("arguments", [[], ["--test", "results/x"]])
def test_the_command_asks_for_one_thing(arguments, capsys):
    assert report.main(["notify", *arguments]) == 2
    assert capsys.readouterr().err == "notify: give either --test or results/BATCH\n"


def test_a_short_service_gets_the_first_lines():
    text = "one line\ntwo lines\nthree lines"
    assert fit(text, 100) == text
    assert fit(text, 22) == "one line\ntwo lines\n…"
    assert fit("x" * 30, 10) == "x" * 10


# ---- Digests ------------------------------------------------------------------------------


def report_of(batch: Path) -> Report:
    (report,), _ = read_reports([batch])
    return report


def body_of(report: Report) -> str:
    return digest_of(report)[1]


def everything_in(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file() and "code" not in path.parts]
    return b"".join(path.read_bytes() for path in files)


@pytest.mark.slow
def test_a_batch_with_failures_reports_the_first_and_its_end(tmp_path):
    parameters = dict.fromkeys(("seed_model", "seed_training"), 1) | {
        "dataset": "sklearn/digits",
        "model": "linear",
        "train_length": 2,
        "batch_size": 100,
        "num_workers": 0,
        "save_plot": False,
        "LIST": [
            {"base_lr": [lr / 10 for lr in range(1, 9)]},
            {"model_weights": ["/nowhere/a.pt", "/nowhere/b.pt"]},
        ],
    }
    details = {"name": "b", "output_dir": str(tmp_path / "results")}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"job_details": details, "parameters": parameters}))
    command = [sys.executable, "submit_multiple.py", job, "-s", "local", "--jobs", "2"]
    with mailbox() as box:
        env = os.environ | {VARIABLE: f"{box.address} {DEAD}"}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (batch,) = (tmp_path / "results").iterdir()
    first, digest = box.messages
    assert first["title"] == f"{batch.name}: a first run has failed"
    assert "model_weights" in first["message"]
    assert digest["title"] == f"{batch.name}: 8 done, 2 failed"
    words = digest["message"]
    assert words.startswith("10 runs: 8 done, 2 failed\n- 2 runs: error")
    assert "/nowhere/a.pt" in words
    assert "best by test/last/accuracy (chosen and reported on the same split):\n- 0.9" in words
    assert re.search(r"cost: (<0.001|0\.0)", words)
    assert "--only error" in words
    (picture,) = digest["attachments"]
    assert base64.b64decode(picture["base64"]).startswith(b"\x89PNG")
    assert SECRET.encode() not in everything_in(batch)
    assert "JSON: sent" in (batch / "submissions" / "notices" / "log").read_text()


def test_a_dead_address_changes_nothing_and_shows_nowhere(digits, tmp_path, monkeypatch, capfd):
    batch = make_batch(tmp_path / "b", [{"base_lr": 0.01}, {"base_lr": 0.1}])
    done, failed = open_batch(batch).rows
    run_experiment(digits(output_dir=str(done.folder)))
    fail(failed, "ValueError: x")
    monkeypatch.setenv(VARIABLE, DEAD)
    notices = Notices(batch)
    of_round = notices.begin([done.name, failed.name], 2)
    process = report_failure(failed.folder, 1)
    wait_until_sent(process)
    assert process.returncode == 0
    assert "JSON: not delivered" in (notices.folder / "log").read_text()
    capfd.readouterr()
    assert main(["digest", str(batch), of_round]) == 0
    printed = "".join(capfd.readouterr())
    assert "JSON: not delivered" in printed
    assert SECRET.encode() not in everything_in(batch) + printed.encode()

    report = report_of(batch)
    title, body = digest_of(report)
    assert title == "b: 1 done, 1 failed"
    assert "1 run: error" in body
    with picture_of(report) as picture:
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert not picture.exists()

    # one round, one digest: whoever comes later is silent
    for arguments in ([str(batch), of_round], [str(batch), "earlier"], [str(tmp_path / "no"), "x"]):
        assert main(["digest", *arguments]) == 0
    assert "delivered" not in "".join(capfd.readouterr())


def test_an_address_that_cannot_be_read_is_reported_when_runs_are_submitted(
    tmp_path, monkeypatch, log_lines
):
    def run_none(batch: Batch, rows: list[Row], machine: Machine, *, code: Path) -> Counter[str]:
        return Counter(done=len(rows))

    monkeypatch.setattr(start, "run_rows", run_none)
    monkeypatch.setenv(VARIABLE, f"jsn://{SECRET}")
    batch = make_batch(tmp_path / "b", [{"base_lr": 0.1}])
    (row,) = open_batch(batch).rows
    row.spec.write_text(f"base_lr: 0.1\noutput_dir: {row.folder}\n")
    assert submit_multiple.main(["-r", str(batch), "-s", "local", "--live", "--yes"]) == 0
    line = "no messages will be sent: EXPERIMENT_NOTIFY: apprise cannot read one of its addresses"
    (found,) = (words for words in log_lines if words.startswith("no messages"))
    assert found.startswith(line)
    assert SECRET not in found
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
