"""Who owns a run folder: one live process, wherever it runs."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.config import make_config
from src.logging import lease as module
from src.logging.lease import Lease, LeaseLost, live_owner
from src.logging.run_folder import RunFolder
from src.runtime.checkpoints import CheckpointFiles
from src.support.errors import UserError
from src.support.processes import start_time
from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from src.logging.lease import Lease
lease = Lease(Path(sys.argv[1]))
lease.take()
print("taken", flush=True)
time.sleep(10_000)
"""


@pytest.fixture
def fast(monkeypatch):
    """Heartbeats of 50 ms, leases that lapse after 500."""
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "LEASE_TIMEOUT", 0.5)
    monkeypatch.setattr(module, "_LAPSED", set())


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "taken\n"
    return process


def put(folder: Path, beat: int = 0, **changes: object) -> None:
    """A lease of another machine."""
    identity = (
        Lease(folder).identity
        | {"token": "theirs", "machine": "elsewhere", "host": "node7"}
        | changes
    )
    (folder / "claim").write_text(f"{beat:<20}\n{json.dumps(identity)}\n")


def test_a_live_process_is_respected_and_named(tmp_path):
    process = holder(tmp_path)
    with pytest.raises(UserError, match=f"another process runs in .* \\(process {process.pid} on"):
        Lease(tmp_path).take()
    process.kill()
    process.wait()


def test_the_live_owner_is_named_and_the_dead_one_is_not(tmp_path):
    assert live_owner(tmp_path) is None
    process = holder(tmp_path)
    assert live_owner(tmp_path).startswith(f"process {process.pid} on ")
    process.kill()
    process.wait()
    assert live_owner(tmp_path) is None
    assert (tmp_path / "claim").exists()  # looking changes nothing


def test_the_lease_of_a_killed_process_lapses_at_once_here(tmp_path, monkeypatch):
    process = holder(tmp_path)
    process.kill()  # and is a zombie, as nobody has asked how it ended
    wait_until(lambda: start_time(process.pid) is None)
    monkeypatch.setattr(module, "LEASE_TIMEOUT", math.inf)  # nobody waits for heartbeats
    lease = Lease(tmp_path)
    lease.take()
    lease.release()
    assert os.listdir(tmp_path) == []
    process.wait()


def test_a_number_that_came_again_is_not_the_owner(tmp_path):
    put(tmp_path, machine=Lease(tmp_path).identity["machine"], began="7")
    Lease(tmp_path).take()


@pytest.mark.usefixtures("fast")
def test_elsewhere_a_lease_lapses_when_its_heartbeats_have_stopped(tmp_path):
    put(tmp_path)
    started = time.monotonic()
    lease = Lease(tmp_path)
    lease.take()
    assert time.monotonic() - started >= 0.5
    assert json.loads((tmp_path / "claim").read_text().splitlines()[1]) == lease.identity
    lease.release()


@pytest.mark.usefixtures("fast")
def test_elsewhere_a_lease_lives_while_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEASE_TIMEOUT", PATIENCE)  # a heartbeat that is late is one
    put(tmp_path)
    timer = threading.Timer(0.1, put, (tmp_path, 1))
    timer.start()
    with pytest.raises(UserError, match="on node7"):
        Lease(tmp_path).take()
    timer.join()


@pytest.mark.usefixtures("fast")
def test_several_folders_are_watched_at_once_and_once(tmp_path):
    """As a stack on a node that was lost has left them."""
    folders = [tmp_path / str(number) for number in range(8)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        put(folder, token=str(number))
    assert live_owner(*folders) is None
    leases = [Lease(folder) for folder in folders]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", lambda seconds: pytest.fail("it waits again"))
        for lease in leases:
            lease.take()
    for lease in leases:
        lease.release()
    put(folders[3], token="new")
    threading.Timer(0.1, put, (folders[3], 1), {"token": "new"}).start()
    assert "on node7" in str(live_owner(*folders))


@pytest.mark.usefixtures("fast")
def test_a_damaged_lease_lapses(tmp_path):
    (tmp_path / "claim").write_text("garbage")
    Lease(tmp_path).take()


@pytest.mark.usefixtures("fast")
def test_heartbeats_show_to_others_and_stop_with_the_release(tmp_path):
    lease = Lease(tmp_path)
    lease.take()
    seen = set()
    wait_until(lambda: seen.add((tmp_path / "claim").read_text()[:20]) or len(seen) == 3)
    lease.release()
    assert not (tmp_path / "claim").exists()
    assert not lease.thread.is_alive()


@pytest.mark.usefixtures("fast")
def test_an_owner_that_slept_notices_and_leaves_the_new_owner_alone(tmp_path):
    lease = Lease(tmp_path)
    lease.take()
    lease.stopping.set()  # it sleeps: no heartbeats
    time.sleep(0.2)
    put(tmp_path, token="other")
    with pytest.raises(LeaseLost, match="taken over by a process on node7"):
        lease.ensure()
    assert not lease.is_held()
    lease.release()
    assert "other" in (tmp_path / "claim").read_text()


def challenge(folder: Path, results, start) -> None:
    start.wait()
    try:
        Lease(folder).take()
        results.put("taken")
        time.sleep(10_000)  # until the others have been refused
    except UserError:
        results.put("refused")


def test_of_many_challengers_of_a_dead_owner_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        put(folder, machine=Lease(folder).identity["machine"], began="7")
        results, start = context.Queue(), context.Event()
        processes = [
            context.Process(target=challenge, args=(folder, results, start)) for _ in range(6)
        ]
        for process in processes:
            process.start()
        start.set()
        found = sorted(results.get(timeout=PATIENCE) for _ in processes)
        assert found == ["refused"] * 5 + ["taken"]
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.usefixtures("fast")
def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path):
    import pandas as pd
    from loguru import logger

    def content() -> dict[str, str]:
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    with pytest.raises(LeaseLost), RunFolder(make_config({"output_dir": str(tmp_path)})) as folder:  # noqa: PT012
        folder.save_stats(pd.DataFrame({"epoch": [1]}))
        logger.info("ours")
        folder.lease.stopping.set()
        time.sleep(0.2)
        put(tmp_path, token="other")
        before = content()
        logger.info("not ours")
        for write in (
            lambda: folder.save_stats(pd.DataFrame({"epoch": [1, 2]})),
            lambda: folder.finish("finished", "all done"),
            lambda: folder.checkpoint("best"),
            folder.update_status,
            lambda: CheckpointFiles(tmp_path / "state", folder.ensure_ours).save(1, {"step": 1}),
        ):
            folder.next_status = 0.0
            with pytest.raises(LeaseLost):
                write()
        was_refused = True
        folder.save_stats(pd.DataFrame())
    assert was_refused
    assert content() == before
    assert "ours" in before["training.log"]


def test_a_stopped_process_still_owns_its_folder_here(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="another process"):
        Lease(tmp_path).take()
    process.kill()
    process.wait()
