"""What a report says: failures by cause, damage, the code, Slurm, the time left."""

import json
import os
import platform
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import report
from src.grid import reports
from src.grid.folders import Batch, Row, open_batch
from src.grid.journal import Journal, SubmitOptions, script_of
from src.grid.messages import digest_of
from src.grid.reports import (
    Report,
    group_failures,
    normalize_cause,
    read_reports,
    seconds_left,
)
from src.grid.slurm import NoSlurm, QueuedJob
from src.grid.snapshot import freeze, repository_of
from src.grid.status import RowStatus, problem_of_configuration
from src.logging.provenance import FROZEN
from src.support.processes import start_time
from tests.made_batches import fail, finish, five_runs, make_batch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def batch(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return five_runs(Path("results/26-11-22-x"))


def body_of(batch: Path) -> str:
    (found,), _ = read_reports([batch])
    return digest_of(found)[1]


# ---- What failed in the same way ---------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tried to allocate 2.00 GiB at 0x7f", "Tried to allocate 512 MiB at 0xAB12"),
        ("shapes (3, 4) and 1e-3", "shapes (30, 41) and -0.5"),
        ("no such file: '/home/a/b c'", "no such file: '/scratch/x c'"),
        (f"{'long ' * 20} one", f"{'long ' * 20} other"),
    ],
)
def test_causes_that_differ_in_numbers_are_the_same(one, other):
    assert normalize_cause(one) == normalize_cause(other)
    assert normalize_cause(one) != normalize_cause(f"not {other}")


def failed(number: int, values: dict, cause: str, *, node="n1", kind="error") -> RowStatus:
    return RowStatus(
        Row(Path(f"/r/{number:03d}"), values), "failed", kind=kind, cause=cause, node=node
    )


def test_groups_say_what_their_rows_share():
    statuses = [
        failed(0, {"bs": 8192, "lr": 0.1}, "CUDA: 1 GiB", kind="oom"),
        failed(1, {"bs": 8192, "lr": 0.2}, "CUDA: 22 GiB", kind="oom", node="n2"),
        failed(2, {"bs": 32}, "KeyError: 'a'"),
        failed(3, {"bs": 32, "lr": 0.2}, "KeyError: 'b'", node="c-005"),
        failed(4, {"bs": 64, "lr": 0.2}, "KeyError: 'b'", node="c-005"),
        RowStatus(Row(Path("/r/005"), {"bs": 32, "lr": 0.1}), "done", node="n1"),
    ]
    groups = group_failures(statuses, ["bs", "lr"])
    assert [group.headline for group in groups] == [
        "2 runs: error, all with lr=0.2, all on node c-005",
        "1 run: error, 002",
        "2 runs: out of memory, all with bs=8192",
    ]


def test_one_node_says_nothing_where_there_is_only_one():
    statuses = [failed(i, {"x": i}, "KeyError: 'a'") for i in range(2)]
    (group,) = group_failures(statuses, ["x"])
    assert group.headline == "2 runs: error"


def test_the_command_that_submits_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = Batch(tmp_path / "results" / "a b", [])
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder)
    command = Report(batch, journal, False, [], [], []).retry_command
    start = "python submit_multiple.py -r 'results/a b'"
    assert command("lost") == f"{start} -s local --only lost"
    journal.remember(SubmitOptions(script="cpu.sh", extra=["--partition=x", "--comment=a b"]))
    extra = "-- --partition=x '--comment=a b'"
    assert command("oom") == f"{start} -s cpu.sh --only oom {extra}"
    journal.refused(journal.begin(["r"], pack=1, script="cpu.sh", extra=[]), "no such partition")
    assert command("oom") == f"{start} -s cpu.sh --only oom"
    journal.remember(SubmitOptions(script="cpu.sh", pack=3))
    assert command("oom") == f"{start} -s cpu.sh --pack 3 --only oom"
    journal.remember(SubmitOptions(script="cpu.sh", no_array=True))
    assert command("oom") == f"{start} -s cpu.sh --no-array --only oom"
    monkeypatch.chdir(folder)
    assert f"-r '{batch.path}'" in command("oom")


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
    config.save(path / "config.yaml")
    config.save(path / "spec.yaml")
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
