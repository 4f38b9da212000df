"""What is reported about a batch: once each, within its budget, however many runs fail at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.grid import notices
from src.grid.journal import SubmitOptions
from src.grid.notices import (
    MOST_MESSAGES,
    Notices,
    kept_options,
    report_failure,
    submit_digest,
)
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def batch(tmp_path) -> Path:
    (tmp_path / "batch" / "submissions").mkdir(parents=True)
    return tmp_path / "batch"


def rows(number: int) -> list[str]:
    return [f"{i:03d}_x" for i in range(number)]


def test_nothing_is_reported_where_there_is_no_address(batch):
    assert Notices(batch).due_after_failure("000_x") is None
    assert list(batch.rglob("*")) == [batch / "submissions"]
    Notices(batch).begin(rows(3), 3)
    Notices(batch).take_back(None)
    assert Notices(batch).due_after_failure("000_x") is None


def test_a_submission_of_which_nothing_came_leaves_the_one_before_in_force(batch):
    first = Notices(batch).begin(rows(3), 3)
    earlier = Notices(batch).wanted_text
    Notices(batch).begin(rows(3), 3)
    Notices(batch).take_back(earlier)
    assert Notices(batch).may_send_digest(first)


def test_the_first_failure_and_more_than_a_fifth_are_reported_once(batch):
    Notices(batch).begin(rows(20), 20)
    due = [Notices(batch).due_after_failure(row) for row in rows(20)]
    assert due == ["failure", None, None, None, "many", *[None] * 15]


def test_a_fifth_is_not_more_than_a_fifth_and_one_message_says_both(batch):
    Notices(batch).begin(rows(5), 5)
    assert [Notices(batch).due_after_failure(row) for row in rows(2)] == ["failure", "many"]
    Notices(batch).begin(rows(4), 4)
    assert [Notices(batch).due_after_failure(row) for row in rows(2)] == ["many", None]


def test_a_run_that_fails_twice_is_one_run(batch):
    Notices(batch).begin(rows(10), 10)
    due = [Notices(batch).due_after_failure("000_x") for _ in range(8)]
    assert due == ["failure", *[None] * 7]


def test_what_is_submitted_again_is_no_failure_any_more(batch):
    Notices(batch).begin(rows(20), 20)
    for row in rows(4):
        Notices(batch).due_after_failure(row)
    Notices(batch).begin(rows(3), 20)
    assert Notices(batch).num_failed == 1
    assert Notices(batch).due_after_failure("000_x") == "failure"  # of the new round


def test_of_many_processes_at_once_two_may_send(batch):
    """A grid whose every run fails in the same second."""
    Notices(batch).begin(rows(400), 400)
    script = (
        "import sys; from pathlib import Path; from src.grid.notices import Notices;"
        "n = Notices(Path(sys.argv[1]));"
        "print(*[n.due_after_failure(f'{i:03d}_x') for i in range(int(sys.argv[2]), 400, 4)])"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(batch), str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    due = " ".join(process.communicate(timeout=PATIENCE)[0] for process in started).split()
    assert len(due) == 400
    assert sorted(word for word in due if word != "None") == ["failure", "many"]


def test_the_budget_is_that_of_the_batch_with_all_its_retries(batch):
    for _ in range(3):
        Notices(batch).begin(rows(3), 3)
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: Notices(batch).take_from_budget(), range(50)))
    assert sum(taken) == 0
    assert len(list((batch / "submissions" / "notices").glob("sent-*"))) == MOST_MESSAGES


def test_a_digest_is_sent_once_and_by_the_last_submission(batch):
    first = Notices(batch).begin(rows(3), 3)
    second = Notices(batch).begin(rows(3), 3)
    assert not Notices(batch).may_send_digest(first)
    assert Notices(batch).may_send_digest(second)
    assert not Notices(batch).may_send_digest(second)


def test_the_job_of_a_digest_runs_what_its_frozen_code_has(batch, tmp_path, monkeypatch):
    """Batches that older versions have frozen hold the module under this name as well."""
    (tmp_path / "submit.sh").write_text("#!/bin/bash\n#SBATCH -p gpu\n")
    of_round, submitted = Notices(batch).begin(rows(1), 1), []
    monkeypatch.setattr(notices, "ask", submitted.append)
    options = SubmitOptions(script=str(tmp_path / "submit.sh"))
    submit_digest(batch, ["5", "6"], options, tmp_path, of_round)
    (arguments,) = submitted
    assert {"--partition=gpu", f"--chdir={tmp_path}", "--dependency=afterany:5:6"} < set(arguments)
    command = Path(arguments[-1]).read_text().splitlines()[-1]
    assert command == f"exec {sys.executable} -m src.notify.sending digest {batch} {of_round}"
    assert (ROOT / "src" / "notify" / "sending.py").is_file()


def test_the_digest_s_job_runs_where_the_rows_do():
    words = ["--partition=gpu", "--gpus=1", "-A", "lab", "-qlong", "--time", "1-0", "-p", "cpu"]
    assert kept_options(words) == ["--partition=cpu", "--account=lab", "--qos=long"]
    assert kept_options([]) == []


def test_what_is_no_failure_is_not_reported(batch, monkeypatch):
    asked = []
    monkeypatch.setattr(notices, "start_sending", lambda *all_of_it: asked.append(all_of_it))
    Notices(batch).begin(rows(20), 20)
    for code in (0, 75, 130):
        report_failure(batch / "000_x", code)
    assert asked == []
    report_failure(batch / "000_x", 1)
    report_failure(batch / "001_x", -9)
    assert asked == [("failure", batch, "000_x")]
