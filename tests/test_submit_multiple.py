"""The command line of submit_multiple.py, where no Slurm is needed."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

import submit_multiple
from src.grid import snapshot, start, submit_grid
from src.grid.folders import open_batch
from src.grid.journal import Journal
from src.grid.repair import repair_batch

QUICK = "#!/bin/bash\ntrue\n"
JOB = "job_details: {name: x}\nparameters: {model: linear, base_lr: [1.0, 2.0], train_length: 0}\n"
# Instead of train.py, which takes seconds: what comes of it is not asked here.
PROGRAM = """\
import sys
from pathlib import Path
spec = Path(sys.argv[1]).read_text().split()
folder = Path(spec[spec.index("output_dir:") + 1])
with open(folder / "ran", "a") as file:
    print("code", Path("part.txt").read_text(), file=file)
if (folder / "fail").exists():
    sys.exit("ValueError: on purpose")
(folder / "done").write_text('{"outcome": "finished"}')
"""


@pytest.fixture(autouse=True)
def fork(tmp_path, monkeypatch) -> Path:
    """A repository with another train.py; we stand in it."""
    root = tmp_path / "fork"
    root.mkdir()
    for name, text in {
        "job.yaml": JOB,
        "quick.sh": QUICK,
        "array.sh": "#!/bin/bash\n#SBATCH --array=0-2\n",
        "train.py": PROGRAM,
        "part.txt": "1",
        ".gitignore": "/results\n/data\n",
    }.items():
        (root / name).write_text(text)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").symlink_to("/bin/false")  # where there is no Slurm
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{tmp_path / 'bin'}")
    for module in (submit_grid, start):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def names_are_right(monkeypatch):
    """Looking names up takes a process of seconds; its own tests are in test_check.py."""
    monkeypatch.setattr(submit_grid, "check_rows", lambda rows, unread: [])


def run(*arguments: str, code: int = 0, capsys) -> str:
    found = submit_multiple.main(list(arguments))
    captured = capsys.readouterr()
    assert found == code, captured
    return captured.err if code == 2 else captured.out


def listing(folder: Path) -> dict[str, float]:
    return {str(p): p.lstat().st_mtime for p in folder.rglob("*") if ".git/" not in str(p)}


def today(name: str = "x") -> Path:
    return Path("results", f"{date.today():%y-%m-%d}-{name}").absolute()


def ran(folder: Path) -> list[int]:
    files = [row.folder / "ran" for row in open_batch(folder).rows]
    return [len(f.read_text().splitlines()) if f.exists() else 0 for f in files]


# ---- Checks ------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm_lookup")
def test_all_mistakes_are_shown_at_once_and_nothing_is_written(fork, capsys):
    (fork / "job.yaml").write_text(
        "job_details: {output_dir: train.py/x}\n"
        "parameters: {model: linaer, base_lr: [1, fast, quick], bathc_size: 3, optim_alg: sgdd}\n"
    )
    before = listing(fork)
    message = run("job.yaml", "-s", "part.txt", code=2, capsys=capsys)
    lines = message.splitlines()
    assert "-s part.txt: no script" in lines[0]
    assert "output_dir" in lines[1]
    assert "not a folder" in lines[1]
    text = "\n".join(lines[2:])
    for part in ("3 runs: bathc_size", "'batch_size'", "'linear'", "'sgd'", "2 runs: base_lr"):
        assert part in text
    assert lines[-1] == "nothing was written or submitted"
    assert listing(fork) == before


@pytest.mark.usefixtures("warm_lookup")
def test_what_the_grid_cannot_read_hides_no_mistake_of_rows(fork, capsys):
    (fork / "job.yaml").write_text(
        "job_details: {nmae: x}\n"
        "parameters: {model: linaer, momentum: {uniform: [1, 0], n: 2}, bathc_size: 3,\n"
        "  base_lr: '[flaot(x) for x in [1]]', weight_decay: []}\n"
    )
    before = listing(fork)
    message = run("job.yaml", "-s", "local", code=2, capsys=capsys)
    starts = ["job_details: unknown 'nmae'", "parameters.momentum.uniform: got [1, 0]"]
    starts += ["parameters.base_lr: 'flaot(x)'", "parameters.weight_decay: got []"]
    starts += ["bathc_size=3: there is no such key", "model: unknown 'linaer'", "nothing was"]
    lines = message.splitlines()
    for beginning, line in zip(starts, lines, strict=True):
        assert line.startswith(beginning)
    assert listing(fork) == before


@pytest.mark.usefixtures("names_are_right")
def test_that_equal_rows_were_merged_is_reported(fork, capsys):
    (fork / "job.yaml").write_text(
        JOB.replace("base_lr: [1.0, 2.0]", "LIST: [{base_lr: [1, 2]}, {base_lr: 2.0}]")
    )
    output = run("job.yaml", "-s", "local", "-d", capsys=capsys)
    assert "2 runs = 2 base_lr\nparameters.LIST: merged 1 run that equals another\n" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["job.yaml"], "-s: say with which submit script"),
        (["-s", "local"], "one of a job file, -r"),
        (["job.yaml", "-r", "x", "-s", "local"], "one of a job file, -r"),
        (["job.yaml", "-s", "local", "--only", "failed"], "--only: goes with -r"),
        (["-r", "x", "-o"], "-o and -r"),
        (["job.yaml", "-s", "local", "--live", "--refreeze"], "--live and --refreeze"),
        (["job.yaml", "-s", "local", "--pack", "2"], "--pack is for Slurm"),
        (["job.yaml", "-s", "local", "--", "-p", "x"], "what follows -- is for Slurm"),
        (["job.yaml", "-s", "local", "--gpus", "a b"], "--gpus: got 'a b'"),
        (["job.yaml", "-s", "quick.sh", "--patience", "-1"], "--patience"),
        (["-r", "x", "--only", "failde"], "'failed'"),
        (["--pak", "3"], "--pak"),
        (["job.yaml", "-s", "quick.sh", "--jobs", "2"], "--jobs, --gpus, --fresh: for -s local"),
        (["job.yaml", "-s", "quick.sh", "--no-array", "--pack", "2"], "need an array"),
        (["job.yaml", "-s", "quick.sh", "--after", "soon"], "--after: got 'soon'"),
        (["job.yaml", "-s", "quick.sh", "--", "--array=1-3"], "sets this one itself"),
        (["job.yaml", "-s", "quick.sh", "--", "-oout"], "sets this one itself"),
        (["job.yaml", "-s", "quick.sh", "--", "--test-only"], "sets this one itself"),
        (["job.yaml", "-s", "array.sh", "--no-array"], "'#SBATCH --array=0-2' would start"),
        (["none.yaml", "-s", "local"], "none.yaml: No such file"),
        (["-r", "results/none", "-s", "local"], "results/none: no such folder"),
        (["job.yaml", "-s", "part.txt"], "no script"),
        (["job.yaml", "-s", "."], "-s .: Is a directory"),
        (["job.yaml", "-s", "locl"], "-s locl: No such file or directory; did you mean 'local'?"),
        (["job.yaml", "-s", "quik.sh"], "did you mean 'quick.sh'?"),
        (["job.yaml", "-r", "-s", "local"], "-r: job.yaml is a file, expected the folder of a"),
        ([".", "-s", "local"], ".: is a folder; -r runs what is not done in it again"),
        (["-r", "-s", "local"], "one of a job file, -r"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("names_are_right")
def test_a_wrong_command_line_is_one_line(fork, arguments, words, capsys):
    before = listing(fork)
    assert words in run(*arguments, code=2, capsys=capsys)
    assert listing(fork) == before


@pytest.mark.usefixtures("names_are_right")
@pytest.mark.parametrize("options", [["-s", "local"], ["-s", "quick.sh"], ["-s", "local", "-o"]])
def test_a_dry_run_says_what_would_happen_and_touches_nothing(fork, options, capsys):
    before = listing(fork)
    output = run("job.yaml", *options, "-d", capsys=capsys)
    assert "would run 2 runs" in output
    assert "000_" in output
    assert listing(fork) == before
    run("job.yaml", "-s", "local", capsys=capsys)
    (open_batch(today()).rows[0].folder / "done").unlink()
    before = listing(fork)
    run("-r", str(today()), "-d", capsys=capsys)
    run("job.yaml", *options, "-d", capsys=capsys)
    assert listing(fork) == before


def test_a_script_that_is_not_there_is_answered_before_rows_are_checked(monkeypatch, capsys):
    monkeypatch.setattr(submit_grid, "check_rows", lambda rows, unread: 1 / 0)
    message = run("job.yaml", "-s", "locl", code=2, capsys=capsys)
    assert message == "-s locl: No such file or directory; did you mean 'local'?\n"


@pytest.mark.usefixtures("names_are_right")
@pytest.mark.parametrize(
    "arguments",
    [
        ["BATCH", "-r", "-s", "local"],
        ["BATCH", "--rerun", "-s", "local"],
        ["--rerun", "BATCH"],
        ["-r", "-s", "local", "BATCH"],
    ],
    ids=" ".join,
)
def test_a_batch_runs_again_in_all_forms_that_people_type(arguments, capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    (open_batch(today()).rows[1].folder / "done").unlink()
    arguments = [str(today()) if a == "BATCH" else a for a in arguments]
    assert "dry run: nothing was submitted" in run(*arguments, "--dry_run", capsys=capsys)
    assert ran(today()) == [1, 1]
    run(*arguments, "-y", capsys=capsys)
    assert ran(today()) == [1, 2]


@pytest.mark.usefixtures("names_are_right")
def test_without_slurm_a_dry_run_prints_the_calls_of_sbatch(fork, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no sbatch" in run("job.yaml", "-s", "quick.sh", code=2, capsys=capsys)
    before = listing(fork)
    options = ["-s", "quick.sh", "-d", "--max_running", "3", "--", "-p", "long"]
    calls = sbatch_calls(run("job.yaml", *options, capsys=capsys))
    assert calls == [
        [
            "sbatch",
            "--parsable",
            f"--job-name=000-001_{today().name}",
            f"--chdir={today() / 'code'}",
            f"--output={today()}/submissions/001-XXXX/%a/job.log",
            f"--error={today()}/submissions/001-XXXX/%a/job.log",
            "--open-mode=append",
            "-p",
            "long",
            "--array=0-1%3",
            f"{today()}/submissions/001-XXXX.sh",
        ]
    ]
    calls = sbatch_calls(run("job.yaml", "-s", "quick.sh", "-d", "--no-array", capsys=capsys))
    assert [call[-1] for call in calls] == [
        f"{today()}/{number:03d}_{today().name}+base_lr={lr}/spec.yaml"
        for number, lr in enumerate("12")
    ]
    assert {call[-2] for call in calls} == {str(fork / "quick.sh")}
    assert listing(fork) == before


@pytest.mark.usefixtures("names_are_right")
def test_without_slurm_a_dry_run_says_what_would_run_again(monkeypatch, capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    rows = open_batch(today()).rows
    journal = Journal(today() / "submissions")
    call = journal.begin([row.name for row in rows], pack=1, script="quick.sh", extra=[])
    journal.accepted(call, "1")
    (rows[1].folder / "done").unlink()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "cannot be asked" in run("-r", str(today()), "-s", "local", code=2, capsys=capsys)
    output = run("-r", str(today()), "-s", "quick.sh", "-d", capsys=capsys)
    ((*_, array, script),) = sbatch_calls(output)
    assert (array, script) == ("--array=0-0", f"{today()}/submissions/002-XXXX.sh")


def sbatch_calls(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines() if line.startswith("  sbatch ")]


# ---- A batch that was moved, copied or damaged -------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.usefixtures("names_are_right")
@pytest.mark.parametrize("is_moved", [False, True])
def test_a_copied_batch_runs_where_it_is_and_the_original_stays(tmp_path, is_moved, capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    original, there = today(), tmp_path / "elsewhere" / "B"
    for row in open_batch(original).rows:
        (row.folder / "done").unlink()
        (row.folder / "config.yaml").write_text(f"base_lr: 1.0\noutput_dir: {row.folder}\n")
    before = contents(original)
    shutil.copytree(original, there, symlinks=True)
    if is_moved:
        shutil.rmtree(original)
    dry = contents(there)
    output = run("-r", str(there), "-d", capsys=capsys)
    assert "2 runs of another folder: would be made to run in this one" in output
    assert contents(there) == dry
    output = run("-r", str(there), "-y", capsys=capsys)
    assert "2 runs of another folder: made to run in this one" in output
    assert "2 runs: 2 done, 0 failed" in output
    assert contents(original) == ({} if is_moved else before)
    assert ran(there) == [2, 2]
    for row in open_batch(there).rows:
        for name in ("spec.yaml", "config.yaml"):
            assert f"output_dir: {row.folder}\n" in (row.folder / name).read_text()
    assert "nothing to run again" in run("-r", str(there), "-y", capsys=capsys)


@pytest.mark.usefixtures("names_are_right")
def test_a_job_file_continues_in_a_batch_that_was_moved(fork, tmp_path, capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    shutil.move(fork / "results", fork / "other")
    (fork / "job.yaml").write_text(
        JOB.replace("name: x", "name: x, output_dir: other").replace("2.0]", "2.0, 4.0]")
    )
    output = run("job.yaml", "-s", "local", capsys=capsys)
    assert "2 runs of another folder" in output
    there = fork / "other" / today().name
    assert ran(there) == [1, 1, 1]
    assert not today().exists()


@pytest.mark.usefixtures("names_are_right")
def test_rows_that_were_deleted_are_made_again_and_broken_ones_stop_no_others(fork, capsys):
    (fork / "job.yaml").write_text(
        "job_details: {name: x, trackers: [tensorboard]}\n"
        "parameters: {data_dir: d, base_lr: [1.0, 2.0, 4.0, 8.0], train_length: 0}\n"
    )
    run("job.yaml", "-s", "local", capsys=capsys)
    deleted, no_folder, no_log, fine = open_batch(today()).rows
    spec = deleted.spec.read_text()
    shutil.rmtree(deleted.folder)
    shutil.rmtree(no_folder.folder)
    no_folder.folder.write_text("a file")
    (no_log.folder / "done").unlink()
    no_log.log.unlink()
    no_log.log.mkdir()
    (fine.folder / "done").unlink()
    code = submit_multiple.main(["-r", str(today()), "-y"])
    captured = capsys.readouterr()
    assert code == 1, captured
    assert "1 run without spec.yaml: made again" in captured.out
    assert f"left out: {no_folder.name}: {no_folder.spec}: Not a directory" in captured.err
    assert f"{no_log.name}: {no_log.log}: Is a directory" in captured.err
    assert "3 runs: 2 done, 1 failed" in captured.out
    assert deleted.spec.read_text() == spec
    assert (deleted.folder / "ran").read_text() == "code 1\n"
    assert (fine.folder / "ran").read_text() == "code 1\n" * 2
    (today() / "job.yaml").unlink()
    shutil.rmtree(deleted.folder)
    message = run("-r", str(today()), "-y", code=1, capsys=capsys)
    assert "1 run without spec.yaml" not in message


# ---- On this machine ---------------------------------------------------------------------


@pytest.mark.usefixtures("names_are_right")
def test_a_batch_runs_here_and_again_only_what_is_left(capsys):
    output = run("job.yaml", "-s", "local", capsys=capsys)
    assert "job.yaml: 2 runs = 2 base_lr" in output
    assert "2 runs: 2 done, 0 failed" in output
    assert ran(today()) == [1, 1]
    assert "nothing left to start" in run("job.yaml", "-s", "local", capsys=capsys)
    Path("job.yaml").write_text(JOB.replace("2.0]", "2.0, 4.0]"))
    assert "1 run new, 2 runs of an earlier call" in run("job.yaml", "-s", "local", capsys=capsys)
    assert ran(today()) == [1, 1, 1]


@pytest.mark.usefixtures("names_are_right")
def test_what_failed_is_run_again_with_the_mended_code_if_asked(fork, capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    failing = open_batch(today()).rows[1].folder
    (failing / "done").unlink()
    (failing / "fail").touch()
    output = run("-r", str(today()), "-s", "local", "-y", code=1, capsys=capsys)
    assert "1 run: 0 done, 1 failed" in output
    (failing / "fail").unlink()
    (fork / "part.txt").write_text("2")
    output = run("-r", str(today()), "-s", "local", "-d", capsys=capsys)
    assert "1 done, 1 failed" in output
    assert "on purpose" in output
    output = run("-r", str(today()), "--only", "oom", capsys=capsys)
    assert "nothing to run again" in output
    output = run("-r", str(today()), "-y", capsys=capsys)
    assert "changed here since then: part.txt" in output
    (failing / "done").unlink()
    run("-r", str(today()), "-y", "--refreeze", capsys=capsys)
    assert (failing / "ran").read_text().split() == ["code", "1"] * 3 + ["code", "2"]
    assert (today() / "code" / "part.txt").read_text() == "1"


@pytest.mark.usefixtures("names_are_right")
def test_starting_over_deletes_the_batch_and_nothing_else(capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    (today() / "code" / "data" / "precious").touch()  # by the link: the user's own data
    other = today("y")
    other.mkdir()
    assert "no terminal" in run("job.yaml", "-s", "local", "-o", code=2, capsys=capsys)
    assert ran(today()) == [1, 1]
    output = run("job.yaml", "-s", "local", "-o", "-y", capsys=capsys)
    assert f"-o deletes results/{today().name}: 2 done" in output
    assert ran(today()) == [1, 1]
    assert Path("data/precious").exists()
    assert {p.name for p in Path("results").iterdir()} == {today().name, other.name}


@pytest.mark.usefixtures("names_are_right")
def test_one_submission_at_a_time(capsys):
    Path("results").mkdir()
    with submit_grid.only_here(today()):
        message = run("job.yaml", "-s", "local", code=2, capsys=capsys)
    assert "another submit_multiple.py is at work" in message
    run("job.yaml", "-s", "local", capsys=capsys)


@pytest.mark.usefixtures("names_are_right")
def test_an_interrupted_submission_of_yesterday_continues_there(capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    yesterday = f"{date.today() - timedelta(days=1):%y-%m-%d}-x"
    folder = today().rename(today().with_name(yesterday))
    rows = open_batch(folder).rows
    repair_batch(open_batch(folder), Path.cwd())
    for row in rows:
        (row.folder / "done").unlink()
        row.log.unlink()
    journal = Journal(folder / "submissions")
    call = journal.begin([rows[0].name], pack=1, script="quick.sh", extra=[])
    journal.accepted(call, "1")
    run("job.yaml", "-s", "local", capsys=capsys)
    assert ran(folder) == [1, 2]
    assert not today().exists()
    # All of it is done or submitted: the next one is another batch.
    run("job.yaml", "-s", "local", capsys=capsys)
    assert ran(today()) == [1, 1]


@pytest.mark.parametrize(("answer", "is_asked_again"), [("y", False), ("", True), ("no", True)])
@pytest.mark.usefixtures("names_are_right")
def test_a_question_takes_yes_for_yes_alone(monkeypatch, answer, is_asked_again, capsys):
    run("job.yaml", "-s", "local", capsys=capsys)
    own, theirs = pty.openpty()
    os.write(own, f"{answer}\n".encode())
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        code = submit_multiple.main(["job.yaml", "-s", "local", "-o"])
    os.close(own)
    assert code == (2 if is_asked_again else 0)
    assert ran(today()) == [1, 1]


@pytest.mark.parametrize(("answer", "code"), [("y", "1"), ("r", "2"), ("", None)])
@pytest.mark.usefixtures("names_are_right")
def test_that_the_frozen_code_is_older_is_printed_before_the_question(
    fork, monkeypatch, answer, code, capsys
):
    run("job.yaml", "-s", "local", capsys=capsys)
    again = open_batch(today()).rows[1].folder
    (again / "done").unlink()
    (fork / "part.txt").write_text("2")
    output = run("-r", str(today()), "-d", capsys=capsys)
    assert "changed here since then: part.txt" in output
    message = run("-r", str(today()), code=2, capsys=capsys)
    assert "-y says yes, -y --refreeze with the code as it is now" in message
    own, theirs = pty.openpty()
    os.write(own, f"{answer}\n".encode())
    said = []
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr("builtins.input", lambda text: [said.append(text), answer][1])
        capsys.readouterr()
        submit_multiple.main(["-r", str(today())])
    os.close(own)
    output = capsys.readouterr().out
    assert "changed here since then: part.txt" in output.partition("running 1 run")[0]
    assert output.count("changed here") == 1
    assert "r: with the code as it is now (--refreeze). [y/r/N]" in said[0]
    assert (again / "ran").read_text().split()[3:] == ([code] if code else [])


@pytest.mark.usefixtures("names_are_right")
def test_without_a_repository_the_code_runs_where_it_lies_if_asked(fork, capsys, monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_BYTES", 3)
    assert "--live" in run("job.yaml", "-s", "local", code=2, capsys=capsys)
    run("job.yaml", "-s", "local", "--live", capsys=capsys)
    assert ran(today()) == [1, 1]
    assert not (today() / "code").exists()
