"""load_run: an earlier run as an object, read from its folder alone."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from whole_runs import end_of

import train
from src.config import Config, write_yaml
from src.data import build_data
from src.runtime import load_run
from src.runtime.checkpoints import CheckpointFiles
from src.support import UserError
from train import run_experiment

KEPT = Path(__file__).parents[1] / "kept"
SAVING = {"save_best_checkpoint": True, "save_freq": 1, "averaging": ["ema_0.9", "poly"]}


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change(folder: Path, **keys) -> None:
    """Edit the config.yaml of a run."""
    config = vars(Config.read(folder / "config.yaml")) | keys
    (folder / "config.yaml").write_text(write_yaml(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with every kind of file that holds weights; the best epoch is the second."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    keys = {"dataset": "sklearn/digits", "model": "linear", "optim_alg": "adam", "base_lr": 0.3}
    keys |= {"train_length": 3, "seed_model": 1, "seed_training": 2, "save_plot": False}
    keys |= {"best_checkpoint_metric": "test/last/loss", "output_dir": str(folder)}
    run_experiment(Config(**keys, **SAVING))
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("model", ["last", "av", "av2"])
@pytest.mark.parametrize(
    ("checkpoint", "file", "epoch"),
    [
        (None, "checkpoints/best.pt", 2),
        ("best", "checkpoints/best.pt", 2),
        ("epoch_0001", "checkpoints/epoch_0001.pt", 1),
        ("state", "state/000000045.state", 3),
    ],
)
def test_the_weights_reach_what_the_stats_say_of_their_epoch(saved, model, checkpoint, file, epoch):
    run = load_run(saved, model, checkpoint=checkpoint)
    assert (run.path, run.epoch) == (saved / file, epoch)
    test = build_data(run.config, None).splits["test"]
    loss = cross_entropy(run.model(test.inputs), test.targets).item()
    row = run.stats.set_index("epoch").loc[epoch]
    assert loss == pytest.approx(row[f"test/{model}/loss"], rel=1e-6)
    assert not run.model.training
    assert not any(p.requires_grad for p in run.model.parameters())


def test_without_a_best_it_is_the_end_and_without_a_state_the_newest_epoch(folder):
    (folder / "checkpoints" / "best.pt").unlink()
    assert load_run(folder).path.parent == folder / "state"
    shutil.rmtree(folder / "state")
    (folder / "checkpoints" / "epoch_0003.pt").rename(folder / "checkpoints" / "epoch_10000.pt")
    shutil.copy(folder / "checkpoints" / "epoch_0001.pt", folder / "checkpoints" / "epoch_9999.pt")
    assert load_run(folder).path.name == "epoch_10000.pt"


def test_data_are_not_needed_and_nothing_is_written(folder):
    corrupt = folder / "state" / "000000060.state"
    change(folder, dataset="libsvm/of_nowhere", data_dir="/nowhere")
    corrupt.write_bytes(b"half of it")
    before = files_of(folder)
    run = load_run(folder, checkpoint="state")
    assert run.path.name == "000000045.state"
    assert run.config.dataset == "libsvm/of_nowhere"
    assert files_of(folder) == before


def test_a_run_of_version_0_2_0_loads():
    run = load_run(KEPT / "stopped", "av")
    weights = CheckpointFiles(KEPT / "stopped" / "state").newest()["parts"]["av"]["model"]
    assert run.epoch == 1
    assert len(run.stats) == 1
    assert run.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(run.model.state_dict()[name], weights[name]) for name in weights)


def test_a_run_with_a_teacher_draws_what_one_without_draws(digits, tmp_path, monkeypatch):
    """Loaded before the model, after it, and between two draws of its dropout."""
    keys = {"dataset": "tests.own_parts:read", "model": "tests.own_parts:build"}
    run_experiment(digits(**keys, output_dir=str(tmp_path / "teacher"), train_length=1))
    run_experiment(digits(**keys, output_dir=str(tmp_path / "without")))
    num_loaded = 0

    def with_teacher(function):
        def loaded(*arguments, **options):
            nonlocal num_loaded
            num_loaded += bool(load_run(tmp_path / "teacher").model)
            return function(*arguments, **options)

        return loaded

    for name in ("build_loss", "build_optimizer", "train_step"):
        monkeypatch.setattr(train, name, with_teacher(getattr(train, name)))
    config = digits(**keys, output_dir=str(tmp_path / "with"))
    run_experiment(config)
    assert num_loaded == 2 + 4
    assert end_of(config) == end_of(digits(output_dir=str(tmp_path / "without")))


def without_weights(folder: Path) -> None:
    shutil.rmtree(folder / "state")
    shutil.rmtree(folder / "checkpoints")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (shutil.rmtree, {}, "load_run: got '.*copy', expected the folder of a run .* config.yaml"),
        (without_weights, {}, r"copy: holds no weights in checkpoints/ or state/ \(keys save_b"),
        (
            None,
            {"model": "avg"},
            "model: unknown 'avg'; did you mean 'av'. there is: av, av2",
        ),
        (
            None,
            {"checkpoint": "epoch_004"},
            "checkpoint: unknown 'epoch_004'; did you mean 'e",
        ),
        (
            lambda folder: change(folder, model="linear/no_bias"),
            {},
            r"best.pt: does not fit 'linear/no_bias' of this code \(.* key\(s\) .*bias",
        ),
        (
            lambda folder: change(folder, model_input_shape=None),
            {},
            "config.yaml: model_input_shape is null: fill in",
        ),
        (
            lambda folder: (folder / "checkpoints" / "best.pt").write_bytes(b"half of it"),
            {},
            "best.pt: cannot be read",
        ),
        (
            lambda folder: [path.write_bytes(b"x") for path in folder.glob("state/*")],
            {"checkpoint": "state"},
            r"state: none of the saved states can be read \(000000045.state is no state file",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(folder, spoil, options, message):
    if spoil:
        spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        load_run(folder, **options)
    assert "\n" not in str(error.value)
