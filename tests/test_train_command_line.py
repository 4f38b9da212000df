"""What `python train.py` does with its arguments, beside training: mistakes, and which folder."""

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from several_processes import together

import train
from src.config import load_config, make_config
from src.config.command_line import without_dashes
from src.logging.same_run import choose_folder
from src.runtime import command_line
from src.runtime.distributed import DistributedContext
from src.support import ROOT
from src.support.errors import UserError
from src.support.processes import detect_rank
from train import main

SMALL = {"dataset": "sklearn/digits", "model": "linear", "base_lr": 0.1, "train_length": 1}
SMALL |= {"save_plot": False, "num_workers": 0, "system_interval": 0}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to stand in, with cfg.yaml: an epoch of the digits, without output_dir."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


@pytest.fixture
def no_training(monkeypatch):
    """Runs fail in their first step."""

    def fail(*_):
        raise UserError("no step was made")

    monkeypatch.setattr(train, "train_step", fail)


def runs(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.exists() else set()


# ---- Which folder ------------------------------------------------------------------------


def test_without_output_dir_a_run_gets_a_folder_and_says_so(here, capsys):
    assert main(["cfg.yaml", "seed_model=1"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "output_dir is not given: this run is in results/cfg"
    assert out.splitlines()[-1].split() == ["run", "folder", "results/cfg"]
    assert (here / "results/cfg/done").exists()
    assert load_config("results/cfg/spec.yaml").output_dir == "results/cfg"
    assert main(["cfg.yaml", "seed_model=1"]) == 0  # a finished one is another run
    assert runs(here / "results") == {"cfg", "cfg-2"}


@pytest.mark.usefixtures("no_training")
def test_an_unfinished_run_of_the_same_configuration_goes_on(here, capsys):
    assert main(["cfg.yaml"]) == 2
    assert main(["cfg.yaml", "log_interval=3"]) == 2
    assert "the run in results/cfg is resumed" in capsys.readouterr().out
    assert main(["cfg.yaml", "batch_size=50"]) == 2
    assert main(["cfg.yaml"]) == 2
    assert runs(here / "results") == {"cfg", "cfg-2"}
    assert load_config("results/cfg-2/spec.yaml").batch_size == 50


def test_a_mistake_in_a_name_costs_no_folder(here, capsys):
    assert main(["cfg.yaml", "dataset=sklearn/digit"]) == 2
    assert main(["cfg.yaml", "model=lineer"]) == 2
    assert main(["cfg.yaml"]) == 0
    assert runs(here / "results") == {"cfg"}
    assert load_config("results/cfg/spec.yaml").model == "linear"


@pytest.mark.parametrize("taken", ["results/cfg/notes.txt", "results/cfg"])
def test_what_is_not_ours_is_left_alone(here, taken):
    (here / taken).parent.mkdir(parents=True)
    (here / taken).write_text("mine")
    assert choose_folder(make_config(SMALL), "cfg") == (Path("results/cfg-2"), False)
    assert (here / taken).read_text() == "mine"


def test_empty_folders_are_free_and_odd_names_stay_in_results(here):
    (here / "results/cfg").mkdir(parents=True)
    for name, expected in (("cfg", "cfg"), ("..", "run"), ("x" * 250, "x" * 250)):
        assert choose_folder(make_config(SMALL), name) == (Path("results", expected), False)
        assert (here / "results" / expected / "spec.yaml").exists()
    assert choose_folder(make_config(SMALL), "cfg") == (Path("results/cfg"), True)


def test_where_nothing_can_be_written_is_told(here):
    (here / "results").write_text("a file")
    with pytest.raises(UserError, match=r"^output_dir: cannot write to results"):
        choose_folder(make_config(SMALL), "cfg")


def choose(number, start, chosen) -> None:
    start.wait()
    chosen.put(str(choose_folder(make_config(SMALL | {"batch_size": number}), "cfg")[0]))


def test_of_runs_that_start_at_the_same_moment_each_has_its_own(here):
    context = multiprocessing.get_context("fork")
    start, chosen = context.Event(), context.Queue()
    processes = [context.Process(target=choose, args=(n, start, chosen)) for n in range(1, 7)]
    for process in processes:
        process.start()
    start.set()
    assert len({chosen.get(timeout=60) for _ in processes}) == 6
    for process in processes:
        process.join()
    assert len(runs(here / "results")) == 6  # nothing temporary is left


def agreed() -> str | None:
    config = command_line._with_folder(make_config(SMALL), "cfg", sys.stdout)
    with suppress(UserError), DistributedContext(detect_rank(os.environ)) as world:
        world.gather_objects(None)  # as in training: the main process stays until all have heard it
    return config.output_dir


def test_all_processes_of_a_run_agree_on_its_folder(here):
    (here / "results/cfg").mkdir(parents=True)
    (here / "results/cfg/notes.txt").touch()
    assert together(2, agreed) == ["results/cfg-2"] * 2


def test_processes_that_are_started_here_are_told_the_folder(here, monkeypatch):
    commands = []
    monkeypatch.setattr(command_line, "num_processes", lambda *_: 2)
    monkeypatch.setattr(
        command_line, "launch_processes", lambda command, _: commands.append(command) or 0
    )
    for more in ([], ["output_dir=there"], ["output_dir=null"]):
        assert main(["cfg.yaml", "base_lr=0.2", *more]) == 0
    given = [load_config(config, overrides).output_dir for _, config, *overrides in commands]
    assert given == ["results/cfg", "there", None]


@pytest.mark.parametrize("place", ["file", "command"])
def test_a_null_that_is_given_is_obeyed_and_said(here, capsys, place):
    (here / "cfg.yaml").write_text(yaml.safe_dump(SMALL | {"output_dir": None}))
    assert main(["cfg.yaml", *(["output_dir=null"] if place == "command" else [])]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "output_dir is null: nothing of this run will be kept"
    )
    assert runs(here) == {"cfg.yaml"}


# ---- Mistakes ----------------------------------------------------------------------------


def test_all_wrong_keys_and_values_come_at_once_and_then_all_wrong_names(here, capsys):
    wrong = ["modle=linear", "batch_size=0", "sync_bn=maybe", "grad_accum_steps=x"]
    wrong += ["data_normalize=x"]
    names = ["dataset=sklearn/digit", "model=lineer", "optim_alg=adm", "loss=lgo"]
    for mistakes, named in ((wrong + names, wrong), (names, names)):
        assert main(["cfg.yaml", *mistakes]) == 2
        lines = capsys.readouterr().err.splitlines()
        keys = [re.match(r"\w+", line)[0] for line in lines]
        assert sorted(keys) == sorted(mistake.partition("=")[0] for mistake in named)
        assert (here / "results").exists() == (named is names)  # these are looked up by the run


# What is answered before torch and pandas are imported, and what the answer names.
EARLY = {
    "batchsize=7": "batchsize=7: there is no such key; did you mean 'batch_size'",
    "train_length=x": "train_length: got 'x', expected",
    "grad_accum_steps=3 batch_size=10 model=lineer": "grad_accum_steps: got 3, expected a divisor",
    "modle=1 batch_size=0": "batch_size: got 0, expected .*\nmodle=1: there is no such key",
    "--lr 3": "--lr: keys are written without dashes",
    "run=5 loss": "'loss': expected key=value",
    "--print-config": "",
    "--keys base_lr": "",
}


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    """An environment in which whoever imports torch or pandas fails."""
    for name in ("torch", "pandas"):
        (tmp_path / "stubs" / name).mkdir(parents=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    return os.environ | {"PYTHONPATH": str(tmp_path / "stubs")}


@pytest.mark.parametrize(("arguments", "answer"), EARLY.items())
def test_what_needs_no_torch_is_answered_without(here, without_torch, arguments, answer):
    command = [sys.executable, str(ROOT / "train.py"), "cfg.yaml", *arguments.split()]
    done = subprocess.run(command, cwd=here, env=without_torch, capture_output=True, text=True)
    assert done.returncode == (2 if answer else 0)
    assert re.match(answer, done.stderr), done.stderr
    assert done.stderr.count("\n") == (answer.count("\n") + 1 if answer else 0)
    assert bool(done.stdout) is not bool(answer)
    assert not (here / "results").exists()


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_of_several_processes_the_main_one_says_what_is_wrong(here, without_torch, launcher):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if launcher == "srun":
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    for rank, code in (("0", 2), ("1", 0)):
        env = without_torch | dict(zip(names, (rank, "2", rank), strict=True))
        command = [sys.executable, str(ROOT / "train.py"), "cfg.yaml", "batchsize=7"]
        done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (code, code // 2)


def test_a_stack_and_a_list_are_left_to_the_run(here, without_torch):
    (here / "stack.yaml").write_text("stack: [cfg.yaml]\n")
    for arguments in (["stack.yaml"], ["--list", "losses"], ["cfg.yaml", "model=lineer"]):
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        done = subprocess.run(command, cwd=here, env=without_torch, capture_output=True, text=True)
        assert done.stderr == "imported\n"


def test_all_wrong_names_come_at_once(here, capsys):
    assert main(["cfg.yaml", "model=lineer", "optim_alg=adm", "output_dir=run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["model", "optim_alg"]


def test_wrong_names_are_answered_before_the_folder(here, capsys):
    assert main(["cfg.yaml", "output_dir=run"]) == 0
    capsys.readouterr()
    assert main(["cfg.yaml", "output_dir=run", "model=lineer", "dataset=sklearn/digit"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'linear'?" in err
    assert "did you mean 'sklearn/digits'?" in err
    assert "finished run" not in err


def command_in(text: str) -> list[str]:
    """The arguments of train.py in the last line."""
    words = shlex.split(text.splitlines()[-1].partition("python ")[2])
    assert words[0] == os.path.relpath(train.__file__)
    return words[1:]


@pytest.mark.parametrize("folder", ["run", "it's #1: a run"])
def test_a_folder_that_is_taken_is_answered_with_a_command_that_works(here, capsys, folder):
    given = f"output_dir={json.dumps(folder)}"
    assert main(["cfg.yaml", given]) == 0
    assert main(["cfg.yaml", given, "batch_size=50"]) == 2
    err = capsys.readouterr().err
    assert "holds a finished run that differs in batch_size" in err
    assert main(command_in(err)) == 0
    assert load_config(f"{folder}-2/spec.yaml").batch_size == 50
    capsys.readouterr()
    assert main(["cfg.yaml", given]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("this run is finished")
    assert load_config(command_in(first)[0], command_in(first)[1:]).output_dir == f"{folder}-3"
    assert main(["cfg.yaml", f"output_dir={json.dumps(folder + '-2')}", "batch_size=7"]) == 2
    *_, last = command_in(capsys.readouterr().err)
    assert yaml.safe_load(last.partition("=")[2]) == f"{folder}-3"


@pytest.mark.usefixtures("here")
def test_an_unfinished_run_of_another_configuration_is_answered_so_too(capsys):
    given = ["output_dir=run", "train_length=50"]
    generator = train.experiment_generator(load_config("cfg.yaml", given))
    next(generator)
    generator.close()
    assert main(["cfg.yaml", *given, "batch_size=50"]) == 2
    err = capsys.readouterr().err
    assert "holds an unfinished run that differs in batch_size" in err
    assert command_in(err) == ["cfg.yaml", "train_length=50", "batch_size=50", "output_dir=run-2"]
    assert main(["cfg.yaml", *given, "model=lineer"]) == 2
    assert capsys.readouterr().err.startswith("model: unknown 'lineer'")


DASHED = {
    ("--base_lr=0.1",): ["base_lr=0.1"],
    ("--base-lr", "0.1", "--wandb"): ["base_lr=0.1", "wandb=true"],
    ("--learning_rate=1e-3", "momentum=0"): ["base_lr=1e-3", "momentum=0"],
    ("--wandb", "batch_size=3"): ["wandb=true", "batch_size=3"],
    ("--wandb", "cfg.yaml"): ["wandb=true", "cfg.yaml"],
    ("-lr=0.1",): ["base_lr=0.1"],
    ("--qqqqqq=0.1",): ["qqqqqq=0.1"],
}


@pytest.mark.parametrize(("given", "meant"), DASHED.items())
def test_dashes_are_answered_with_what_was_meant(given, meant, here, capsys):
    assert without_dashes(given) == meant
    assert main(["cfg.yaml", *given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert command_in(err) == ["cfg.yaml", *meant]


@pytest.mark.parametrize("given", [[], ["base_lr=0.1"]])
def test_without_a_file_the_answer_says_what_is_missing(given, here, capsys):
    assert main(given) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    config = "CONFIG.yaml" if given else re.search(r"train\.py (\S+)", err)[1]
    assert f"train.py {config} {' '.join(given) or '[key=value'}" in err
    assert given or Path(config).exists()


@pytest.mark.parametrize(
    "damage",
    ["", "garbage", ",epoch\n", "\0", ",test/last/loss\n0,x\n", "\ud800"],
)
def test_a_damaged_table_of_a_finished_run_is_said_in_a_line(here, capsys, damage, monkeypatch):
    (here / "run").mkdir()
    (here / "run/spec.yaml").write_text(yaml.safe_dump(SMALL | {"output_dir": "run"}))
    (here / "run/done").touch()
    (here / "run/stats.csv").write_bytes(damage.encode(errors="surrogatepass"))
    assert main(["cfg.yaml", "output_dir=run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("run/stats.csv: ")


@pytest.mark.parametrize(
    "damage",
    ["[1]", "5", "[" * 100_000, '{"asked": 5, "in_force": 5}', '{"asked": {}, "in_force": []}'],
)
@pytest.mark.parametrize("spec", ["[1]", "x: [", "modle: 5"])
def test_damaged_files_of_a_finished_run_are_said_in_a_line(here, capsys, damage, spec):
    (here / "run").mkdir()
    (here / "run/spec.yaml").write_text(spec)
    (here / "run/done").write_text(damage)
    (here / "run/stats.csv").write_text(",epoch,test/last/loss\n0,1,0.5\n")
    assert main(["cfg.yaml", "output_dir=run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["x" * 300, '"x\\0y"', "/dev/null/x"])
def test_paths_that_cannot_be_are_said_in_a_line(here, capsys, path):
    assert main(["cfg.yaml", f"output_dir={path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("output_dir: cannot write to ")
    assert err.count("\n") == 1


def test_with_json_nothing_else_is_printed(here, capsys):
    """Also where the run is finished already, and where it has found itself a folder."""
    for _ in range(2):
        assert main(["cfg.yaml", "train_length=1", "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["last"]["epoch"] == 1
        assert Path(printed["output_dir"], "done").exists()


def test_a_reader_that_leaves_is_no_error(here):
    """train.py cfg.yaml | head -1"""
    command = [sys.executable, str(ROOT / "train.py"), "cfg.yaml", "output_dir=run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=here, text=True, **pipes)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert (here / "run" / "done").exists()
