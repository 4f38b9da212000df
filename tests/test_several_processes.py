"""Two and four processes train as one does, stop as one, resume as one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import yaml
from several_processes import together

import train
from src.config import make_config
from src.logging.records import Stats
from src.metrics import is_time
from src.runtime import load_run, session
from src.runtime.certificate import first_differences
from src.runtime.checkpoints import CheckpointFiles
from src.runtime.distributed import PeerFailed
from src.runtime.signals import StopRequested
from src.support.errors import UserError
from tests.waiting import PATIENCE
from train import experiment_generator, run_experiment

ROOT = Path(__file__).parents[1]
STEPS = 50
DROPOUT = {"dataset": "tests.own_parts:read", "model": "tests.own_parts:build"}


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> str:
    """A data_dir with sparse rows as libsvmdata leaves them, and images in folders."""
    from PIL import Image

    data_dir, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    (data_dir / "libsvm").mkdir()
    rows = scipy.sparse.random(330, 40, 0.1, "csc", np.float64, rng)
    scipy.sparse.save_npz(data_dir / "libsvm" / "rcv1.binary_X.npz", rows, compressed=False)
    classes = np.sign(rows[:, :20].sum(1).A1 - rows[:, 20:].sum(1).A1 + 1e-9)
    np.save(data_dir / "libsvm" / "rcv1.binary_y.npy", classes)
    for number in range(330):
        path = data_dir / "images" / ("test" if number % 3 == 0 else "train") / f"c{number % 4}"
        path.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (12, 12, 3)) + 30 * (number % 4)
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{number}.png")
    return str(data_dir)


def config_of(kind: str, sets: str, folder: Path, **keys):
    """A run of STEPS steps whose batches do not divide evenly among 2 or 4 processes."""
    of_all = {
        "data_dir": sets,
        "batch_size": 22,
        "grad_accum_steps": 2,
        "eval_batch_size": 19,
        "optim_alg": "sgd",
        "base_lr": 0.05,
        "clip_norm": 1.0,
        "averaging": ["ema_0.9", "poly_8"],
        "train_length": STEPS,
        "train_length_unit": "step",
        "steps_per_epoch": 20,
        "seed_model": 0,
        "seed_training": 1,
        "num_workers": 0,
        "save_plot": False,
        "device": "cpu",
        "output_dir": str(folder),
    }
    half = {"train": "train[:220]", "test": "train[220:]"}
    own = {
        "dense": {
            "dataset": "sklearn/digits",
            "model": "linear",
            "aug_noise": 0.1,
            "aug_repeats": 2,
            "loss_class_weights": [1, 2] * 5,
            "metrics": ["top5_accuracy", "class_accuracy", "tests.own_metrics:agreement"],
        },
        "sparse": {
            "dataset": "libsvm/rcv1.binary",
            "model": "linear/no_bias",
            "data_splits_map": half,
            "drop_last": True,
        },
        "image": {
            "dataset": "timm/folder/images",
            "model": "tiny/lenet",
            "aug_pad_crop": 2,
            "aug_hflip": 0.5,
            "drop_last": True,
            "base_lr": 0.005,  # at larger ones rounding grows: ReLUs and maxima switch
        },
        "dropout": DROPOUT | {"drop_last": True},
    }
    return make_config(of_all | own[kind] | keys)


def run_to_end(config) -> pd.DataFrame:
    return run_experiment(config)


def weights_of(config) -> dict[str, torch.Tensor]:
    parts = CheckpointFiles(Path(config.output_dir) / "state").newest()["parts"]
    return {f"{p} {k}": t for p in ("model", "av", "av2") for k, t in flat(parts.get(p, {}))}


def flat(part: dict):
    return part.get("model", part).items()


def assert_alike(config, one) -> None:
    """Weights, averages and stats, to rounding."""
    weights, expected = weights_of(config), weights_of(one)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    stats, of_one = Stats.read(config.output_dir), Stats.read(one.output_dir)
    kept = [c for c in of_one if not is_time(c)]
    pd.testing.assert_frame_equal(stats[kept], of_one[kept], rtol=1e-4, atol=1e-5)
    arrays, of_one = Stats.read_arrays(config.output_dir), Stats.read_arrays(one.output_dir)
    assert arrays.keys() == of_one.keys()
    for column, values in of_one.items():
        np.testing.assert_allclose(arrays[column], values, rtol=1e-4)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("sparse", "image")]


@pytest.mark.parametrize("kind", ["dense", *SLOW])
def test_two_and_four_processes_train_as_one(kind, sets, tmp_path):
    one = config_of(kind, sets, tmp_path / "1")
    run_to_end(one)
    for number in (2, 4):
        config = config_of(kind, sets, tmp_path / str(number))
        frames = together(number, run_to_end, config)
        assert_alike(config, one)
        measures = [c for c in frames[0] if c.endswith(("loss", "accuracy"))]
        for frame in frames[1:]:  # each process's program sees the same
            pd.testing.assert_frame_equal(frame[measures], frames[0][measures])


def test_what_a_step_records_is_a_mean_over_the_examples_of_all_processes(
    sets, tmp_path, monkeypatch
):
    step = train.train_step

    def recording(run, learner, inputs, targets, metrics):
        step(run, learner, inputs, targets, metrics)
        sums = inputs.double().flatten(1).sum(1)
        metrics.add(weight=len(targets), pixels=sums.mean(), of_class=sums.new_zeros(10))
        if (targets == 3).any():  # in some batches of some processes
            metrics.add(weight=(targets == 3).sum(), threes=sums[targets == 3].mean())

    monkeypatch.setattr(train, "train_step", recording)
    one, two = (
        config_of("dense", sets, tmp_path / str(n), aug_noise=0, aug_repeats=1) for n in (1, 2)
    )
    run_to_end(one)
    together(2, run_to_end, two)
    assert_alike(two, one)
    assert {"train/pixels", "train/threes"} <= {*Stats.read(two.output_dir)}
    assert "train/of_class" in Stats.read_arrays(two.output_dir)


def test_a_module_beside_the_model_learns_from_the_examples_of_all_processes(
    sets, tmp_path, monkeypatch
):
    @dataclass
    class WithAdapter(train.Learner):
        adapter: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(64, 64))

        def __post_init__(self):
            self.optimizer.add_param_group({"params": [*self.adapter.parameters()]})
            super().__post_init__()

    def add_gradients(run, learner, inputs, targets, metrics):
        scale = run.loss_scale(learner.loss.normalizer(targets), targets.device)
        for x, y in run.micro_batches(inputs, targets):
            outputs = run.forward(learner.adapter(x.flatten(1)).view_as(x))
            loss_sum = learner.loss(outputs, y)
            loss_sum.backward(scale)
            metrics.add_batch(loss_sum.detach(), outputs, y)

    monkeypatch.setattr(train, "Learner", WithAdapter)
    monkeypatch.setattr(train, "add_gradients", add_gradients)
    one, two = (config_of("dense", sets, tmp_path / str(n)) for n in (1, 2))
    run_to_end(one)
    together(2, run_to_end, two)
    assert_alike(two, one)
    adapters = [CheckpointFiles(tmp_path / n / "state").newest()["parts"]["adapter"] for n in "12"]
    torch.testing.assert_close(*adapters, rtol=1e-4, atol=1e-5)


def test_two_processes_agree_on_the_limit_that_the_first_loss_sets(sets, tmp_path):
    keys = {"dataset": "tests.own_parts:read_prices", "loss": "mse", "loss_class_weights": None}
    keys |= {"metrics": []}
    limits = []
    for number in (1, 2):
        config = config_of("dense", sets, tmp_path / str(number), **keys)
        frames = together(number, run_to_end, config) if number > 1 else [run_to_end(config)]
        assert [frame["step"].iloc[-1] for frame in frames] == [STEPS] * number
        in_force = yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())
        limits.append(in_force["max_allowed_loss"])
    assert limits[0] > 3e11
    assert limits[1] == pytest.approx(limits[0], rel=1e-5)


NORMED = {"dataset": "tests.own_parts:read", "model": "tests.own_parts:build_normed"}
NORMED |= {"averaging_bn": "recompute", "drop_last": True, "averaging": "ema_0.9"}


def test_batch_norms_are_recomputed_by_all_as_by_one(sets, tmp_path):
    """Of a process the batches are as large as its share: as micro-batches of half the size."""
    one = config_of("dropout", sets, tmp_path / "1", **NORMED, grad_accum_steps=2)
    two = config_of("dropout", sets, tmp_path / "2", **NORMED, grad_accum_steps=1)
    run_to_end(one)
    frames = together(2, run_to_end, two)
    of_one = Stats.read(one.output_dir)
    for frame in frames:
        for column in ("test/av/loss", "test/av/accuracy"):
            np.testing.assert_allclose(frame[column], of_one[column], rtol=1e-4)
    (average, expected) = (weights_of(config) for config in (two, one))
    for name in expected:
        if name.startswith("av ") and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(average[name], expected[name], rtol=1e-4, atol=1e-5)


def stopped(config, at_step: int, rank: int) -> str:
    """A run of which one process alone gets a signal during a step."""
    whole, count = train.train_step, 0

    def update(*arguments):
        nonlocal count
        count += 1
        if count == at_step and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGUSR1)
        return whole(*arguments)

    train.train_step = update
    try:
        run_experiment(config)
    except StopRequested as stop:
        return stop.signal.name
    return "not stopped"


@pytest.mark.parametrize("keys", [{}, NORMED], ids=["dropout", "recomputed batch norms"])
def test_stopped_and_continued_it_is_the_uninterrupted_run_to_the_bit(sets, tmp_path, keys):
    straight, config = (
        config_of("dropout", sets, tmp_path / name, save_freq=1, **keys) for name in "ab"
    )
    together(2, run_to_end, straight)
    assert together(2, stopped, config, 27, 1) == ["SIGUSR1"] * 2
    assert not (tmp_path / "b" / "done").exists()
    together(2, run_to_end, config)
    assert first_differences(tmp_path / "a", tmp_path / "b") == []


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_on_another_number_of_processes_it_goes_on_equal_to_rounding(before, after, sets, tmp_path):
    one, config = (config_of("dense", sets, tmp_path / name) for name in "ab")
    run_to_end(one)
    together(before, stopped, config, 27, 0)
    together(after, run_to_end, config)
    assert_alike(config, one)
    said = (tmp_path / "b" / "training.log").read_text()
    assert f"resumes in {after} instead of {before} processes: sums are equal to rounding" in said


def test_early_stopping_stops_all(sets, tmp_path):
    keys = {"early_stopping_patience": 2, "base_lr": 0, "train_length": 2000}
    config = config_of("dense", sets, tmp_path / "run", **keys)
    frames = together(2, run_to_end, config)
    assert [len(frame) for frame in frames] == [3, 3]
    assert json.loads((tmp_path / "run" / "done").read_text())["outcome"] == "early_stopped"


def failing(config, rank: int) -> None:
    """One process finds no data."""
    if os.environ["RANK"] == str(rank):
        config = make_config({"dataset": "timm/folder/none", "data_dir": "nowhere"})
    run_experiment(config)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_in_one_process_ends_all_before_the_first_step(rank, sets, tmp_path):
    config = config_of("dense", sets, tmp_path / "run")
    answers = together(2, failing, config, rank)
    assert isinstance(answers[rank], UserError)
    assert isinstance(answers[1 - rank], PeerFailed)
    assert f"process {rank} has failed: " in str(answers[1 - rank])
    assert str(answers[rank]) in str(answers[1 - rank])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"batch_size": 2}, "batch_size: got 2, expected at least one"),
        (
            {"batch_size": 1437, "grad_accum_steps": 1},
            "the last micro-batch of a pass, which is left with 1",
        ),
        ({"sync_bn": True}, "sync_bn: got True, expected false, as torch has none for cpu"),
        ({"multi_gpu": "dp"}, "multi_gpu: got 'dp', expected true or fsdp, as there are 2"),
        (
            {
                "loss": "tests.own_parts:Contrastive",
                "loss_class_weights": None,
                "grad_accum_steps": 1,
            },
            "expected another one for 2 processes, as this one is no sum over examples",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused_by_all(keys, words, sets, tmp_path):
    config = config_of("dense", sets, tmp_path / "run", **keys)
    for error in together(2, run_to_end, config):
        assert words in str(error)


def test_only_the_main_process_writes(sets, tmp_path):
    together(2, run_to_end, config_of("dense", sets, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*rank*"))
    lines = (tmp_path / "run" / "training.log").read_text().splitlines()
    assert sum("step 50/50" in line for line in lines) == 1
    assert any("computes in fp32, not compiled, fused SGD, 2 processes" in line for line in lines)


def leaving(config) -> list[int]:
    """Another program that stops after two epochs."""
    epochs = []
    for stats, _ in experiment_generator(config):
        epochs.append(int(stats["epoch"].iloc[-1]))
        if len(epochs) == 2:
            break
    return epochs


def test_a_program_of_ones_own_may_leave_early_and_come_back(sets, tmp_path):
    straight, config = (config_of("dense", sets, tmp_path / name) for name in "ab")
    together(2, run_to_end, straight)
    assert together(2, leaving, config) == [[1, 2]] * 2
    together(2, run_to_end, config)
    assert first_differences(tmp_path / "a", tmp_path / "b") == []


def twice(first, second) -> list[int]:
    """A program that trains two models, one after the other and one beside the other."""
    run_experiment(first[0])
    run_experiment(first[1])
    pairs = zip(experiment_generator(second[0]), experiment_generator(second[1]), strict=True)
    return [len(pair[0][0]) + len(pair[1][0]) for pair in pairs]


@pytest.mark.slow
def test_a_program_may_train_several_models(sets, tmp_path):
    configs = [config_of("dense", sets, tmp_path / str(i), base_lr=0.01 * i) for i in range(1, 5)]
    assert together(2, twice, configs[:2], configs[2:]) == [[2, 4, 6]] * 2
    one = config_of("dense", sets, tmp_path / "one", base_lr=0.04)
    run_to_end(one)
    assert_alike(configs[3], one)


def broken_off(config) -> str:
    """The main process can't write what it promised; what the processes end with."""
    if os.environ["RANK"] == "0":
        session.save_weights = lambda *_, **__: raised(UserError("no room"))
    try:
        run_experiment(config)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def raised(error: Exception) -> None:
    raise error


def test_what_fails_in_the_main_process_in_mid_run_ends_the_others_in_a_line(sets, tmp_path):
    config = config_of("dense", sets, tmp_path / "run", save_freq=1)
    first, second = together(2, broken_off, config)
    assert first == "UserError: no room"
    ended_first = "another process of this run has ended first: killed, or training.log says why"
    heard = "process 0 has failed: no room"  # where the main process lives on for that moment
    assert second in {f"PeerFailed: {words}" for words in (ended_first, heard)}


def out_of_order(config, rank: int) -> str:
    """A process fails in its fifth step; what the processes end with."""
    whole, count = train.train_step, 0

    def update(*arguments):
        nonlocal count
        count += 1
        if count == 5 and os.environ["RANK"] == str(rank):
            raise RuntimeError("boom")
        return whole(*arguments)

    train.train_step = update
    try:
        run_experiment(config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_the_main_process_tells_what_another_one_failed_of(sets, tmp_path):
    """In the run's status and log as well, where a connection's end would say nothing."""
    config = config_of("dense", sets, tmp_path / "run")
    words = "process 1 has failed: RuntimeError: boom"
    assert together(2, out_of_order, config, 1) == [
        f"PeerFailed: {words}",
        "RuntimeError: boom",
    ]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", f"PeerFailed: {words}")
    assert "Traceback" not in (tmp_path / "run" / "training.log").read_text()
    assert "boom" in (tmp_path / "run" / "training.rank1.log").read_text()


def test_processes_that_are_to_be_alone_are_alone(sets, tmp_path):
    """A program that srun starts several times, on an experiment each."""
    configs = [config_of("dense", sets, tmp_path / str(i), multi_gpu=False) for i in range(2)]
    assert together(2, one_each, configs) == [3, 3]


def one_each(configs) -> int:
    return len(run_experiment(configs[int(os.environ["RANK"])]))


# ---- Sharded ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", pytest.param("image", marks=pytest.mark.slow)])
def test_a_sharded_model_trains_as_a_whole_one_and_one_process_goes_on_with_it(
    kind, sets, tmp_path
):
    keys = {"averaging": None, "optim_alg": "adamw", "base_lr": 0.003, "save_freq": 1}
    keys |= {"ada_eps": 1e-3}  # a smaller one makes much of the rounding of small gradients
    one = config_of(kind, sets, tmp_path / "1", **keys)
    run_to_end(one)
    config = config_of(kind, sets, tmp_path / "2", multi_gpu="fsdp", **keys)
    together(2, run_to_end, config)
    assert_alike(config, one)
    file = torch.load(tmp_path / "2" / "checkpoints" / "epoch_0003.pt", weights_only=True)
    assert {k: tuple(t.shape) for k, t in file["last"].items()} == {
        k.removeprefix("model "): tuple(t.shape) for k, t in weights_of(one).items()
    }
    shutil.rmtree(tmp_path / "2" / "checkpoints")
    model = load_run(tmp_path / "2").model  # of the state that two processes have put together
    assert {f"model {k}" for k in model.state_dict()} == weights_of(one).keys()
    for before, after in ((2, 1), (1, 2), (2, 2)):
        folder = tmp_path / f"{before}{after}"
        first, second = (
            config_of(kind, sets, folder, **keys, multi_gpu="fsdp" if number == 2 else True)
            for number in (before, after)
        )
        together(before, stopped, first, 27, 0)
        together(after, run_to_end, second)
        assert_alike(second, one)


# ---- As people start it ----------------------------------------------------------------------

STARTERS = {
    "launch": [
        "-c",
        "import sys; from src.runtime.command_line import launch_processes as launch;"
        "sys.exit(launch(sys.argv[1:], 2))",
    ],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"],
}


@pytest.mark.slow
@pytest.mark.parametrize("starter", STARTERS)
def test_started_by(starter, sets, tmp_path):
    one, config = (config_of("dense", sets, tmp_path / name) for name in "ab")
    run_to_end(one)
    config.save(tmp_path / "cfg.yaml")
    command = [sys.executable, *STARTERS[starter], "train.py", tmp_path / "cfg.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test/last/accuracy") == 1
    assert_alike(config, one)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_the_launcher_passes_signals_on_and_gives_the_code_of_the_run(number, sets, tmp_path):
    config = config_of("dense", sets, tmp_path / "run", train_length=1_000_000)
    config.save(tmp_path / "cfg.yaml")
    command = [sys.executable, *STARTERS["launch"], "train.py", tmp_path / "cfg.yaml"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "training.log"
    while not (log.exists() and "step 20/" in log.read_text()):
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == (130 if number == signal.SIGINT else 75)
    assert said.count("the same command resumes it") == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == ("interrupted" if number == signal.SIGINT else "stopped")
    assert list((tmp_path / "run" / "state").glob("*.state"))


@pytest.mark.slow
def test_when_the_launcher_is_killed_the_run_saves_its_state_and_stops(sets, tmp_path):
    config = config_of("dense", sets, tmp_path / "run", train_length=1_000_000)
    config.save(tmp_path / "cfg.yaml")
    command = [sys.executable, *STARTERS["launch"], "train.py", tmp_path / "cfg.yaml"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log, status = tmp_path / "run" / "training.log", tmp_path / "run" / "status.json"
    while not (log.exists() and "step 20/" in log.read_text()):
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=PATIENCE)  # until the last of them has closed it
    assert json.loads(status.read_text())["state"] == "stopped"
    assert list((tmp_path / "run" / "state").glob("*.state"))


@pytest.mark.slow
def test_a_mistake_is_told_once(sets, tmp_path):
    config = config_of("dense", sets, tmp_path / "run")
    config.save(tmp_path / "cfg.yaml")
    command = [sys.executable, *STARTERS["launch"], "train.py", tmp_path / "cfg.yaml"]
    done = subprocess.run(
        [*command, "dataset=sklearn/digit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.count("dataset: ") == 1
    assert len(done.stderr.splitlines()) == 1
