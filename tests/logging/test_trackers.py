"""Trackers beside stats.csv, by the real libraries: what lands on the disk is read back."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

import report
from src.config import Config, make_config
from src.logging import tracker_processes
from src.logging.records import Stats
from src.logging.tracker_processes import (
    SyncState,
    TrackerProcesses,
    log_run,
    tracker_names,
    unsent_runs,
)
from src.logging.trackers import SERVICES, Service, TrackedRun
from src.metrics import is_time
from src.support.errors import UserError
from tests.several_processes import fork
from tests.waiting import PATIENCE, wait_until
from tests.whole_runs import ROOT, without_times
from train import experiment_generator, run_experiment

ALL = sorted(SERVICES)
KEY = "0123456789" * 4  # in the form of one of wandb's


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No credentials of whoever runs the tests, a database of the test's own, and time: tracker
    processes stand back where cores are busy, here less than elsewhere."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "COMET_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(tracker_processes, "SECONDS_TO_END", PATIENCE)
    monkeypatch.setenv("EXPERIMENT_TRACKER_NICENESS", "0")


# ---- Reading back: (step, name) -> all values, as each library's files have them ---------


def by_cell(rows) -> dict:
    found: dict = {}
    for step, values in rows:
        for name, value in values.items():
            found.setdefault((step, name), []).append(value)
    return found


def wandb_records(folder: Path):
    """The records of a .wandb file: blocks of 32 KiB, each record in pieces (LevelDB's log)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / "trackers" / "wandb").rglob("*.wandb")
    content, position, parts = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position < len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_wandb(folder: Path) -> dict:
    rows = []
    for record in wandb_records(folder):
        if record.HasField("history"):
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = items.pop("_step", record.history.step.num)
            rows.append((step, {k: v for k, v in items.items() if not k.startswith("_")}))
    return by_cell(rows)


def comet_messages(folder: Path) -> list[dict]:
    (file,) = (folder / "trackers" / "comet").glob("*.zip")
    with zipfile.ZipFile(file) as archive:
        return [json.loads(line) for line in archive.read("messages.json").splitlines()]


def read_comet(folder: Path) -> dict:
    metrics = [m["payload"]["metric"] for m in comet_messages(folder) if m["type"] == "metric_msg"]
    own = [m for m in metrics if m["metricName"] != "process duration"]  # Comet's, of its process
    return by_cell((m["step"], {m["metricName"]: float(m["metricValue"])}) for m in own)


def tensorboard_events(folder: Path) -> list:
    from tensorboard.compat.proto.event_pb2 import Event

    (file,) = (folder / "trackers" / "tensorboard").glob("events.*")
    content, position, events = file.read_bytes(), 0, []
    while position < len(content):  # TFRecords: length, its checksum, content, its checksum
        (length,) = struct.unpack("<Q", content[position : position + 8])
        events.append(Event.FromString(content[position + 12 : position + 12 + length]))
        position += 16 + length
    return events


def read_tensorboard(folder: Path) -> dict:
    values = [(e.step, value) for e in tensorboard_events(folder) for value in e.summary.value]
    scalars = [(step, v) for step, v in values if v.WhichOneof("value") == "simple_value"]
    return by_cell((step, {v.tag: v.simple_value}) for step, v in scalars)


def trackio_rows() -> list[dict]:
    script = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S;"
        "(name,) = S.get_runs('p'); print(json.dumps(S.get_logs('p', name)))"
    )
    return json.loads(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT))


def read_trackio(folder: Path) -> dict:
    rows = trackio_rows()
    numbers = [
        (row["step"], {k: v for k, v in row.items() if isinstance(v, float | int) and k != "step"})
        for row in rows
    ]
    return by_cell(numbers)


READERS = {
    "comet": read_comet,
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


def assert_logged(folder: Path, names=ALL) -> None:
    """Each tracker has each value of stats.csv, once, and no other."""
    wanted = by_cell(TrackedRun(folder).rows())
    assert wanted
    for name in names:
        found = READERS[name](folder)
        assert found.keys() == wanted.keys(), name
        for cell, values in found.items():
            if name == "trackio" and is_time(cell[1]) and len(values) == 1:
                continue  # what was sent stays; an epoch that is done again takes another time
            assert values == pytest.approx(wanted[cell], rel=1e-6), (name, cell)


# ---- The tests ---------------------------------------------------------------------------


def train_and_hang(config: Config) -> None:
    """Until it is killed after six epochs, of which the state of the sixth is not saved yet."""
    for stats, _ in experiment_generator(config):
        while len(stats) == 6:
            time.sleep(1)


@pytest.mark.slow
def test_every_value_is_there_once_across_a_kill(digits, tmp_path):
    """Killed without warning, and taken up again: the trackers have what one run would have."""
    keys = {
        "trackers": ALL,
        "wandb_project_name": "p",
        "wandb_tags": ["t1", "t2"],
        "averaging": "ema",
    }
    keys |= {"model": "tiny/lenet", "train_length": 12}
    keys |= {"system_interval": 0}  # whether an epoch has those columns is the clock's
    config = digits(save_plot=True, **keys)
    folder = Path(config.output_dir)
    first = fork.Process(target=train_and_hang, args=(config,))
    first.start()
    wait_until(lambda: all(SyncState.read(folder, name).last_step == 6 * 15 for name in ALL))
    identity = TrackedRun(folder).id
    first.kill()
    first.join()
    run_experiment(config)
    assert len(Stats.read(str(folder))) == 12
    log = (folder / "training.log").read_text()
    step = int(re.search(r"resumes after step (\d+) of 180", log)[1])
    assert 0 < step < 6 * 15  # what was logged is done again
    assert TrackedRun(folder).id == identity
    assert_logged(folder)
    assert all(SyncState.read(folder, name).is_complete for name in ALL)

    # and what belongs to a run besides its curves
    commit = json.loads((folder / "provenance.json").read_text())["commit"]
    (run,) = [r.run for r in wandb_records(folder) if r.HasField("run")][:1]
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert settings["base_lr"] == 0.01
    assert settings["commit"] == commit
    assert (run.run_id, run.project, list(run.tags)) == (identity, "p", ["t1", "t2"])
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for r in wandb_records(folder)
        if r.HasField("summary")
        for item in r.summary.update
    }
    assert summary["outcome"] == "finished"
    assert summary["curves"]["_type"] == "image-file"

    payloads = [message["payload"] for message in comet_messages(folder)]
    others = {p["key"]: p["value"] for p in payloads if "key" in p}
    assert {"Name": "run", "outcome": "finished", "commit": commit}.items() <= others.items()
    parameters = [p.get("param") or p.get("params") for p in payloads]
    requested = {p["paramName"]: p["paramValue"] for p in parameters if p}
    assert requested["model"] == "tiny/lenet"
    with zipfile.ZipFile(next((folder / "trackers" / "comet").glob("*.zip"))) as archive:
        picture = (folder / "curves.png").read_bytes()
        assert picture in [archive.read(name) for name in archive.namelist()]

    last = trackio_rows()[-1]
    assert (last["outcome"], last["curves"]["_type"]) == ("finished", "trackio.image")

    tags = {value.tag for event in tensorboard_events(folder) for value in event.summary.value}
    assert {"config", "outcome", "curves", "_hparams_/session_start_info"} <= tags


def test_nothing_of_the_run_changes(digits, tmp_path):
    plain = run_experiment(digits(output_dir=str(tmp_path / "plain")))
    logged = run_experiment(digits(output_dir=str(tmp_path / "logged"), trackers=["tensorboard"]))
    assert without_times(logged).equals(without_times(plain))
    assert_logged(tmp_path / "logged", ["tensorboard"])
    assert not (tmp_path / "plain" / "trackers").exists()


def test_a_run_made_longer_is_logged_as_one(digits, tmp_path):
    for length in (2, 4):
        run_experiment(digits(trackers=["tensorboard"], train_length=length))
    assert_logged(tmp_path / "run", ["tensorboard"])


def test_a_diverged_run_is_logged_too(digits, tmp_path):
    stats = run_experiment(digits(trackers=["tensorboard"], base_lr=1e30))
    assert stats["test/last/loss"].isna().any()
    assert_logged(tmp_path / "run", ["tensorboard"])
    assert "diverged" in str(tensorboard_events(tmp_path / "run")[-2:])


def test_a_batch_is_a_group_and_a_folder_is_a_run(tmp_path):
    batch = tmp_path / "26-01-01-grid"
    for name in ("000_a", "001_b"):
        (batch / name).mkdir(parents=True)
        (batch / name / "trackers").mkdir()
        (batch / name / "config.yaml").write_text("wandb_project_name: mine\n")
    (batch / "rows.jsonl").write_text("")
    first, second = (TrackedRun(batch / name) for name in ("000_a", "001_b"))
    assert (first.group, first.name, first.project) == ("26-01-01-grid", "000_a", "mine")
    assert first.id != second.id
    assert TrackedRun(batch / "000_a").id == first.id
    (tmp_path / "alone" / "trackers").mkdir(parents=True)
    (tmp_path / "alone" / "config.yaml").write_text("wandb_run_name: called\n")
    alone = TrackedRun(tmp_path / "alone")
    assert (alone.group, alone.name, alone.project) == (None, "called", "experiments")


def test_the_old_key_means_the_new_one():
    assert tracker_names(make_config({"wandb": True})) == ["wandb"]
    both = make_config({"wandb": True, "trackers": ["comet", "wandb"]})
    assert tracker_names(both) == ["wandb", "comet"]
    assert tracker_names(make_config({})) == []
    with pytest.raises(UserError, match=r"^trackers.*'wandbb'.*did you mean 'wandb'"):
        make_config({"trackers": ["wandbb"]})


# ---- What may go wrong -------------------------------------------------------------------


class _Failing(BaseHTTPRequestHandler):
    """Answers with an error; slowly, where the server says so."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.server.seconds:
            time.sleep(self.server.seconds)
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def failing_wandb(monkeypatch):
    """failing_wandb(seconds) -> paths that were asked for; there is an account, at that server."""
    servers = []

    def start(seconds: float = 0) -> list[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
        server.seconds, server.asked, server.daemon_threads = seconds, [], True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return server.asked

    yield start
    for server in servers:
        server.shutdown()


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    lines = subprocess.check_output(["ps", "-eo", "stat,args"], text=True).splitlines()
    return [line for line in lines if str(folder) in line and not line.startswith("Z")]


def services_of(folder: Path) -> list[psutil.Process]:
    """wandb's own service, of tracker processes whose home is in the folder."""
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"] == "wandb-core" and str(folder) in process.environ()["HOME"]:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 1000])
def test_a_server_that_fails_or_never_answers_holds_up_nobody(
    seconds, digits, tmp_path, failing_wandb, monkeypatch, log_lines
):
    asked = failing_wandb(seconds)
    monkeypatch.setattr(tracker_processes, "SECONDS_TO_END", 2)
    plain = run_experiment(digits(output_dir=str(tmp_path / "plain")))
    epochs = experiment_generator(digits(output_dir=str(tmp_path / "logged"), trackers=["wandb"]))
    next(epochs)
    wait_until(lambda: asked)  # the tracker process has begun, and hears nothing good
    *_, (logged, _) = epochs
    assert without_times(logged).equals(without_times(plain))
    assert len([line for line in log_lines if line.startswith("wandb: upload incomplete")]) == 1
    assert processes_of(tmp_path / "logged") == []
    wait_until(lambda: not services_of(tmp_path))
    written = "".join(f.read_text() for f in (tmp_path / "logged").rglob("*.log"))
    assert KEY not in written


def test_a_library_that_is_missing_is_reported_once(digits, tmp_path, monkeypatch, log_lines):
    broken = tmp_path / "packages" / "comet_ml"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError(\"No module named 'comet_ml'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    stats = run_experiment(digits(trackers=["comet"], train_length=3))
    assert len(stats) == 3
    (line,) = [line for line in log_lines if line.startswith("comet")]
    assert "install it by: pip install comet_ml" in line


def test_a_tracker_process_that_is_killed_does_not_end_the_run(
    digits, tmp_path, monkeypatch, log_lines
):
    started, popen = [], subprocess.Popen

    def remember(command, **options):
        process = popen(command, **options)
        started.append((command, process))
        return process

    monkeypatch.setattr(tracker_processes.subprocess, "Popen", remember)
    run = experiment_generator(digits(trackers=["tensorboard"], train_length=3))
    lengths = []
    for stats, _ in run:
        lengths.append(len(stats))
        ((_, process),) = [x for x in started if "src.logging.tracker_processes" in x[0]]
        process.kill()
        process.wait()
    assert lengths == [1, 2, 3]
    lines = [line for line in log_lines if line.startswith("tensorboard: ended by itself (-9)")]
    assert len(lines) == 1


def test_a_tracker_process_uses_next_to_nothing_while_there_is_nothing_to_log(digits, tmp_path):
    """The first epoch may last for hours."""
    folder = tmp_path / "run"
    (folder / "trackers").mkdir(parents=True)
    digits().save(folder / "config.yaml")
    process = tracker_processes.start_process(folder, "tensorboard")
    wait_until((folder / "trackers" / "tensorboard.json").exists)
    before = _processor_time(process.pid)
    time.sleep(1.5)
    used = _processor_time(process.pid) - before
    process.stdin.close()
    assert process.wait(PATIENCE) == 0
    assert used < 0.25


def _processor_time(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_the_problem_of_an_earlier_attempt_is_not_reported_of_the_next(
    tmp_path, monkeypatch, log_lines
):
    (tmp_path / "trackers").mkdir()
    SyncState(confirmed=5, is_complete=True, problem="unreachable then").write(tmp_path, "wandb")
    idle = [sys.executable, "-c", "input()"]
    monkeypatch.setattr(
        tracker_processes,
        "start_process",
        lambda folder, name: subprocess.Popen(idle, stdin=subprocess.PIPE),
    )
    trackers = TrackerProcesses()
    trackers.start(tmp_path, ["wandb", "comet"])
    trackers.check()
    assert log_lines == []
    assert SyncState.read(tmp_path, "wandb") == SyncState(confirmed=5)
    assert not (tmp_path / "trackers" / "comet.json").exists()
    trackers.close()


class Recorder(Service):
    """A tracker that is online where it can be reached, and keeps the steps it was given."""

    is_reached, steps = True, ()

    def __init__(self, run, archive, *, is_online):
        if is_online and not self.is_reached:
            raise ConnectionError("no route")
        Recorder.steps = []

    @staticmethod
    def has_credentials():
        return True

    def log(self, step, values):
        self.steps.append(step)

    def end(self, outcome, reason, pictures):
        pass


@pytest.mark.parametrize("is_reached", [True, False])
def test_values_count_as_sent_only_where_the_tracker_was_reached(
    is_reached, digits, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    ended_run(digits(trackers=["comet"]))
    (folder / "stats.csv").write_text(",epoch,step,timestamp,x\n0,1,10,noon,1\n1,2,20,one,\n")
    SyncState(confirmed=10).write(folder, "comet")  # of an earlier attempt
    monkeypatch.setattr(Recorder, "is_reached", is_reached)
    monkeypatch.setattr(tracker_processes, "load_service", lambda name: Recorder)
    with open(os.devnull) as ended:
        monkeypatch.setattr(sys, "stdin", ended)
        log_run(folder, "comet", must_be_online=False)
    state = SyncState.read(folder, "comet")
    assert Recorder.steps == ([20] if is_reached else [10, 20])
    assert (state.is_online, state.confirmed) == ((True, 20) if is_reached else (False, 10))
    assert unsent_runs([tmp_path]) == ([] if is_reached else [(folder, "comet")])
    assert is_reached or "ConnectionError: no route" in state.problem


def test_a_stop_waits_for_trackers_a_few_seconds_alone(digits, failing_wandb, monkeypatch):
    failing_wandb(1000)
    monkeypatch.setattr(tracker_processes, "SECONDS_WHEN_STOPPED", 1)
    run = experiment_generator(digits(trackers=["wandb"]))
    next(run)
    run.close()  # returns while the server is still silent


# ---- report.py sync ----------------------------------------------------------------------


def ended_run(config: Config) -> None:
    """What matters to `report.py sync` in the folder of a run that was offline."""
    folder = Path(config.output_dir)
    (folder / "trackers").mkdir(parents=True)
    config.save(folder / "config.yaml")
    for name in config.trackers:
        SyncState(is_complete=True, last_step=30).write(folder, name)


def test_sync_asks_for_credentials_and_knows_what_is_left_to_send(digits, tmp_path, capsys):
    assert report.main(["sync", str(tmp_path / "nowhere")]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    ended_run(digits(trackers=["tensorboard"], output_dir=str(tmp_path / "a")))
    assert report.main(["sync", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to send\n"
    ended_run(digits(trackers=["wandb"], output_dir=str(tmp_path / "b")))
    assert report.main(["sync", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    login = "call `wandb login` or set WANDB_API_KEY, and unset WANDB_MODE"
    assert error == f"sync: wandb has no credentials: {login}\n"


@pytest.mark.slow
def test_who_has_an_account_with_one_tracker_alone_sends_to_that(
    digits, tmp_path, failing_wandb, capsys
):
    """What that one does not take is said, and kept to be sent."""
    run_experiment(digits(trackers=["wandb", "comet"]))
    kept = read_wandb(tmp_path / "run")
    asked = failing_wandb()
    assert report.main(["sync", str(tmp_path)]) == 1
    assert asked
    printed = capsys.readouterr()
    assert printed.out == "0 of 2 sent\n"
    first, second = printed.err.splitlines()
    assert first == "sync: comet has no credentials: set COMET_API_KEY"
    assert "wandb: " in second
    assert read_wandb(tmp_path / "run") == kept
    assert set(unsent_runs([tmp_path / "run"])) == {
        (tmp_path / "run", tracker) for tracker in ("comet", "wandb")
    }
