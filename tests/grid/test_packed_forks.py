"""Runs of a packed task of Slurm as forks of one warm process, each below an attempt of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from src.grid.attempt import RestartCount
from src.support import ROOT
from src.support.processes import start_time
from tests.waiting import PATIENCE, wait_until
from tests.whole_runs import without_times

# Says whose child it is, then waits: for a signal, which stops it, or for a file of its folder,
# which says how it is to end.
TRAIN = """\
import os, signal, sys, time
import json as imported_at_the_top
from pathlib import Path
folder = Path(sys.argv[1]).parent
received = []
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
print("ready", os.getpid(), os.getppid(), flush=True)
print("own:", signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGCHLD))
print("own:", sys.argv, os.getcwd(), os.path.abspath(sys.path[0]), sorted(os.environ.items()))
while not received and not (folder / "end").exists():
    time.sleep(0.02)
if received:
    print("stopped by", *received, flush=True)
    sys.exit(75)
print("an error", file=sys.stderr)
exec((folder / "end").read_text())
"""
ENDS = {"pass": 0, "sys.exit(3)": 3, "raise ValueError": 1, "os.kill(os.getpid(), 9)": 137}


class Task:
    """Attempts of a packed task, and Slurm's commands, which agree to everything."""

    def __init__(self, path: Path, number: int, train: str = TRAIN) -> None:
        self.code, self.warm, bin_ = path / "code", path / "warm", path / "bin"
        for folder in (self.code, self.warm, bin_):
            folder.mkdir()
        (self.code / "src").symlink_to(ROOT / "src")
        (self.code / "train.py").write_text(train)
        for name in ("scontrol", "squeue", "sbatch"):
            (bin_ / name).write_text("#!/bin/bash\necho 'RUNNING|None'\n")
            (bin_ / name).chmod(0o755)
        self.folders = [path / "batch" / f"run{i}" for i in range(number)]
        for folder in self.folders:
            folder.mkdir(parents=True)
            (folder / "spec.yaml").write_text(f"output_dir: {folder}\n")
        (self.warm / "runs").symlink_to(path / "batch")
        self.env = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        self.env |= {"EXPERIMENT_SHARES_JOB": str(number), "EXPERIMENT_WARM": str(self.warm)}
        self.attempts: list[subprocess.Popen] = []

    def start(self, number: int, *, ready: bool = True, **variables: str) -> subprocess.Popen:
        def as_in_a_script() -> None:  # in the background, before `exec`
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

        folder = self.folders[number]
        command = ["-m", "src.submit.attempt", "train.py", str(folder / "spec.yaml")]
        variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": str(number)} | variables
        with open(folder / "job.log", "ab") as log, open(folder / "errors", "ab") as errors:
            self.attempts.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=self.code,
                    env=self.env | variables,
                    stdout=log,
                    stderr=errors,
                    preexec_fn=as_in_a_script,
                )
            )
        if ready:
            wait_until(lambda: self.ready(number), self.attempts[-1])
        return self.attempts[-1]

    def lines(self, number: int, start: str) -> list[str]:
        log = self.folders[number] / "job.log"
        return [line for line in log.read_text().splitlines() if line.startswith(start)]

    def ready(self, number: int) -> tuple[int, int] | None:
        """(the process, its parent) of the last one that says so."""
        lines = self.lines(number, "ready")
        return tuple(map(int, lines[-1].split()[1:])) if lines else None  # type: ignore[return-value]

    def is_fork(self, number: int) -> bool:
        return self.ready(number)[1] not in {attempt.pid for attempt in self.attempts}

    def end(self, number: int, how: str = "pass") -> None:
        (self.folders[number] / "end").write_text(how)


@pytest.fixture
def start_task(tmp_path):
    tasks = []

    def start(number: int, *train: str) -> Task:
        tasks.append(Task(tmp_path, number, *train))
        return tasks[-1]

    yield start
    for attempt in (attempt for task in tasks for attempt in task.attempts):
        attempt.kill()
        attempt.wait()


def test_each_run_ends_in_its_own_way_and_is_what_a_process_of_its_own_is(start_task):
    task = start_task(len(ENDS))
    for number in range(len(ENDS)):
        task.start(number)
    (warm,) = {task.ready(number)[1] for number in range(len(ENDS))}
    assert task.is_fork(0)
    for number, (how, code) in enumerate(ENDS.items()):
        task.end(number, how)
        assert task.attempts[number].wait(PATIENCE) == code
        assert (task.folders[number] / "errors").read_text().startswith("an error\n")
        assert all(attempt.poll() is None for attempt in task.attempts[number + 1 :])
    wait_until(lambda: start_time(warm) is None)  # it ends with the last
    forked = (task.folders[0] / "job.log").read_text()
    (task.folders[0] / "job.log").unlink()
    task.env["EXPERIMENT_WARM"] = ""
    assert task.start(0).wait(PATIENCE) == 0
    assert not task.is_fork(0)
    own = [line.replace(repr(str(task.warm)), "''") for line in forked.splitlines()]
    assert [line for line in own if line.startswith("own:")] == task.lines(0, "own:")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_reaches_each_run_once_and_is_counted(start_task, name):
    task = start_task(2)
    for number in (0, 1):
        task.start(number)
        assert task.is_fork(number)
        (task.folders[number] / "status.json").write_text('{"step": 5}')
    for attempt in task.attempts:
        attempt.send_signal(signal.Signals[name])
    for number, attempt in enumerate(task.attempts):
        assert attempt.wait(PATIENCE) == 75
        assert task.lines(number, "stopped") == [f"stopped by {name}"]
        count = RestartCount.read(task.folders[number])
        assert count
        assert count.is_asked == (name == "SIGUSR1")
        assert count.step == (5 if name == "SIGUSR1" else None)


def test_a_signal_while_the_warm_process_imports_is_not_lost(start_task):
    task = start_task(2, f"import slow\n{TRAIN}")
    (task.code / "slow.py").write_text("import time\ntime.sleep(4)\n")
    attempts = [task.start(number, ready=False) for number in (0, 1)]
    wait_until(lambda: all(task.lines(number, "--- ") for number in (0, 1)))  # they listen
    for attempt in attempts:
        attempt.send_signal(signal.SIGUSR1)
    assert [attempt.wait(PATIENCE) for attempt in attempts] == [75, 75]
    assert all(RestartCount.read(folder).is_asked for folder in task.folders)


def test_where_the_warm_process_is_killed_runs_save_and_are_started_by_themselves(start_task):
    task = start_task(3)
    for number in (0, 1):
        task.start(number)
    first, warm = task.ready(0)
    os.kill(warm, signal.SIGKILL)
    for number in (0, 1):
        wait_until(lambda number=number: len(task.lines(number, "ready")) == 2)
        assert task.lines(number, "stopped") == ["stopped by SIGTERM"]
        assert task.lines(number, "the warm process has ended") != []
        assert task.ready(number)[1] == task.attempts[number].pid
    task.start(2)
    assert task.is_fork(2)  # of another one
    for number in range(3):
        task.end(number)
    assert [attempt.wait(PATIENCE) for attempt in task.attempts] == [0, 0, 0]
    assert start_time(first) is None


def test_a_run_whose_attempt_is_killed_saves_and_the_others_go_on(start_task):
    task = start_task(2)
    for number in (0, 1):
        task.start(number)
    task.attempts[0].kill()
    wait_until(lambda: task.lines(0, "stopped") == ["stopped by SIGTERM"])
    wait_until(lambda: start_time(task.ready(0)[0]) is None)
    task.end(1)
    assert task.attempts[1].wait(PATIENCE) == 0
    wait_until(lambda: start_time(task.ready(1)[1]) is None)


@pytest.mark.parametrize("difference", [{"MINE": "1"}, {"LD_LIBRARY_PATH": "/elsewhere"}])
def test_a_run_with_another_environment_is_started_by_itself(start_task, difference):
    task = start_task(2)
    task.start(0)
    task.start(1, **difference)
    assert [task.is_fork(number) for number in (0, 1)] == [True, False]


@pytest.mark.parametrize("options", [["--srun"], []])
def test_several_processes_and_other_programs_are_no_forks(start_task, options):
    task = start_task(1)
    (task.code / "other.py").write_text(TRAIN)
    srun = task.code.parent / "bin" / "srun"
    srun.write_text('#!/bin/bash\nshift; exec "$@"\n')
    srun.chmod(0o755)
    program = "train.py" if options else "other.py"
    command = ["-m", "src.submit.attempt", *options, program, str(task.folders[0] / "spec.yaml")]
    task.end(0)
    done = subprocess.run(
        [sys.executable, *command], cwd=task.code, env=task.env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "an error\n")
    assert not (task.warm / "socket").exists()


def test_what_cannot_be_forked_is_started_by_itself_and_said_once(start_task):
    task = start_task(2, f"import threads\n{TRAIN}")
    thread = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (task.code / "threads.py").write_text(f"import threading, time\n{thread}\n")
    for number in (0, 1):
        task.start(number)
        assert not task.is_fork(number)
    errors = [(folder / "errors").read_text() for folder in task.folders]
    assert "each run is started by itself: an import of train.py starts threads" in errors[0]
    assert errors[1] == ""


def test_a_folder_that_cannot_hold_a_socket_costs_nothing(start_task):
    task = start_task(1)
    long = task.warm / ("x" * 120)  # more than the name of a socket may have
    long.mkdir()
    task.env["EXPERIMENT_WARM"] = str(long)
    task.start(0)
    assert not task.is_fork(0)


# ---- On Slurm ----------------------------------------------------------------------------

GRID = """\
job_details: {name: packed, output_dir: OUT}
parameters:
  dataset: sklearn/digits
  data_splits_map: {train: 'train[:80%]', val: 'train[80%:]', test: test}
  model: [linear, tiny/lenet]
  base_lr: [0.05, 0.2]
  seed_model: 1
  seed_training: 1
  train_length: 2
  num_workers: 0
  save_plot: false
"""
END = "    sys.exit(main())\n"


@pytest.mark.slow
def test_packed_runs_on_slurm_are_forks_and_have_the_numbers_of_plain_ones(cluster, repository):
    text = (repository.path / "train.py").read_text()
    assert text.endswith(END)
    says = "    import os\n    print('child of', os.getppid(), flush=True)\n"
    repository.write("train.py", text.removesuffix(END) + says + END)
    repository.write("job.yaml", GRID.replace("OUT", "results"))
    repository.submit("job.yaml", "-s", "submit_cpu.sh", "--pack", "4", env=cluster.env)
    cluster.wait()
    rows = repository.rows()
    assert [(row / "done").exists() for row in rows] == [True] * 4
    logs = [(row / "job.log").read_text() for row in rows]
    parents = [line for log in logs for line in log.splitlines() if line.startswith("child of")]
    assert len(parents) == 4
    assert len(set(parents)) == 1
    assert all(log.endswith("ended: exit code 0 ---\n") for log in logs)

    repository.write("here.yaml", GRID.replace("OUT", "here"))
    repository.submit("here.yaml", "-s", "local", "--jobs", "2", "--fresh")
    for row in rows:
        (twin,) = (repository.path / "here").glob(f"*/{row.name}")
        packed, plain = (pd.read_csv(folder / "stats.csv") for folder in (row, twin))
        pd.testing.assert_frame_equal(without_times(packed), without_times(plain), check_exact=True)
