"""A run that was stopped anywhere ends as the run that never was."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from whole_runs import end_of, lasting, run_through

import train
from src.config import make_config
from src.logging import lease
from src.runtime import checkpoints as saving
from src.runtime import evaluation, session
from src.runtime.checkpoints import CheckpointFiles
from src.runtime.signals import StopRequested
from src.support.errors import UserError
from train import experiment_generator, main, run_experiment

ROOT = Path(__file__).parents[1]

KINDS = {
    "everything": {
        "model": "tiny/wrn_10_1_0.3",  # batch norm and dropout
        "averaging": ["ema_0.9", "poly_8"],
        "grad_accum_steps": 2,
        "lr_schedule": "cosine",
        "warmup_steps": 3,
        "clip_norm": 1.0,
        "log_interval": 3,
        "data_splits_map": {"train": "train[:500]", "test": "test[:100]"},
    },
    "recomputed batch norms": {
        "dataset": "tests.own_parts:read",
        "model": "tests.own_parts:build_normed",
        "averaging": ["ema_0.9", "ema_debiased_0.9"],
        "averaging_bn": "recompute",
        "batch_size": 15,
    },
    "momentum": {"optim_alg": "sgd", "base_lr": 0.1, "samples_per_epoch": 500},
    "best": {"early_stopping_patience": 1, "steps_per_epoch": 5, "train_length": 8},
    "a large loss": {
        "dataset": "tests.own_parts:read_prices",
        "loss": "mse",
        "optim_alg": "sgd",
        "batch_size": 20,
        "log_interval": 7,
    },
    "own functions": {
        "loss": "tests.own_parts:Focal",
        "optim_alg": "tests.own_parts:Normalized",
        "optim_args": {"floor": 1e-6},
        "lr_schedule": "tests.own_parts:triangle",
        "averaging": ["tests.own_parts:tail", "ema_0.9", "tests.own_parts:Twofold"],
        "aug_function": "tests.own_parts:shake",
        "grad_accum_steps": 2,
    },
    "class weights": {"loss_class_weights": [0.1, 1, 2, 3, 4, 5, 0.5, 0.5, 0.5, 7]},
}


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_stopped_after_several_steps_it_ends_the_same(digits, tmp_path, interrupt, keys):
    config = digits(output_dir=str(tmp_path / "straight"), **keys)
    run_experiment(config)
    interrupt(2, 3, 9, 17, 22)
    stopped = digits(**keys)
    run_through(stopped)
    assert end_of(stopped) == end_of(config)


def test_stopped_after_any_step_it_ends_the_same(digits, tmp_path, interrupt):
    keys = {"steps_per_epoch": 7, "train_length": 30, "train_length_unit": "step"}
    keys |= {"log_interval": 3}
    config = digits(output_dir=str(tmp_path / "straight"), **keys)
    run_experiment(config)
    interrupt(*range(1, 31))
    stopped = digits(**keys)
    assert run_through(stopped) == 31
    assert end_of(stopped) == end_of(config)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["attempt"], status["step"], status["state"]) == (31, 30, "done")
    log = (tmp_path / "run" / "training.log").read_text()
    assert log.count("| attempt ") == 31
    assert "resumes after step 17 of 30" in log
    line = re.compile(r"step \d+/30 .* loss [\d.]+ \| accuracy [\d.]+")
    assert line.findall(log) == line.findall((tmp_path / "straight" / "training.log").read_text())


def test_a_warning_during_the_set_up_costs_a_step_not_the_attempt(digits, tmp_path, interrupt):
    interrupt(1, 2, 3, during="build_data", number=signal.SIGUSR1)
    assert run_through(digits()) == 4
    assert "resumes after step 3 of 30" in (tmp_path / "run" / "training.log").read_text()


@pytest.mark.parametrize(
    "during", ["evaluate", "save_weights", "save_learning_curves", "recompute_batch_norms"]
)
def test_stopped_beside_the_steps_it_ends_the_same(digits, tmp_path, interrupt, during):
    keys = {"averaging": "ema", "save_best_checkpoint": True, "save_plot": True}
    if during == "recompute_batch_norms":
        keys |= KINDS["recomputed batch norms"]
    config = digits(output_dir=str(tmp_path / "straight"), **keys)
    run_experiment(config)
    interrupt(1, 2, 3, during=during)
    stopped = digits(**keys)
    run_through(stopped)
    assert end_of(stopped) == end_of(config)
    best = [Path(c.output_dir) / "checkpoints" / "best.pt" for c in (config, stopped)]
    weights = [torch.load(path, weights_only=True) for path in best]
    assert lasting(weights[0]) == lasting(weights[1])


class Noisy(torch.nn.Module):
    """A model that draws in evaluations as well; signals come during some of them."""

    signals: tuple[int, ...] = ()

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        Noisy.count += not self.training
        if not self.training and Noisy.count in self.signals:
            os.kill(os.getpid(), signal.SIGUSR1)
        outputs = self.model(x)
        return outputs + 0.1 * torch.randn_like(outputs)


def test_stopped_within_an_evaluation_it_draws_the_same(digits, tmp_path, monkeypatch):
    build = train.build_model
    monkeypatch.setattr(train, "build_model", lambda *a: Noisy(build(*a)))
    ends = []
    for name, signals in {"straight": (), "stopped": (2, 7)}.items():
        Noisy.count, Noisy.signals = 0, signals
        config = digits(output_dir=str(tmp_path / name))
        assert run_through(config) == 1 + len(signals)
        ends.append(end_of(config))
        # 4 batches an epoch; those before a stop are evaluated again, those after it wait
        assert Noisy.count == 8 + {"straight": 0, "stopped": 2 + 1}[name]
    assert ends[0] == ends[1]


KILLED_BEFORE_DONE = """
import os, sys, train
from src.logging.run_folder import RunFolder
RunFolder.finish = lambda *_: os._exit(9)
train.main([sys.argv[1]])
"""


def test_killed_after_the_last_state_it_only_finishes(digits, tmp_path):
    config = digits()
    config.save(tmp_path / "cfg.yaml")
    command = [sys.executable, "-c", KILLED_BEFORE_DONE, tmp_path / "cfg.yaml"]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    before = (tmp_path / "run" / "stats.csv").read_bytes()
    assert not (tmp_path / "run" / "done").exists()
    assert len(run_experiment(config)) == 2
    assert json.loads((tmp_path / "run" / "done").read_text())["step"] == 30
    assert (tmp_path / "run" / "stats.csv").read_bytes() == before


def test_a_program_that_leaves_goes_on_where_it_left(digits, tmp_path):
    whole = digits(output_dir=str(tmp_path / "straight"), train_length=3)
    run_experiment(whole)
    config = digits(train_length=3)
    assert len(next(experiment_generator(config))[0]) == 1
    lengths = [len(stats) for stats, _ in experiment_generator(config)]
    assert lengths == [2, 3]
    assert end_of(config) == end_of(whole)


def test_a_numpy_number_in_a_row_of_stats_does_not_end_the_chain(digits, tmp_path, monkeypatch):
    """np.mean(…) is what most people write, and comes with the first evaluation."""
    of_all = evaluation.Evaluation.of_all

    def with_mine(self, *arguments):
        results = of_all(self, *arguments)
        return results | {"mine": {"mean": np.mean([0.5, 1.5]), "tensor": torch.tensor(2.0)}}

    monkeypatch.setattr(evaluation.Evaluation, "of_all", with_mine)
    next(experiment_generator(digits(train_length=3)))
    state = CheckpointFiles(tmp_path / "run" / "state").newest()
    assert [(row["mine/mean"], row["mine/tensor"]) for row in state["parts"]["stats"]["rows"]] == [
        (1.0, 2.0)
    ]
    assert len(run_experiment(digits(train_length=3))) == 3


def test_a_broken_state_never_changes_the_result(digits, tmp_path, interrupt):
    """The newest of two is cut off or has a bit flipped."""
    straight = digits(output_dir=str(tmp_path / "straight"), averaging="ema")
    run_experiment(straight)
    interrupt(7, 20)
    for _ in range(2):
        with pytest.raises(StopRequested):
            run_experiment(digits(averaging="ema"))
    draw = random.Random(0)
    for number in range(20):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "run", copy)
        paths = sorted((copy / "state").iterdir(), reverse=True)
        assert len(paths) == 2
        whole = bytearray(paths[0].read_bytes())
        position = draw.randrange(len(whole))
        whole[position] ^= 1 << draw.randrange(8)
        paths[0].write_bytes(whole if number % 2 else whole[:position])
        config = digits(output_dir=str(copy), averaging="ema")
        run_experiment(config)
        assert end_of(config) == end_of(straight)


def test_states_that_are_all_broken_cost_no_results(cfg_main, tmp_path, interrupt, capsys):
    """Weights and stats stay where they are, until somebody removes the states; then they are
    put aside."""
    run, keys = tmp_path / "run", {"train_length": 4, "save_freq": 1, "seed_training": 2}
    assert cfg_main(**keys, output_dir=str(tmp_path / "straight")) == 0
    interrupt(50)  # of 60 steps, in the fourth epoch
    assert cfg_main(**keys) == 75
    for path in (run / "state").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    names = ["stats.csv", "checkpoints/epoch_0001.pt", "checkpoints/epoch_0003.pt"]
    before = {name: (run / name).read_bytes() for name in names}
    capsys.readouterr()
    for _ in range(2):
        assert cfg_main(**keys) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "its 3 rows of stats and 3 checkpoints are as they were" in line
        assert {name: (run / name).read_bytes() for name in names} == before

    shutil.rmtree(run / "state")
    assert cfg_main(**keys) == 0
    assert {name: (run / "earlier-1" / name).read_bytes() for name in names} == before
    assert "earlier-1" in (run / "training.log").read_text()
    end, straight = (make_config({"output_dir": str(tmp_path / x)}) for x in ("run", "straight"))
    assert end_of(end) == end_of(straight)


def test_each_run_that_was_not_continued_has_a_folder_of_its_own(digits, tmp_path):
    for number in (1, 2):
        generator = experiment_generator(digits(save_freq=1, system_interval=0))
        next(generator)
        generator.close()
        shutil.rmtree(tmp_path / "run" / "state")
        assert not (tmp_path / "run" / f"earlier-{number}").exists()
    run_experiment(digits(batch_size=50))
    for number in (1, 2):
        earlier = tmp_path / "run" / f"earlier-{number}"
        assert {p.name for p in earlier.iterdir()} == {"stats.csv", "checkpoints", "config.yaml"}
        assert yaml.safe_load((earlier / "config.yaml").read_text())["batch_size"] == 100


# ---- Another configuration ---------------------------------------------------------------


def test_the_limit_that_a_first_loss_has_set_is_kept(digits, tmp_path, interrupt):
    """Also where the configuration that is resumed is that of the folder."""
    keys = {"log_interval": 7, **KINDS["a large loss"]}
    interrupt(1, 9)
    for config in (digits(**keys), digits(**keys)):
        with pytest.raises(StopRequested):
            run_experiment(config)
        state = CheckpointFiles(tmp_path / "run" / "state").newest()
        assert 3e11 < state["config"]["in_force"]["max_allowed_loss"] < 6e11
        assert state["config"]["asked"]["max_allowed_loss"] is None
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["max_allowed_loss"] == state["config"]["in_force"]["max_allowed_loss"]
    run_experiment(make_config(config))
    assert json.loads((tmp_path / "run" / "done").read_text())["outcome"] == "finished"


def test_an_unfinished_run_refuses_another_configuration(digits, tmp_path, interrupt):
    interrupt(4)
    with pytest.raises(StopRequested):
        run_experiment(digits())
    files = [p for p in (tmp_path / "run").rglob("*.*") if p.suffix != ".log"]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(UserError, match="unfinished run that differs in base_lr, weight_decay;"):
        run_experiment(digits(base_lr=0.5, weight_decay=0.1))
    with pytest.raises(UserError, match="differs in train_length"):
        run_experiment(digits(train_length=1))
    assert {p: p.read_bytes() for p in files} == before
    run_experiment(digits(log_interval=3, checkpoint_minutes=1, num_workers=2))


@pytest.mark.parametrize("name", ["spec.yaml", "config.yaml"])
def test_editing_the_folders_own_files_makes_it_no_other_run(digits, tmp_path, capsys, name):
    run_experiment(digits(lr_schedule="cosine"))
    path = tmp_path / "run" / name
    for key, value in {"train_length": 4, "base_lr": 0.5}.items():
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(values | {key: value}))
        assert main([str(path)]) == 2
        assert f"holds a finished run that differs in {key}" in capsys.readouterr().err
        path.write_text(yaml.safe_dump(values))
    assert main([str(path)]) == 0


def test_a_state_of_code_with_other_keys_says_where_the_key_stands(digits, tmp_path, interrupt):
    interrupt(4)
    with pytest.raises(StopRequested):
        run_experiment(digits())
    files = CheckpointFiles(tmp_path / "run" / "state")
    state = files.newest()
    state["config"]["asked"]["my_idea"] = 1
    files.save(state["step"], state)
    with pytest.raises(UserError, match="the saved run is of other code: my_idea"):
        run_experiment(digits())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("parts", {}, "differs in"),
        ("generators", {}, "generators: 'torch'"),
        ("generators", {"torch": 5}, "generators: "),
        *(
            ("parts", {name: value}, f"fit this code: {name}: ")
            for name, value in [
                ("model", 5),
                ("model", {"x": 1}),
                ("optimizer", {}),
                ("optimizer", [1]),
                ("av", {"t": 1, "model": None}),
                ("sums", 7),
                ("stats", {}),
                ("stats", None),
            ]
        ),
        ("config", {"asked": {}, "in_force": {"base_lr": "{"}}, "the saved run is of other code"),
    ],
)
def test_a_state_with_other_things_in_it_is_answered_in_one_line(
    left_after_an_epoch, tmp_path, key, value, words
):
    config, state = left_after_an_epoch(tmp_path / "run")
    value = state["parts"] | value if key == "parts" and value else value
    CheckpointFiles(tmp_path / "run" / "state").save(state["step"], state | {key: value})
    with pytest.raises(UserError, match=words) as info:
        run_experiment(config)
    assert len(str(info.value).splitlines()) == 1


@pytest.fixture(scope="module")
def left_after_an_epoch(tmp_path_factory):
    """left_after_an_epoch(folder): the config and the state of a run there that was stopped."""
    whole, keys = tmp_path_factory.mktemp("run"), {"dataset": "sklearn/digits", "model": "linear"}
    keys |= {"averaging": "ema", "batch_size": 100, "train_length": 2, "save_plot": False}
    for _ in experiment_generator(make_config(keys | {"output_dir": str(whole)})):
        break

    def copied(folder: Path):
        shutil.copytree(whole, folder)
        return make_config(keys | {"output_dir": str(folder)}), CheckpointFiles(
            folder / "state"
        ).newest()

    return copied


def test_weights_to_start_from_are_not_needed_to_go_on(digits, tmp_path, interrupt):
    run_experiment(digits(output_dir=str(tmp_path / "first"), save_freq=2))
    weights = tmp_path / "first" / "checkpoints" / "epoch_0002.pt"
    straight = digits(output_dir=str(tmp_path / "straight"), model_weights=str(weights))
    run_experiment(straight)
    interrupt(4)
    stopped = digits(model_weights=str(weights))
    with pytest.raises(StopRequested):
        run_experiment(stopped)
    weights.unlink()
    run_experiment(stopped)
    assert end_of(stopped) == end_of(straight)


def test_what_was_drawn_is_not_drawn_again(digits, tmp_path, interrupt):
    drawn = {"seed_model": None, "seed_training": None}
    drawn |= {"base_lr": "10 ** np.random.uniform(-3, -2)"}
    interrupt(20)
    assert run_through(digits(**drawn)) == 2
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config |= {"output_dir": str(tmp_path / "again")}
    again = make_config(config)
    run_experiment(again)
    assert end_of(again) == end_of(digits(**drawn))


def test_a_finished_run_can_be_made_longer(digits, tmp_path, interrupt):
    whole = digits(output_dir=str(tmp_path / "straight"), train_length=4, lr_schedule="poly")
    run_experiment(whole)
    run_experiment(digits(train_length=2, lr_schedule="poly"))
    longer = digits(train_length=4, lr_schedule="poly")
    interrupt(4)
    with pytest.raises(StopRequested):
        run_experiment(longer)
    assert not (tmp_path / "run" / "done").exists()
    assert len(run_experiment(longer)) == 4
    assert end_of(longer) == end_of(whole)
    with pytest.raises(UserError, match="holds a finished run"):
        run_experiment(longer)


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({"lr_schedule": "cosine"}, {"lr_schedule": "cosine"}, "differs in train_length"),
        ({"train_length": 1.5}, {}, "ended at step 23, in the middle of epoch 2"),
        ({"keep_state": False}, {}, "holds a finished run and no state/ of it"),
    ],
)
def test_a_finished_run_is_not_made_longer_where_it_would_be_another(
    cfg_main, first, then, words, capsys, tmp_path
):
    assert cfg_main(**first) == 0
    before = (tmp_path / "run" / "stats.csv").read_bytes()
    assert cfg_main(**then, train_length=4) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "run" / "done").exists()
    assert (tmp_path / "run" / "stats.csv").read_bytes() == before


@pytest.fixture
def cfg_main(tmp_path):
    """Runs `python train.py cfg.yaml` with these keys."""

    def run(**keys) -> int:
        small = {"dataset": "sklearn/digits", "model": "linear", "base_lr": 0.1, "train_length": 1}
        small |= {"output_dir": str(tmp_path / "run"), "save_plot": False, "seed_model": 1}
        (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(small | keys))
        return main([str(tmp_path / "cfg.yaml")])

    return run


def test_what_a_kill_has_left_half_written_is_removed(digits, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torn = [".stats.csv.123", ".status.json.7", "checkpoints/.best.pt.99"]
    for name in [*torn, "spec.yaml"]:
        (tmp_path / "run" / name).write_text("half")
    (tmp_path / "run" / ".mine").write_text("kept")
    run_experiment(digits(save_best_checkpoint=True))
    left = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob(".*")}
    assert left == {".mine"}


def test_a_folder_that_is_removed_in_mid_run_is_said_to_be(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.0)
    generator = experiment_generator(digits(train_length=4))
    next(generator)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="run was removed"):
        list(generator)


def test_an_early_stop_is_final(cfg_main, capsys, tmp_path):
    keys = {"early_stopping_patience": 1, "base_lr": 100.0}
    assert cfg_main(**keys, train_length=50) == 0
    assert json.loads((tmp_path / "run" / "done").read_text())["outcome"] == "early_stopped"
    assert cfg_main(**keys, train_length=60) == 0
    assert "this run is finished" in capsys.readouterr().out


def test_other_data_are_refused(digits, interrupt, monkeypatch):
    interrupt(4)
    with pytest.raises(StopRequested):
        run_experiment(digits())
    build = session.build_data

    def smaller(config, preprocessing):
        data = build(config, preprocessing)
        whole = data.splits["test"]
        data.splits["test"] = type(whole)(whole.inputs[:10], whole.targets[:10])
        return data

    monkeypatch.setattr(session, "build_data", smaller)
    with pytest.raises(UserError, match="cannot resume with other data"):
        run_experiment(digits())


def test_a_state_of_other_code_is_refused_and_kept(digits, interrupt, monkeypatch, tmp_path):
    interrupt(4)
    with pytest.raises(StopRequested):
        run_experiment(digits())
    (file,) = (tmp_path / "run" / "state").iterdir()
    before = file.read_bytes()
    build = train.build_model
    monkeypatch.setattr(train, "build_model", lambda *a: torch.nn.Sequential(build(*a)))
    with pytest.raises(UserError, match="does not fit this code: model: "):
        run_experiment(digits())
    assert file.read_bytes() == before


# ---- Disks -------------------------------------------------------------------------------


def test_a_disk_that_fills_up_is_reported_and_costs_nothing(
    digits, tmp_path, small_files, monkeypatch
):
    monkeypatch.setattr(saving, "SECONDS_TO_RETRY", 0.0)
    monkeypatch.setattr(saving, "MAX_COST", 1e9)
    config = digits(output_dir=str(tmp_path / "straight"), train_length=6)
    run_experiment(config)

    full = digits(train_length=6)
    generator = experiment_generator(full)
    next(generator)
    for step in (15, 30):
        next(generator)
        for thread in threading.enumerate():  # one writes the state, and reads it again
            if thread.name == "saving":
                thread.join()
        assert (tmp_path / "run" / "state" / f"{step:09d}.state").exists()
    small_files(1000)
    with pytest.raises(UserError, match=r"could not be saved .*start again when there is room"):
        list(generator)
    folder = tmp_path / "run"
    small_files(None)
    assert not (folder / "done").exists()
    assert {path.name for path in (folder / "state").iterdir()} == {
        "000000030.state",
        "000000015.state",
    }
    run_experiment(full)
    assert end_of(full) == end_of(config)
    log = (folder / "training.log").read_text()
    assert "resumes after step 30 of 90" in log


def test_stats_that_cannot_be_written_are_written_later_or_there_is_no_done(
    digits, tmp_path, small_files, capsys
):
    generator = experiment_generator(digits(train_length=4))
    next(generator)
    before = (tmp_path / "run" / "stats.csv").read_text()
    small_files(10)
    next(generator)
    assert (tmp_path / "run" / "stats.csv").read_text() == before
    small_files(None)
    assert len([*generator]) == 2
    assert len(pd.read_csv(tmp_path / "run" / "stats.csv")) == 4
    words = capsys.readouterr().err
    assert words.count("stats.csv: File too large; trying again every epoch") == 1
    assert "training.log: File too large: lines are missing" in words


def test_a_checkpoint_that_cannot_be_written_ends_the_run_until_it_can(
    digits, tmp_path, small_files
):
    keys = {"train_length": 4, "save_freq": 1}
    generator = experiment_generator(digits(**keys))
    next(generator)
    next(generator)
    small_files(1000)
    with pytest.raises(UserError, match=r"cannot write .*epoch_0003\.pt"):
        next(generator)
    small_files(None)
    run_experiment(digits(**keys))
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == [f"epoch_{epoch:04d}.pt" for epoch in (1, 2, 3, 4)]


def test_only_the_newest_checkpoints_are_kept(digits, tmp_path):
    run_experiment(digits(train_length=5, save_freq=1, keep_checkpoints=2))
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["epoch_0004.pt", "epoch_0005.pt"]


def test_weights_of_others_are_not_counted_among_them(digits, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "spec.yaml").touch()
    others = {"epoch_mine.pt", "epoch_1_000.pt", "epoch_0001_better.pt", "epoch_1.pt"}
    for name in others:
        (folder / name).touch()
    run_experiment(digits(save_freq=1, keep_checkpoints=1))
    assert {file.name for file in folder.iterdir()} == others | {"epoch_0002.pt"}


def test_the_state_of_a_finished_run_is_one_file_or_none(digits, tmp_path):
    run_experiment(digits())
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["000000030.state"]
    run_experiment(digits(output_dir=str(tmp_path / "other"), keep_state=False))
    assert list((tmp_path / "other" / "state").iterdir()) == []
