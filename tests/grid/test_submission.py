"""Submitting to a Slurm whose answers are written out here; and the journal, after a crash at any
byte. test_on_slurm.py asks a real one."""

import os
from pathlib import Path

import pytest

from src.grid import slurm
from src.grid.folders import Batch, plan_batch, write_batch
from src.grid.journal import ACCEPTED, OPEN, REFUSED, Journal, SubmitOptions
from src.grid.submission import Submission
from src.support.errors import UserError

FULL = "sbatch: error: AssocMaxSubmitJobLimit"
SILENT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
CONFIG = "MaxArraySize            = {}\nMaxJobCount             = 10000\n"


class FakeSlurm:
    """Takes at most `room` tasks; fails with the errors first; a clock that sleeping moves."""

    def __init__(self, max_array: int) -> None:
        self.max_array, self.room, self.now = max_array, 1000, 0.0
        self.errors: list[str] = []  # of the next calls of sbatch
        self.takes_silently = False  # what it fails with, it has taken all the same
        self.calls: list[list[str]] = []
        self.queue: list[str] = []

    def run_sbatch(self, command, variables, code) -> tuple[int, str, str]:
        array = next((word for word in command if word.startswith("--array=0-")), "--array=0-0")
        num_tasks = int(array.removeprefix("--array=0-").partition("%")[0]) + 1
        error = self.errors.pop(0) if self.errors else FULL * (num_tasks > self.room)
        if error and not self.takes_silently:
            return 1, "", error
        self.calls.append(list(command))
        self.room -= num_tasks
        number = str(len(self.calls))
        fields = (f"{number}_0", number, "0", "PENDING", "None", "", "name", command[-1])
        self.queue.append(slurm.SEPARATOR.join(fields))
        return (1, "", error) if error else (0, f"{number}\n", "")

    def ask(self, command) -> str:
        return "\n".join(self.queue) if command[0] == "squeue" else CONFIG.format(self.max_array)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def fake(monkeypatch) -> FakeSlurm:
    found = FakeSlurm(max_array=1000)
    monkeypatch.setattr(slurm, "run_sbatch", found.run_sbatch)
    monkeypatch.setattr(slurm, "ask", found.ask)
    monkeypatch.setattr("time.sleep", found.sleep)
    monkeypatch.setattr("time.monotonic", lambda: found.now)
    return found


@pytest.fixture
def batch(tmp_path) -> Batch:
    """Seven runs, and a submit script."""
    (tmp_path / "s.sh").write_text("#!/bin/bash\n#SBATCH --mem=1G\n#SBATCH --array=0-3\necho\n")
    plan = plan_batch(tmp_path / "B", [{"n": n} for n in range(7)], job_text="", common={})
    write_batch(plan, tmp_path)
    return plan.batch


def submission(batch: Batch, **options) -> Submission:
    options = {"script": str(batch.path.parent / "s.sh"), **options}
    return Submission(batch, SubmitOptions(**options), Path("/code"))


def arrays(fake: FakeSlurm) -> list[str]:
    return [word for call in fake.calls for word in call if word.startswith("--array")]


# ---- Calls of sbatch ---------------------------------------------------------------------


def test_all_runs_are_one_array_whose_tasks_lead_to_their_folders(fake, batch):
    assert submission(batch, extra=["--time=9"]).submit(batch.rows) == ["1"]
    ((*start, script),) = fake.calls
    folder = Path(script).with_suffix("")
    assert start == [
        "sbatch",
        "--parsable",
        f"--job-name=000-006_{batch.path.name}",
        "--chdir=/code",
        f"--output={folder}/%a/job.log",
        f"--error={folder}/%a/job.log",
        "--open-mode=append",
        "--time=9",
        "--array=0-6",
    ]
    assert [(folder / str(n)).resolve() for n in range(7)] == [r.folder for r in batch.rows]
    lines = Path(script).read_text().splitlines()
    assert lines[:2] == ["#!/bin/bash", "#SBATCH --mem=1G"]  # its own tasks are ours to number
    assert not any(line.startswith("#SBATCH --array") for line in lines)
    (call,) = Journal(batch.submissions).calls.values()
    assert (call.state, call.job, call.rows) == (ACCEPTED, "1", [r.name for r in batch.rows])


def test_runs_that_share_a_job_are_in_one_folder(fake, batch):
    submission(batch, pack=3).submit(batch.rows)
    assert arrays(fake) == ["--array=0-2"]
    folder = Path(fake.calls[0][-1]).with_suffix("")
    shared = [sorted(os.listdir(folder / str(task))) for task in range(3)]
    names = [row.name for row in batch.rows]
    assert shared == [names[:3], names[3:6], names[6:]]
    assert (folder / "2" / names[6]).resolve() == batch.rows[6].folder
    (call,) = Journal(batch.submissions).calls.values()
    assert call.rows_of_task(1) == names[3:6]


def test_arrays_are_as_large_as_the_cluster_takes_and_a_throttle_holds_for_all(fake, batch):
    fake.max_array = 3
    submission(batch, max_running=2, after="77").submit(batch.rows)
    assert arrays(fake) == ["--array=0-2%2", "--array=0-2%2", "--array=0-0%2"]
    waits = [w.partition("=")[2] for call in fake.calls for w in call if "--dependency" in w]
    assert waits == ["afterany:77", "afterany:77:1", "afterany:77:2"]
    planned = submission(batch, max_running=2).planned(batch.rows)
    assert [c[-1].rpartition("/")[2] for c in planned] == [f"00{n}-XXXX.sh" for n in (4, 5, 6)]


def test_without_arrays_each_run_is_a_job(fake, batch):
    submission(batch, no_array=True).submit(batch.rows[:2])
    script = batch.path.parent / "s.sh"
    assert [call[-2:] for call in fake.calls] == [
        [str(script), str(r.spec)] for r in batch.rows[:2]
    ]


def test_where_there_is_less_room_arrays_get_smaller_and_the_rest_waits(fake, batch):
    fake.room = 5
    with pytest.raises(UserError, match=r"5 of 7 runs are submitted, then .* limit on jobs"):
        submission(batch).submit(batch.rows)
    assert arrays(fake) == ["--array=0-2", "--array=0-0", "--array=0-0"]
    journal = Journal(batch.submissions)
    assert journal.accepted_rows == {row.name for row in batch.rows[:5]}
    assert journal.open_calls == []


def test_a_refusal_stops_with_slurms_words(fake, batch):
    fake.errors = ["sbatch: error: invalid partition specified: x\nsbatch: error: no job"]
    with pytest.raises(UserError, match=r"^Slurm refuses: invalid partition specified: x; no job$"):
        submission(batch).submit(batch.rows)
    (call,) = Journal(batch.submissions).calls.values()
    assert (call.state, call.why) == (REFUSED, "invalid partition specified: x; no job")


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_call_without_an_answer_is_made_again_unless_slurm_has_it(fake, batch, is_taken):
    fake.errors, fake.takes_silently = [SILENT], is_taken
    assert submission(batch).submit(batch.rows) == ["1"]
    assert len(fake.calls) == 1
    (call,) = Journal(batch.submissions).calls.values()
    assert (call.state, call.job) == (ACCEPTED, "1")


def test_patience_ends(fake, batch):
    fake.errors = [SILENT] * 100
    with pytest.raises(UserError, match=r"Slurm does not answer .* the same command resumes"):
        submission(batch, patience=20.0).submit(batch.rows)
    assert 10 < fake.now < 40
    assert len(Journal(batch.submissions).open_calls) == 1


@pytest.mark.parametrize("trace", ["queue", "log", None])
def test_what_became_of_an_interrupted_call_is_found_out(fake, batch, trace):
    names = [row.name for row in batch.rows[:2]]
    Journal(batch.submissions).begin(names, pack=1, script="s.sh", extra=[])
    journal = Journal(batch.submissions)
    (call,) = journal.open_calls
    if trace == "queue":
        fields = ("5_0", "5", "0", "RUNNING", "None", "", "", f"{journal.folder}/{call.label}.sh")
        fake.queue = [slurm.SEPARATOR.join(fields)]
    elif trace == "log":
        (batch.rows[1].folder / "job.log").write_text("--- it has begun")
    submission(batch).settle()
    settled = Journal(batch.submissions).calls[call.number]
    expected = {"queue": (ACCEPTED, "5"), "log": (ACCEPTED, None), None: (REFUSED, None)}
    assert (settled.state, settled.job) == expected[trace]


# ---- The journal -------------------------------------------------------------------------


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
