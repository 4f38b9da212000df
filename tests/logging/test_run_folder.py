import json
import os
import stat
from pathlib import Path

import pandas as pd
import pytest
from loguru import logger

from src.config import load_config, make_config
from src.logging import lease
from src.logging.run_folder import RunFolder
from src.logging.same_run import OtherRun, is_finished
from src.support.errors import UserError
from src.support.files import write_atomically


def folder_at(path: Path, **keys: object) -> RunFolder:
    return RunFolder(make_config({"output_dir": str(path), **keys}))


def test_a_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")  # fails in the middle
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444  # readable by others as the umask says


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GeneratorExit(), "left"),
        (KeyboardInterrupt(), "interrupted"),
        (RuntimeError("boom"), "failed"),
        (UserError("model: unknown 'x'"), "failed"),
    ],
)
def test_the_status_says_how_a_run_ended(tmp_path, error, state):
    with pytest.raises(type(error)), folder_at(tmp_path):
        raise error
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == state
    log = (tmp_path / "training.log").read_text()
    assert ("Traceback" in log) == (type(error) is RuntimeError)
    assert ("boom" in log) == (type(error) is RuntimeError)


def test_tracebacks_do_not_show_the_values_of_variables(tmp_path):
    def fail(password):
        return len(password) / 0

    with pytest.raises(ZeroDivisionError), folder_at(tmp_path):
        fail("hunter" + "2")
    assert "hunter2" not in (tmp_path / "training.log").read_text()


def test_the_log_is_continued_by_the_next_attempt(tmp_path):
    for number in (1, 2):
        with folder_at(tmp_path):
            logger.info("attempt {}", number)
    log = (tmp_path / "training.log").read_text()
    assert "attempt 1" in log
    assert "attempt 2" in log


def test_status_is_written_at_once_and_then_every_few_seconds(tmp_path):
    with folder_at(tmp_path) as folder:
        first = json.loads((tmp_path / "status.json").read_text())
        assert first["state"] == "running"
        step = 0
        folder.facts = lambda: {"step": step}
        for step in range(1000):  # noqa: B007 - the lambda reads it
            folder.update_status()
        assert json.loads((tmp_path / "status.json").read_text()).get("step", 0) < 999
        step = 1000
        folder.finish("finished", "all done")
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 1000
    assert json.loads((tmp_path / "done").read_text())["outcome"] == "finished"


def test_a_run_is_not_done_before_its_stats_are_on_disk(tmp_path, small_files):
    frame = pd.DataFrame({"epoch": [1, 2]})
    with pytest.raises(UserError, match="cannot write to"), folder_at(tmp_path) as folder:  # noqa: PT012
        small_files(5)
        folder.save_stats(frame)
        folder.finish("finished", "all done")
    small_files(None)
    assert not (tmp_path / "done").exists()
    with folder_at(tmp_path) as folder:
        small_files(5)
        folder.save_stats(frame)
        small_files(None)
        folder.finish("finished", "all done")
    assert (tmp_path / "stats.csv").read_text() == frame.to_csv()
    assert (tmp_path / "done").exists()


def test_keys_without_effect_may_differ_from_the_finished_run(tmp_path):
    def requested(**keys):
        return make_config({"output_dir": str(tmp_path), **keys})

    assert not is_finished(requested())
    requested().save(tmp_path / "spec.yaml")
    (tmp_path / "done").write_text("")  # as older experiments leave it
    assert not is_finished(requested())
    (tmp_path / "stats.csv").write_text(",train/loss\n0,1.0\n")
    assert is_finished(requested(log_interval=3, num_workers=0))
    with pytest.raises(UserError, match="differs in model, base_lr"):
        is_finished(requested(model="linear", base_lr=0.5))


def test_of_a_schedule_of_ones_own_nobody_knows_that_it_could_go_on(tmp_path):
    """Whatever its module is called; poly's rate at a step does not depend on the length."""
    for name in ("poly_1", "poly_mine:build"):
        keys = {"lr_schedule": name, "output_dir": str(tmp_path / name.partition(":")[0])}
        with RunFolder(make_config(keys | {"train_length": 1})) as folder:
            folder.start(folder.requested, facts=dict)
            folder.save_stats(pd.DataFrame({"a": [1]}))
            folder.finish("finished", "")
        longer = make_config(keys | {"train_length": 2})
        if name == "poly_1":
            assert not is_finished(longer)
        else:
            with pytest.raises(OtherRun, match="differs in train_length"):
                is_finished(longer)


def test_warnings_reach_the_terminal_and_other_lines_only_if_requested(tmp_path, capsys):
    for is_wanted in (False, True):
        with folder_at(tmp_path, log_to_stdout=is_wanted):
            logger.info("quiet")
            logger.warning("fetching")
        out, err = capsys.readouterr()
        assert ("fetching" in out + err, "quiet" in out + err) == (True, is_wanted)
    assert (tmp_path / "training.log").read_text().count("quiet") == 2


NONSENSE = ["", "garbage", "[1]", "5", "{}", "null", "[" * 100_000, "\ud800"]
NONSENSE_OF = {
    "status.json": [
        '{"attempt": "x"}',
        '{"attempt": 1, "step": "x", "progress": []}',
        '{"attempt": 1, "step": 1e999}',
        '{"cost": 5}',
        json.dumps(
            {"cost": {"before": {"core_seconds": "x"}, "lost": {}, "waiting": None}}
            | {"cost_of": 1}
        ),
        json.dumps(
            {
                "cost": {
                    "before": {"core_seconds": "x"},
                    "lost": {},
                    "waiting": {"cost": {"gpu_seconds": []}, "first_step": "a", "step": []},
                    "current": {"cost": {}, "first_step": "a", "step": None},
                }
            }
        ),
    ],
    "provenance.json": [
        '{"packages": 5}',
        '{"machine": [1], "packages": {}}',
        '{"earlier_attempts": 5}',
        '{"packages": {"torch": [1]}}',
    ],
    "spec.yaml": ["[1]", "model: [", "modle: linear", "\0"],
    "claim": ['0\n{"machine": "MACHINE"}', '0\n{"pid": "x"}'],
}
CASES = [
    (name, text)
    for name in ("status.json", "provenance.json", "spec.yaml", "claim")
    for text in NONSENSE + NONSENSE_OF[name]
]


@pytest.mark.parametrize(("name", "text"), CASES, ids=lambda x: x[:30])
def test_a_damaged_file_of_its_own_does_not_keep_a_run_from_beginning(
    tmp_path, monkeypatch, name, text
):
    monkeypatch.setattr(lease, "LEASE_TIMEOUT", 0.1)
    text = text.replace("MACHINE", lease.Lease(tmp_path).identity["machine"])
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
    with folder_at(tmp_path) as folder:
        folder.is_resumed = name != "spec.yaml"
        folder.start(folder.requested, facts=dict)
    assert load_config(tmp_path / "spec.yaml") == folder.requested
    assert json.loads((tmp_path / "status.json").read_text())["attempt"] >= 1
    assert json.loads((tmp_path / "provenance.json").read_text())["packages"]
