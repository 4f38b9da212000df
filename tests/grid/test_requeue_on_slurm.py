"""Runs that are stopped and resumed, on a real Slurm cluster; a program of no time stands for
train.py, which has tests of its own for what it saves."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.grid.journal import Journal
from tests.waiting import PATIENCE, wait_until

# Counts steps until a file tells it to finish or to fail; other files make it slow or stuck.
TRAIN = """\
import json, os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1]).parent

def seconds(name):
    return float((folder / name).read_text()) if (folder / name).exists() else 0

def write(**facts):
    (folder / ".status").write_text(json.dumps({"job": JOB, "progress": 0.5} | facts))
    os.replace(folder / ".status", folder / "status.json")

task = os.environ.get("SLURM_ARRAY_TASK_ID")
JOB = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"]
step = json.loads((folder / "status.json").read_text())["step"] if (
    folder / "status.json").exists() else 0
with open(folder / "begun", "a") as file:
    print(step, file=file)
time.sleep(seconds("slow_start"))
received = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(number))
while not (folder / "finish").exists():
    if (folder / "fail").exists():
        sys.exit("it failed")
    if received:
        time.sleep(seconds("slow_save"))
        name = signal.Signals(received[0]).name
        write(state="stopped", signal=name, step=step)
        sys.exit(75)
    step += not (folder / "stuck").exists()
    write(state="running", step=step)
    time.sleep(0.05)
(folder / "done").write_text('{"outcome": "finished"}')
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


class Rows:
    """Rows of a batch that Slurm runs."""

    def __init__(self, cluster, repository) -> None:
        self.cluster, self.repository = cluster, repository
        repository.write("train.py", TRAIN)

    def submit(self, number: int, *arguments: str, files: tuple[str, ...] = ()) -> None:
        """files: 'ROW/NAME=TEXT', there when the rows begin; after `--` come sbatch's options."""
        split = arguments.index("--") if "--" in arguments else len(arguments)
        options, extra = arguments[:split], arguments[split + 1 :]
        self.repository.job(f"{{base_lr: {[float(i) for i in range(number)]}}}")
        command = ("job.yaml", "-s", "submit_cpu.sh", *options, "--", "--hold", *extra)
        self.repository.submit(*command, env=self.cluster.env)
        for file in files:
            where, _, text = file.partition("=")
            row, _, name = where.partition("/")
            (self.folders[int(row)] / name).write_text(text)
        self.cluster.slurm("scontrol", "release", self.job)

    def change_script(self, old: str, new: str) -> None:
        path = self.repository.path / "submit_cpu.sh"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    @property
    def folders(self) -> list[Path]:
        return self.repository.rows()

    @property
    def job(self) -> str:
        calls = Journal(self.repository.batch / "submissions").calls
        return calls[max(calls)].job or ""

    def read(self, row: int, name: str) -> dict:
        return read(self.folders[row] / name)

    def begun(self, row: int) -> list[int]:
        """The step from which each attempt went on."""
        path = self.folders[row] / "begun"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def await_steps(self, row: int, attempt: int = 1) -> None:
        """Until that attempt has done some."""

        def has_steps() -> bool:
            begun = self.begun(row)
            return (
                len(begun) == attempt and self.read(row, "status.json").get("step", 0) > begun[-1]
            )

        wait_until(has_steps)

    def await_attempt(self, row: int, attempt: int) -> None:
        wait_until(lambda: len(self.begun(row)) == attempt)

    def warn(self, job: str) -> None:
        """What --signal=B:USR1@120 does before the time limit."""
        self.cluster.slurm("scancel", "--signal=USR1", "--batch", job)

    def finish(self) -> None:
        for folder in self.folders:
            (folder / "finish").touch()
        self.cluster.wait()

    def log(self, row: int) -> str:
        return (self.folders[row] / "job.log").read_text()

    def report(self) -> list[dict]:
        process = self.repository.start(
            "report.py", "--json", str(self.repository.batch), env=self.cluster.env
        )
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        return json.loads(output)[0]["rows"]


@pytest.fixture
def rows(cluster, repository) -> Rows:
    return Rows(cluster, repository)


@pytest.mark.slow
def test_near_its_time_limit_a_run_resumes_and_its_neighbours_do_not_notice(rows):
    """Of the last task of an array, the job's own number is that of the whole array."""
    rows.submit(3)
    for row in range(3):
        rows.await_steps(row)
    rows.warn(f"{rows.job}_2")
    wait_until(lambda: rows.read(2, "status.json")["state"] == "stopped")
    wait_until(lambda: [row["state"] for row in rows.report()] == ["running"] * 2 + ["queued"])
    assert rows.report()[2]["progress"] == 0.5
    rows.await_steps(2, attempt=2)
    rows.finish()
    assert [len(rows.begun(row)) for row in range(3)] == [1, 1, 2]
    assert rows.begun(2)[1] > 0
    assert rows.read(2, "attempts.json")["time_limits"] == 1
    assert [row["state"] for row in rows.report()] == ["done"] * 3


@pytest.mark.slow
def test_a_cancelled_row_does_not_come_back(rows):
    """Not even if it was about to ask for another attempt."""
    rows.submit(2, files=("0/slow_save=1.5",))
    for row in range(2):
        rows.await_steps(row)
    rows.warn(f"{rows.job}_0")
    time.sleep(0.5)
    rows.cluster.slurm("scancel", rows.job)
    rows.cluster.wait()
    assert [len(rows.begun(row)) for row in range(2)] == [1, 1]
    assert [rows.read(row, "status.json")["state"] for row in range(2)] == ["stopped"] * 2
    assert [row["kind"] for row in rows.report()] == ["cancelled"] * 2


@pytest.mark.slow
def test_what_slurm_restarts_counts_as_preempted_and_has_a_limit(rows):
    rows.change_script("attempt train.py", "attempt --max-preemptions 1 train.py")
    rows.submit(1)
    for attempt in (1, 2):
        rows.await_steps(0, attempt)
        rows.cluster.slurm("scontrol", "requeue", f"{rows.job}_0")
    rows.cluster.wait()
    assert len(rows.begun(0)) == 2
    assert rows.begun(0)[1] > 0
    counts = rows.read(0, "attempts.json")
    assert (counts["preemptions"], counts["time_limits"]) == (2, 0)
    (found,) = rows.report()
    assert (found["state"], found["kind"]) == ("failed", "preempted")
    assert "2 restarts by Slurm: raise --max-preemptions (1)" in found["cause"]


@pytest.mark.slow
def test_time_limits_have_a_limit_and_a_retry_starts_to_count_anew(rows):
    rows.change_script("attempt train.py", "attempt --max-timeouts 1 train.py")
    rows.submit(1)
    for attempt in (1, 2):
        rows.await_steps(0, attempt)
        rows.warn(f"{rows.job}_0")
    rows.cluster.wait()
    (found,) = rows.report()
    assert (found["state"], found["kind"]) == ("failed", "timeout")
    assert "2 time limits: raise --max-timeouts (1)" in found["cause"]
    assert f"resumes at step {rows.read(0, 'status.json')['step']}" in found["cause"]
    again = ("-r", str(rows.repository.batch), "-y")
    assert "1 run: time limit" in rows.repository.submit(*again, "-d", env=rows.cluster.env)
    rows.repository.submit(*again, "-s", "submit_cpu.sh", env=rows.cluster.env)
    rows.await_steps(0, attempt=3)
    rows.warn(f"{rows.job}_0")
    rows.await_steps(0, attempt=4)
    assert rows.read(0, "attempts.json")["time_limits"] == 1
    rows.finish()


@pytest.mark.slow
def test_without_a_step_between_two_time_limits_it_is_no_use(rows):
    """The signal comes while the program still starts, which it kills."""
    rows.submit(1, files=("0/slow_start=30",))
    for attempt in (1, 2):
        rows.await_attempt(0, attempt)
        time.sleep(0.3)
        rows.warn(f"{rows.job}_0")
    rows.cluster.wait()
    assert rows.begun(0) == [0, 0]
    (found,) = rows.report()
    assert (found["state"], found["kind"]) == ("failed", "timeout")
    assert "without a step between: raise --time" in found["cause"]


@pytest.mark.slow
def test_a_time_limit_that_came_without_a_warning_is_one(rows):
    rows.change_script("#SBATCH --signal", "## SBATCH --signal")
    rows.submit(1)
    rows.await_steps(0)
    rows.cluster.slurm("scontrol", "update", f"jobid={rows.job}_0", "EndTime=now+1")
    rows.await_steps(0, attempt=2)
    assert rows.begun(0)[1] > 0
    assert rows.read(0, "attempts.json")["time_limits"] == 1
    rows.finish()


@pytest.mark.slow
def test_where_requeueing_is_forbidden_a_follow_up_resumes(rows):
    """And another one after it, with the same options, counted together."""
    rows.submit(1, "--", "--no-requeue", "--time=7")
    rows.await_steps(0)
    rows.warn(f"{rows.job}_0")
    wait_until(lambda: rows.read(0, "attempts.json").get("follow_up"))
    output = rows.repository.submit(*("-r", str(rows.repository.batch), "-y"), env=rows.cluster.env)
    assert "nothing to run again" in output
    rows.await_steps(0, attempt=2)
    row = rows.folders[0]
    assert rows.cluster.jobs("R", "%j %l %F") == [
        f"{row.name} 7:00 {rows.read(0, 'attempts.json')['job']}"
    ]
    rows.warn(rows.read(0, "attempts.json")["job"])
    rows.await_steps(0, attempt=3)
    assert rows.read(0, "attempts.json")["time_limits"] == 2
    rows.finish()
    assert [row["state"] for row in rows.report()] == ["done"]
    assert rows.log(0).count(" on node") == 3


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--requeue", "--no-requeue"])
def test_a_job_submitted_by_hand_resumes(cluster, repository, option):
    repository.write("train.py", TRAIN)
    (repository.path / ".venv").symlink_to(sys.prefix)
    folder = repository.path / "results" / "by hand"
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("base_lr: 0.1\n")
    command = ["sbatch", "--parsable", "-t9", option, "submit_cpu.sh", "results/by hand/spec.yaml"]
    environment = {k: v for k, v in cluster.env.items() if k != "EXPERIMENT_PYTHON"}
    done = subprocess.run(
        command, cwd=repository.path, env=environment, capture_output=True, text=True
    )
    wait_until(lambda: read(folder / "status.json").get("step", 0) > 3)
    cluster.slurm("scancel", "--signal=USR1", "--batch", done.stdout.strip())
    wait_until(lambda: len((folder / "begun").read_text().splitlines()) == 2)
    (folder / "finish").touch()
    cluster.wait()
    first, second = (folder / "begun").read_text().split()
    assert (int(first), int(second) > 3) == (0, True)
    assert (folder / "done").exists()


# ---- Rows that share a job ---------------------------------------------------------------


@pytest.mark.slow
def test_of_rows_that_share_a_job_none_ends_the_others(rows):
    """One is done, one has failed; of the two that resume one takes long to save."""
    files = ("0/finish=", "1/fail=", "2/slow_save=2")
    rows.submit(4, "--pack", "4", files=files)
    for row in (2, 3):
        rows.await_steps(row)
    wait_until(lambda: "ended: exit code 1" in rows.log(1))
    rows.warn(f"{rows.job}_0")
    wait_until(lambda: "ended: exit code 75" in rows.log(3))
    states = [row["state"] for row in rows.report()]
    assert [states[0], states[1], states[3]] == ["done", "failed", "queued"]
    assert states[2] in ("running", "queued")  # it saves, unless this machine was slow to ask
    for row in (2, 3):
        rows.await_steps(row, attempt=2)
    rows.finish()
    assert [len(rows.begun(row)) for row in range(4)] == [1, 1, 2, 2]
    assert [row["state"] for row in rows.report()] == ["done", "failed", "done", "done"]
    tallies = [rows.read(row, "attempts.json") for row in (2, 3)]
    assert [(t["time_limits"], t["preemptions"]) for t in tallies] == [(1, 0)] * 2


@pytest.mark.slow
def test_where_requeueing_is_forbidden_rows_that_shared_a_job_get_one_each(rows):
    rows.submit(3, "--pack", "3", "--", "--no-requeue", files=("0/finish=",))
    for row in (1, 2):
        rows.await_steps(row)
    rows.warn(f"{rows.job}_0")
    for row in (1, 2):
        rows.await_steps(row, attempt=2)
    running = [row.name for row in rows.folders[1:]]
    assert sorted(rows.cluster.jobs("R", "%j")) == running
    rows.finish()
    assert [row["state"] for row in rows.report()] == ["done"] * 3


@pytest.mark.slow
def test_rows_that_share_a_cancelled_job_do_not_come_back(rows):
    rows.submit(2, "--pack", "2", files=("0/slow_save=1.5",))
    for row in range(2):
        rows.await_steps(row)
    rows.warn(f"{rows.job}_0")
    time.sleep(0.5)
    rows.cluster.slurm("scancel", rows.job)
    rows.cluster.wait()
    assert [len(rows.begun(row)) for row in range(2)] == [1, 1]
    assert [row["kind"] for row in rows.report()] == ["cancelled"] * 2


# ---- Preemption --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("is_warned", [True, False])
def test_a_preempted_run_resumes_when_there_is_room_again(start_cluster, repository, is_warned):
    """Of a job that ends by itself after the warning Slurm would think that it is done."""
    grace = {"PREEMPT_SIGNAL": "1", "GRACE": "60"} if is_warned else {"GRACE": "0"}
    rows = Rows(start_cluster(NODES="1", **grace), repository)
    rows.submit(1)
    rows.await_steps(0)
    rows.cluster.slurm("sbatch", "-o/dev/null", "-phigh", "-c2", "--wrap", "sleep 1")
    rows.await_steps(0, attempt=2)
    assert rows.begun(0)[1] > 0
    counts = rows.read(0, "attempts.json")
    assert (counts["time_limits"], counts["preemptions"]) == ((1, 0) if is_warned else (0, 1))
    rows.finish()
