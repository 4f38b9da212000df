"""An attempt: signals, exit codes and what is asked of Slurm, for which small scripts stand."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.grid.attempt import RestartCount
from src.grid.notices import Notices
from src.grid.slurm import SEPARATOR, SUBMISSION
from src.grid.submission import header
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SILENT = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
FORBIDDEN = "Requested operation is presently disabled for job 7_2"
# Notes what it is asked; fails with the lines of NAME.fails, one each time, then answers.
COMMAND = """\
#!/bin/bash
here=$(dirname "$0") name=${0##*/}
echo "$name $*" >>"$here/asked"
env >"$here/$name.env"
if [ -s "$here/$name.fails" ]; then
    head -n1 "$here/$name.fails" >&2
    sed -i 1d "$here/$name.fails"
    exit 1
fi
[[ " $* " == *" -j "* ]] && name=$name-j
cat "$here/$name.answer" 2>/dev/null
exit 0
"""
# Stops at a signal with 75 where it can; `ready` says that its handlers stand.
STOPS = """\
import signal, sys, time
from pathlib import Path
received = []
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
print("ready", flush=True)
while not received:
    time.sleep(0.02)
time.sleep(0.2)
print(*received, flush=True)
sys.exit(75)
"""


@dataclass
class FakeSlurm:
    """A program, a run folder, and commands that answer as Slurm would."""

    path: Path

    def __post_init__(self) -> None:
        self.folder, self.bin = self.path / "row", self.path / "bin"
        for folder in (self.folder, self.bin):
            folder.mkdir()
        (self.folder / "spec.yaml").write_text(f"output_dir: {self.folder}\n")
        for name in ("scontrol", "squeue", "sbatch"):
            (self.bin / name).write_text(COMMAND)
            (self.bin / name).chmod(0o755)
        self.answer("squeue-j", f"RUNNING{SEPARATOR}None")
        self.env = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def answer(self, name: str, text: str) -> None:
        (self.bin / f"{name}.answer").write_text(text)

    def fail(self, name: str, *errors: str) -> None:
        (self.bin / f"{name}.fails").write_text("".join(f"{error}\n" for error in errors))

    def task(self, **more: str) -> None:
        """In the last task of an array, whose job number is that of the array."""
        facts = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
        self.env |= facts | more

    def start(self, program: str, *options: str, **popen) -> subprocess.Popen:
        (self.path / "train.py").write_text(program)
        arguments = [*options, str(self.path / "train.py"), str(self.folder / "spec.yaml")]
        return subprocess.Popen(
            [sys.executable, "-m", "src.submit.attempt", *arguments],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )

    def stop(self, *numbers: int, step: int = 5, options=()) -> tuple[int, str, str]:
        """Start the program that stops, and send signals; (exit code, output, errors)."""
        process = self.start(STOPS, *options)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        (self.folder / "status.json").write_text(json.dumps({"step": step}))
        for number in numbers:
            process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, output, errors

    @property
    def asked(self) -> list[str]:
        """What Slurm was asked to do."""
        path = self.bin / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("squeue")]


@pytest.fixture
def slurm(tmp_path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


# ---- The program and its signals ---------------------------------------------------------


@pytest.mark.parametrize("is_in_slurm", [False, True])
@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("", 0),
        ("raise SystemExit(2)", 2),
        ("raise SystemExit(75)", 75),  # stopped, but by nobody that we know of
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 10)", 138),
    ],
)
def test_the_programs_exit_code_is_ours(slurm, program, code, is_in_slurm):
    if is_in_slurm:
        slurm.task()
    process = slurm.start(program)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert slurm.asked == []


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT"])
def test_outside_slurm_signals_pass_and_nothing_is_asked(slurm, name):
    code, output, errors = slurm.stop(signal.Signals[name])
    assert (code, output, errors) == (75, f"{name}\n", "")
    assert not (slurm.bin / "asked").exists()
    assert not (slurm.folder / "attempts.json").exists()


def test_two_signals_arrive_each_once(slurm):
    _, output, _ = slurm.stop(signal.SIGUSR1, signal.SIGTERM)
    assert sorted(output.split()) == ["SIGTERM", "SIGUSR1"]


def test_ctrl_c_on_a_terminal_arrives_once(slurm):
    """It goes to the whole process group."""
    process = slurm.start(STOPS, process_group=0)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)  # so that what we pass on comes late
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=PATIENCE)[0] == "SIGINT\n"


def test_the_program_meets_signals_as_from_a_fresh_shell(slurm):
    """The submit script ignores SIGUSR1 until we listen; here it ignores more."""
    program = """
import signal
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
print({signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD)})
"""

    def ignore() -> None:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)

    output, _ = slurm.start(program, preexec_fn=ignore).communicate(timeout=PATIENCE)
    assert output == f"[]\n{ {signal.SIG_DFL}!r}\n"


def test_a_signal_before_the_program_listens_kills_it_and_the_run_resumes(slurm):
    def send_early() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)

    slurm.task()
    process = slurm.start("import time; time.sleep(20)", preexec_fn=send_early)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert slurm.asked == ["scontrol requeue 7_2"]


def test_a_spec_that_cannot_be_read_is_for_the_program_to_complain_of(slurm):
    slurm.task()
    (slurm.folder / "spec.yaml").write_text("a: b: c\n")
    process = slurm.start("import sys; sys.exit('a mistake of mine')")
    assert process.communicate(timeout=PATIENCE)[1] == "a mistake of mine\n"
    assert process.returncode == 1


@pytest.mark.parametrize("script", ["submit_cpu.sh", "submit_2080.sh", "submit_3090plus.sh"])
def test_our_submit_scripts_outlive_a_signal_that_comes_before_python_does(slurm, script):
    python = slurm.bin / "python"
    python.write_text(f'#!/bin/bash\nkill -USR1 $$\necho "$@"\nexec {sys.executable} -c ""\n')
    python.chmod(0o755)
    facts = {"EXPERIMENT_PYTHON": str(python), "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(
        ["bash", ROOT / script, "a b"], env=slurm.env | facts, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-m src.submit.attempt train.py a b\n"
    _, directives = header((ROOT / script).read_text())
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:USR1@120"} <= set(directives)


HOLD = """
import sys, time
from pathlib import Path
from src.logging.lease import Lease
Lease(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(slurm):
    """A process that is at the same run: Slurm has lost its node, which runs on."""
    command = [sys.executable, "-c", HOLD, slurm.folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_it_waits_for_a_process_that_is_still_at_the_run(slurm, other):
    slurm.task()
    process = slurm.start("print('started')")
    assert process.stdout.readline().startswith(f"waits for process {other.pid} on ")
    other.kill()
    assert process.communicate(timeout=PATIENCE) == ("started\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("number", "code", "asked"),
    [(signal.SIGUSR1, 75, ["scontrol requeue 7_2"]), (signal.SIGTERM, 143, [])],
)
def test_while_it_waits_a_signal_ends_it_as_a_run(slurm, other, number, code, asked):
    slurm.task()
    process = slurm.start("print('started')")
    assert process.stdout.readline().startswith("waits for ")
    process.send_signal(number)
    assert "started" not in process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == code
    assert slurm.asked == asked
    assert other.poll() is None


# ---- Another attempt ---------------------------------------------------------------------


def test_near_the_time_limit_this_task_alone_is_requeued(slurm):
    slurm.task()
    code, output, errors = slurm.stop(signal.SIGUSR1)
    assert (code, errors) == (75, "")
    assert "stopped at step 5; Slurm was asked for another attempt" in output
    assert slurm.asked == ["scontrol requeue 7_2"]
    assert RestartCount.read(slurm.folder) == RestartCount(
        "7_2", 0, time_limits=1, step=5, is_asked=True
    )


@pytest.mark.parametrize(
    ("state", "reason", "is_asked"),
    [
        ("COMPLETING", "TimeLimit", True),
        ("COMPLETING", "None", False),  # cancelled
        ("RUNNING", "None", False),  # somebody stops it
        ("PENDING", "BeginTime", False),  # Slurm begins it again by itself
        ("", "", False),
    ],
)
def test_after_sigterm_only_a_time_limit_is_followed_by_an_attempt(slurm, state, reason, is_asked):
    slurm.task()
    slurm.answer("squeue-j", f"{state}{SEPARATOR}{reason}" if state else "")
    code, _, errors = slurm.stop(signal.SIGTERM)
    assert (code, errors) == (75, "")
    assert slurm.asked == ["scontrol requeue 7_2"] * is_asked


def test_a_job_that_is_cancelled_while_it_saves_does_not_come_back(slurm):
    slurm.task()
    slurm.answer("squeue-j", f"COMPLETING{SEPARATOR}None")
    assert slurm.stop(signal.SIGUSR1)[0] == 75
    assert slurm.asked == []


@pytest.mark.parametrize("command", ["squeue", "scontrol"])
def test_a_silent_controller_is_asked_again(slurm, command):
    slurm.task()
    slurm.fail(command, SILENT)
    assert slurm.stop(signal.SIGUSR1)[0] == 75
    assert slurm.asked[-1] == "scontrol requeue 7_2"


def test_a_refusal_is_shown(slurm):
    slurm.task()
    slurm.fail("scontrol", "Access/permission denied")
    code, _, errors = slurm.stop(signal.SIGUSR1)
    assert code == 69
    assert "not continued after a time limit: Slurm says 'Access/permission denied'" in errors
    assert "-r resumes at step 5" in errors


def test_limits_and_lack_of_progress_end_it(slurm):
    slurm.task(SLURM_RESTART_COUNT="1")
    before = RestartCount("7_2", 0, time_limits=1, step=5, is_asked=True)
    before.write(slurm.folder)
    code, _, errors = slurm.stop(signal.SIGUSR1, step=6, options=["--max-timeouts", "1"])
    assert (code, slurm.asked) == (69, [])
    assert "2 time limits: raise --max-timeouts (1) in the submit script" in errors
    before.write(slurm.folder)
    code, _, errors = slurm.stop(signal.SIGUSR1, step=5)
    assert (code, slurm.asked) == (69, [])
    assert "2 time limits without a step between: raise --time" in errors
    before.write(slurm.folder)
    assert slurm.stop(signal.SIGUSR1, step=6)[0] == 75

    slurm.task(SLURM_RESTART_COUNT="9")
    process = slurm.start("print('begun')", "--max-preemptions", "3")
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (69, "")
    assert "restarts by Slurm: raise --max-preemptions (3) in the submit script" in errors


@pytest.mark.parametrize(
    ("program", "options", "is_reported"),
    [
        ("raise SystemExit(1)", [], True),
        ("print('begun')", ["--max-preemptions", "3"], True),  # given up before it began
        ("print('begun')", [], False),
        ("raise SystemExit(75)", [], False),
    ],
)
def test_a_run_that_fails_or_is_given_up_is_reported(slurm, program, options, is_reported):
    slurm.task(SLURM_RESTART_COUNT="9")
    Notices(slurm.path).begin(["row"], num_rows=20)
    slurm.start(program, *options).communicate(timeout=PATIENCE)
    assert Notices(slurm.path).num_failed == is_reported


def test_counts_stand_where_the_run_writes(slurm):
    slurm.task()
    elsewhere = slurm.path / "elsewhere"
    elsewhere.mkdir()
    (slurm.folder / "spec.yaml").write_text(f"output_dir: {elsewhere}\n")
    slurm.start("").communicate(timeout=PATIENCE)
    assert RestartCount.read(elsewhere) == RestartCount("7_2")
    assert RestartCount.read(slurm.folder) is None


@pytest.mark.parametrize("given", ["", "output_dir: null\n", "[1]", "output_dir=elsewhere"])
def test_a_run_without_a_folder_gets_one_that_all_attempts_agree_on(slurm, given):
    slurm.task()
    (slurm.path / "train.py").write_text("import sys; print(sys.argv[2:])")
    is_override = "=" in given
    (slurm.path / "cfg.yaml").write_text("seed_model: 1\n" + given * (not is_override))
    (slurm.path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "src.submit.attempt", "train.py", "cfg.yaml"]
    env = slurm.env | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        done = subprocess.run(
            [*command, *[given] * is_override], cwd=slurm.path, env=env, capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, b"")
        expected = {"": ["output_dir=results/cfg"], "output_dir=elsewhere": [given]}.get(given, [])
        assert done.stdout.decode().splitlines()[-1] == str(expected)
    counted = {"": "results/cfg", "output_dir=elsewhere": "elsewhere"}.get(given, ".")
    assert RestartCount.read(slurm.path / counted) == RestartCount("7_2")


# ---- Follow-ups --------------------------------------------------------------------------


def queue_line(job: str, command: str, state: str = "PENDING") -> str:
    return SEPARATOR.join((job, job, "N/A", state, "Dependency", "", "name", command)) + "\n"


def test_where_requeueing_is_forbidden_the_same_is_submitted_again(slurm):
    submission = {"script": "/a fork/submit.sh", "options": ["--time=9", "--hold"]}
    slurm.task(**{SUBMISSION: json.dumps(submission), "SLURM_CPUS_PER_TASK": "3"})
    slurm.fail("scontrol", FORBIDDEN)
    slurm.answer("sbatch", "8\n")
    assert slurm.stop(signal.SIGUSR1)[0] == 75
    log, spec = slurm.folder / "job.log", slurm.folder / "spec.yaml"
    assert slurm.asked[1:] == [
        f"sbatch --parsable --job-name=row --chdir={ROOT} --output={log} --error={log} "
        f"--open-mode=append --dependency=afterany:7_2 --time=9 /a fork/submit.sh {spec}"
    ]
    environment = (slurm.bin / "sbatch.env").read_text()
    assert "SLURM_" not in environment
    assert SUBMISSION in environment
    assert RestartCount.read(slurm.folder).follow_up == "8"


def test_a_follow_up_whose_number_came_too_late_is_not_submitted_again(slurm):
    slurm.task(**{SUBMISSION: json.dumps({"script": "/s.sh", "options": []})})
    slurm.fail("scontrol", FORBIDDEN, FORBIDDEN)
    slurm.fail("sbatch", "Batch job submission failed: Socket timed out on send/recv operation")
    process = slurm.start(STOPS)
    assert process.stdout
    process.stdout.readline()
    lines = queue_line("7_2", f"/s.sh {slurm.folder}/spec.yaml", "RUNNING")
    lines += queue_line("6", f"/s.sh {slurm.folder}/spec.yaml", "COMPLETED")
    slurm.answer("squeue", lines)
    process.send_signal(signal.SIGUSR1)
    while not any(line.startswith("sbatch") for line in slurm.asked):
        assert process.poll() is None
    slurm.answer("squeue", lines + queue_line("8", f"/s.sh {slurm.folder}/spec.yaml"))
    process.communicate(timeout=PATIENCE)
    assert [line.split()[0] for line in slurm.asked] == ["scontrol", "sbatch", "scontrol"]
    assert RestartCount.read(slurm.folder).follow_up == "8"


def test_the_script_of_a_job_submitted_by_hand_is_known_from_the_queue(slurm):
    slurm.task()
    slurm.env.pop(SUBMISSION, None)
    slurm.fail("scontrol", FORBIDDEN)
    slurm.answer("sbatch", "8\n")
    slurm.answer("squeue", queue_line("7_2", f"/my dir/s.sh {slurm.folder}/spec.yaml", "RUNNING"))
    assert slurm.stop(signal.SIGUSR1)[0] == 75
    assert slurm.asked[-1].endswith(f"afterany:7_2 /my dir/s.sh {slurm.folder}/spec.yaml")
    slurm.fail("scontrol", FORBIDDEN)
    slurm.answer("squeue", queue_line("7_2", "/tmp/wrapped", "RUNNING"))
    code, _, errors = slurm.stop(signal.SIGUSR1, step=9)
    assert code == 69
    assert "which script to submit again is not known" in errors


# ---- Runs that share a job ---------------------------------------------------------------


def test_a_row_that_shares_its_job_leaves_asking_to_the_job(slurm):
    slurm.task(EXPERIMENT_SHARES_JOB="1")
    assert slurm.stop(signal.SIGUSR1)[0] == 75
    assert slurm.asked == []
    # Others ended with 75 as well: another program, runs that asked in another job or not at all.
    others = [slurm.path / name / "spec.yaml" for name in ("a", "b", "c")]
    for other in others:
        other.parent.mkdir()
    RestartCount("6", is_asked=True).write(others[1].parent)
    RestartCount("7_2").write(others[2].parent)
    command = [sys.executable, "-m", "src.submit.continuation"]
    for specs, asked in (
        (others, []),
        ([*others, slurm.folder / "spec.yaml"], ["scontrol requeue 7_2"]),
    ):
        assert subprocess.run([*command, *specs], cwd=ROOT, env=slurm.env).returncode == 0
        assert slurm.asked == asked


def test_runs_of_a_job_that_slurm_does_not_take_again_are_reported(slurm):
    slurm.task()
    rows = [slurm.folder, slurm.path / "other"]
    rows[1].mkdir()
    for row in rows:
        RestartCount("7_2", is_asked=True).write(row)
    Notices(slurm.path).begin([row.name for row in rows], num_rows=20)
    slurm.fail("scontrol", "Access/permission denied")
    specs = [row / "spec.yaml" for row in rows]
    command = [sys.executable, "-m", "src.submit.continuation", *specs]
    assert subprocess.run(command, cwd=ROOT, env=slurm.env).returncode == 1
    assert Notices(slurm.path).num_failed == 2


# ---- Counting ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "job", "restarts", "after"),
    [
        (RestartCount("7"), "7", 0, RestartCount("7")),
        # asked for, by nobody, and both
        (RestartCount("7", 1, 2, 3, 40, True), "7", 2, RestartCount("7", 2, 2, 3, 40)),
        (RestartCount("7", 1, 2, 3, 40, False), "7", 3, RestartCount("7", 3, 2, 5, 40)),
        (RestartCount("7", 1, 2, 3, 40, True), "7", 4, RestartCount("7", 4, 2, 5, 40)),
        # a person asks again: a new job, or one whose number comes again
        (RestartCount("7", 1, 2, 3, 40, True), "8", 0, RestartCount("8")),
        (RestartCount("7", 1, 2, 3, 40, True), "8", 1, RestartCount("8", 1, 0, 1)),
        (RestartCount("7", 1, 2, 3, 40, True), "7", 0, RestartCount("7")),
        # a follow-up
        (RestartCount("7", 1, 2, 3, 40, True, "8"), "8", 0, RestartCount("8", 0, 2, 3, 40)),
        (RestartCount("7", 1, 2, 3, 40, True, "8"), "8", 1, RestartCount("8", 1, 2, 4, 40)),
        (RestartCount("7", 1, 2, 3, 40, True, "8"), "9", 0, RestartCount("9")),
    ],
)
def test_what_an_attempt_counts_when_it_begins(before, job, restarts, after):
    assert before.at_start(job, restarts) == after


def test_torn_counts_are_none(tmp_path):
    RestartCount("7", 1, 2).write(tmp_path)
    whole = (tmp_path / "attempts.json").read_text()
    assert RestartCount.read(tmp_path) == RestartCount("7", 1, 2)
    for text in ("", whole[:9], "[]", "null", '{"jobs": 1}', "{}"):
        (tmp_path / "attempts.json").write_text(text)
        assert RestartCount.read(tmp_path) is None


def test_it_starts_without_what_a_run_needs():
    script = "import sys, src.submit.attempt; "
    script += "sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
