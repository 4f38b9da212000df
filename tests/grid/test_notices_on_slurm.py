"""Messages about batches on a real Slurm cluster."""

import json
import os
import time
from pathlib import Path

import pytest

from src.grid.journal import SubmitOptions
from src.grid.notices import Notices, submit_digest
from tests.mailbox import SECRET, mailbox
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
KEYS = """{dataset: sklearn/digits, model: linear, train_length: 2, num_workers: 0,
  save_plot: false, seed_model: 1, seed_training: 1,
  LIST: [{base_lr: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]},
         {model_weights: [/nowhere/a.pt, /nowhere/b.pt]}]}"""
FAILS = """\
#!/bin/bash
exec "$EXPERIMENT_PYTHON" -m src.submit.attempt no.py "$1"
"""
SOME = """\
#!/bin/bash
folder=$(dirname "$1")
case $folder in
*/000_*) [ -e "$folder/mended" ] || { echo "$SLURM_JOB_ID" > "$folder/failed"; exit 1; } ;;
*) until [ -e "$folder/go" ]; do sleep 0.2; done ;;
esac
echo '{"outcome": "finished"}' > "$folder/done"
"""


@pytest.mark.slow
def test_the_digest_arrives_after_a_batch_with_two_failures(cluster, repository):
    """Eleven runs, all in one array; the digest's job runs when it has ended."""
    repository.job(KEYS)
    with mailbox() as box:
        env = cluster.env | {"EXPERIMENT_NOTIFY": box.address}
        repository.submit("job.yaml", "-s", "submit_cpu.sh", env=env)
        name = repository.batch.name
        waiting = cluster.jobs("PD", "%j %P %r")
        assert f"digest_{name} cpu-killable Dependency" in waiting
        cluster.wait()
        messages = list(box.messages)
    assert [message["title"] for message in messages] == [
        f"{name}: a first run has failed",
        f"{name}: 9 done, 2 failed",
    ], (repository.batch / "submissions/notices/log").read_text()
    assert "/nowhere/" in messages[0]["message"]
    words = messages[1]["message"]
    assert "- 2 runs: error" in words
    assert "best by test/last/accuracy (chosen and reported on the same split):" in words
    assert "core-hours; wasted" in words
    assert messages[1]["attachments"][0]["base64"].startswith("iVBOR")  # a PNG
    files = [p for p in repository.batch.rglob("*") if p.is_file() and "code" not in p.parts]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    costs = [json.loads((row / "status.json").read_text())["cost"] for row in repository.rows()]
    assert all(cost["current"]["cost"]["core_seconds"] > 0 for cost in costs)


@pytest.mark.slow
def test_a_grid_whose_every_run_fails_sends_three_messages(cluster, repository):
    """All fail in the first second; that more than a fifth failed is reported once."""
    repository.write("fails.sh", FAILS)
    repository.job("{base_lr: '[float(x) for x in range(40)]'}")
    with mailbox() as box:
        env = cluster.env | {"EXPERIMENT_NOTIFY": box.address}
        repository.submit("job.yaml", "-s", "fails.sh", env=env)
        cluster.wait()
        titles = [message["title"] for message in box.messages]
    name = repository.batch.name
    assert len(titles) == 3
    assert f"{name}: a first run has failed" in titles
    assert len([title for title in titles if title.endswith("of 40 runs have failed")]) == 1
    assert titles[-1] == f"{name}: 40 failed"


@pytest.mark.slow
def test_the_last_submission_s_digest_waits_for_the_runs_of_all(cluster, repository):
    """-r while others still run: the older digest is silent, the newer one looks again."""
    repository.write("some.sh", SOME)
    repository.job("{base_lr: [1.0, 2.0, 3.0]}")
    with mailbox() as box:
        env = cluster.env | {"EXPERIMENT_NOTIFY": box.address}
        repository.submit("job.yaml", "-s", "some.sh", env=env)
        failed, until = repository.rows()[0] / "failed", time.monotonic() + PATIENCE
        # by its number: Slurm remembers the jobs of other tests
        while not (failed.exists() and failed.read_text().strip() in cluster.jobs("F", "%A")):
            assert time.monotonic() < until, cluster.jobs("all", "%A %i %T %r")
            time.sleep(0.2)
        (repository.rows()[0] / "mended").touch()
        repository.submit("-r", str(repository.batch), "-y", env=env)
        log, until = (
            repository.batch / "submissions" / "notices" / "log",
            time.monotonic() + PATIENCE,
        )
        while not log.exists() or "runs continue: another job follows" not in log.read_text():
            assert time.monotonic() < until, cluster.jobs("all", "%i %T %r %j")
            time.sleep(0.2)
        assert box.messages == []
        for row in repository.rows():
            (row / "go").touch()
        cluster.wait()
        titles = [message["title"] for message in box.messages]
    assert titles == [f"{repository.batch.name}: 3 done"]


def test_a_slurm_that_refuses_the_digest_is_a_warning(
    cluster, repository, monkeypatch, tmp_path, log_lines
):
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    of_round = Notices(tmp_path).begin(["000_x"], 1)
    options = SubmitOptions(script=str(repository.path / "quick.sh"), extra=["-p", "nowhere"])
    submit_digest(tmp_path, ["1"], options, ROOT, of_round)
    (line,) = log_lines
    assert line.startswith("no message when the batch ends: Slurm says 'invalid partition")


def test_without_an_address_there_is_no_job_for_it(cluster, repository, tmp_path):
    repository.job("{base_lr: [1.0, 2.0]}")
    env = {k: v for k, v in os.environ.items() if k not in ("EXPERIMENT_NOTIFY", "XDG_CONFIG_HOME")}
    env |= {"SLURM_CONF": cluster.env["SLURM_CONF"], "HOME": str(tmp_path)}
    repository.submit("job.yaml", "-s", "quick.sh", env=env)
    assert f"digest_{repository.batch.name}" not in cluster.jobs("PD,R", "%j")
    cluster.wait()
    assert not (repository.batch / "submissions" / "notices").exists()
