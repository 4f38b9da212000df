"""What a batch tells of itself: once each, within its budget, however many rows fail at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.grid.notify import notices
from src.grid.notify.notices import MOST_MESSAGES, Notices, tell_of_failure
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[3]


@pytest.fixture
def batch(tmp_path) -> Path:
    (tmp_path / "batch" / "submissions").mkdir(parents=True)
    return tmp_path / "batch"


def rows(number: int) -> list[str]:
    return [f"{i:03d}_x" for i in range(number)]


def test_nobody_is_told_where_there_is_no_address(batch):
    assert Notices(batch).of_failure("000_x") is None
    assert list(batch.rglob("*")) == [batch / "submissions"]
    Notices(batch).begin(rows(3), 3)
    Notices(batch).take_back(None)
    assert Notices(batch).of_failure("000_x") is None


def test_a_submission_of_which_nothing_came_leaves_the_one_before_in_force(batch):
    first = Notices(batch).begin(rows(3), 3)
    earlier = Notices(batch).wanted_text
    Notices(batch).begin(rows(3), 3)
    Notices(batch).take_back(earlier)
    assert Notices(batch).may_tell_digest(first)


def test_the_first_failure_and_more_than_a_fifth_are_told_once(batch):
    Notices(batch).begin(rows(20), 20)
    told = [Notices(batch).of_failure(row) for row in rows(20)]
    assert told == ["failure", None, None, None, "many", *[None] * 15]


def test_a_fifth_is_not_more_than_a_fifth_and_one_message_says_both(batch):
    Notices(batch).begin(rows(5), 5)
    assert [Notices(batch).of_failure(row) for row in rows(2)] == ["failure", "many"]
    Notices(batch).begin(rows(4), 4)
    assert [Notices(batch).of_failure(row) for row in rows(2)] == ["many", None]


def test_a_row_that_fails_twice_is_one_row(batch):
    Notices(batch).begin(rows(10), 10)
    told = [Notices(batch).of_failure("000_x") for _ in range(8)]
    assert told == ["failure", *[None] * 7]


def test_what_is_submitted_again_is_no_failure_any_more(batch):
    Notices(batch).begin(rows(20), 20)
    for row in rows(4):
        Notices(batch).of_failure(row)
    Notices(batch).begin(rows(3), 20)
    assert Notices(batch).num_failed == 1
    assert Notices(batch).of_failure("000_x") == "failure"  # of the new round


def test_of_many_processes_at_once_two_may_speak(batch):
    """A grid whose every row fails in the same second."""
    Notices(batch).begin(rows(400), 400)
    script = (
        "import sys; from pathlib import Path; from src.grid.notify.notices import Notices;"
        "n = Notices(Path(sys.argv[1]));"
        "print(*[n.of_failure(f'{i:03d}_x') for i in range(int(sys.argv[2]), 400, 4)])"
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
    told = " ".join(process.communicate(timeout=PATIENCE)[0] for process in started).split()
    assert len(told) == 400
    assert sorted(word for word in told if word != "None") == ["failure", "many"]


def test_the_budget_is_that_of_the_batch_with_all_its_retries(batch):
    for _ in range(3):
        Notices(batch).begin(rows(3), 3)
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: Notices(batch).take_of_budget(), range(50)))
    assert sum(taken) == 0
    assert len(list((batch / "submissions" / "notices").glob("sent-*"))) == MOST_MESSAGES


def test_a_digest_is_told_once_and_by_the_last_submission(batch):
    first = Notices(batch).begin(rows(3), 3)
    second = Notices(batch).begin(rows(3), 3)
    assert not Notices(batch).may_tell_digest(first)
    assert Notices(batch).may_tell_digest(second)
    assert not Notices(batch).may_tell_digest(second)


def test_what_is_no_failure_is_not_told(batch, monkeypatch):
    asked = []
    monkeypatch.setattr(notices, "start_sending", lambda *all_of_it: asked.append(all_of_it))
    Notices(batch).begin(rows(20), 20)
    for code in (0, 75, 130):
        tell_of_failure(batch / "000_x", code)
    assert asked == []
    tell_of_failure(batch / "000_x", 1)
    tell_of_failure(batch / "001_x", -9)
    assert asked == [("failure", batch, "000_x")]
