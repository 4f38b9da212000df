"""The page of report.py --html: what it says, and what it needs. In a browser: the next file."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import report
from src.analysis.curves import CurveArray
from src.analysis.page import _coded, _shown_metrics
from src.support.errors import UserError

SPLITS = ("val", "test")

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=\"document.title='y'\">"
RATES = [0.5, 0.0001, 10.0]
HEADER = ",epoch,step,train/loss,train/time,test/last/loss,test/last/accuracy,test/last/time"


def loss(accuracy: float) -> float:
    """From 20 down, so that not all have one digit."""
    return round(20 * (1 - accuracy), 4)


def write_run(folder: Path, values: dict, accuracies: list[float]) -> None:
    """As a run leaves its folder; one without accuracies was never begun."""
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(values))
    if not accuracies:
        return
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    lines = [f"{i},{i + 1},{i * 9},0.5,1.5,{loss(a)},{a},0.5" for i, a in enumerate(accuracies)]
    (folder / "stats.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "status.json").write_text(json.dumps({"state": "done", "host": "node1"}))
    (folder / "done").write_text(json.dumps({"outcome": "finished"}))


def write_batch(folder: Path, rows: list[tuple[dict, list[float]]]) -> Path:
    """rows: the values and the accuracies of each."""
    names = [f"{i:03d}_{folder.name}" for i in range(len(rows))]
    for name, (values, accuracies) in zip(names, rows, strict=True):
        write_run(folder / name, values, accuracies)
    entries = [{"folder": n, "values": v} for n, (v, _) in zip(names, rows, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    return folder


def half_done(folder: Path) -> Path:
    """48 rows: two failed, one is broken, one lost, one never began; a value would be a script."""
    grid = {
        "model": ["linear", HOSTILE],
        "base_lr": RATES,
        "batch_size": [50, 100],
        "averaging": [None, "ema"],
        "seed_model": [1, 2],
    }
    rows = []
    for i, values in enumerate(product(*grid.values())):
        rows.append((dict(zip(grid, values, strict=True)), [0.1, 0.5 + i / 100]))
    rows[-1] = (rows[-1][0], [])
    write_batch(folder, rows)
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    for failed in runs[3:5]:
        (failed / "done").unlink()
        facts = {"state": "failed", "error": f"ValueError: {HOSTILE}", "progress": 0.5}
        (failed / "status.json").write_text(json.dumps(facts))
    (runs[7] / "config.yaml").write_text("model: [\n")
    (runs[9] / "done").unlink()
    facts = {"state": "running", "host": "gone", "updated": "2026-01-01T00:00:00+00:00"}
    (runs[9] / "status.json").write_text(json.dumps(facts))
    return folder


def written(batch: Path, *arguments: str) -> str:
    """The page of a batch, as the command line writes it."""
    path = batch.with_suffix(".html")
    assert report.main([str(batch), "--html", str(path), *arguments]) == 0
    return path.read_text()


def tables(html: str) -> list[dict]:
    found = re.search(r'id="tables"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def column(html: str, title: str, part: str = "") -> list:
    """The values of a column of the first table, in the rows' order."""
    heads = re.search(r'<table class="runs".*?</thead>', html, re.DOTALL)
    assert heads
    cells = re.findall(r"<th>(.*?)</th>", heads[0])
    names = [cell.replace("<wbr>", "").replace("</small>", "") for cell in cells]
    at = names.index(f"{title}<small>{part}" if part else title)
    (table,) = tables(html)
    options = table["options"][at]
    values = [row[at] for row in table["rows"]]
    return values if options is None else [v if v is None else options[v] for v in values]


def cells_under(html: str, title: str) -> list[list[str]]:
    """Of the table under that heading, row by row."""
    body = html[html.index(f"{title}</h2>") :].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in body.split("<tr>")[1:]]
    return [[" ".join(cell.split()) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def half_done_page(tmp_path_factory) -> str:
    return written(half_done(tmp_path_factory.mktemp("page") / "26-11-23-half"))


# ---- What it says ------------------------------------------------------------------------


def test_every_run_is_in_the_table_with_its_state_and_numbers(half_done_page):
    runs = [f"{i:03d}" for i in range(48) if i != 7]
    assert column(half_done_page, "run") == runs
    states = dict(zip(runs, column(half_done_page, "state"), strict=True))
    assert {run for run, state in states.items() if state == "failed"} == {"003", "004"}
    assert (states["009"], states["047"]) == ("lost", "never started")
    ends = dict(zip(runs, column(half_done_page, "test/last/accuracy", "end"), strict=True))
    assert (ends["000"], ends["046"], ends["047"]) == (0.5, 0.96, None)
    assert column(half_done_page, "epochs")[:1] == [2.0]
    assert column(half_done_page, "seconds")[-2:] == [4.0, None]
    assert column(half_done_page, "averaging")[:3] == [None, None, "ema"]
    assert column(half_done_page, "seed_model")[:3] == ["1", "2", "1"]


def test_failures_say_why_and_how_to_go_on(half_done_page):
    assert "2 runs: error" in half_done_page
    assert half_done_page.count("<code>python submit_multiple.py -r ") == 3
    assert "--only error" in half_done_page
    assert "--only unstarted" in half_done_page


def test_what_cannot_be_read_is_listed(half_done_page):
    assert re.search(r"Cannot be read: 007_26-11-23-half: config.yaml, line 2", half_done_page)


def test_warnings_of_the_choice_are_shown(half_done_page):
    assert "reported on the same split" in half_done_page


def test_what_the_choice_does_not_know_is_empty(tmp_path):
    """An interval of one seed, and null, as in the table of runs."""
    rows = [({"model": m, "clip_norm": c}, [0.5]) for m, c in (("a", None), ("b", 1.0))]
    html = written(write_batch(tmp_path / "x", rows))
    cells = cells_under(html, "The best setting of each model")
    assert [row[0] for row in cells] == ["a", "b"]
    assert [row[-1] for row in cells] == ["0.5"] * 2
    assert "nan" not in str(cells)
    by_null = [({"clip_norm": c}, [a]) for c, a in ((None, 0.6), (1.0, 0.5))]
    (only,) = cells_under(written(write_batch(tmp_path / "y", by_null)), "The best setting")
    assert only[:2] == ["", "1 of 1"]


def test_the_best_settings_stand_in_the_order_of_the_metric(tmp_path):
    """Means over seeds; what lacks a seed last, and counts said."""
    ends = {"a": [0.5, 0.6], "b": [0.7, 0.8], "c": [0.99]}
    rows = [
        ({"model": m, "seed_model": seed, "seed_training": 1}, [0.1, end])
        for m, of_model in ends.items()
        for seed, end in enumerate(of_model)
    ]
    html = written(write_batch(tmp_path / "x", rows))
    first = cells_under(html, "The best settings")
    assert [row[-1] for row in first] == ["b", "a", "c"]
    assert [row[0] for row in first] == ["0.7500 ± 0.071", "0.5500 ± 0.071", "0.9900"]
    assert [row[2] for row in first] == ["2 seeds", "2 seeds", "1 of 2 seeds"]
    assert [row[0] for row in cells_under(html, "The best setting of each model")] == list("bac")
    assert "Chosen and reported on the same split" in html
    by_loss = written(tmp_path / "x", "--metric", "test/last/loss")
    assert [row[-1] for row in cells_under(by_loss, "The best settings")] == ["b", "a", "c"]


def test_the_edge_alarm_is_there_with_the_job_file_that_goes_on(half_done_page):
    assert "best base_lr is the largest of 0.0001, 0.5, 10" in half_done_page
    job = re.search(r"<pre><code>([^<]*base_lr[^<]*)</code></pre>", half_done_page)
    assert job
    assert "parameters:" in job[1]


def test_the_pictures_show_what_was_varied(half_done_page):
    assert re.findall(r"<figcaption>(.*?)</figcaption>", half_done_page) == [
        "Learning curves of the 12 best settings: test/last/accuracy",
        "test/last/accuracy against base_lr",
        "test/last/accuracy against batch_size",
        "test/last/accuracy by base_lr and batch_size",
        "test/last/accuracy against time",
    ]


def test_the_metric_asked_for_orders_the_rows(tmp_path):
    rows = [({"base_lr": rate, "seed_model": 1}, [rate / 20]) for rate in RATES]
    batch = write_batch(tmp_path / "x", rows)
    (by_accuracy,) = tables(written(batch))
    (by_loss,) = tables(written(batch, "--metric", "test/last/loss"))
    assert by_accuracy["order"][1] == "desc"
    assert by_loss["order"][1] == "asc"
    assert by_loss["rows"][0][by_loss["order"][0]] == loss(RATES[0] / 20)


def test_the_table_shows_the_perplexity_that_is_reported_beside_the_one_that_chooses():
    names = [f"{split}/last/{m}" for m in ("loss", "accuracy", "perplexity") for split in SPLITS]
    curve = CurveArray.of([(np.array([1.0, 2.0]), np.array([1, 2]))], "x", "epoch")
    df = pd.DataFrame(dict.fromkeys(names, curve))
    assert _shown_metrics(df, "val/last/perplexity")[:2] == [f"{s}/last/perplexity" for s in SPLITS]


def test_a_batch_that_has_not_begun_has_a_page(tmp_path):
    batch = write_batch(tmp_path / "new", [({"base_lr": rate}, []) for rate in RATES])
    html = written(batch)
    assert column(html, "base_lr") == ["0.5", "0.0001", "10"]
    assert "no run has evaluated anything" in html


def test_a_batch_without_a_readable_run_has_a_page(tmp_path):
    batch = write_batch(tmp_path / "broken", [({"base_lr": 1.0}, [0.5])])
    (batch / "000_broken" / "config.yaml").write_text("- no mapping\n")
    html = written(batch)
    assert "None can be read yet" in html
    assert "Cannot be read" in html
    (batch / "000_broken" / "config.yaml").unlink()
    (batch / "000_broken" / "spec.yaml").unlink()
    assert "None can be read yet" in written(batch)


def test_what_report_cannot_read_of_a_run_is_listed_though_its_numbers_are_there(tmp_path):
    batch = write_batch(tmp_path / "x", [({"base_lr": rate}, [0.5]) for rate in RATES])
    (batch / "001_x" / "status.json").write_text("{")
    html = written(batch)
    assert column(html, "run") == ["000", "001", "002"]
    assert "Cannot be read: 001_x" in html


def test_a_picture_that_cannot_be_drawn_says_why_in_its_place(tmp_path, monkeypatch):
    """Any may be refused, though nothing known today is."""

    def refused(*_: object) -> None:
        raise UserError("x: <too many>")

    monkeypatch.setattr("src.analysis.page.against", refused)
    html = written(write_batch(tmp_path / "x", [({"base_lr": r}, [0.5]) for r in RATES]))
    assert re.search(r"No picture: x: &lt;too many&gt;</p>\s*<figcaption>test/last/acc", html)
    assert html.count("<img src=") == html.count("<figure>") - 1 > 0


def test_what_cannot_be_judged_is_warned_of(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise UserError("base_lr: <no edge>")

    monkeypatch.setattr("src.analysis.page.edge_alarm", refused)
    html = written(write_batch(tmp_path / "x", [({"base_lr": r}, [0.5]) for r in RATES]))
    assert "<li>base_lr: &lt;no edge&gt;</li>" in html
    assert "The best setting" in html


def test_a_batch_in_which_nothing_finite_was_measured_has_a_page(tmp_path):
    nan = float("nan")
    batch = write_batch(tmp_path / "x", [({"base_lr": r}, [nan, nan]) for r in RATES])
    html = written(batch)
    assert column(html, "test/last/accuracy", "end") == [None] * 3


def test_several_batches_stand_one_after_the_other(tmp_path):
    batches = [write_batch(tmp_path / name, [({"base_lr": 1.0}, [0.5])]) for name in ("a", "b")]
    out = tmp_path / "both.html"
    assert report.main([*map(str, batches), "--html", str(out)]) == 0
    html = out.read_text()
    assert [len(table["rows"]) for table in tables(html)] == [1, 1]
    assert re.findall(r"<h1>(.*?)</h1>", html) == ["a", "b"]
    assert "<title>2 batches</title>" in html


# ---- What it needs -----------------------------------------------------------------------


def test_it_needs_nothing_from_elsewhere(half_done_page):
    """And what the policy forbids, no browser loads."""
    links = re.findall(r'(?:src|href)="([^"]*)"', half_done_page)
    assert len([link for link in links if link.startswith("data:image/png")]) > 3
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "content=\"default-src 'none'; img-src data:;\n" in half_done_page


def test_values_are_text(half_done_page):
    """The scripts that stand there are those of the template."""
    assert half_done_page.count("&lt;/script&gt;") > 1
    assert half_done_page.count("<script") == half_done_page.count("</script>") == 3
    assert "<img src=x" not in half_done_page


# ---- Columns -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([10.0, 0.0001, float("nan"), 0.5], ["0.0001", "0.5", "10"]),
        ([None, 20, 3], ["3", "20"]),
        (["b", "a", 2, 10], ["2", "10", "a", "b"]),
        ([True, False], ["false", "true"]),
        ([[2, 1], {"a": 1}, [10]], ["[10]", "[2, 1]", '{"a": 1}']),
        ([0.1 + 0.2, 0.3], ["0.3"]),
    ],
)
def test_values_stand_in_their_order(values, options):
    found = _coded("key", pd.Series(values, dtype=object))
    assert found.options == options
    assert [code is None for code in found.cells] == [v is None or v != v for v in values]


# ---- The command line --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "x.html", "--json"], "not allowed with"),
        (["--html", "x.html", "--watch"], "not allowed with"),
        (["--html", "."], "--html: got '.', expected a file, which this folder is not"),
        (["--html", "nowhere/x.html"], "expected a file in a folder that exists: nowhere"),
        (["--html", "x.html", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_batch(tmp_path / "results" / "x", [({"base_lr": 1.0}, [0.5])])
    assert report.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err
    assert output.err.count("\n") == 1
    assert not Path("x.html").exists()


def test_the_path_is_printed(tmp_path, capsys):
    batch = write_batch(tmp_path / "x", [({"base_lr": 1.0}, [0.5])])
    written(batch)
    assert capsys.readouterr().out == f"{tmp_path}/x.html\n"
