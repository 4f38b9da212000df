"""Properties of whole runs, on data that scikit-learn ships."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from loguru import logger
from whole_runs import without_times

import train
from src.config import load_config, make_config
from src.data import build_data
from src.support.errors import UserError
from tests.waiting import PATIENCE
from train import experiment_generator, main, run_experiment


def last_model(config):
    *_, (stats, model) = experiment_generator(config)
    return stats, model


def same_weights(model, other) -> bool:
    states = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in states)


# ---- It learns, and says so --------------------------------------------------------------


def test_linear_model_learns_digits(digits):
    stats = run_experiment(digits(train_length=15))
    assert stats["test/last/accuracy"].iloc[-1] > 0.93
    assert stats["train/loss"].is_monotonic_decreasing


def test_lenet_learns_digits(digits):
    config = digits(model="tiny/lenet", base_lr=0.003, batch_size=32, train_length=8)
    assert run_experiment(config)["test/last/accuracy"].iloc[-1] > 0.95


@pytest.mark.parametrize(("train_length", "is_said"), [(0.03, True), (0.04, False), (0, False)])
def test_a_length_that_rounds_to_no_step_is_said(digits, log_lines, train_length, is_said):
    stats = run_experiment(digits(train_length=train_length))  # an epoch has 15 steps
    assert stats["step"].tolist() == [1 if train_length == 0.04 else 0]
    said = "train_length=0.03 rounds to 0 steps, as an epoch has 15: nothing is trained"
    assert (said in log_lines) == is_said


def test_regression_has_a_loss_and_no_accuracy(digits):
    config = digits(dataset="sklearn/diabetes", loss="mse", train_length=60, base_lr=3.0)
    stats = run_experiment(config)
    assert not [c for c in stats if "accuracy" in c]
    assert stats["test/last/loss"].iloc[-1] < 0.3 * stats["test/last/loss"].iloc[0]


def test_evaluation_is_exact_on_the_short_last_batch(digits):
    config = digits(eval_batch_size=77)  # 359 test examples: 4 full batches and one of 51
    stats, model = last_model(config)
    data = build_data(config, None).splits["test"]
    with torch.no_grad():
        outputs = model.eval()(data.inputs)
    expected_loss = torch.nn.functional.cross_entropy(outputs, data.targets).item()
    expected_accuracy = (outputs.argmax(1) == data.targets).double().mean().item()
    assert stats["test/last/loss"].iloc[-1] == pytest.approx(expected_loss, rel=1e-6)
    assert stats["test/last/accuracy"].iloc[-1] == expected_accuracy


def test_stats_have_the_columns_that_existing_experiments_read(digits):
    stats = run_experiment(digits(averaging="poly_8"))
    training = ["loss", "accuracy", "time", "data_time", "seen_examples", "learning_rate"]
    training += ["examples_per_second"]
    tested = ["loss", "accuracy", "time", "data_time"]
    expected = [f"train/{x}" for x in training]
    expected += [f"test/{m}/{x}" for m in ("last", "av") for x in tested]
    assert set(expected) <= set(stats.columns)
    assert stats["train/seen_examples"].tolist() == [1438, 2 * 1438]
    assert stats.notna().all(axis=None)


def test_evaluate_models_chooses_and_refuses(digits):
    stats = run_experiment(digits(averaging=["ema", "poly"], evaluate_models=["av2"]))
    assert {c.split("/")[1] for c in stats if c.startswith("test/")} == {"av2"}
    with pytest.raises(UserError, match=r"evaluate_models: unknown 'avg'; did you mean 'av'\?"):
        run_experiment(digits(averaging="ema", evaluate_models=["avg"], output_dir=None))


# ---- The same run ------------------------------------------------------------------------


def test_the_same_seeds_give_the_same_bytes(digits, tmp_path):
    keys = {
        "model": "tiny/wrn_10_1_0.3",
        "averaging": "ema_0.9",
        "batch_size": 256,
        "train_length": 1,
    }
    runs = [last_model(digits(output_dir=str(tmp_path / name), **keys)) for name in "ab"]
    (stats, model), (stats_again, model_again) = runs
    assert without_times(stats).to_csv() == without_times(stats_again).to_csv()
    assert same_weights(model, model_again)
    _, other = last_model(digits(output_dir=str(tmp_path / "c"), **keys | {"seed_training": 3}))
    assert not same_weights(model, other)


def test_config_yaml_runs_the_same_experiment_again(digits, tmp_path):
    drawn = {
        "seed_model": None,
        "seed_training": None,
        "base_lr": "10 ** np.random.uniform(-3, -2)",
    }
    stats, model = last_model(digits(**drawn))
    config = load_config(tmp_path / "run" / "config.yaml", [f"output_dir={tmp_path / 'again'}"])
    stats_again, model_again = last_model(config)
    assert without_times(stats).equals(without_times(stats_again))
    assert same_weights(model, model_again)


@pytest.mark.parametrize("epochs", [{"steps_per_epoch": 7}, {"samples_per_epoch": 500}])
def test_redefined_epochs_continue_the_pass_where_it_stopped(digits, epochs):
    _, model = last_model(digits())
    stats, model_of_more_epochs = last_model(
        digits(output_dir=None, train_length=30, train_length_unit="step", **epochs)
    )
    assert len(stats) > 4
    assert same_weights(model, model_of_more_epochs)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"loss_class_weights": [0.1, 1, 2, 3, 4, 5, 0.5, 0.5, 0.5, 7]},
        {"model": "tiny/lenet", "label_smoothing": 0.1},
        {"loss": "mse"},
    ],
)
@pytest.mark.parametrize(
    "optimizer", [{"optim_alg": "sgd", "base_lr": 0.1}, {"clip_norm": 0.05, "optim_alg": "sgd"}]
)
def test_accumulated_gradients_are_those_of_the_large_batch(digits, keys, optimizer):
    # 1438 = 14 · 100 + 38: with 4 micro-batches the short step is cut into 25 and 13
    models = [
        last_model(
            digits(output_dir=None, train_length=1, grad_accum_steps=n, **keys, **optimizer)
        )[1]
        for n in (1, 4)
    ]
    for whole, cut in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-6)


def test_clipping_by_value_bounds_every_step(digits):
    keys = {
        "optim_alg": "sgd",
        "momentum": 0.0,
        "base_lr": 1.0,
        "clip_value": 1e-3,
        "model_head_init": "zero",
    }
    _, model = last_model(digits(train_length=3, train_length_unit="step", **keys))
    largest = model.weight.abs().max().item()
    assert 1e-3 < largest <= 3.0001e-3


def test_warm_up_and_schedule_set_the_learning_rate(digits):
    keys = {
        "lr_schedule": "step_1_0.1",
        "warmup_steps": 10,
        "steps_per_epoch": 5,
        "train_length": 6,
    }
    stats = run_experiment(digits(**keys))
    expected = [0.005, 0.01, 0.01, 0.001, 0.001, 0.001]  # 30 steps, the drop after 15
    assert stats["train/learning_rate"].tolist() == pytest.approx(expected)


# ---- Ends --------------------------------------------------------------------------------


def outcome(folder: Path) -> dict:
    return json.loads((folder / "done").read_text())


def test_a_loss_out_of_bounds_ends_the_run_as_diverged(digits, tmp_path, capsys):
    stats = run_experiment(digits(optim_alg="sgd", base_lr=1e12, momentum=0.0))
    assert outcome(tmp_path / "run")["outcome"] == "diverged"
    assert "diverged: loss" in capsys.readouterr().err  # nobody takes it for a result
    assert len(stats) == 1
    assert np.isnan(stats["test/last/loss"].iloc[-1])


def test_no_new_best_ends_the_run_early(digits, tmp_path):
    run_experiment(digits(base_lr=0.0, early_stopping_patience=3, train_length=50))
    end = outcome(tmp_path / "run")
    assert end["outcome"] == "early_stopped"
    assert "in epoch 1" in end["reason"]
    assert len(pd.read_csv(tmp_path / "run" / "stats.csv")) == 4


def test_a_run_of_no_length_is_evaluated_once(digits, tmp_path):
    stats = run_experiment(digits(train_length=0))
    assert len(stats) == 1
    assert 0 < stats["test/last/accuracy"].iloc[0] < 0.4
    assert outcome(tmp_path / "run")["outcome"] == "finished"


def test_leaving_early_closes_files_and_writes_no_done(digits, tmp_path):
    generator = experiment_generator(digits(train_length=50))
    stats, _ = next(generator)
    generator.close()
    logger.info("this line is nobody's")
    folder = tmp_path / "run"
    assert len(stats) == len(pd.read_csv(folder / "stats.csv")) == 1
    assert not (folder / "done").exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "left"
    assert "nobody" not in (folder / "training.log").read_text()


def test_a_run_that_dies_leaves_its_traceback(digits, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the dog ate it")

    monkeypatch.setattr(train, "train_step", fail)
    with pytest.raises(RuntimeError):
        run_experiment(digits())
    folder = tmp_path / "run"
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: the dog ate it")
    assert "Traceback" in (folder / "training.log").read_text()
    assert not (folder / "done").exists()


# ---- The run folder ----------------------------------------------------------------------


def test_the_run_folder_tells_all(digits, tmp_path):
    run_experiment(digits(save_plot=True, save_best_checkpoint=True, save_freq=2, averaging="ema"))
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= {
        "spec.yaml",
        "config.yaml",
        "training.log",
        "stats.csv",
        "status.json",
        "provenance.json",
        "curves.png",
        "checkpoints",
        "done",
    }
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]  # nothing half-written
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {"commit", "packages", "command", "machine"} <= provenance.keys()
    assert provenance["packages"]["torch"]
    found = yaml.safe_load((folder / "config.yaml").read_text())
    assert found["data_n_examples"] == {"train": 1438, "test": 359}
    assert (found["data_n_classes"], found["model_output_dim"]) == (10, 10)
    assert found["model_input_shape"] == [1, 8, 8]
    assert (found["batch_size_accum"], bool(found["host_name"])) == (100, True)
    weights = torch.load(folder / "checkpoints" / "epoch_0002.pt", weights_only=True)
    assert weights.keys() == {"epoch", "last", "av"}
    assert (folder / "checkpoints" / "best.pt").exists()
    log = (folder / "training.log").read_text()
    assert re.search(
        r"epoch 2 \| step 30/30 \(100%\) \| loss [\d.]+ \| accuracy [\d.]+ \| [\d,]+ ex", log
    )
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["progress"]) == ("done", 1.0)


def test_a_picture_that_fails_does_not_lose_the_run(digits, tmp_path):
    generator = experiment_generator(digits(train_length=1, save_plot=True))
    next(generator)
    (tmp_path / "run" / "curves.png").mkdir()  # nothing can be written there
    assert list(generator) == []
    assert outcome(tmp_path / "run")["outcome"] == "finished"
    assert "no learning curves" in (tmp_path / "run" / "training.log").read_text()


def test_stats_csv_is_what_pandas_writes(digits, tmp_path):
    stats = run_experiment(digits())
    read = pd.read_csv(tmp_path / "run" / "stats.csv", index_col=0)
    pd.testing.assert_frame_equal(read, stats, check_exact=True, check_index_type=False)
    assert (
        (tmp_path / "run" / "stats.csv").read_text().startswith(",epoch,step,timestamp,train/loss")
    )


def test_without_a_folder_nothing_is_written(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_experiment(digits(output_dir=None, save_plot=True, save_freq=1, save_best_checkpoint=True))
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_in_a_folder_without_a_state_starts_clean(digits, tmp_path):
    next(experiment_generator(digits(train_length=50, save_freq=1)))
    shutil.rmtree(tmp_path / "run" / "state")
    run_experiment(digits(batch_size=50))
    assert len(pd.read_csv(tmp_path / "run" / "stats.csv")) == 2
    assert yaml.safe_load((tmp_path / "run" / "spec.yaml").read_text())["batch_size"] == 50
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_recomputed_batch_norms_fit_the_averaged_weights(digits, tmp_path):
    """Averages of their statistics do not: these were of other weights. Training is the same."""
    keys = {"model": "tiny/wrn_10_1_0.3", "averaging": ["ema_0.99", "ema_debiased_0.99"]}
    keys |= {"save_freq": 2, "data_splits_map": {"train": "train[:500]", "test": "test[:200]"}}
    as_ever = run_experiment(digits(**keys, output_dir=str(tmp_path / "average")))
    keys |= {"averaging_bn": "recompute"}
    stats = run_experiment(digits(**keys, output_dir=str(tmp_path / "recompute")))
    same = ["train/loss", "test/last/loss", "test/last/accuracy"]
    pd.testing.assert_frame_equal(stats[same], as_ever[same], check_exact=True)
    for name in ("av", "av2"):
        assert stats[f"test/{name}/loss"].iloc[-1] < as_ever[f"test/{name}/loss"].iloc[-1] - 0.05

    # what is kept are the weights that were evaluated, and torch's own function agrees
    weights = {
        name: torch.load(tmp_path / name / "checkpoints" / "epoch_0002.pt", weights_only=True)["av"]
        for name in ("average", "recompute")
    }
    for name, tensor in weights["average"].items():
        is_statistic = "running_" in name or "num_batches_tracked" in name
        assert torch.equal(tensor, weights["recompute"][name]) != is_statistic, name


# ---- A loss out of bounds ----------------------------------------------------------------

PRICES = {"dataset": "tests.own_parts:read_prices", "loss": "mse", "optim_alg": "sgd"}
PRICES |= {"base_lr": 0.01, "batch_size": 20, "train_length": 4, "log_interval": 3}


def test_a_loss_that_is_large_from_the_start_is_no_divergence(digits, tmp_path, log_lines):
    stats = run_experiment(digits(**PRICES))
    assert outcome(tmp_path / "run")["outcome"] == "finished"
    assert stats["train/loss"].iloc[-1] < stats["train/loss"].iloc[0] / 10
    (line,) = [line for line in log_lines if "max_allowed_loss" in line]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    limit = config["max_allowed_loss"]
    assert 3e11 < limit < 6e11
    assert f"{limit:.4g}" in line
    assert outcome(tmp_path / "run")["in_force"]["max_allowed_loss"] == limit
    assert yaml.safe_load((tmp_path / "run" / "spec.yaml").read_text())["max_allowed_loss"] is None
    again = make_config(config | {"output_dir": str(tmp_path / "again")})
    assert without_times(run_experiment(again)).equals(without_times(stats))
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert again["max_allowed_loss"] == limit


@pytest.mark.parametrize(
    ("keys", "step"),
    [
        ({**PRICES, "max_allowed_loss": 1e6}, 3),  # given, be it the default
        ({**PRICES, "base_lr": 1e30}, None),  # not from the start alone
        ({"base_lr": 1e9, "optim_alg": "sgd"}, 10),  # the loss of the untrained network is small
        ({**PRICES, "base_lr": 1e30, "max_allowed_loss": float("inf")}, None),
    ],
)
def test_a_loss_out_of_bounds_ends_the_run_as_before(digits, tmp_path, keys, step):
    run_experiment(digits(**keys))
    end = outcome(tmp_path / "run")
    assert end["outcome"] == "diverged"
    assert step is None or end["reason"].endswith(f"at step {step}")


def test_without_a_loss_that_large_the_limit_is_what_it_was(digits, tmp_path):
    for name, keys in {
        "null": {"max_allowed_loss": None},
        "given": {"max_allowed_loss": 1e6},
    }.items():
        run_experiment(digits(train_length=1, output_dir=str(tmp_path / name), **keys))
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert config["max_allowed_loss"] == 1e6


# ---- The command line --------------------------------------------------------------------


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Writes cfg.yaml with the digits run and these changes; returns its path."""

    def write(**keys) -> str:
        small = {"dataset": "sklearn/digits", "model": "linear", "base_lr": 0.1, "train_length": 1}
        small |= {"output_dir": str(tmp_path / "run"), "save_plot": False}
        (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(small | keys))
        return str(tmp_path / "cfg.yaml")

    return write


def test_the_last_lines_say_what_was_reached_and_where(cfg, tmp_path, capsys):
    assert main([cfg(save_plot=True), "base_lr=0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"test/last/accuracy +0\.\d{4}", lines[-3])
    assert lines[-2].split() == ["run", "folder", str(tmp_path / "run")]
    assert Path(lines[-1].split()[-1]).read_bytes().startswith(b"\x89PNG")
    assert load_config(tmp_path / "run" / "config.yaml").base_lr == 0.2


def test_a_finished_run_is_not_run_again(cfg, tmp_path, capsys):
    path = cfg()
    assert main([path]) == 0
    before = (tmp_path / "run" / "stats.csv").read_bytes()
    assert main([path]) == 0
    assert "finished" in capsys.readouterr().out
    assert main([str(tmp_path / "run" / "config.yaml")]) == 0
    assert main([path, "batch_size=50"]) == 2
    assert "finished run that differs in batch_size" in capsys.readouterr().err
    assert (tmp_path / "run" / "stats.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"datset": "x"}, "datset='x': there is no such key; did you mean 'dataset'?"),
        ({"dataset": "sklern/digits"}, "dataset: unknown 'sklern'; did you mean 'sklearn'?"),
        ({"dataset": "sklearn/digit"}, "did you mean 'sklearn/digits'?"),
        ({"model": "tiny/lenett"}, "did you mean"),
        ({"model": "lineer"}, "model: unknown 'lineer'; did you mean 'linear'?"),
        ({"optim_alg": "adm"}, "optim_alg: unknown 'adm'; did you mean 'adam"),
        ({"lr_schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"loss": "xentropi"}, "did you mean 'xentropy'?"),
        ({"averaging": "emma_0.9"}, "averaging: "),
        ({"batch_size": -5}, "batch_size: got -5"),
        ({"device": "cuda:99"}, "device: got 'cuda:99'"),
        ({"data_splits_map": {"train": "train[:0%]"}}, "data_splits_map"),
        ({"data_splits_map": {"train": "train", "test": "tets"}}, "data_splits_map"),
        ({"output_dir": "/dev/null/run"}, "output_dir: cannot write to /dev/null/run"),
        (
            {"save_best_checkpoint": True, "best_checkpoint_metric": "val/.*"},
            "best_checkpoint_metric",
        ),
        ({"loss_class_weights": [1, 2]}, "loss_class_weights"),
        ({"dataset": "sklearn/diabetes"}, "loss: "),
    ],
)
def test_bad_yaml_gives_one_clear_line_and_exit_code_2(cfg, keys, message, capsys):
    assert main([cfg(**keys)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def python(*arguments, **keys) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], **pipes, **keys)


def test_a_mistake_shows_no_traceback(cfg):
    process = python("train.py", cfg(base_lr="fast()"))
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("base_lr: ")


def test_ctrl_c_stops_with_130_and_a_status(cfg, tmp_path):
    process = python("train.py", cfg(train_length=100_000))
    status = tmp_path / "run" / "status.json"
    while process.poll() is None and not (status.exists() and '"epoch"' in status.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    said = r"interrupted at step [\d,]+ of [\d,]+, saved; the same command resumes it\n"
    assert re.fullmatch(said, err)
    assert json.loads(status.read_text())["state"] == "interrupted"


def test_a_linear_run_imports_no_library_that_it_does_not_need(cfg):
    script = (
        "import sys, train; code = train.main(sys.argv[1:]); "
        "print(sorted({'timm', 'torchvision', 'tensorflow', 'transformers', 'matplotlib.pyplot', "
        "'libsvmdata', 'open_clip', 'torch._dynamo'} & set(sys.modules)), code)"
    )
    out, err = python("-c", script, cfg(), env=os.environ | {"PYTHONPATH": "."}).communicate()
    assert out.splitlines()[-1] == "[] 0", err


def test_without_a_terminal_there_is_no_bar_and_with_log_to_stdout_there_are_lines(cfg):
    out, err = python("train.py", cfg(log_to_stdout=True)).communicate()
    assert err == ""
    assert " | epoch 1 | step 10/15" in out


def test_the_example_with_logic_between_epochs_runs():
    from examples.best_of_three import race

    winner, accuracies = race([0.0, 0.001, 0.03], rounds=3)
    assert winner == 0.03
    assert len(accuracies[winner]) > len(accuracies[0.0])
