"""Whole runs of clip/…: zero-shot, fine-tuned from there, frozen, stopped and resumed."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from tiny_networks import write_clip
from torch.nn.functional import cross_entropy
from whole_runs import certificate, end_of, grid_here, without_times

import prepare
import train
from src.config import load_config, make_config
from src.grid.check import check_rows
from src.grid.job_file import expand_grid, read_job
from src.runtime import load_run
from src.runtime.signals import StopRequested
from src.support.errors import UserError
from train import experiment_generator, run_experiment

ROOT = Path(__file__).parents[1]
CLASSES = ("blue_stripes", "green_wall", "red_wall")
SIZE = (44, 37)


def write_images(folder: Path) -> None:
    """train and val, a folder each class: a wall of one colour, or stripes, all noisy."""
    draw = np.random.default_rng(0)
    width, height = SIZE
    for part, count in {"train": 20, "val": 9}.items():
        for channel, name in enumerate(reversed(CLASSES)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 90, (height, width, 3))
                rows = slice(None, None, 4 if "stripes" in name else 1)
                pixels[rows, :, channel] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(
                    folder / part / name / f"{number}.png"
                )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Images, and tiny CLIPs: vit and resnet."""
    folder = tmp_path_factory.mktemp("files")
    write_images(folder / "walls")
    for tower in ("vit", "resnet"):
        write_clip(folder / tower, tower)
    return folder


@pytest.fixture
def keys(files, tmp_path) -> dict:
    """Of a zero-shot run."""
    return {
        "dataset": "timm/folder/walls",
        "data_dir": str(files),
        "data_splits_map": {"train": "train", "val": "val"},
        "model": f"clip/{files / 'vit'}",
        "model_pretrained": True,
        "model_head_init": "zero_shot",
        "train_length": 0,
        "optim_alg": "adamw",
        "base_lr": 0.002,
        "batch_size": 10,
        "num_workers": 0,
        "seed_model": 1,
        "seed_training": 1,
        "output_dir": str(tmp_path / "run"),
        "save_plot": False,
    }


@torch.no_grad()
def by_hand(files: Path, tower: str = "vit") -> tuple[float, float]:
    """Loss and accuracy on val as open_clip's documentation has them computed."""
    name = f"local-dir:{files / tower}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    sentences = [
        [t(c.replace("_", " ")) for t in open_clip.SIMPLE_IMAGENET_TEMPLATES] for c in CLASSES
    ]
    texts = [model.encode_text(open_clip.tokenize(s), normalize=True).mean(0) for s in sentences]
    texts = torch.stack([text / text.norm() for text in texts])
    paths = sorted((files / "walls" / "val").rglob("*.png"))
    images = torch.stack([preprocess(Image.open(path)) for path in paths])
    targets = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ texts.T
    accuracy = (logits.argmax(1) == targets).float().mean()
    return float(cross_entropy(logits, targets)), float(accuracy)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_a_run_of_no_length_is_open_clip_s_zero_shot_evaluation(keys, files, tower):
    stats = run_experiment(make_config(keys | {"model": f"clip/{files / tower}"}))
    found = stats[["val/last/loss", "val/last/accuracy"]].iloc[-1].tolist()
    assert found == pytest.approx(by_hand(files, tower), rel=1e-5)


def test_a_zero_shot_run_is_loaded_without_its_images_and_its_text_tower(keys, files, tmp_path):
    shutil.copytree(files / "vit", tmp_path / "vit")
    keys |= {"model": f"clip/{tmp_path / 'vit'}", "keep_state": True}
    *_, (stats, model) = experiment_generator(make_config(keys | {"train_length": 1}))
    (tmp_path / "vit" / "open_clip_model.safetensors").unlink()
    loaded = load_run(tmp_path / "run")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.model(images), model.eval()(images).detach())
    assert len(loaded.stats) == len(stats)


def test_fine_tuning_starts_from_there_and_learns(keys, files):
    stats = run_experiment(make_config(keys | {"train_length": 4, "layer_decay": 0.7}))
    loss = stats["val/last/loss"]
    assert stats["val/last/accuracy"].iloc[-1] > 0.95
    assert by_hand(files)[0] > 2 * loss.iloc[-1]


def test_a_learning_rate_of_zero_stays_there(keys, files):
    still = {"train_length": 1, "base_lr": 0.0}
    stats = run_experiment(make_config(keys | still))
    assert stats["val/last/loss"].iloc[-1] == pytest.approx(by_hand(files)[0], rel=1e-5)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_a_frozen_tower_stays_bit_for_bit(keys, files, tower):
    """With the statistics of its batch norms; the head learns."""
    keys |= {"model": f"clip/{files / tower}", "model_freeze": r"visual\..*", "train_length": 2}
    *_, (_, model) = experiment_generator(make_config(keys | {"weight_decay": 0.1}))
    state = model.state_dict()
    for name, tensor in open_clip.create_model(f"local-dir:{files / tower}").state_dict().items():
        if name.startswith("visual."):
            assert torch.equal(state[name], tensor), name
    assert not torch.allclose(state["head.weight"].norm(dim=1), torch.ones(3))


def test_stopped_it_goes_on_without_its_weights(keys, files, tmp_path, monkeypatch):
    keys |= {"train_length": 3, "averaging": "ema_0.9", "layer_decay": 0.8}
    straight = make_config(keys | {"output_dir": str(tmp_path / "straight")})
    run_experiment(straight)
    stopped = make_config(keys | {"model": f"clip/{write_clip(tmp_path / 'vit')[5:]}"})
    steps, update = [], train.train_step

    def interrupted(*arguments) -> None:
        steps.append(update(*arguments))
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "train_step", interrupted)
    with pytest.raises(StopRequested):
        run_experiment(stopped)
    (tmp_path / "vit" / "open_clip_model.safetensors").unlink()
    run_experiment(stopped)
    assert end_of(stopped) == end_of(straight)
    log = (tmp_path / "run" / "training.log").read_text()
    assert (log.count("| attempt "), log.count("zero-shot head")) == (2, 1)


def test_data_without_names_are_given_some(keys, monkeypatch):
    monkeypatch.setattr("src.data.sources.sklearn.class_names", lambda name: None)
    keys |= {"dataset": "sklearn/digits", "data_splits_map": {"train": "train", "val": "test[:50]"}}
    with pytest.raises(UserError, match=r"model_head_init: .* give them as data_class_names"):
        run_experiment(make_config(keys))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    *_, (_, model) = experiment_generator(make_config(keys | {"data_class_names": names}))
    assert model.head.weight.shape == (10, 32)
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(10))


def test_preparing_fetches_the_text_tower_but_does_not_ask_it_for_all_classes(
    keys, tmp_path, monkeypatch, capsys
):
    asked = []
    real = open_clip.build_zero_shot_classifier

    def counted(*arguments, **options):
        asked.append(list(options.get("classnames") or arguments[2]))
        return real(*arguments, **options)

    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", counted)
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(keys))
    assert prepare.main([str(path)]) == 0
    assert [len(names) for names in asked] == [2]
    assert ", weights, " in capsys.readouterr().out


def test_the_first_run_works_on_other_images(files, tmp_path):
    """As CIFAR-100 and OpenAI's weights can't be had."""
    overrides = [f"data_dir={files}", "dataset=timm/folder/walls", f"model=clip/{files / 'vit'}"]
    overrides += ["data_splits_map={train: train, test: val}", f"output_dir={tmp_path / 'run'}"]
    stats = run_experiment(load_config("test_cfg_clip_zero_shot.yaml", overrides))
    assert stats["test/last/accuracy"].iloc[-1] == pytest.approx(by_hand(files)[1])


@pytest.mark.slow
def test_the_rows_of_the_example_are_right():
    rows = expand_grid(read_job("jobs/clip-zero-shot-example.yaml").parameters).rows
    assert len(rows) == 8
    assert check_rows(rows) == []


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_kills_leave_no_trace(keys, files, tmp_path, tower):
    keys |= {"model": f"clip/{files / tower}", "train_length": 40, "averaging": "ema_0.9"}
    keys |= {"lr_schedule": "cosine", "layer_decay": 0.8, "num_workers": 1}
    returncode, text = certificate(keys, tmp_path, "--kills=6")
    assert returncode == 0, text


@pytest.mark.slow
def test_a_grid_runs_here(keys, files, tmp_path):
    """Sentences, towers and frozen parts crossed, each run with the stats that it has alone."""
    keys |= {"model": [f"clip/{files / 'vit'}", f"clip/{files / 'resnet'}"]}
    keys |= {"model_zero_shot_templates": ["simple", ["a {}."]], "train_length": 1}
    keys |= {"model_freeze": r"visual\..*"}
    found = grid_here(keys, tmp_path)
    assert len(found) == 4
    alone = keys | {"model": f"clip/{files / 'vit'}", "output_dir": str(tmp_path / "run")}
    alone |= {"model_zero_shot_templates": "simple"}
    expected = without_times(run_experiment(make_config(alone))).to_csv()
    assert without_times(found[0]).to_csv() == expected
