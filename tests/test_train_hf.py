"""Whole runs of hf/… on images: fine-tuned from a folder, stopped and resumed, in a grid."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import cross_entropy
from whole_runs import certificate, end_of, grid_here, run_through

from src.config import make_config
from src.grid.check import check_rows
from src.runtime.signals import StopRequested
from train import experiment_generator, run_experiment

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"intermediate_size": 64, "patch_size": 4, "image_size": 8, "hidden_dropout_prob": 0.1},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
    | {"layer_type": "basic"},
}
DIGITS = {
    "dataset": "sklearn/digits",
    "data_splits_map": {"train": "train[:1000]", "test": "train[1000:1300]"},
    "model_input_shape": [1, 8, 8],
    "optim_alg": "adamw",
    "base_lr": 3e-3,
    "batch_size": 20,
    "seed_model": 1,
    "seed_training": 2,
    "save_plot": False,
}
MEASURES = ["test/last/loss", "test/last/accuracy"]


def write_settings(folder: Path, kind: str, **settings) -> str:
    folder.mkdir(parents=True)
    content = {"model_type": kind} | SETTINGS[kind] | settings
    (folder / "config.json").write_text(json.dumps(content))
    return f"hf/{folder}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[str, pd.DataFrame]]:
    """kind -> hf/FOLDER with a network that knows digits, and the stats of its training."""
    networks = {}
    for kind in SETTINGS:
        folder = tmp_path_factory.mktemp(kind)
        keys = DIGITS | {"model": write_settings(folder / "settings", kind), "train_length": 4}
        *_, (stats, model) = experiment_generator(make_config(keys))
        model.network.save_pretrained(folder / "trained")
        networks[kind] = f"hf/{folder / 'trained'}", stats
    return networks


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_network_learns_and_starts_again_where_it_was(trained, kind):
    model, stats = trained[kind]
    assert stats["test/last/accuracy"].iloc[-1] > 0.6
    keys = DIGITS | {"model": model, "model_pretrained": True, "train_length": 0}
    again = run_experiment(make_config(keys | {"seed_model": 9}))
    assert again[MEASURES].iloc[-1].tolist() == stats[MEASURES].iloc[-1].tolist()


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_learns_faster_from_there_with_a_new_head(trained, kind):
    keys = DIGITS | {"model": trained[kind][0], "model_output_dim": 12, "train_length": 1}
    keys |= {"layer_decay": 0.7}
    losses = [
        run_experiment(make_config(keys | {"model_pretrained": is_pretrained}))["test/last/loss"]
        for is_pretrained in (True, False)
    ]
    assert losses[0].iloc[-1] < 0.7 * losses[1].iloc[-1]


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_folder_of_images_is_seen_as_by_the_processor(tmp_path, kind):
    """Loss and accuracy of the weights of the folder, by transformers' own code."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("blue", "red"):
            (tmp_path / "walls" / part / name).mkdir(parents=True)
            for number in range(7):
                pixels = draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                path = tmp_path / "walls" / part / name / f"{number}.png"
                Image.fromarray(pixels).save(path)
    folder = Path(write_settings(tmp_path / kind, kind, image_size=12, num_channels=3)[3:])
    processor = transformers.DeiTImageProcessor(
        size={"height": 16, "width": 16},
        crop_size={"height": 12, "width": 12},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    )
    processor.save_pretrained(folder)
    factory = transformers.AutoModelForImageClassification
    network = factory.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()
    network.save_pretrained(folder)
    keys = {"dataset": "timm/folder/walls", "data_dir": str(tmp_path), "model": f"hf/{folder}"}
    keys |= {"data_splits_map": {"train": "train", "test": "val"}, "model_pretrained": True}
    config = make_config(DIGITS | keys | {"model_input_shape": None, "train_length": 0})
    stats = run_experiment(config)

    paths = sorted((tmp_path / "walls" / "val").rglob("*.png"))
    images = processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    targets = torch.tensor([path.parent.name == "red" for path in paths]).long()
    with torch.no_grad():
        logits = network(pixel_values=images).logits
    right = float((logits.argmax(1) == targets).float().mean())
    expected = [float(cross_entropy(logits, targets)), right]
    assert stats[MEASURES].iloc[-1].tolist() == pytest.approx(expected, rel=1e-4)


ALL = {
    "model_pretrained": True,
    "model_head_init": "zero",
    "averaging": ["ema_0.9", "poly_8"],
    "grad_accum_steps": 2,
    "layer_decay": 0.7,
    "lr_schedule": "cosine",
    "data_splits_map": {"train": "train[:200]", "test": "train[1000:1100]"},
}
FREEZE = {"vit": r"network\.vit\.embeddings\..*", "resnet": r"network\.resnet\.embedder\..*"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_stopped_and_gone_on_with_it_ends_the_same(
    trained,
    tmp_path,
    interrupt,
    kind,
):
    """Without the file of weights that it started from: the state has them."""
    folder = shutil.copytree(trained[kind][0][3:], tmp_path / "copy")
    keys = DIGITS | ALL | {"model_freeze": FREEZE[kind], "train_length": 2}
    straight = keys | {"model": trained[kind][0], "output_dir": str(tmp_path / "straight")}
    run_experiment(make_config(straight))
    interrupt(2, 9, 16)
    stopped = make_config(keys | {"model": f"hf/{folder}", "output_dir": str(tmp_path / "run")})
    with pytest.raises(StopRequested):
        run_experiment(stopped)
    (folder / "model.safetensors").unlink()
    assert run_through(stopped) == 3
    assert end_of(stopped) == end_of(make_config(straight))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_kills_leave_no_trace(trained, tmp_path, kind):
    keys = DIGITS | ALL | {"model": trained[kind][0], "model_freeze": FREEZE[kind]}
    returncode, text = certificate(keys | {"train_length": 80}, tmp_path, "--kills=4")
    assert returncode == 0, text


@pytest.mark.slow
def test_what_is_wrong_with_the_rows_of_a_grid_shows_before_it_starts(tmp_path):
    (tmp_path / "empty").mkdir()
    model = write_settings(tmp_path / "vit", "vit")
    right = [{"model": model}, {"model": "hf/google/vit-base-patch16-224"}]
    wrong = [{"model": f"hf/{tmp_path / 'empty'}"}, {"model": model, "model_pretrained": True}]
    wrong += [{"model": f"hf/{tmp_path / 'none'}"}]
    lines = check_rows([DIGITS | row for row in [*right, *wrong]])
    assert [line.split(":")[0] for line in lines] == ["run 2", "run 3", "run 4"]
    for line, words in zip(lines, ("config.json in", "model.safetensors", "a folder"), strict=True):
        assert f"expected {words}" in line


@pytest.mark.slow
def test_a_grid_runs_here(trained, tmp_path):
    """Networks, layers that learn at their own pace and frozen ones crossed, each run with the
    stats that it has alone."""
    keys = DIGITS | {"model": [trained[kind][0] for kind in SETTINGS], "model_pretrained": True}
    keys |= {"layer_decay": [None, 0.5], "model_freeze": [[], r"network\.classifier.*"]}
    keys |= {"train_length": 1, "model_input_shape": [[1, 8, 8]]}
    found = grid_here(keys, tmp_path)
    assert len(found) == 8
    losses = [stats["test/last/loss"].iloc[-1] for stats in found]
    assert len(set(losses)) == 8
    first = DIGITS | {"model": trained["vit"][0], "model_pretrained": True, "train_length": 1}
    assert losses[0] == run_experiment(make_config(first))["test/last/loss"].iloc[-1]
