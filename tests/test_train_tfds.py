"""Whole runs on tfds/NAME, in both of the forms that TFDS prepares."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from whole_runs import certificate, end_of, grid_here, run_through

from src.config import load_config, make_config
from src.grid.check import check_rows
from src.metrics import is_time
from tests.data.sources.tfds_folders import FORMS, written
from train import experiment_generator, run_experiment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Form -> data_dir."""
    return written(tmp_path_factory.getbasetemp())


@pytest.fixture
def colours(folders, tmp_path):
    """A Config for two short epochs; keyword arguments change it."""

    def build(form: str = "tfrecord", name: str = "run", **keys):
        return make_config(keys_of(folders[form]) | {"output_dir": str(tmp_path / name)} | keys)

    return build


def keys_of(data_dir: Path) -> dict:
    return {
        "dataset": "tfds/colours",
        "data_dir": str(data_dir),
        "data_download": False,
        "model": "tiny/wrn_10_1_0.3",
        "optim_alg": "adam",
        "base_lr": 0.003,
        "batch_size": 20,
        "train_length": 2,
        "seed_model": 1,
        "seed_training": 2,
        "save_plot": False,
        "num_workers": 0,
    }


def results(config) -> tuple[str, torch.Tensor]:
    """The stats without times, and all weights."""
    *_, (stats, model) = experiment_generator(config)
    timed = [column for column in stats if is_time(column)]
    weights = torch.cat([t.double().flatten() for t in model.state_dict().values()])
    return stats.drop(columns=timed).to_csv(), weights


@pytest.mark.parametrize("form", FORMS)
def test_a_network_learns(colours, form):
    stats = run_experiment(colours(form, train_length=8, num_workers=1))
    assert stats["train/loss"].iloc[-1] < 0.5 * stats["train/loss"].iloc[0]
    assert stats["test/last/accuracy"].iloc[-1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("is_augmented", [False, True])
def test_neither_form_nor_workers_nor_timm_s_name_change_anything(colours, is_augmented):
    augmented = {"aug_pad_crop": 2, "aug_hflip": 0.5, "data_splits_map": {"train": "all"}}
    kinds = [
        ("array_record", "tfds/colours", 0),
        ("array_record", "tfds/colours", 2),
        ("tfrecord", "timm/tfds/colours", 0),
        ("tfrecord", "tfds/colours:1.10.0", 2),
    ]
    runs = []
    for form, dataset, num_workers in kinds:
        keys = {"dataset": dataset, "num_workers": num_workers}
        name = f"{form}{num_workers}"
        runs.append(results(colours(form, name, **keys, **(augmented if is_augmented else {}))))
    (stats, weights), *others = runs
    for other_stats, other_weights in others:
        assert other_stats == stats
        assert torch.equal(other_weights, weights)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_stopped_it_ends_as_the_run_that_never_was(colours, interrupt, form):
    keys = {"num_workers": 2, "averaging": "ema_0.9", "log_interval": 3}
    straight = colours(form, "straight", **keys)
    run_experiment(straight)
    interrupt(2, 7, 9)
    stopped = colours(form, **keys)
    assert run_through(stopped) == 4
    assert end_of(stopped) == end_of(straight)


def test_the_version_is_found_and_kept(colours, tmp_path):
    """A newer one that comes later is not what config.yaml asks for."""
    run_experiment(colours(data_version="1.9.0"))
    found = load_config(tmp_path / "run" / "config.yaml", [f"output_dir={tmp_path / 'again'}"])
    assert (found.data_version, found.data_n_examples) == ("1.9.0", {"train": 120, "test": 30})
    run_experiment(found)
    assert end_of(found)["stats"] == end_of(colours())["stats"]
    run_experiment(colours(name="newest"))
    newest = load_config(tmp_path / "newest" / "config.yaml", [])
    assert (newest.dataset, newest.data_version) == ("tfds/colours", "1.10.0")


@pytest.mark.slow
def test_runs_do_without_tensorflow(folders, tmp_path):
    script = """
import sys, train
from src.config import load_config
for file in sys.argv[1:]:
    train.run_experiment(load_config(file))
print(sorted(name for name in sys.modules if name.partition(".")[0] == "tensorflow"))
"""
    files = [tmp_path / f"{form}.yaml" for form in folders]
    for file, data_dir in zip(files, folders.values(), strict=True):
        file.write_text(yaml.safe_dump(keys_of(data_dir) | {"train_length": 1}))
    command = [sys.executable, "-c", script, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_kills_leave_no_trace(folders, tmp_path, form):
    keys = keys_of(folders[form]) | {"num_workers": 2, "train_length": 30, "averaging": "ema_0.9"}
    returncode, text = certificate(keys, tmp_path, "--kills=6")
    assert returncode == 0, text


@pytest.mark.slow
def test_a_grid_runs(folders, tmp_path):
    """Names are looked up before; each row reads by processes of its own."""
    names = ["tfds/colours", "timm/tfds/colours:1.9.0"]
    parameters = keys_of(folders["array_record"]) | {"dataset": names, "num_workers": [0, 2]}
    stats = grid_here(parameters, tmp_path)
    assert len(stats) == 4
    assert len({frame["train/loss"].to_csv() for frame in stats}) == 1


@pytest.mark.slow
def test_a_misspelled_row_is_told_before_it_runs(folders):
    (line,) = check_rows([keys_of(folders["array_record"]) | {"dataset": "tfds/colors"}])
    assert "did you mean 'tfds/colours'?" in line
