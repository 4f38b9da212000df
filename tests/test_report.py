"""How far batches are, in the words of report.py."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import report
import submit_multiple
from src.config.config import save_config
from src.grid import reports
from src.grid.best_settings import columns_to_rank_by, rank_settings, read_stats_text
from src.grid.folders import Row, open_batch
from src.grid.journal import Journal
from src.grid.messages import digest_of
from src.grid.report_views import duration, show_report
from src.grid.reports import (
    Report,
    find_batches,
    problem_of_configuration,
    read_reports,
    seconds_left,
)
from src.grid.slurm import NoSlurm, QueuedJob, script_of
from src.grid.snapshot import freeze, repository_of
from src.grid.status import STATES, RowStatus
from src.logging.provenance import FROZEN
from src.support.errors import UserError
from src.support.processes import start_time
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[1]


def make_batch(folder: Path, rows: list[dict]) -> Path:
    """A batch with a row for each of the values."""
    (folder / "submissions").mkdir(parents=True)
    entries = [{"folder": f"{i:03d}_{folder.name}", "values": v} for i, v in enumerate(rows)]
    for entry in entries:
        (folder / entry["folder"]).mkdir()
        (folder / entry["folder"] / "spec.yaml").touch()
    (folder / "rows.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    return folder


def body_of(batch: Path) -> str:
    (found,), _ = read_reports([batch])
    return digest_of(found)[1]


def finish(row: Row, values: list[float], *, outcome: str = "finished") -> None:
    """As a run of an hour would leave its folder."""
    lines = [f"{i},{i + 1},{i * 10},0.1,{v}" for i, v in enumerate(values)]
    header = ",epoch,step,test/last/loss,test/last/accuracy"
    (row.folder / "stats.csv").write_text("\n".join([header, *lines]) + "\n")
    now = datetime.now(UTC)
    started = (now - timedelta(hours=1)).isoformat(timespec="seconds")
    (row.folder / "status.json").write_text(json.dumps({"started": started, "host": "n1"}))
    end = {"outcome": outcome, "time": now.isoformat(timespec="seconds")}
    (row.folder / "done").write_text(json.dumps(end))


def fail(row: Row, error: str) -> None:
    facts = {"state": "failed", "error": error, "host": "n2", "progress": 0.5}
    (row.folder / "status.json").write_text(json.dumps(facts))


@pytest.fixture
def batch(tmp_path, monkeypatch) -> Path:
    """Two rows done, two failed in the same way, one never started; run from tmp_path."""
    monkeypatch.chdir(tmp_path)
    values = [{"lr": lr, "bs": bs} for lr, bs in ((0.1, 1), (0.2, 1), (0.1, 8), (0.2, 8), (0.3, 1))]
    folder = make_batch(Path("results/26-11-22-x"), values)
    rows = open_batch(folder).rows
    finish(rows[0], [0.5, 0.9, 0.7])
    finish(rows[1], [0.8, 0.6], outcome="diverged")
    fail(rows[2], "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    fail(rows[3], "OutOfMemoryError: CUDA out of memory. Tried to allocate 30 GiB")
    return folder


def test_a_report_to_read(batch, capsys):
    assert report.main([]) == 0
    output = capsys.readouterr().out
    lines = [line.rstrip() for line in output.splitlines()]
    assert lines == [
        "results/26-11-22-x",
        "runs  done  running  queued  failed  lost  never started  progress  time left",
        "   5     2        0       0       2     0              1       60%          -",
        "  1 of the 2 done diverged",
        "  best so far by test/last/accuracy (chosen and reported on the same split):",
        "    0.7  1 seed                   000  lr=0.1 bs=1",
        "    -    0 of 1 seed, 1 diverged  001  lr=0.2 bs=1",
        "  2 runs: out of memory, all with bs=8, all on node n2",
        "    OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "    python submit_multiple.py -r results/26-11-22-x -s local --only oom",
        "  1 run: never started, 004_26-11-22-x",
        "    python submit_multiple.py -r results/26-11-22-x -s local --only unstarted",
        "",
    ]


def spend(row: Row, cores: float, gpus: float = 0.0, *, lost: float = 0.0) -> None:
    """An attempt that took so many hours; lost: hours of cores wasted before it."""
    path = row.folder / "status.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    before = {"core_seconds": 3600 * lost, "gpu_seconds": 0.0}
    spent = {"core_seconds": 3600 * cores, "gpu_seconds": 3600 * gpus}
    current = {"cost": spent, "first_step": 0, "step": 10}
    cost = {"before": before, "lost": before, "waiting": None, "current": current}
    path.write_text(json.dumps(facts | {"cost": cost}))


def test_the_cost_of_a_batch_and_what_of_it_was_wasted(batch, capsys):
    rows = open_batch(batch).rows
    spend(rows[0], 6, lost=1)
    spend(rows[1], 10)  # diverged: that is a result
    spend(rows[2], 3)  # failed
    report.main([])
    line = "cost: 20 core-hours; wasted 20%, 4 core-hours (failed, or lost to kills)"
    assert line in capsys.readouterr().out
    spend(rows[3], 0, 5)
    spend(rows[0], 6, 15)
    report.main([])
    words = " ".join(capsys.readouterr().out.split())
    assert "19 core-hours and 20 GPU-hours; wasted 25%, 3 core-hours and 5 GPU-hours" in words
    report.main(["--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["cost"] == {"core_seconds": 19 * 3600, "gpu_seconds": 20 * 3600}
    assert found["wasted"] == {"core_seconds": 3 * 3600, "gpu_seconds": 5 * 3600}
    assert found["rows"][4]["cost"] is None
    assert found["rows"][2]["wasted"] == {"core_seconds": 3 * 3600, "gpu_seconds": 0.0}


def test_what_has_saved_its_state_is_not_wasted(batch, capsys):
    row = open_batch(batch).rows[2]
    facts = {"state": "interrupted", "host": "n2", "progress": 0.5}
    (row.folder / "status.json").write_text(json.dumps(facts))
    spend(row, 4)
    report.main([])
    assert "  cost: 4 core-hours\n" in capsys.readouterr().out


def test_what_was_interrupted_has_not_failed(batch, capsys):
    (open_batch(batch).rows[2].folder / "status.json").write_text('{"state": "interrupted"}')
    (open_batch(batch).rows[3].folder / "status.json").write_text('{"state": "left"}')
    assert report.main([]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    words = " ".join(" ".join(lines[1:4]).split())
    assert "interrupted failed" in words
    assert "5 2 0 0 2 0 0 1" in words
    assert "  1 run: interrupted, 002_26-11-22-x" in lines
    assert (
        lines.count(
            "    python submit_multiple.py -r results/26-11-22-x -s local --only interrupted"
        )
        == 1
    )
    report.main(["--json"])
    (counts,) = (one["counts"] for one in json.loads(capsys.readouterr().out))
    assert (counts["interrupted"], counts["failed"]) == (2, 0)
    (found,), _ = read_reports([batch])
    assert digest_of(found)[0] == f"{batch.name}: 2 done, 2 interrupted, 1 unstarted"
    for only, number in (("interrupted", 2), ("failed", 0), ("unstarted", 1), (None, 3)):
        again = ["-r", str(batch), "-s", "local", "-d", *(["--only", only] if only else [])]
        assert submit_multiple.main(again) == 0
        output = capsys.readouterr().out
        assert f"{batch}: 2 done, 2 interrupted, 1 unstarted\n" in output
        assert output.count("interrupted, 002") == (only in ("interrupted", None))
        assert ("nothing to run again" in output) == (number == 0)


def test_all_states_at_once_fit_80_columns(batch, capsys):
    statuses = [RowStatus(Row(batch / "000_x", {}), state) for state in STATES] * 1000
    found = Report(open_batch(batch), Journal(batch), False, statuses, [], [])
    show_report(found, Console(highlight=False, width=80))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines[:4])) <= 80
    words = " ".join(lines[1:4])
    assert words.split().count("1000") == len(STATES)
    assert "…" not in words


def test_a_report_for_programs(batch, capsys):
    assert report.main([str(batch), "--json", "--best", "1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    counts = dict.fromkeys(STATES, 0) | {"done": 2, "failed": 2, "unstarted": 1}
    assert found["counts"] == counts
    assert [row["state"] for row in found["rows"]] == ["done"] * 2 + ["failed"] * 2 + ["unstarted"]
    assert found["ranked_by"] == ["test/last/accuracy"]
    assert found["doubts"] == ["chosen and reported on the same split"]
    run = {"row": "000_26-11-22-x", "value": 0.7, "epoch": 3}
    assert found["best"] == [
        {
            "column": "test/last/accuracy",
            "value": 0.7,
            "std": None,
            "num_seeds": 1,
            "num_expected": 1,
            "num_diverged": 0,
            "value_in_words": "0.7",
            "seeds_in_words": "1 seed",
            "values": {"lr": 0.1, "bs": 1},
            "runs": [run | {"state": "done", "outcome": "finished"}],
        }
    ]
    failure = found["failures"][0]
    assert (failure["only"], failure["shared"], failure["node"]) == ("oom", {"bs": 8}, "n2")
    assert failure["command"].endswith("--only oom")


def test_long_names_and_many_keys_fit_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = [{f"a_key_{k}": f"{'long ' * 20}{i}{k}" for k in range(9)} for i in range(3)]
    folder = make_batch(tmp_path / ("x" * 50), values)
    for row in open_batch(folder).rows[:2]:
        finish(row, [0.123456789])
    fail(open_batch(folder).rows[2], "ValueError: " + "words and " * 30)
    report.main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    wide = [line for line in lines if len(line.rstrip()) > 80]
    assert [line.split()[:2] for line in wide] == [["python", "submit_multiple.py"]]


def test_brackets_of_values_are_no_markup(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = make_batch(tmp_path / "b", [{"x": "[red]"}, {"x": [1, 2]}])
    for row in open_batch(folder).rows:
        finish(row, [0.5])
    report.main([str(folder)])
    output = capsys.readouterr().out
    assert "x=[red]" in output
    assert "x=[1, 2]" in output


# ---- Which batches -----------------------------------------------------------------------


def test_without_names_the_newest_five(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(7):
        folder = make_batch(Path(f"results/b{i}"), [{}])
        os.utime(folder / "rows.jsonl", (1000 - i, 1000 - i))
    Path("results/a_single_run").mkdir()
    assert [path.name for path in find_batches(Path("results"))] == [f"b{i}" for i in range(7)]
    report.main([])
    output = capsys.readouterr().out
    shown = [line for line in output.splitlines() if line.startswith("results/")]
    assert shown == [f"results/b{i}" for i in range(5)]
    assert "older batches, not shown: 2" in output


@pytest.mark.parametrize("name", ["rows.jsonl", "submissions/journal.jsonl"])
def test_one_broken_index_or_journal_does_not_hide_the_others(batch, capsys, name):
    broken = make_batch(Path("results/broken"), [{}]) / name
    if broken.exists():
        broken.write_text("{")
    else:
        broken.mkdir(parents=True)
    assert report.main([]) == 0
    output = capsys.readouterr()
    assert "results/26-11-22-x" in output.out
    assert f"broken/{name}: cannot be read" in output.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["results"], "no batch"),
        (["--metric", "x("], "--metric: got 'x('"),
        (["--metric", "nothing"], "--metric: 'nothing' matches none of: test/last/accuracy"),
        (["--metric", "test/.*"], "should rise"),
        (["--best", "-1"], "--best: got -1"),
        (["--watch", "0"], "--watch: got '0'"),
        (["--watch", "soon"], "--watch: got 'soon'"),
    ],
)
def test_mistakes_are_one_line(batch, capsys, arguments, words):
    assert report.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err
    assert output.err.count("\n") == 1


def test_no_batch_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report.main([]) == 2
    assert capsys.readouterr().err == "results: no batch there; python report.py FOLDER names one\n"


# ---- Code that has changed ---------------------------------------------------------------


def test_what_a_bug_has_ended_is_run_again_with_the_code_as_it_is_now(batch, capsys):
    rows = open_batch(batch).rows
    fail(rows[2], "KeyError: 'x'")
    fail(rows[3], "KeyError: 'x'")
    command = "python submit_multiple.py -r results/26-11-22-x -s local --only"
    copy = freeze(ROOT, batch.absolute() / "code")
    assert report.main([]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"{command} error" in lines
    frozen = json.loads((copy / FROZEN).read_text())
    frozen["files"]["train.py"] = "another"
    (copy / FROZEN).write_text(json.dumps(frozen))
    assert report.main([]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"{command} error --refreeze" in lines
    assert "changed since the code of this batch was frozen: train.py" in lines
    assert f"{command} unstarted" in lines  # as the rows that are done ran
    report.main(["--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["changed_code"] == ["train.py"]
    assert found["failures"][0]["command"] == f"{command} error --refreeze"
    assert f"{command} error --refreeze" not in body_of(batch)  # one command for all
    shutil.rmtree(rows[4].folder)
    (batch / "rows.jsonl").write_text(
        "".join(line + "\n" for line in (batch / "rows.jsonl").read_text().splitlines()[:4])
    )
    assert f"{command} error --refreeze" in body_of(batch)


def test_the_code_is_looked_at_only_where_rows_have_failed(batch, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "src.grid.snapshot.changed_since_last_copy", lambda *_: asked.append(1) or []
    )
    report.main([])
    assert len(asked) == 1  # for all that is shown of a batch
    for row in open_batch(batch).rows[2:4]:
        (row.folder / "status.json").write_text('{"state": "interrupted"}')
    report.main([])
    assert len(asked) == 1


def test_a_frozen_copy_asks_the_repository_that_it_was_copied_from(tmp_path):
    (tmp_path / FROZEN).write_text(json.dumps({"copied_from": "/a/fork"}))
    assert repository_of(tmp_path) == Path("/a/fork")
    assert repository_of(ROOT) == ROOT


# ---- Damaged rows ------------------------------------------------------------------------


def put_text(text: str):
    return lambda path: path.write_text(text)


def put_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def put_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


LOOP = "Too many levels of symbolic links"
DAMAGES = [  # of a row that is done: which file, what is done to it, what is said
    ("config.yaml", put_text("model: linear\nsplits: {a: [\n"), "config.yaml, line 3"),
    ("config.yaml", put_text("\0" * 99), "config.yaml"),
    ("config.yaml", put_text(""), "config.yaml: nothing in it"),
    ("config.yaml", put_text("[1, 2]"), "config.yaml: no lines of the form `key: value`"),
    ("config.yaml", put_folder, "config.yaml: Is a directory"),
    ("config.yaml", put_loop, f"config.yaml: {LOOP}"),
    ("config.yaml", put_text("a: [\x1b[31m" + "x" * 9999), "config.yaml"),
    ("spec.yaml", put_text("a: 1\na: 'x\n"), "spec.yaml"),
    ("status.json", put_text("[" * 100_000), "status.json: nested too deeply"),
    ("status.json", put_text('{"state": "run'), "status.json: no JSON, or cut off"),
    ("status.json", put_text("[1]"), "status.json: list instead of an object"),
    ("status.json", put_folder, "status.json: Is a directory"),
    ("done", put_text('{"outc'), "done: no JSON, or cut off"),
    ("done", put_folder, "done: Is a directory"),
    ("done", put_loop, f"done: {LOOP}"),
    ("stats.csv", put_text(""), "stats.csv: nothing in it"),
    ("stats.csv", put_text(",epoch\n"), "stats.csv: nothing in it, though the run is done"),
    ("stats.csv", put_text(",epoch\n0,1\n1\n"), "stats.csv: lines of different lengths"),
    ("stats.csv", put_folder, "stats.csv: Is a directory"),
    ("stats.csv", put_loop, f"stats.csv: {LOOP}"),
    (".", lambda path: (shutil.rmtree(path), put_loop(path)), LOOP),
    (".", lambda path: (shutil.rmtree(path), path.touch()), "Not a directory"),
]


@pytest.mark.parametrize(("name", "do", "words"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_row_is_said_with_the_reason_and_hides_no_other(batch, capsys, name, do, words):
    rows = open_batch(batch).rows
    do(rows[0].folder / name)
    assert report.main([]) == 0
    output = capsys.readouterr()
    said = " ".join(output.out.split())
    assert said.count("damaged: ") == 1
    assert re.search(f"damaged: {rows[0].name}: .*{re.escape(words)}", said)
    assert "1 diverged 001 lr=0.2 bs=1" in said
    assert output.err == ""
    assert report.main(["--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [words in (row["damage"] or "") for row in found["rows"]] == [True] + [False] * 4
    assert f"damaged: {rows[0].name}" in body_of(batch)


def test_a_page_of_damaged_rows_names_them_and_shows_the_others(tmp_path, capsys):
    folder = make_batch(tmp_path / "b", [{"lr": i} for i in range(len(DAMAGES) + 1)])
    for row in open_batch(folder).rows:
        (row.folder / "spec.yaml").write_text(f"base_lr: {row.values['lr']}\n")
        finish(row, [0.5, 0.9])
    for row, (name, do, _) in zip(open_batch(folder).rows, DAMAGES, strict=False):
        do(row.folder / name)
    assert report.main([str(folder), "--html", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    for row in open_batch(folder).rows[:-1]:
        assert page.count(f"Cannot be read: {row.name}: ") == 1, row.name
    assert f"Cannot be read: {open_batch(folder).rows[-1].name}" not in page
    assert report.main([str(folder)]) == 0
    assert f"damaged: {len(DAMAGES) - 5} runs more" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        '{"folder": "005_\\ud800", "values": {}}',
        '{"folder": "005_x", "values": {"lr": "\\udfff"}}',
        '{"folder": "005_\\u0000", "values": {}}',
        '{"folder": "005_\\u001b[31m", "values": {}}',
    ],
)
def test_a_line_of_the_index_that_is_no_text_hides_no_other(batch, capsys, line):
    with open(batch / "rows.jsonl", "a") as file:
        file.write(line + "\n")
    assert report.main([]) == 0
    output = capsys.readouterr()
    assert "2 runs: out of memory" in output.out
    assert output.err.count("rows.jsonl: cannot be read") == 1
    assert report.main(["--json"]) == 0
    assert "rows.jsonl" in json.loads(capsys.readouterr().out)[0]["damage"]


@pytest.mark.parametrize("name", ["local.json", "asked.json", "journal.jsonl"])
def test_notes_of_a_submission_that_are_nested_too_deeply_end_no_report(batch, capsys, name):
    (batch / "submissions" / name).write_text("[" * 100_000)
    assert report.main([]) == 0
    assert "python submit_multiple.py -r results/26-11-22-x -s local" in capsys.readouterr().out


def test_what_runs_write_is_not_damaged(digits, tmp_path):
    path = tmp_path / "000_x"
    path.mkdir()
    config = digits(output_dir=str(path), data_splits_map={"train": "train[:90%]", "test": "test"})
    save_config(config, path / "config.yaml")
    save_config(config, path / "spec.yaml")
    assert problem_of_configuration(str(path)) is None
    (path / "config.yaml").write_text("loss: a word\n  and: another\nmodel: 'x\n\n  y'\n")
    assert problem_of_configuration(str(path)) is not None
    (path / "config.yaml").write_text("model: 'x\n\n  y'\nbase_lr: 1e-3\n")
    assert problem_of_configuration(str(path)) is None


# ---- Slurm -------------------------------------------------------------------------------


def submitted(folder: Path) -> str:
    """Slurm has taken the batch; the script that it was given."""
    batch = open_batch(folder)
    journal = Journal(batch.submissions)
    names = [row.name for row in batch.rows]
    call = journal.begin(names, pack=1, script="cpu.sh", extra=[])
    journal.accepted(call, "5")
    return str(script_of(call, journal))


def test_slurm_is_asked_once_for_all_and_only_where_it_has_rows(batch, capsys, monkeypatch):
    asked = []

    def read_queue() -> list[QueuedJob]:
        asked.append(True)
        return [QueuedJob("5_4", "5", 4, "PENDING", "Priority", "", "", script)]

    monkeypatch.setattr(reports, "read_queue", read_queue)
    make_batch(Path("results/other"), [{}])
    assert report.main([]) == 0
    assert not asked
    capsys.readouterr()
    script = submitted(batch)
    submitted(Path("results/other"))
    assert report.main(["results/other", str(batch), "--json"]) == 0
    assert len(asked) == 1
    other, found = json.loads(capsys.readouterr().out)
    assert (found["counts"]["queued"], found["counts"]["unstarted"]) == (1, 0)
    assert (other["counts"]["queued"], other["counts"]["unstarted"]) == (0, 1)


def test_a_silent_slurm_is_said_and_its_rows_are_not_offered(batch, capsys, monkeypatch):
    def silent() -> list[QueuedJob]:
        raise NoSlurm("no answer")

    monkeypatch.setattr(reports, "read_queue", silent)
    submitted(batch)
    assert report.main([]) == 0
    output = capsys.readouterr().out
    assert "the queue is unknown" in output
    assert "--only oom" in output
    assert "--only unstarted" not in output


def test_of_another_persons_batch_our_queue_says_nothing(batch, capsys, monkeypatch):
    monkeypatch.setattr(reports, "read_queue", lambda: [])
    monkeypatch.setattr(os, "getuid", lambda: -1)
    submitted(batch)
    report.main([])
    assert "the queue is unknown" in capsys.readouterr().out


# ---- The best settings -------------------------------------------------------------------


def ranked(texts: list[str], columns: list[str], values: Sequence[dict] = ()) -> list[tuple]:
    """(numbers of the rows, mean, seeds, column) of each setting. texts: of each row's stats."""
    rows = [Row(Path(str(i)), v) for i, v in enumerate(values or [{"x": i} for i in range(9)])]
    statuses = [RowStatus(row, "done") for row, _ in zip(rows, texts, strict=False)]
    found = rank_settings(statuses, dict(zip("012345678", texts, strict=False)), columns)
    return [
        (
            "".join(r.status.row.name for r in b.results),
            b.standing.mean,
            b.standing.num_seeds,
            b.column,
        )
        for b in found
    ]


def accuracy(*values: object) -> str:
    """The text of stats.csv."""
    return "\n".join([",epoch,a/accuracy", *(f"{i},{i + 1},{v}" for i, v in enumerate(values))])


def test_loss_should_fall_and_accuracy_should_rise():
    texts = [",epoch,a/loss,a/accuracy\n0,1,3,.3\n1,2,1,.1", ",epoch,a/loss,a/accuracy\n0,1,2,.2"]
    assert ranked(texts, ["a/loss"]) == [("0", 1, 1, "a/loss"), ("1", 2, 1, "a/loss")]
    assert [r[:2] for r in ranked(texts, ["a/accuracy"])] == [("1", 0.2), ("0", 0.1)]


def test_the_last_epoch_counts_and_of_several_columns_the_best_one():
    text = ",epoch,a/loss,b/loss\n0,1,0,0\n1,2,3,2\n2,3,4,2.5"
    other = ",epoch,a/loss,b/loss\n0,1,3,9"
    expected = [("0", 2.5, 1, "b/loss"), ("1", 3, 1, "a/loss")]
    assert ranked([text, other], ["a/loss", "b/loss"]) == expected


def test_rows_that_differ_in_seeds_only_are_one_setting():
    rows = [{"lr": lr, "seed_model": s, "device": "cpu"} for lr in (1, 2) for s in (1, 2)]
    rows += [{"lr": 3, "seed_model": 1, "device": "cuda"}]
    rows = [row | {"seed_training": 1} for row in rows]
    texts = [accuracy(v) for v in (0.9, 0.5, 0.8, 0.7, 0.95)]
    found = ranked(texts, ["a/accuracy"], rows)
    assert [setting[:3] for setting in found] == [("23", 0.75, 2), ("01", 0.7, 2), ("4", 0.95, 1)]
    two_machines = [{"seed_model": 1, "seed_training": 1, "device": d} for d in ("cpu", "cuda")]
    assert ranked(texts[:2], ["a/accuracy"], two_machines)[0][:3] == ("01", 0.7, 1)
    drawn = [
        {"seed_model": 1, "log_interval": number} for number in (1, 2)
    ]  # seed_training is null
    assert ranked(texts[:2], ["a/accuracy"], drawn)[0][:3] == ("01", 0.7, 2)
    random = [{"base_lr": "10 ** uniform(-3, -1)", "seed_model": s} for s in (1, 2)]
    assert len(ranked(texts[:2], ["a/accuracy"], random)) == 2


def test_what_diverged_or_failed_has_no_value_however_good_it_was(batch, capsys):
    rows = open_batch(batch).rows
    finish(rows[2], [0.1, 0.2])
    (rows[3].folder / "stats.csv").write_text(",epoch,test/last/accuracy\n0,1,0.99\n")
    report.main(["--json", "--best", "9"])
    (found,) = json.loads(capsys.readouterr().out)
    best = [(b["value"], b["num_seeds"], b["num_diverged"]) for b in found["best"]]
    assert best == [(0.7, 1, 0), (0.2, 1, 0), (None, 0, 1)]
    assert found["best"][-1]["runs"][0]["outcome"] == "diverged"


def test_spread_and_what_is_missing_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = [{"lr": lr, "seed_model": s, "seed_training": 1} for lr in (1, 2) for s in (1, 2, 3)]
    rows = open_batch(make_batch(Path("results/x"), values)).rows
    for row, end in zip(rows[:5], (0.5, 0.6, 0.7, 0.9, 0.9), strict=True):
        finish(row, [end], outcome="diverged" if row is rows[4] else "finished")
    report.main([])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    at = lines.index("0.6 ± 0.1 3 seeds 000, 001, 002 lr=1")
    assert lines[at + 1].startswith("0.9 1 of 3 seeds, 1 diverged 003, 004, 005 (never")


def test_losses_that_mean_other_things_are_said_not_to_be_comparable(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = open_batch(make_batch(Path("r/x"), [{"label_smoothing": s} for s in (0.0, 0.1)])).rows
    for row in rows:
        finish(row, [0.5])
    report.main(["r/x", "--metric", "test/last/loss"])
    assert "not comparable: label_smoothing differ" in capsys.readouterr().out
    report.main(["r/x"])
    assert "not comparable" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "\n", ",epoch", *map(accuracy, ["", "nan", "inf", "x"]), ",epoch,a/accuracy\n0,1"],
)
def test_rows_without_a_value_are_not_ranked(text):
    assert ranked([text, accuracy(7)], ["a/accuracy"]) == [("1", 7, 1, "a/accuracy")]


def test_a_torn_last_line_does_not_count(tmp_path):
    (tmp_path / "stats.csv").write_text(accuracy(0.5, 0.95))
    text, problem = read_stats_text(Row(tmp_path, {}), is_done=False)
    assert problem is None
    assert ranked([text], ["a/accuracy"]) == [("0", 0.5, 1, "a/accuracy")]


def test_settings_are_ranked_by_the_column_that_chooses():
    columns = ["epoch", "train/accuracy", "test/last/loss", "holdout/last/loss"]
    assert columns_to_rank_by(None, columns) == ["holdout/last/loss"]
    assert columns_to_rank_by("test/.*", columns) == ["test/last/loss"]
    assert columns_to_rank_by("test/last", columns) == ["test/last/loss"]  # a part will do
    with pytest.raises(UserError, match="a part of several columns"):
        columns_to_rank_by("last/loss", columns)
    assert columns_to_rank_by(None, columns[:2]) == []
    with pytest.raises(UserError, match="--metric"):
        columns_to_rank_by("epoch", columns)


# ---- Time left ---------------------------------------------------------------------------


def rows(*facts: dict) -> list[RowStatus]:
    return [RowStatus(SimpleNamespace(), **fact) for fact in facts]


DONE = {"state": "done", "seconds": 100.0, "progress": 1.0}
QUEUED = {"state": "queued"}


def running(progress: float, seconds: float | None, left: float | None) -> dict:
    facts = {"state": "running", "progress": progress}
    return facts | {"seconds": seconds, "seconds_left": left}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([DONE], 0),
        ([DONE, {"state": "failed"}], 0),
        ([running(0.5, 50, 50), running(0.2, 10, 80)], 80),  # nobody waits: the slowest
        ([DONE, running(0.5, 50, 50), running(0.5, 50, 50), *[QUEUED] * 3], 50 + 100 + 100),
        ([running(0.5, 50, 70), QUEUED], 70 + 120),  # none is done: as they expect
        ([DONE, running(0.5, 50, 900), QUEUED], 900 + (100 + 950) / 2),  # nor those that run long
        ([DONE, running(0.1, 50, 900)], 900),
        ([DONE, running(0.01, 50, 900)], 50),  # a first step tells little
        ([DONE, running(0.0, 30, None)], 70),  # it starts
        ([DONE, running(1.0, 90, 0.0)], 10),  # it ends
        ([DONE, running(0.5, 50, 50), QUEUED | {"progress": 0.75}], 100 * 0.75),  # goes on
        ([DONE, running(0.0, None, None), QUEUED], 100 * 2),
        ([running(0.0, None, None), QUEUED], None),
        ([DONE, QUEUED], None),  # nothing runs: nobody knows when
    ],
)
def test_time_left(facts, expected):
    assert seconds_left(rows(*facts)) == expected


def test_of_slots_that_a_row_has_just_left_the_next_one_takes_hold():
    statuses = rows(DONE, running(0.5, 50, 50), QUEUED, QUEUED)
    assert seconds_left(statuses, num_slots=2) == 150
    assert seconds_left(rows(DONE, QUEUED, QUEUED), num_slots=2) == 100


# jobs/digits-example.yaml on a machine of two cores that others used as well: seconds from the
# beginning of the batch to that of a process; from there until the run had its folder; what its
# status said at which moments (when, progress, seconds left); when it was done, when it had ended.
RECORDED = [
    (0.0, 15.2, [(30.1, 0.04, 35.1), (32.1, 0.96, 0.2)], 32.3, 42.0),
    (0.0, 16.6, [(31.2, 0.04, 44.0), (33.2, 0.88, 0.6)], 33.5, 42.6),
    (42.0, 21.0, [(75.5, 0.04, 37.5), (77.6, 0.96, 0.2)], 77.7, 86.9),
    (42.6, 20.9, [(75.7, 0.04, 37.1), (77.7, 0.95, 0.2)], 77.9, 87.2),
    (86.9, 15.8, [(112.6, 0.04, 31.7)], 114.6, 122.8),
    (87.2, 15.0, [(111.9, 0.04, 34.4)], 113.7, 121.5),
    (121.5, 14.3, [(146.7, 0.04, 38.8)], 148.8, 156.9),
    (122.8, 13.8, [(145.8, 0.04, 24.2), (147.9, 1.0, 0.0)], 148.0, 156.1),
    (156.1, 15.5, [(183.1, 0.04, 27.4), (185.1, 0.83, 0.6)], 185.6, 194.3),
    (156.9, 15.1, [(184.0, 0.04, 36.1), (186.0, 1.0, 0.0)], 186.1, 195.9),
    (194.3, 16.7, [(222.3, 0.04, 36.9), (224.3, 0.9, 0.4)], 224.6, 233.2),
    (195.9, 16.6, [(223.2, 0.04, 30.1), (225.3, 0.79, 0.9)], 225.9, 234.9),
    (233.2, 15.2, [(258.2, 0.17, 6.1), (260.4, 1.0, 0.0)], 260.5, 267.8),
    (235.0, 14.5, [(259.0, 0.17, 5.6)], 261.1, 269.0),
    (267.8, 14.9, [(294.8, 0.17, 9.2), (297.0, 1.0, 0.0)], 297.1, 305.1),
    (269.0, 15.4, [(296.8, 0.17, 8.0), (299.1, 1.0, 0.0)], 299.2, 307.2),
    (305.1, 17.6, [(337.4, 0.17, 9.2), (339.5, 0.83, 0.8)], 340.0, 348.3),
    (307.2, 17.2, [(339.3, 0.17, 9.9), (341.4, 0.83, 0.8)], 342.0, 349.9),
    (348.3, 16.0, [(376.0, 0.17, 7.9)], 378.1, 385.1),
    (349.9, 16.8, [(377.7, 0.17, 7.4), (379.8, 1.0, 0.0)], 379.9, 386.7),
    (385.1, 14.3, [(408.4, 0.17, 7.6), (410.5, 0.83, 0.7)], 411.2, 419.5),
    (386.7, 13.2, [(408.8, 0.17, 7.8), (410.8, 0.8, 0.9)], 411.6, 420.0),
    (419.5, 18.4, [(452.5, 0.17, 10.2), (454.6, 0.67, 2.1)], 455.8, 465.5),
    (420.0, 18.9, [(450.7, 0.17, 9.9), (453.0, 0.8, 1.1)], 453.8, 463.7),
]


def test_after_a_quarter_of_a_grid_the_time_left_is_known(tmp_path, monkeypatch):
    """As it was recorded, by a clock that is moved: at the quarter, and at moments after it."""
    folder = make_batch(tmp_path / "b", [{"i": i} for i in range(len(RECORDED))])
    facts = {"pid": os.getpid(), "began": start_time(os.getpid()), "host": platform.node()}
    facts |= {"rows": [row.name for row in open_batch(folder).rows], "jobs": 2}
    notice = folder / "submissions" / "local.json"
    notice.write_text(json.dumps(facts))
    end = max(ended for *_, ended in RECORDED)
    os.utime(notice, (EPOCH, EPOCH))
    quarter = sorted(ended for *_, ended in RECORDED)[len(RECORDED) // 4 - 1]
    for now in (quarter, quarter + 10, quarter + 20, quarter + 30, end / 2, 0.75 * end):
        for row, recorded in zip(open_batch(folder).rows, RECORDED, strict=True):
            as_it_was(row, recorded, now)
        monkeypatch.setattr("src.grid.status.time.time", lambda now=now: EPOCH + now)
        (found,), _ = read_reports([folder])
        assert found.counts["done"] + found.counts["running"] < len(RECORDED)
        assert found.seconds_left == pytest.approx(end - now, rel=0.3), now


EPOCH = 1_700_000_000


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(EPOCH + seconds, UTC).isoformat(timespec="seconds")


def as_it_was(row: Row, recorded: tuple, now: float) -> None:
    """The folder of a row at that moment."""
    began, to_start, looks, done, ended = recorded
    if began > now:
        return
    row.log.write_text(f"--- {moment(began)} local 7 on {platform.node()} ---\n")
    status = {"state": "running", "pid": os.getpid(), "host": platform.node()}
    status |= {"started": moment(began + to_start), "seconds_to_start": to_start}
    if began + to_start <= now:
        status |= {"updated": status["started"]}
    for when, share, left in looks:
        if when <= now:
            status |= {"progress": share, "seconds_left": left, "updated": moment(when)}
    if "updated" in status:
        (row.folder / "status.json").write_text(json.dumps(status))
    if done <= now:
        end = {"outcome": "finished", "time": moment(done)}
        (row.folder / "done").write_text(json.dumps(end))
    if ended <= now:
        with open(row.log, "a") as log:
            log.write("--- ended: exit code 0 ---\n")
    os.utime(row.log, (EPOCH + min(now, ended), EPOCH + min(now, ended)))


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_rows_of_any_pace_are_known_after_a_quarter(slots):
    """Every third row takes ten times as long as the others; the fast ones are done first."""
    taken = [200.0 if i % 3 == 0 else 20.0 for i in range(96)]
    free, spans = [0.0] * slots, []
    for seconds in taken:
        begin = min(free)
        free[free.index(begin)] = begin + seconds
        spans.append((begin, begin + seconds))
    now = sorted(end for _, end in spans)[len(spans) // 4]
    statuses = []
    for begin, end in spans:
        share = (now - begin) / (end - begin)
        if share >= 1:
            statuses.append(DONE | {"seconds": end - begin})
        elif share > 0:
            statuses.append(running(share, now - begin, end - now))
        else:
            statuses.append(QUEUED)
    end = max(end for _, end in spans)
    assert seconds_left(rows(*statuses), slots) == pytest.approx(end - now, rel=0.3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (172800, "2.0 d"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# ---- The whole program -------------------------------------------------------------------


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "report.py"), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_watching_ends_well_at_ctrl_c(batch):
    process = start(Path.cwd(), "--watch", "0.2", str(batch))
    assert process.stdout
    looks = 0
    for line in process.stdout:
        looks += "Ctrl-C ends" in line
        if looks == 2:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_a_batch_after_watch_is_no_number_of_seconds(batch):
    process = start(Path.cwd(), "--watch", str(batch))
    assert process.stdout
    assert next(process.stdout).strip() == str(batch)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_it_starts_without_torch_and_pandas():
    script = "import sys, report; sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_real_runs(digits, tmp_path, monkeypatch, capsys):
    """One that finishes, one that fails in its run, one before it."""
    monkeypatch.chdir(tmp_path)
    models = ["linear", "timm/no_such_model", "linear"]
    folder = make_batch(tmp_path / "results" / "b", [{"model": model} for model in models])
    for row in open_batch(folder).rows:
        save_config(digits(output_dir=str(row.folder), model=row.values["model"]), row.spec)
    open_batch(folder).rows[2].spec.write_text("base_lr: -1\n")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    processes = []
    for row in open_batch(folder).rows:
        with open(row.log, "w") as log:
            print(f"--- {now} local 7 on {platform.node()} ---", file=log, flush=True)
            command = [sys.executable, str(ROOT / "train.py"), str(row.spec)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    for row, process in zip(open_batch(folder).rows, processes, strict=True):
        code = process.wait(timeout=PATIENCE)
        with open(row.log, "a") as log:
            print(f"--- ended: exit code {code} ---", file=log)
    assert report.main(["--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    states = [(row["state"], row["kind"], row["progress"]) for row in found["rows"]]
    assert states == [("done", None, 1.0), ("failed", "error", 0.0), ("failed", "error", 0.0)]
    assert "no_such_model" in found["rows"][1]["cause"]
    assert "base_lr" in found["rows"][2]["cause"]
    assert found["best"][0]["value"] > 0.5
    assert found["best"][0]["runs"][0]["epoch"] == 2
    assert 0 <= found["rows"][0]["seconds"] < 120
