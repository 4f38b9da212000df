"""How far batches are, in the words of report.py."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

import report
import submit_multiple
import train
from src.grid.folders import Row, open_batch
from src.grid.journal import Journal
from src.grid.messages import digest_of
from src.grid.report_views import duration, show_report
from src.grid.reports import Report, find_batches, read_reports
from src.grid.status import STATES, RowStatus
from tests.made_batches import fail, finish, five_runs, make_batch, spend
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def batch(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return five_runs(Path("results/26-11-22-x"))


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


@pytest.mark.parametrize("facts", [{"state": "interrupted"}, {"state": "stopped", "job": "5_0"}])
def test_what_has_saved_its_state_is_not_wasted(batch, capsys, facts):
    row = open_batch(batch).rows[2]
    facts = facts | {"host": "n2", "progress": 0.5}
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


@pytest.mark.parametrize(("height", "num_batches"), [(8, 1), (30, 2), (60, 3)])
def test_watching_fits_the_window_with_the_newest_batch_on_top(batch, height, num_batches):
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    for name in ("26-11-23-y", "26-11-24-z"):
        five_runs(Path("results", name))
    terminal, child = pty.openpty()
    pytest.importorskip("termios").tcsetwinsize(child, (height, 80))
    command = [sys.executable, str(ROOT / "report.py"), "--watch", "600"]
    env = {key: x for key, x in os.environ.items() if key not in ("LINES", "COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(command, stdout=child, env=env | {"TERM": "xterm"})
    shown = ""
    while "Ctrl-C ends" not in shown:
        shown += os.read(terminal, 65536).decode()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    os.close(terminal)
    os.close(child)
    window = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.rpartition("\x1b[2J")[2])
    lines = [line.rstrip() for line in window.splitlines()]
    assert lines[0] == "results/26-11-24-z"
    assert len(lines) <= height
    assert sum(line.startswith("results/") for line in lines) == num_batches
    assert ("lines more: python report.py results/26-11-24-z" in window) == (height == 8)
    assert re.search(r"\x1b\[31m *2", shown)  # failed ones are red


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


def test_real_runs(digits, tmp_path, monkeypatch, capfd):
    """One that finishes, one that fails in its run, one before it."""
    monkeypatch.chdir(tmp_path)
    models = ["linear", "timm/no_such_model", "linear"]
    folder = make_batch(tmp_path / "results" / "b", [{"model": model} for model in models])
    rows = open_batch(folder).rows
    for row in rows:
        digits(output_dir=str(row.folder), model=row.values["model"]).save(row.spec)
    rows[2].spec.write_text("base_lr: -1\n")
    for row in rows:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        code = train.main([str(row.spec)])
        printed = "".join(capfd.readouterr())
        begin = f"--- {now} local 7 on {platform.node()} ---\n"
        row.log.write_text(f"{begin}{printed}--- ended: exit code {code} ---\n")
    assert report.main(["--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    states = [(row["state"], row["kind"], row["progress"]) for row in found["rows"]]
    assert states == [("done", None, 1.0), ("failed", "error", 0.0), ("failed", "error", 0.0)]
    assert "no_such_model" in found["rows"][1]["cause"]
    assert "base_lr" in found["rows"][2]["cause"]
    assert found["best"][0]["value"] > 0.5
    assert found["best"][0]["runs"][0]["epoch"] == 2
    assert 0 <= found["rows"][0]["seconds"] < 120
