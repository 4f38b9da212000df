"""What became of a run, read from folders that are made by hand."""

import json
import os
import platform
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from src.grid.folders import Batch, Row
from src.grid.journal import Journal
from src.grid.status import LONGEST_CAUSE, STATES, RowStatus, row_statuses
from src.support.processes import start_time

HERE, ELSEWHERE = platform.node(), "another-host"
DEAD_PID = 2**22 + 1  # above all that Linux gives out
TRACEBACK = 'Traceback (most recent call last):\n  File "/x/y.py", line 3, in f\n    g()\n'


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def began(seconds: float = 100, job: str = "5_0") -> str:
    return f"--- {ago(seconds)} job {job} on node1 ---\n"


@pytest.fixture
def row(tmp_path) -> Row:
    folder = tmp_path / "batch" / "000_batch"
    folder.mkdir(parents=True)
    return Row(folder, {})


def put(row: Row, *, status=None, log=None, done=None) -> None:
    for name, content in (("status.json", status), ("done", done)):
        if content is not None:
            (row.folder / name).write_text(json.dumps(content))
    if log is not None:
        row.log.write_text(log)


def status_of(row: Row, job=None, queue: object = ...) -> RowStatus:
    """job: its live one; queue={}: Slurm knows none, None: it cannot be asked."""
    queue = ({} if job is None else {row.name: job}) if queue is ... else queue
    return row_statuses(Batch(row.folder.parent, [row]), queue)[0]


def job(state: str, number: str = "5_0") -> SimpleNamespace:
    return SimpleNamespace(job=number, state=state, reason="Priority", node="node1")


def running(**facts) -> dict:
    common = {"state": "running", "host": ELSEWHERE, "job": None, "pid": os.getpid()}
    return common | {"started": ago(100), "updated": ago(0), "progress": 0.25} | facts


# ---- States ------------------------------------------------------------------------------


def test_done_is_done_whatever_the_queue_says(row):
    end = {"outcome": "diverged", "reason": "loss nan at step 3", "time": ago(40)}
    put(row, status=running(), done=end)
    status = status_of(row, job("COMPLETING"))
    assert (status.state, status.progress, status.outcome) == ("done", 1.0, "diverged")
    assert status.cause == "loss nan at step 3"
    assert status.seconds == pytest.approx(60, abs=2)


def test_nothing_there_was_never_started(row):
    assert status_of(row).state == "unstarted"
    row.folder.rmdir()
    assert status_of(row, queue=None).state == "unstarted"


@pytest.mark.parametrize(
    ("in_slurm", "state"),
    [
        ("PENDING", "queued"),
        ("REQUEUE_HOLD", "queued"),
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("SIGNALING", "running"),
    ],
)
@pytest.mark.parametrize("before", [None, {"state": "failed", "error": "ValueError: x"}])
def test_a_job_in_the_queue_decides(row, in_slurm, state, before):
    put(row, status=before and running(**before, job="4_0"))
    status = status_of(row, job(in_slurm))
    assert (status.state, status.job) == (state, "5_0")
    assert status.cause == {"queued": "Priority", "running": "starting"}[state]


def test_a_running_row_says_how_far_it_is(row):
    put(row, status=running(job="5_0", seconds_left=300, updated=ago(60)))
    status = status_of(row, job("RUNNING"))
    assert (status.state, status.progress, status.cause) == ("running", 0.25, None)
    assert status.node == "node1"
    assert status.seconds == pytest.approx(100, abs=2)
    assert status.seconds_left == pytest.approx(240, abs=2)


def test_what_an_earlier_job_reached_is_shown_but_not_its_time_left(row):
    put(row, status=running(job="4_0", seconds_left=300))
    status = status_of(row, job("RUNNING"))
    assert (status.state, status.cause) == ("running", "starting")
    assert (status.progress, status.seconds, status.seconds_left) == (0.25, None, None)


def test_seconds_of_all_attempts_are_counted(row):
    put(row, status=running(seconds_before=1000))
    assert status_of(row, job("RUNNING")).seconds == pytest.approx(1100, abs=2)


def test_of_rows_that_share_a_job_one_can_be_over(row):
    put(row, log=began(job="5_0") + TRACEBACK + "ValueError: x\n--- ended: exit code 1 ---\n")
    status = status_of(row, job("RUNNING", "5_0"))
    assert (status.state, status.cause, status.node) == ("failed", "ValueError: x", "node1")
    assert status_of(row, job("RUNNING", "6_0")).state == "running"


@pytest.mark.parametrize(
    ("facts", "queue", "state"),
    [
        ({"host": HERE, "updated": 9999}, {}, "running"),
        ({"host": HERE, "pid": DEAD_PID}, None, "lost"),
        ({"updated": 500}, None, "running"),
        ({"updated": 700}, None, "lost"),
        ({"updated": 500}, {}, "running"),
        ({"updated": 500, "job": "5_0"}, None, "running"),
        ({"updated": 500, "job": "5_0"}, {}, "lost"),
        ({"updated": "?"}, None, "lost"),
    ],
)
def test_running_needs_somebody_who_runs(row, facts, queue, state):
    """updated: seconds ago"""
    if isinstance(facts.get("updated"), int):
        facts = facts | {"updated": ago(facts["updated"])}
    put(row, status=running(**facts), log="a line\n")
    assert status_of(row, queue=queue).state == state


def test_rows_of_a_local_runner_wait_run_and_fail(row):
    batch = row.folder.parent
    (batch / "submissions").mkdir()
    notice = batch / "submissions" / "local.json"
    facts = {"pid": os.getpid(), "began": start_time(os.getpid()), "host": HERE, "rows": [row.name]}

    put(row, log=began(9000) + "ValueError: x\n--- ended: exit code 1 ---\n")
    os.utime(row.log, (0, 0))
    notice.write_text(json.dumps(facts))
    assert status_of(row, queue=None).state == "queued"
    put(row, log=f"--- {ago(0)} local 7 on {HERE} ---\na warning\n")
    assert status_of(row, queue=None).state == "running"
    put(row, log=f"--- {ago(0)} local 7 on {HERE} ---\n--- ended: exit code 1 ---\n")
    assert status_of(row, queue=None).state == "failed"

    row.log.unlink()
    for other in ({"pid": DEAD_PID}, {"host": ELSEWHERE}, {"rows": []}, {"rows": None}):
        notice.write_text(json.dumps(facts | other))
        assert status_of(row, queue=None).state == "unstarted", other


def test_a_log_that_has_only_begun_is_starting_or_lost(row):
    put(row, log=began(1))
    assert status_of(row, queue=None).state == "running"
    assert status_of(row, queue={}).state == "lost"
    os.utime(row.log, (0, 0))
    assert status_of(row, queue=None).state == "lost"
    put(row, log=began(1) + "python: command not found\n")
    assert status_of(row, queue=None).state == "failed"


# ---- Causes ------------------------------------------------------------------------------

SLURM = "slurmstepd: error: "
ENDS = [
    (f"{SLURM}*** JOB 5 ON n CANCELLED AT 2026-11-23T01:20:33 DUE TO TIME LIMIT ***", "timeout"),
    (f"{SLURM}*** JOB 5 ON n CANCELLED AT 2026-11-23T01:20:33 ***", "cancelled"),
    (f"{SLURM}*** JOB 5 ON n CANCELLED AT 2026-11-23T01:20:33 DUE TO PREEMPTION ***", "preempted"),
    (f"{SLURM}*** JOB 5 ON n CANCELLED AT 2026-11-23T01:20:33 DUE TO NODE FAILURE ***", "node"),
    (f"{SLURM}Detected 1 oom_kill event in StepId=5.batch. Some of the step tasks", "oom"),
    (f"{SLURM}Detected 1 oom-kill event(s) in StepId=5.batch cgroup.", "oom"),
    ("srun: error: node1: task 0: Out Of Memory", "oom"),
    ("--- ended: killed by signal 9 ---", "killed"),
    ("--- ended: exit code 137 ---", "killed"),
    ("--- ended: killed by signal 11 ---", "killed"),
    ("--- ended: killed by signal 2 ---", "interrupted"),
    ("--- ended: exit code 130 ---", "interrupted"),
    (TRACEBACK + "torch.OutOfMemoryError: CUDA out of memory. Tried", "oom"),
    (TRACEBACK + "RuntimeError: DefaultCPUAllocator: can't allocate memory: you", "oom"),
    (TRACEBACK + "MemoryError\n--- ended: exit code 1 ---", "oom"),
    (TRACEBACK + "KeyError: 'x'\nsys:1: a last word\n--- ended: exit code 1 ---", "error"),
    ("--- ended: exit code 0 ---", "error"),
]


@pytest.mark.parametrize(("end", "kind"), ENDS)
@pytest.mark.parametrize("has_status", [True, False])
def test_the_end_of_the_log_says_what_happened(row, end, kind, has_status):
    status = running(job="5_0", started=ago(90)) if has_status else None
    put(row, status=status, log=began(100) + "epoch 1\n" + end + "\n")
    found = status_of(row)
    state = "interrupted" if kind == "interrupted" else "failed"
    assert (found.state, found.kind, found.node) == (state, kind, "node1")


def test_causes_as_a_person_reads_them(row):
    for end, cause in {
        "--- ended: killed by signal 9 ---": "killed by signal 9, perhaps out of memory",
        TRACEBACK + "a.b.Error: two\n--- ended: exit code 1 ---": "a.b.Error: two",
        "base_lr: got -1\n--- ended: exit code 2 ---": "base_lr: got -1",
        "\x1b[31mred\x1b[0m\n--- ended: exit code 3 ---": "red",
        "--- ended: exit code 3 ---": "exit code 3",
        "x: no such file\nsrun: error: n: task 0: Exited with exit code 1": "x: no such file",
        "x" * 500: "x" * (LONGEST_CAUSE - 1) + "…",
        f"{TRACEBACK}A: 1\n\nDuring handling, another:\n\n{TRACEBACK}B: 2": "B: 2",
        "    a = b\nNameError: name 'b' is not defined\nbye": "NameError: name 'b' is not defined",
    }.items():
        put(row, log=began() + end + "\n")
        assert status_of(row).cause == cause


def test_only_the_last_attempt_counts(row):
    oom = f"{SLURM}Detected 1 oom_kill event in StepId=5.batch.\n"
    put(row, log=began(900) + oom + began(100) + "ValueError: x\n--- ended: exit code 1 ---\n")
    assert status_of(row).kind == "error"
    put(row, log=began(900) + "ValueError: x\n--- ended: exit code 1 ---\n" + began(100) + oom)
    assert status_of(row).kind == "oom"


def test_the_end_of_a_long_log_is_enough(row):
    put(row, log=began() + "a line\n" * 100_000 + ENDS[0][0] + "\n")
    assert status_of(row).kind == "timeout"


@pytest.mark.parametrize(
    ("facts", "kind", "cause"),
    [
        ({"state": "failed", "error": "KeyError: 'x'"}, "error", "KeyError: 'x'"),
        ({"state": "failed", "error": "UserError: lr: got 0"}, "error", "lr: got 0"),
        ({"state": "failed", "error": "A:\n  two lines"}, "error", "A: two lines"),
        ({"state": "failed", "error": "OutOfMemoryError: CUDA"}, "oom", "OutOfMemoryError: CUDA"),
        ({"state": "interrupted"}, "interrupted", "interrupted"),
        ({"state": "left"}, "interrupted", "left early by the program that ran it"),
    ],
)
def test_the_status_says_how_a_run_ended(row, facts, kind, cause):
    put(row, status=running(**facts), log="a last line\n")
    status = status_of(row)
    state = "interrupted" if kind == "interrupted" else "failed"
    assert (status.state, status.kind, status.cause) == (state, kind, cause)
    assert status.seconds == pytest.approx(100, abs=2)


def test_slurms_words_explain_the_error_that_they_caused(row):
    error = "RuntimeError: DataLoader worker (pid 7) exited unexpectedly"
    put(row, status=running(state="failed", error=error), log=ENDS[4][0] + "\n")
    assert status_of(row).kind == "oom"


def test_an_attempt_that_died_before_its_status_is_not_the_one_before(row):
    put(
        row,
        status=running(state="failed", error="ValueError: old", updated=ago(200)),
        log=began(100) + TRACEBACK + "ImportError: new\n",
    )
    assert status_of(row).cause == "ImportError: new"


def pack(row: Row) -> None:
    """It was the second of two rows in task 3 of job 5."""
    folder = row.folder.parent / "submissions"
    folder.mkdir(exist_ok=True)
    journal = Journal(folder)
    names = [f"other{i}" for i in range(7)] + [row.name]
    call = journal.begin(names, pack=2, script="s.sh", extra=[])
    journal.accepted(call, "5")
    (folder / call.label / "3").mkdir(parents=True)
    (folder / call.label / "3" / "job.log").write_text(ENDS[0][0] + "\n")


@pytest.mark.parametrize(
    ("end", "number", "kind"),
    [
        ("", "5_3", "timeout"),
        ("--- ended: exit code 137 ---\n", "5_3", "timeout"),
        ("--- ended: exit code 1 ---\n", "5_3", "error"),
        ("--- ended: exit code 137 ---\n", "6_3", "killed"),
        ("--- ended: exit code 137 ---\n", "5_2", "killed"),
    ],
)
def test_slurms_words_to_rows_that_share_a_job_stand_in_the_jobs_log(row, end, number, kind):
    pack(row)
    put(row, log=began(job=number) + end)
    assert status_of(row).kind == kind


# ---- Stopped, to resume -------------------------------------------------------------------


def stopped(**facts) -> dict:
    return running(state="stopped", signal="SIGUSR1", step=40, job="5_0", updated=ago(50)) | facts


@pytest.mark.parametrize(
    ("in_slurm", "number", "state"),
    [("PENDING", "5_0", "queued"), ("RUNNING", "5_0", "running"), ("PENDING", "9", "queued")],
)
def test_a_stopped_row_waits_with_its_progress(row, in_slurm, number, state):
    """Requeued, begun again, or with a follow-up in the queue."""
    log = began(100) + (began(10) if in_slurm == "RUNNING" else "")
    put(row, status=stopped(), log=log)
    status = status_of(row, job(in_slurm, number))
    assert (status.state, status.progress) == (state, 0.25)
    assert status.cause == {"queued": "Priority", "running": "starting"}[state]


def test_a_row_that_slurm_begins_again_keeps_its_progress_until_it_knows_better(row):
    put(row, status=running(job="5_0", updated=ago(50)), log=began(100) + began(10))
    assert status_of(row, job("RUNNING")).progress == 0.25
    put(row, status=running(job="4_0", updated=ago(50)), log=began(100) + began(10))
    assert status_of(row, job("RUNNING")).progress == 0.25


def test_a_stopped_row_resumes_with_those_that_share_its_job(row):
    put(row, status=stopped(), log=began(100) + "--- ended: exit code 75 ---\n")
    status = status_of(row, job("RUNNING"))
    assert (status.state, status.progress) == ("queued", 0.25)
    put(row, log=began(100) + "--- ended: exit code 69 ---\n")
    assert status_of(row, job("RUNNING")).state == "failed"


REQUEUED = f"{SLURM}*** JOB 5 ON n CANCELLED AT 2026-11-23T01:20:33 DUE TO JOB REQUEUE ***\n"
NO_STEP = "not continued after 2 time limits without a step between: raise --time"
TOO_OFTEN = "not continued after 9 restarts by Slurm: raise --max-preemptions (8)"


@pytest.mark.parametrize(
    ("facts", "end", "kind", "cause"),
    [
        ({}, "", "timeout", "stopped with a checkpoint at step 40 and not continued"),
        ({"signal": "SIGTERM"}, "", "preempted", "stopped with a checkpoint at step 40"),
        ({"job": None}, "", "interrupted", "stopped with a checkpoint at step 40"),
        ({"step": None}, "", "timeout", "stopped with a checkpoint and not continued"),
        ({}, "--- ended: exit code 75 ---\n", "timeout", "stopped with a checkpoint at step 40"),
        ({}, REQUEUED, "timeout", "stopped with a checkpoint at step 40"),
        ({"signal": "SIGTERM"}, ENDS[1][0] + "\n", "cancelled", "cancelled"),
        ({"signal": "SIGTERM"}, ENDS[0][0] + "\n", "timeout", "time limit"),
        ({}, f"{NO_STEP}\n", "timeout", NO_STEP),
        ({}, f"{NO_STEP}\n{ENDS[0][0]}\n", "timeout", NO_STEP),
        ({"updated": ago(200)}, f"{TOO_OFTEN}\n", "preempted", TOO_OFTEN),
        (None, "--- ended: exit code 75 ---\n", "timeout", "stopped with a checkpoint"),
    ],
)
def test_a_stopped_row_that_nothing_waits_for_has_failed(row, facts, end, kind, cause):
    put(row, status=None if facts is None else stopped(**facts), log=began(100) + end)
    status = status_of(row)
    state = "interrupted" if kind == "interrupted" else "failed"
    assert (status.state, status.kind) == (state, kind)
    assert (status.cause or "").startswith(cause)


def test_of_rows_that_share_a_job_stopped_ones_learn_from_its_log_why(row):
    pack(row)
    put(row, status=stopped(), log=began(job="5_3") + "--- ended: exit code 75 ---\n")
    assert status_of(row).cause == "time limit"


# ---- Whatever lies there -----------------------------------------------------------------


def test_torn_files_are_no_reason_to_fail(row):
    whole = json.dumps(running(job="5_0"))
    for text in [whole[:n] for n in range(0, len(whole), 7)] + ["[]", "null", "\x00", "{}"]:
        (row.folder / "status.json").write_text(text)
        assert status_of(row).state == "lost", text
        assert status_of(row, job("RUNNING")).state == "running"
    (row.folder / "done").write_text(whole[:9])
    assert status_of(row).state == "done"


@pytest.mark.parametrize(
    "odd", [None, [], {}, "x", -1, 1e400, 10**320, "2026-99-99", True], ids=repr
)
def test_values_of_a_wrong_type_are_no_reason_to_fail(row, odd):
    for key in ("state", "host", "job", "pid", "started", "updated", "progress", "seconds_left"):
        for state in ("running", "failed"):
            put(row, status=running(state=state, host=HERE) | {key: odd, "error": odd})
            status = status_of(row, queue=None)
            assert status.state in STATES
            assert 0 <= status.progress <= 1
    row.log.write_bytes(bytes(range(256)))
    assert status_of(row).state in STATES
