"""Whole runs on images and on the files that the test_cfg_*.yaml read."""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import load_config, make_config
from src.metrics import is_time
from tests.data.sources.written_sets import write_cifar
from tests.waiting import PATIENCE
from train import experiment_generator, run_experiment

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="session")
def fashion_mnist(tmp_path_factory) -> str:
    """The real Fashion-MNIST, from Debian's package, as torchvision keeps it; its data_dir."""
    if not DEBIAN_FASHION_MNIST.exists():
        assert "CI" not in os.environ, "install Debian's package dataset-fashion-mnist"
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    data_dir = tmp_path_factory.mktemp("fashion")
    raw = data_dir / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in DEBIAN_FASHION_MNIST.glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return str(data_dir)


def fashion(data_dir: str, **keys):
    of_all = {"dataset": "timm/torch/fashion_mnist", "data_dir": data_dir, "model": "tiny/lenet"}
    of_all |= {"optim_alg": "adam", "base_lr": 2e-3, "seed_model": 0, "seed_training": 0}
    return make_config(of_all | keys)


@pytest.mark.slow
def test_lenet_learns_fashion_mnist(fashion_mnist):
    keys = {"batch_size": 100, "train_length": 4, "lr_schedule": "cosine", "eval_batch_size": 500}
    stats = run_experiment(fashion(fashion_mnist, num_workers=1, **keys))
    assert stats["train/seen_examples"].iloc[-1] == 4 * 60_000
    assert stats["test/last/accuracy"].iloc[-1] > 0.88


@pytest.mark.slow
def test_stats_and_weights_do_not_depend_on_the_number_of_workers(fashion_mnist, tmp_path):
    splits = {"train": "train[:550]", "test": "test[:230]"}
    texts, weights = [], []
    for name, num_workers in {"a": 0, "b": 0, "c": 1, "d": 2}.items():
        config = fashion(
            fashion_mnist,
            data_splits_map=splits,
            num_workers=num_workers,
            model="tiny/wrn_10_1_0.2",
            train_length=2,
            output_dir=str(tmp_path / name),
            save_plot=False,
        )
        *_, (stats, model) = experiment_generator(config)
        timed = [c for c in stats if is_time(c)]
        texts.append(stats.drop(columns=timed).to_csv())
        weights.append(torch.cat([t.double().flatten() for t in model.state_dict().values()]))
    assert len(set(texts)) == 1
    assert all(torch.equal(w, weights[0]) for w in weights)


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_reaches_the_workers_too_and_costs_nothing(fashion_mnist, tmp_path):
    """A terminal signals the whole group; twice in a row the run resumes, with its workers."""
    keys = {"data_splits_map": {"train": "train[:4000]"}, "num_workers": 2, "save_plot": False}
    keys |= {"batch_size": 20, "train_length": 1, "output_dir": str(tmp_path / "run")}
    fashion(fashion_mnist, **keys).save(tmp_path / "cfg.yaml")
    log = tmp_path / "run" / "training.log"
    for attempt in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "train.py", str(tmp_path / "cfg.yaml")],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while not (log.exists() and f"attempt {attempt}" in log.read_text()):
            time.sleep(0.01)
        while " | step " not in log.read_text().rpartition("| attempt ")[2]:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        said = r"interrupted at step [\d,]+ of [\d,]+, saved; the same command resumes it\n"
        assert re.fullmatch(said, err)
    states = sorted(int(path.stem) for path in (tmp_path / "run" / "state").iterdir())
    assert 10 <= states[0] < states[1] < 200


@pytest.mark.slow
def test_pretrained_weights_fine_tune(efficientnet, tmp_path):
    """EfficientNet-Lite0 knows shapes: a few hundred digits teach it what noise cannot."""
    keys = {
        "dataset": "sklearn/digits",
        "data_splits_map": {"train": "train[:400]", "test": "test[:200]"},
        "model": "timm/tf_efficientnet_lite0",
        "model_input_shape": [3, 48, 48],
        "model_head_init": "zero",
        "optim_alg": "adamw",
        "base_lr": 1e-3,
        "batch_size": 20,
        "train_length": 3,
        "seed_model": 0,
        "seed_training": 0,
    }
    pretrained = run_experiment(make_config(keys | {"model_weights": efficientnet}))
    from_noise = run_experiment(make_config(keys))
    assert pretrained["test/last/accuracy"].iloc[-1] > 0.9
    assert from_noise["test/last/accuracy"].iloc[-1] < 0.85


def test_the_first_run_on_covtype_works_on_libsvmdata_s_files(tmp_path):
    rng = np.random.default_rng(0)
    cache = tmp_path / "libsvm"
    cache.mkdir()
    labels = rng.integers(1, 8, 700).astype(float)
    inputs = rng.random((700, 54)) + 2 * np.eye(54)[labels.astype(int)]
    np.save(cache / "covtype.multiclass_X.npy", np.asfortranarray(inputs))
    np.save(cache / "covtype.multiclass_y.npy", labels)
    overrides = [f"data_dir={tmp_path}", f"output_dir={tmp_path / 'run'}", "data_download=false"]
    stats = run_experiment(load_config("test_cfg_covtype_linear.yaml", overrides))
    assert stats["val/av/accuracy"].iloc[-1] > 0.75


@pytest.mark.slow
def test_the_first_run_on_cifar10_works_on_its_files(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    overrides = [f"data_dir={tmp_path}", f"output_dir={tmp_path / 'run'}", "data_download=false"]
    config = load_config("test_cfg_cifar10_lenet.yaml", [*overrides, "train_length=2"])
    stats = run_experiment(config)
    assert stats["train/seen_examples"].tolist() == [50, 100]
    assert {"test/last/accuracy", "test/av/accuracy"} <= set(stats)
