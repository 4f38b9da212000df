"""The best settings of a batch: which value of a run counts, which runs are one setting."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import report
from src.grid.folders import Row, open_batch
from src.grid.reports import columns_to_rank_by, rank_settings, read_stats_text
from src.grid.status import RowStatus
from src.support.errors import UserError
from tests.made_batches import finish, five_runs, make_batch


@pytest.fixture
def batch(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return five_runs(Path("results/26-11-22-x"))


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
    report.main(["--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert [run["value"] for run in found["best"][1]["runs"]] == [0.9, 0.9, None]


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
