"""The journal: what it says after a crash at any byte."""

from src.grid.submission import ACCEPTED, OPEN, REFUSED, Journal


def test_calls_are_read_back(tmp_path):
    journal = Journal(tmp_path)
    first = journal.begin(["a", "b", "c"], pack=2, script="s.sh", extra=["-p", "x"])
    journal.accepted(first, "12")
    second = journal.begin(["d"], pack=1, script="s.sh", extra=[])
    journal.refused(second, "no such partition")
    third = journal.begin(["e"], pack=1, script="s.sh", extra=[], is_array=False)

    again = Journal(tmp_path)
    assert [call.state for call in again.calls.values()] == [ACCEPTED, REFUSED, OPEN]
    assert again.calls[1].job == "12"
    assert again.calls[1].rows_of_task(1) == ["c"]
    assert again.accepted_rows == {"a", "b", "c"}
    assert again.open_calls == [third]


def test_a_crash_in_the_middle_of_a_line_loses_that_line_alone(tmp_path):
    journal = Journal(tmp_path)
    call = journal.begin(["a"], pack=1, script="s.sh", extra=[])
    whole = journal.path.read_bytes()
    journal.accepted(call, "12")
    for size in range(len(whole), len(journal.path.read_bytes())):
        journal.path.write_bytes(journal.path.read_bytes()[:size])
        torn = Journal(tmp_path)
        assert [c.state for c in torn.calls.values()] == [OPEN]
        torn.accepted(call, "13")
        assert Journal(tmp_path).calls[1].job == "13"


def test_reading_makes_nothing(tmp_path):
    assert Journal(tmp_path / "none").calls == {}
    assert not (tmp_path / "none").exists()
