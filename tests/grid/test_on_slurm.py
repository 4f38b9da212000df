"""Grids on a real Slurm cluster: four nodes, all on this machine."""

import json
import os
import re
import sys
from pathlib import Path
from shutil import which

import pandas as pd
import pytest

from src.config import read_yaml_file, write_yaml
from src.grid.journal import Journal
from src.metrics import is_time
from tests.waiting import PATIENCE, wait_until

HOSTILE = [
    "$(touch x)",
    "`touch x`; touch x && touch x | touch x > x",
    "a'b\"c",
    "two  words ",
    "%j %a %%",
    "line\nbreak\ttab",
    "x" * 300,
    "ünï→😀",
    "-rf ~ * ? \\ \\\\",
]

# Reads its arguments as train.py does, and writes what came of them.
READS = """\
import sys
from pathlib import Path
from src.config import CommandLine, make_config
config = make_config(CommandLine(sys.argv[1:]).values)
config.save(Path(config.output_dir) / "config.yaml")
"""
# jobs/digits-example.yaml with a run for each node
EXAMPLE = """\
job_details: {name: example, output_dir: OUT}
parameters:
  dataset: sklearn/digits
  data_splits_map: {train: 'train[:80%]', val: 'train[80%:]', test: test}
  LIST_model:
    - {model: linear, train_length: 4}
    - {model: tiny/lenet, train_length: 2}
  base_lr: [0.05, 0.2]
  seed_model: 1
  seed_training: 1
  num_workers: 0
  save_plot: false
"""


def learning_rates(number: int) -> str:
    return f"{{base_lr: '[float(x) for x in range({number})]'}}"


def journal(repository) -> Journal:
    return Journal(repository.batch / "submissions")


def logs(repository) -> list[str]:
    return [(row / "job.log").read_text() for row in repository.rows()]


# ---- What comes of it --------------------------------------------------------------------


@pytest.mark.slow
def test_an_example_runs_on_four_nodes_and_here_with_the_same_stats(cluster, repository):
    repository.write("job.yaml", EXAMPLE.replace("OUT", "results"))
    output = repository.submit("job.yaml", "-s", "submit_cpu.sh", env=cluster.env)
    assert "4 runs = " in output
    assert "submitted 4 runs as 1 job" in output
    cluster.wait()
    on_slurm = repository.rows()
    assert len(on_slurm) == 4
    assert all((row / "done").exists() for row in on_slurm)
    nodes = {re.search(r"job \S+ on (\S+) ---", log)[1] for log in logs(repository)}
    assert nodes == {"node1", "node2", "node3", "node4"}
    for row, log in zip(on_slurm, logs(repository), strict=True):
        assert log.count("test/last/accuracy") == 1
        assert str(row) in log

    # The same grid on this machine, beside it.
    repository.write("here.yaml", EXAMPLE.replace("OUT", "here"))
    repository.submit("here.yaml", "-s", "local", "--jobs", "2")
    for row in on_slurm:
        (twin,) = (repository.path / "here").glob(f"*/{row.name}")
        stats, stats_here = (pd.read_csv(folder / "stats.csv") for folder in (row, twin))
        lasting = [c for c in stats if not is_time(c)]
        pd.testing.assert_frame_equal(stats[lasting], stats_here[lasting])


def submit_hostile(repository, *arguments, env) -> None:
    keys = {"dataset": "sklearn/iris", "data_splits_map": {"train": "train", "test": None}}
    keys |= {"train_length": 0, "wandb_run_name": HOSTILE}
    job = {"job_details": {"name": HOSTILE[0] + HOSTILE[4]}, "parameters": keys}
    repository.write("job.yaml", write_yaml(job))
    repository.submit("job.yaml", *arguments, env=env)


def test_values_arrive_as_they_are_and_run_nothing(cluster, repository):
    repository.write("train.py", READS)
    submit_hostile(repository, "-s", "submit_cpu.sh", env=cluster.env)
    cluster.wait()
    for row, value in zip(repository.rows(), HOSTILE, strict=True):
        config = read_yaml_file(row / "config.yaml")
        assert config["wandb_run_name"] == value
        assert config["output_dir"] == str(row)
    assert not list(repository.path.rglob("x"))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--no-array", "--pack=2"])
def test_hostile_values_do_no_harm_to_other_ways_of_submitting(cluster, repository, option):
    submit_hostile(repository, "-s", "quick.sh", option, env=cluster.env)
    cluster.wait()
    assert repository.count("ran") == [1] * len(HOSTILE)
    assert all("on node" in log for log in logs(repository))
    assert not list(repository.path.rglob("x"))


@pytest.mark.slow
def test_packed_rows_have_an_outcome_each(cluster, repository):
    """The second of three fails; the others do not mind."""
    repository.job(learning_rates(3))
    arguments = ("job.yaml", "-s", "quick.sh", "--pack", "3", "--", "--hold")
    output = repository.submit(*arguments, env=cluster.env)
    assert "submitted 3 runs as 1 job" in output
    rows = repository.rows()
    (rows[1] / "fail").touch()
    (number,) = [call.job for call in journal(repository).calls.values()]
    cluster.slurm("scontrol", "release", number)
    cluster.wait()
    assert [(row / "done").exists() for row in rows] == [True, False, True]
    codes = [re.search(r"ended: exit code (\d+)", log)[1] for log in logs(repository)]
    assert codes == ["0", "1", "0"]
    assert cluster.jobs(form="%A %T").count(f"{number} FAILED") == 1


@pytest.mark.slow
def test_packed_rows_share_cores_and_hear_of_the_end(cluster, repository):
    """One is over at once, which is logged at once; the others get the signal that the job ends."""
    text = 'echo threads $OMP_NUM_THREADS; [ -e "$(dirname "$1")/quick" ] && exit 3\n'
    text += "trap 'echo signalled; exit 4' TERM; sleep 120 & wait $!\n"
    repository.write("quick.sh", f"#!/bin/bash\n#SBATCH -c 2\n{text}")
    repository.job(learning_rates(2))
    arguments = ("job.yaml", "-s", "quick.sh", "--pack", "2", "--", "--hold")
    repository.submit(*arguments, env=cluster.env)
    (repository.rows()[1] / "quick").touch()
    job = journal(repository).calls[1].job
    cluster.slurm("scontrol", "release", job)
    wait_until(lambda: all((row / "job.log").exists() for row in repository.rows()))
    wait_until(lambda: "ended: exit code 3" in logs(repository)[1])
    wait_until(lambda: all("threads 1" in log for log in logs(repository)))
    cluster.slurm("scancel", "--signal=TERM", "--batch", job)
    cluster.wait()
    assert "signalled\n--- ended: exit code 4 ---" in logs(repository)[0]


@pytest.mark.slow
def test_a_job_runs_the_interpreter_that_submitted(cluster, repository):
    repository.job(learning_rates(1))
    repository.write("quick.sh", "#!/bin/bash\necho python $EXPERIMENT_PYTHON\n")
    repository.submit("job.yaml", "-s", "quick.sh", "--", "--export=NONE", env=cluster.env)
    cluster.wait()
    assert f"python {sys.executable}" in logs(repository)[0]


def test_waiting_rows_run_the_code_that_was_submitted(cluster, repository):
    """A fork's own train.py, called from a script as researchers have theirs."""
    repository.path = repository.path.rename(repository.path.with_name("fork"))  # no quotes below
    repository.write("part.py", "VERSION = 1\n")
    repository.write("train.py", "import sys, part; print('version', part.VERSION, sys.argv[1])\n")
    python = Path(sys.executable).parent
    repository.write(
        "own.sh", f"#!/bin/bash\n#SBATCH -n 1\nexport PATH={python}:$PATH\npython train.py $1\n"
    )
    repository.job("{base_lr: [1.0, 2.0]}")
    repository.submit("job.yaml", "-s", "own.sh", "--", "--hold", env=cluster.env)
    repository.write("part.py", "VERSION = 2\n")
    repository.write("own.sh", "#!/bin/bash\necho another script\n")
    cluster.slurm("scontrol", "release", journal(repository).calls[1].job)
    cluster.wait()
    for row, log in zip(repository.rows(), logs(repository), strict=True):
        assert f"version 1 {row / 'spec.yaml'}" in log


@pytest.mark.slow
def test_live_rows_run_the_code_as_it_is_then(cluster, repository):
    repository.write("quick.sh", "#!/bin/bash\ncat part.txt\n")
    repository.write("part.txt", "version 1")
    repository.job(learning_rates(1))
    repository.submit("job.yaml", "-s", "quick.sh", "--live", "--", "--hold", env=cluster.env)
    repository.write("part.txt", "version 2")
    cluster.slurm("scontrol", "release", journal(repository).calls[1].job)
    cluster.wait()
    assert "version 2" in logs(repository)[0]
    assert not (repository.batch / "code").exists()


@pytest.mark.slow
def test_a_row_a_job_is_called_by_the_bare_command(cluster, repository):
    repository.job(learning_rates(3))
    repository.write("quick.sh", '#!/bin/bash\necho $0 "$@"\nsleep 3\n')
    output = repository.submit("job.yaml", "-s", "quick.sh", "--no-array", env=cluster.env)
    assert "submitted 3 runs as 3 jobs" in output
    script = repository.path / "quick.sh"
    expected = {f"{row.name}|{script} {row / 'spec.yaml'}" for row in repository.rows()}
    assert set(cluster.jobs("PD,R", "%j|%o")) == expected
    cluster.wait()
    for row, log in zip(repository.rows(), logs(repository), strict=True):
        assert str(row / "spec.yaml") in log


# ---- In the queue ------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_are_recognised_in_the_queue_and_slurms_last_words_are_theirs(cluster, repository):
    repository.job(learning_rates(3))
    repository.write("quick.sh", "#!/bin/bash\nsleep 60\n")
    repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env)
    names = [row.name for row in repository.rows()]
    wait_until(lambda: sorted(cluster.jobs("R", "%j")) == names)
    refused = repository.submit("job.yaml", "-s", "quick.sh", "-o", "-y", env=cluster.env, code=2)
    assert "3 runs" in refused
    assert "queued or running" in refused
    cluster.slurm("scancel", journal(repository).calls[1].job)
    cluster.wait()
    assert all("CANCELLED" in log for log in logs(repository))
    output = repository.submit("-r", str(repository.batch), "-d", env=cluster.env)
    assert "3 runs: cancelled" in output


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--no-array", "--pack=2", "--live"])
def test_waiting_rows_are_known_as_such_by_whatever_path_they_are_named(
    cluster, repository, option
):
    """A row that is taken for one that nobody has would run twice."""
    (repository.path / "big").mkdir()
    (repository.path / "results").symlink_to("big")
    repository.job(learning_rates(3))
    repository.submit("job.yaml", "-s", "quick.sh", option, "--", "--hold", env=cluster.env)
    real = (repository.path / "big").resolve() / repository.batch.name
    for name in (repository.batch, real, f"results/../big/{real.name}"):
        output = repository.submit("-r", str(name), "-y", env=cluster.env)
        assert "3 queued" in output
        assert "nothing to run again" in output
    output = repository.submit("job.yaml", "-s", "quick.sh", "-o", "-y", env=cluster.env, code=2)
    assert "3 runs of" in output
    # As a kill after the last sbatch leaves it: nothing is submitted again.
    path = repository.batch / "submissions/journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    before = len(cluster.jobs("PD"))
    repository.submit("-r", str(real), "-y", env=cluster.env)
    assert journal(repository).open_calls == []
    assert len(cluster.jobs("PD")) == before


@pytest.mark.slow
def test_an_ended_batch_of_the_same_name_is_not_taken_for_the_new_one(
    cluster, repository, tmp_path
):
    """Its jobs are still known to Slurm for minutes after it was deleted."""
    repository.job(learning_rates(3))
    repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env)
    cluster.wait()
    (tmp_path / "bin").mkdir()
    words = "sbatch: error: Unable to contact slurm controller"
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/bash\necho {words} >&2; exit 1\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    env = cluster.env | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    arguments = ("job.yaml", "-s", "quick.sh", "--patience", "1")
    output = repository.submit(*arguments, "-o", "-y", env=env, code=2)
    assert "Slurm does not answer" in output
    repository.submit(*arguments, env=cluster.env)
    cluster.wait()
    assert repository.count("ran") == [1] * 3


@pytest.mark.slow
def test_throttle_and_dependency(cluster, repository):
    repository.job(learning_rates(40))
    first = cluster.slurm("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
    repository.submit(
        *("job.yaml", "-s", "quick.sh", "--max-running", "2", "--after", first), env=cluster.env
    )
    one, two = (call.job for call in journal(repository).calls.values())
    shown = {job: cluster.slurm("scontrol", "show", "job", job) for job in (one, two)}
    assert "ArrayTaskThrottle=2" in shown[one]
    assert f"Dependency=afterany:{first}(" in shown[one]
    assert f"afterany:{one}_*(" in shown[two]  # else four would run
    cluster.slurm("scancel", first, one, two)
    cluster.wait()


def test_what_a_surrounding_job_set_is_not_handed_down(cluster, repository):
    repository.job(learning_rates(1))
    repository.write("quick.sh", "#!/bin/bash\nenv\n")
    inside = {"SLURM_JOB_ID": "99", "SLURM_NTASKS": "7", "SLURM_MEM_PER_CPU": "5"}
    inside |= {"ROCR_VISIBLE_DEVICES": "9", "SLURM_HINT": "nomultithread", "MINE": "kept"}
    repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env | inside)
    cluster.wait()
    found = dict(line.split("=", 1) for line in logs(repository)[0].splitlines() if "=" in line)
    assert found["MINE"] == "kept"
    assert not {key for key in inside if found.get(key) == inside[key]} - {"MINE"}


@pytest.mark.slow
def test_only_what_failed_is_run_again(cluster, repository):
    repository.job(learning_rates(6))
    repository.submit("job.yaml", "-s", "quick.sh", "--", "--hold", env=cluster.env)
    for row in repository.rows()[:2]:
        (row / "fail").touch()
    job = journal(repository).calls[1].job
    cluster.slurm("scontrol", "release", f"{job}_[0-3]")
    wait_until(lambda: len(cluster.jobs("PD")) == 2 and not cluster.jobs("R,CG"))
    for row in repository.rows()[:2]:
        (row / "fail").unlink()
    again = ("-r", str(repository.batch), "-s", "quick.sh", "-y")
    repository.submit(*again, "--only", "failed", env=cluster.env)
    assert len(journal(repository).calls[2].rows) == 2
    wait_until(lambda: len(cluster.jobs("PD")) == 2 and not cluster.jobs("R,CG"))
    assert repository.count("ran") == [2, 2, 1, 1, 0, 0]
    output = repository.submit(*again, env=cluster.env)
    assert "2 queued" in output
    assert "nothing to run again" in output
    cluster.slurm("scancel", job)
    cluster.wait()
    output = repository.submit(*again, env=cluster.env)
    assert "2 runs: never started" in output
    cluster.wait()
    assert repository.count("ran") == [2, 2, 1, 1, 1, 1]


# ---- When Slurm says no, or nothing ------------------------------------------------------


@pytest.mark.slow
def test_a_grid_over_the_limit_of_arrays_goes_in_chunks(cluster, repository):
    repository.job(learning_rates(65))
    output = repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env)
    assert "submitted 65 runs as 3 jobs" in output
    again = repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env)
    assert "nothing left to start" in again
    cluster.wait()
    assert repository.count("ran") == [1] * 65


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--partition=nowhere"], "invalid partition specified: nowhere"),
        (["--constraint=geforce_rtx_2080&tesla_v100"], "Requested node configuration"),
        (["--gres=xyz:1"], "Invalid generic resource (gres)"),
        (["--time=soon"], "Invalid --time specification"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.slow
def test_a_refusal_stops_with_slurms_words_and_a_corrected_call_resumes(
    cluster, repository, options, words
):
    repository.job(learning_rates(3))
    before = len(cluster.jobs("PD,R"))
    arguments = ("job.yaml", "-s", "quick.sh")
    output = repository.submit(*arguments, "--", *options, env=cluster.env, code=2)
    assert words in output
    assert len(output.splitlines()) == 3  # the grid, the folder, the refusal
    assert len(cluster.jobs("PD,R")) == before
    repository.submit(*arguments, env=cluster.env)
    cluster.wait()
    assert repository.count("ran") == [1, 1, 1]
    assert len(repository.rows()) == 3


@pytest.mark.slow
def test_a_controller_stopped_in_the_middle_costs_no_row_and_doubles_none(
    start_cluster, repository
):
    cluster = start_cluster(NODES="2")
    repository.job(learning_rates(120))
    arguments = ("job.yaml", "-s", "quick.sh", "--no-array", "--patience", "1")
    process = repository.start("submit_multiple.py", *arguments, env=cluster.env)
    wait_until(lambda: [*(repository.path / "results").glob("[0-9]*")])
    wait_until(lambda: len(journal(repository).accepted_rows) > 10)
    cluster.call("ctld-down")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, output + errors
    assert "Slurm does not answer" in errors
    assert 10 < len(journal(repository).accepted_rows) < 120
    cluster.call("ctld-up")
    repository.submit(*arguments, env=cluster.env)
    cluster.wait()
    assert repository.count("ran") == [1] * 120


@pytest.mark.slow
def test_an_answer_that_comes_too_late_is_found_again(start_cluster, repository, tmp_path):
    """The controller freezes: sbatch times out, but what it asked for is carried out."""
    cluster = start_cluster(NODES="2", EXTRA="MessageTimeout=3")
    repository.job(learning_rates(4))
    (number,) = Path(cluster.folder, "run").glob("slurmctld*.pid")
    freeze = f"kill -STOP {number.read_text()}\n(sleep 8; kill -CONT {number.read_text()}) &\n"
    freeze = f"[ -e {tmp_path}/once ] || {{ touch {tmp_path}/once\n{freeze} }}\n"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(f'#!/bin/bash\n{freeze}exec {which("sbatch")} "$@"\n')
    (tmp_path / "bin/sbatch").chmod(0o755)
    env = cluster.env | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    repository.submit("job.yaml", "-s", "quick.sh", env=env)
    assert (tmp_path / "once").exists()
    cluster.wait()
    assert repository.count("ran") == [1] * 4
    assert len(journal(repository).calls) == 1


@pytest.mark.slow
def test_a_submission_killed_after_sbatch_is_not_repeated(cluster, repository):
    """As a kill between sbatch's success and the journal's next line leaves it."""
    repository.job(learning_rates(4))
    repository.submit("job.yaml", "-s", "quick.sh", "--", "--hold", env=cluster.env)
    lines = (repository.batch / "submissions/journal.jsonl").read_text().splitlines()
    (repository.batch / "submissions/journal.jsonl").write_text(lines[0] + "\n")
    output = repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env)
    assert "nothing left to start" in output
    job = journal(repository).calls[1].job
    assert job == json.loads(lines[1])["job"]
    cluster.slurm("scontrol", "release", job)
    cluster.wait()
    assert repository.count("ran") == [1] * 4


@pytest.mark.slow
def test_a_submission_killed_before_sbatch_is_repeated(cluster, repository):
    repository.job(learning_rates(4))
    repository.submit("job.yaml", "-s", "quick.sh", "--", "--partition=no", env=cluster.env, code=2)
    path = repository.batch / "submissions/journal.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert len(journal(repository).open_calls) == 1
    repository.submit("job.yaml", "-s", "quick.sh", env=cluster.env)
    cluster.wait()
    assert repository.count("ran") == [1] * 4


@pytest.mark.slow
def test_a_full_queue_takes_what_fits_and_the_rest_later(start_cluster, repository):
    cluster = start_cluster(NODES="1", MAX_JOBS="12")
    repository.job(learning_rates(20))
    arguments = ("job.yaml", "-s", "quick.sh", "--patience", "1")
    output = repository.submit(*arguments, "--", "--hold", env=cluster.env, code=2)
    taken = len(journal(repository).accepted_rows)
    assert f"{taken} of 20 runs are submitted" in output
    assert 6 <= taken <= 12
    assert len(cluster.jobs("PD")) == taken
