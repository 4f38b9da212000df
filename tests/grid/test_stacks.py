"""submit_multiple.py --stack: which runs share a process, and what becomes of each."""

import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
import yaml

import train
from src.config import make_config
from src.grid.folders import Row, plan_batch, write_batch
from src.grid.journal import Call, Journal
from src.grid.messages import VARIABLE
from src.grid.stacks import choose_engines, describe, tasks_of, write_stack
from src.logging import Stats
from src.logging.tracker_processes import SyncState
from src.support import ROOT, UserError
from tests.logging.test_trackers import assert_logged, read_tensorboard
from tests.mailbox import mailbox
from tests.waiting import wait_until
from tests.whole_runs import without_times

LINEAR = {"model": "linear", "batch_size": [70, 80], "base_lr": [0.1, 1.0, 1e6]}
LENET = {"model": "tiny/lenet", "batch_size": 70, "base_lr": 0.01, "optim_alg": "adam"}
GRID = {
    "dataset": "sklearn/digits",
    "max_allowed_loss": 1e5,
    "averaging": [["ema", "poly"]],
    "train_length": 3,
    "seed_model": 1,
    "seed_training": 2,
    "save_plot": False,
    "LIST": [LINEAR | {"momentum": [0.0, 0.9]}, LENET],
}
STACKED = {"engine": "stacked", "model": "linear", "seed_training": 1}


def rows_of(*values: dict) -> list[Row]:
    return [Row(Path(f"/b/{n:03d}_b"), STACKED | own) for n, own in enumerate(values)]


def names(tasks) -> list[list[int]]:
    return [[int(row.name[:3]) for row in task] for task in tasks]


# ---- Which ones --------------------------------------------------------------------------


def test_runs_that_may_differ_share_a_stack_in_the_order_of_the_rows():
    values = [{"base_lr": lr, "batch_size": size} for lr in (0.1, 0.2, 0.3) for size in (8, 9)]
    rows = rows_of(*values, {"model": "tiny/lenet"}, {"batch_size": 7})
    assert names(tasks_of(rows, "auto")) == [[0, 2, 4], [1, 3, 5], [6], [7]]
    assert names(tasks_of(rows, "2")) == [[0, 2], [1, 3], [4], [5], [6], [7]]
    assert names(tasks_of(rows, "off")) == names(tasks_of(rows, None)) == [[n] for n in range(8)]


def test_one_kind_is_spread_over_the_processes_but_not_thinly():
    rows = rows_of(*[{"base_lr": n / 100} for n in range(1, 41)])
    assert list(map(len, tasks_of(rows, "auto"))) == [40]
    assert list(map(len, tasks_of(rows, "auto", num_processes=2))) == [20, 20]
    assert list(map(len, tasks_of(rows, "auto", num_processes=40))) == [14, 14, 12]
    many = rows_of(*[{"base_lr": n / 1000} for n in range(1, 301)])
    assert list(map(len, tasks_of(many, "auto"))) == [100] * 3


def test_a_call_knows_the_runs_of_each_task():
    """The journal of one before there were stacks names no sizes."""
    facts = {"pack": 1, "script": "s.sh", "extra": [], "time": 0.0}
    call = Call(1, list("abcdef"), sizes=(3, 1, 2), **facts)
    assert [call.rows_of_task(task) for task in range(3)] == [list("abc"), ["d"], list("ef")]
    assert call.rows_of_task(7) == []  # of a damaged journal
    assert [Call(1, ["a", "b"], **facts).rows_of_task(task) for task in (0, 1)] == [["a"], ["b"]]


def test_tasks_are_described():
    rows = rows_of(*[{"base_lr": n / 100} for n in range(1, 6)])
    assert describe([rows[:2], rows[2:4], rows[4:]]) == "2 stacks of 2 runs, 1 run by itself"


def test_auto_stacks_what_shares_a_stack_and_says_what_prevents_the_others():
    values = [{"base_lr": 0.1}, {"base_lr": 0.2}, {"batch_size": 3}]
    values += [{"model": "tiny/lenet"}, {"model": "timm/vit"}]
    rows = [{"model": "linear", "seed_training": 1} | row for row in values]
    chosen, notes = choose_engines(rows, [make_config(row) for row in rows], "auto")
    assert [row.get("engine") for row in chosen] == ["stacked", "stacked", None, None, None]
    assert notes == [
        "1 by themselves, as no other run could share its stack",
        "1 by themselves, as networks are trained together where a number is given",
        "1 by themselves, as model: got 'timm/vit', expected linear, linear/no_bias, tiny/NAME or "
        "a function of your own with engine=stacked",
    ]


def test_an_engine_that_is_given_stays():
    rows = [{"model": "linear", "seed_training": 1, "engine": "ordinary"}] * 2
    chosen, notes = choose_engines(rows, [make_config(row) for row in rows], "auto")
    assert chosen == rows
    assert notes == ["2 by themselves, as engine: ordinary is given"]


@pytest.mark.parametrize(
    ("written", "found"), [("auto", "auto"), ("7", "7"), (3, None), ("x", None)]
)
def test_a_retry_stacks_as_before_unless_the_note_is_damaged(tmp_path, written, found):
    facts = {"script": "local", "pack": 1, "extra": [], "is_array": True, "stack": written}
    (tmp_path / "asked.json").write_text(json.dumps(facts))
    assert Journal(tmp_path).last_options.stack == found


def test_a_number_asks_for_all():
    rows = [{"model": model, "seed_training": 1} for model in ("linear", "timm/vit")]
    with pytest.raises(UserError, match="--stack 4: 1 of 2 runs: model: got 'timm/vit'"):
        choose_engines(rows, [make_config(row) for row in rows], "4")
    chosen, notes = choose_engines(rows[:1], [make_config(rows[0])], "4")
    assert (chosen, notes) == ([rows[0] | {"engine": "stacked"}], [])


def test_a_log_of_a_runs_own_is_kept(tmp_path):
    plan = plan_batch(tmp_path / "b", [{"base_lr": 0.1}, {"base_lr": 0.2}], job_text="", common={})
    write_batch(plan, tmp_path)
    rows = plan.batch.rows
    rows[0].log.write_text("of its own")
    for name in ("stack-1", "stack-2"):
        task = write_stack(plan.batch.submissions / name, rows)
        task.row.log.write_text(name)
        assert [row.log.read_text() for row in rows] == [name] * 2
    assert (rows[0].folder / "job.1.log").read_text() == "of its own"


def test_what_is_wrong_with_a_run_of_a_stack_is_one_line(tmp_path, capfd):
    """Here a folder that is not a run's."""
    values = [STACKED | {"dataset": "sklearn/digits", "base_lr": rate} for rate in (0.1, 0.2)]
    plan = plan_batch(tmp_path / "b", values, job_text="", common={})
    write_batch(plan, tmp_path)
    task = write_stack(plan.batch.submissions / "stack-1", plan.batch.rows)
    (plan.batch.rows[1].folder / "stats.csv").mkdir()
    assert train.main([str(task.row.spec)]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "stats.csv is no file, and a run has a file there" in errors[0]


# ---- Whole batches -----------------------------------------------------------------------


def submitted(
    folder: Path, *options: str, keys: dict | None = None, code: int = 0, env: dict | None = None
) -> Path:
    """The batch, by `python submit_multiple.py JOB -s local …`; env: variables beside ours."""
    details = {"name": "grid", "output_dir": str(folder)}
    folder.mkdir(exist_ok=True)
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump({"job_details": details, "parameters": GRID | (keys or {})}))
    command = [sys.executable, "submit_multiple.py", str(job), "-s", "local", *options]
    variables = os.environ | (env or {})
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return folder / f"{date.today():%y-%m-%d}-grid"


def results_of(batch: Path) -> dict[str, pd.DataFrame]:
    """Of each row: name without the date -> stats."""
    files = sorted(batch.glob("[0-9]*/stats.csv"))
    return {file.parent.name[:3]: without_times(Stats.read(file.parent)) for file in files}


@pytest.mark.slow
def test_a_grid_of_mixed_rows_is_the_same_stacked_and_not(tmp_path):
    """To the bit where both use the engine, to rounding beside the ordinary path; a row diverges
    in each stack; what cannot be stacked runs beside."""
    stacked = submitted(tmp_path / "stacked", "--stack", "auto")
    alone = submitted(tmp_path / "alone", keys={"engine": "stacked", "LIST": GRID["LIST"][:1]})
    ordinary = submitted(tmp_path / "ordinary")
    for number, own in results_of(alone).items():
        pd.testing.assert_frame_equal(own, results_of(stacked)[number], check_exact=True)
    found, expected = results_of(stacked), results_of(ordinary)
    assert found.keys() == expected.keys()
    assert len(found) == 13
    for number, own in found.items():
        lasting = own if len(own) == 3 else own[["epoch", "step"]]  # diverged
        pd.testing.assert_frame_equal(lasting, expected[number][lasting.columns], rtol=1e-4)
    outcomes = [json.loads(path.read_text())["outcome"] for path in stacked.glob("*/done")]
    assert sorted(outcomes) == ["diverged"] * 4 + ["finished"] * 9
    logs = {path.resolve() for path in stacked.glob("[0-9]*/job.log")}
    assert len(logs) == 3


@pytest.mark.slow
def test_an_interrupted_stack_continues_where_it_was(tmp_path):
    """Ctrl-C in the middle; -r trains the rest together again, from the saved states."""
    linear = LINEAR | {"base_lr": [0.1, 0.2], "batch_size": 80}
    keys = {"train_length": 400, "LIST": [linear]}
    straight = submitted(tmp_path / "straight", "--stack", "auto", keys=keys)
    job = tmp_path / "job.yaml"
    details = {"name": "grid", "output_dir": str(tmp_path)}
    job.write_text(yaml.safe_dump({"job_details": details, "parameters": GRID | keys}))
    command = [sys.executable, "submit_multiple.py", str(job), "-s", "local", "--stack", "auto"]
    process = subprocess.Popen(command, cwd=ROOT)
    batch = tmp_path / straight.name
    wait_until(lambda: list(batch.glob("*/system.csv")) or status_of(batch, "progress"), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert set(status_of(batch, "state")) == {"interrupted"}
    assert not list(batch.glob("*/done"))
    report = [sys.executable, "report.py", "--json", str(batch)]
    found = json.loads(subprocess.run(report, cwd=ROOT, capture_output=True).stdout)
    assert {row["state"] for row in found[0]["rows"]} == {"interrupted"}
    again = [sys.executable, "submit_multiple.py", "-r", str(batch), "-y"]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert "trained together: 1 stack of 2 runs" in done.stdout
    assert "2 runs: 2 done, 0 failed" in done.stdout
    for number, own in results_of(batch).items():
        pd.testing.assert_frame_equal(own, results_of(straight)[number], check_exact=True)


@pytest.mark.slow
def test_trackers_and_messages_are_those_of_each_run(tmp_path):
    """Every run has its own events; two that cannot start are two failures, as without stacks."""
    rows = [{"base_lr": [n / 10 for n in range(1, 8)], "batch_size": 80, "model": "linear"}]
    rows.append(rows[0] | {"base_lr": 1, "model_weights": ["/nowhere/a.pt", "/nowhere/b.pt"]})
    keys = {"LIST": rows, "trackers": [["tensorboard"]], "system_interval": 0}
    with mailbox() as box:
        env = {VARIABLE: box.address, "EXPERIMENT_TRACKER_NICENESS": "0"}
        batch = submitted(tmp_path, "--stack", "auto", keys=keys, code=1, env=env)
    *trained, first, second = sorted(batch.glob("[0-9]*/"))
    for folder in trained:
        wait_until(lambda folder=folder: SyncState.read(folder, "tensorboard").is_complete)
        assert_logged(folder, ["tensorboard"])
    assert read_tensorboard(trained[0]) != read_tensorboard(trained[1])
    assert not any((folder / "done").exists() for folder in (first, second))
    assert {message["title"] for message in box.messages} == {
        f"{batch.name}: a first run has failed",
        f"{batch.name}: 2 of 9 runs have failed",
        f"{batch.name}: 7 done, 2 failed",
    }
    assert len(box.messages) == 3
    failure = next(x for x in box.messages if "first run" in x["title"])
    assert "/nowhere/a.pt" in failure["message"]


def status_of(batch: Path, key: str) -> list:
    """That entry of the runs' status.json, where it is not 0."""
    found = [json.loads(path.read_text()).get(key) for path in batch.glob("*/status.json")]
    return list(filter(None, found))
