"""Folders of transformers: how the data are prepared that a network wants, and what is refused."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_image
from tiny_networks import IMAGE, LENGTH, VOCABULARY, language_model, padded, texts_of

from src.data.splits import Preprocessing
from src.data.transforms import image_transforms
from src.models.registry import build_model, check_model, model_preprocessing
from src.support.errors import UserError

# ---- How the data are prepared -----------------------------------------------------------

PROCESSORS = {
    "squeezed": ("ViTImageProcessor", {"size": {"height": 16, "width": 16}}),
    "squeezed and cut": (
        "DeiTImageProcessor",
        {"size": {"height": 20, "width": 20}, "crop_size": {"height": 16, "width": 16}},
    ),
    "cut": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 14, "width": 14}},
    ),
    "cut by a share that rounding would change": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 14}, "crop_size": {"height": 9, "width": 9}},
    ),
    "a share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 14}, "crop_pct": 0.7}),
    "large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 0.7}),
    "in its code": (
        "LevitImageProcessor",
        {"size": {"shortest_edge": 14}, "crop_size": {"height": 14, "width": 14}},
    ),
    "other pixels": (
        "ViTImageProcessor",
        {"size": {"height": 16, "width": 12}, "rescale_factor": 1 / 127.5, "resample": 3},
    ),
    "twice over the std": (
        "EfficientNetImageProcessor",
        {"size": {"height": 16, "width": 12}, "include_top": True},
    ),
    "as they are": (
        "ViTImageProcessor",
        {"size": {"height": 16, "width": 16}, "do_normalize": False},
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_images_are_prepared_as_by_the_processor(config, folder, case):
    name, settings = PROCESSORS[case]
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    path = folder("vit", num_channels=3)
    getattr(transformers, name)(**settings).save_pretrained(path)
    prepared = model_preprocessing(config(f"hf/{path}", model_weights="w.pt"))
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((60, 40))
    _, transform = image_transforms(prepared, resize=True)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    theirs = processor(photo, return_tensors="pt")["pixel_values"][0]
    ours = transform(photo)
    assert prepared.input_shape == tuple(theirs.shape)
    assert (ours - theirs).abs().max() < 0.06  # bytes are rounded at another place
    assert (ours - theirs).abs().mean() < 0.012


def test_what_a_processor_does_beside_is_reported(config, folder, log_lines):
    path = folder("vit", num_channels=3)
    transformers.MobileViTImageProcessor().save_pretrained(path)
    model_preprocessing(config(f"hf/{path}", model_weights="w.pt"))
    warning = "its MobileViTImageProcessor prepares images otherwise than is done here"
    assert log_lines == [f"hf/{path}: {warning}"]


def test_images_without_weights_or_a_processor_are_left_as_they_are(config, folder):
    path = folder("vit")
    assert model_preprocessing(config(f"hf/{path}", model_weights="w.pt")) == Preprocessing()
    transformers.ViTImageProcessor().save_pretrained(path)
    assert model_preprocessing(config(f"hf/{path}")) == Preprocessing()


@pytest.mark.parametrize(
    ("kind", "settings", "of_tokenizer", "expected"),
    [
        ("bert", {}, {"model_max_length": 16}, 16),
        ("bert", {}, {"model_max_length": 10**30}, LENGTH),
        ("roberta", {}, {}, LENGTH),  # the table has 4 more, from before the first word
        ("bert", {}, {}, LENGTH),
        ("llama", {"max_position_embeddings": 4096}, {}, 1024),
    ],
)
def test_texts_come_from_the_model_s_tokenizer(
    config, folder, kind, settings, of_tokenizer, expected
):
    path = folder(kind, **settings)
    assert model_preprocessing(config(f"hf/{path}")).tokenizer is None
    Path(path, "tokenizer_config.json").write_text(json.dumps(of_tokenizer))  # it is not built
    prepared = model_preprocessing(config(f"hf/{path}"))
    assert prepared == Preprocessing(tokenizer=path, text_length=expected)


# ---- What is refused ---------------------------------------------------------------------


def refused(message: str):
    return pytest.raises(UserError, match=message)


def test_folders_are_looked_at_before_there_are_data(config, folder, tmp_path):
    path = folder("bert")
    check_model(config(f"hf/{path}"))
    with refused(r"model_pretrained: .* model.safetensors in .*; there is config.json$"):
        check_model(config(f"hf/{path}", model_pretrained=True))
    with refused(r"model: got 'hf/.*/none', expected a folder that exists, or a name of the hub"):
        check_model(config(f"hf/{tmp_path}/none"))
    with refused(r"model: got 'hf/.*', expected config.json in this folder; there is bert$"):
        check_model(config(f"hf/{tmp_path}"))
    with refused(r"model: got 'hf/', expected a folder"):
        check_model(config("hf/"))


def test_a_folder_goes_by_its_relative_name_too(config, folder, tmp_path, monkeypatch):
    folder("bert")
    monkeypatch.chdir(tmp_path)
    assert build_model(config("hf/bert"), (LENGTH,), 2)(padded(texts_of([3]))).shape == (1, 2)


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_the_hub_is_asked_when_the_model_is_built(config, is_pretrained):
    settings = config("hf/nobody/nothing-at-all", model_pretrained=is_pretrained)
    check_model(settings)
    with refused("model: 'hf/nobody/nothing-at-all' is no folder .* a network"):
        build_model(settings, (LENGTH,), 2)
    with refused("model: 'hf/nobody/nothing-at-all' is no folder .* a network"):
        model_preprocessing(settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "settings that can be read"),
        ('{"model_type": "berd"}', "settings that can be read .*berd"),
        ("{}", "settings that can be read .*model_type"),
        ('{"architecture": "resnet18", "num_classes": 9, "pretrained_cfg": {}}', "timm/NAME"),
        ('{"model_type": "bert", "hidden_size": "x"}', "settings that can be read"),
        ('{"model_type": "x", "auto_map": {"AutoConfig": "x.Y"}}', "settings .* custom code"),
    ],
)
def test_settings_that_cannot_be_read_are_reported(config, tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "x.py").write_text("raise SystemExit")
    with refused(f"^model: got 'hf/.*{message}"):
        check_model(config(f"hf/{tmp_path}"))


@pytest.mark.parametrize(
    ("kind", "shape", "loss", "message"),
    [
        ("vit", (LENGTH,), "log", "texts with classes, as the data are; vit reads images"),
        ("bert", IMAGE, "log", "images, as the data are; bert reads texts with classes or texts"),
        (
            "resnet",
            (LENGTH,),
            "next_token",
            "texts with their next tokens, .*; resnet reads images",
        ),
    ],
)
def test_networks_for_other_data_are_reported(config, folder, kind, shape, loss, message):
    with refused(f"^model: got 'hf/.*{kind}', expected a network for {message}"):
        build_model(config(f"hf/{folder(kind)}", loss=loss), shape, 10)


@pytest.mark.parametrize("model", ["linear", "tiny/lenet", "timm/resnet18"])
def test_next_tokens_are_for_networks_for_texts(config, model):
    with refused(f"model: got '{model}', expected hf/.*, as loss is next_token"):
        check_model(config(model, loss="next_token"))


def test_a_network_that_sees_the_next_token_is_reported(config, folder):
    with refused("sees what comes before a token alone.*is_decoder"):
        language_model(config, folder("bert"))
    language_model(config, folder("bert", is_decoder=True))


def test_images_of_a_wrong_size_are_reported(config, folder, weights):
    with refused(r"model: .* a model for images of shape \(1, 2, 2\)"):
        build_model(config(f"hf/{folder('vit')}"), (1, 2, 2), 3)
    path, _ = weights("vit", "AutoModel")
    for shape in ((1, 16, 16), (3, 8, 8)):
        with refused(r"model_pretrained: .* of shape .* \(model_input_shape\?\)$"):
            build_model(config(f"hf/{path}", model_pretrained=True), shape, 3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "opt"])
def test_texts_longer_than_the_table_of_positions_are_reported(config, folder, kind):
    path = folder(kind)
    build_model(config(f"hf/{path}"), (LENGTH,), 3)(padded(texts_of([LENGTH])))
    with refused(f"data_text_length: got {LENGTH + 1}, expected at most {LENGTH} tokens"):
        build_model(config(f"hf/{path}"), (LENGTH + 1,), 3)


def test_positions_without_a_table_have_no_end(config, folder):
    model = build_model(config(f"hf/{folder('llama')}"), (LENGTH + 9,), 3)
    assert model(padded(texts_of([LENGTH + 9]))).shape == (1, 3)


def test_tokens_of_another_tokenizer_are_reported(config, folder, weights):
    model = build_model(config(f"hf/{folder('bert')}"), (LENGTH,), 3)
    with refused("data_tokenizer: .* beyond its vocabulary"):
        model(torch.tensor([[VOCABULARY]]))
    path, _ = weights("gpt2", "AutoModel")
    with refused(f"data_tokenizer: got one of 41 tokens, expected one of at most {VOCABULARY}"):
        language_model(config, path, VOCABULARY + 1, model_pretrained=True)


def test_rows_of_numbers_are_reported(config, folder):
    model = build_model(config(f"hf/{folder('bert')}"), (LENGTH,), 3)
    with refused("model: hf/… takes images or texts, and the data are rows"):
        model(torch.rand(2, LENGTH))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_weights_that_cannot_be_had_are_reported(config, weights, tmp_path, monkeypatch):
    path, file = weights("bert", "AutoModel")
    settings = config(f"hf/{path}", model_pretrained=True)
    full = Path(path, "model.safetensors")
    full.write_bytes(full.read_bytes()[:1000])
    with refused("model_pretrained: got True, expected weights that can be read in"):
        build_model(settings, (LENGTH,), 2)
    full.unlink()
    monkeypatch.chdir(tmp_path)
    Path(path, "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    with refused("model_pretrained: got True, expected weights that can be read in"):
        build_model(settings, (LENGTH,), 2)
    torch.save({"a": Harmful()}, Path(path, "pytorch_model.bin"))
    with refused("model_pretrained: got True, expected weights that can be read in"):
        build_model(settings, (LENGTH,), 2)
    assert not Path("harmed").exists()
    torch.save({n: t for n, t in file.items() if "pooler" not in n}, path + "/pytorch_model.bin")
    build_model(settings, (LENGTH,), 2)
    torch.save({n: t for n, t in file.items() if "query" not in n}, path + "/pytorch_model.bin")
    with refused("expected all weights of the network .* there is no bert.encoder.layer.0.attent"):
        build_model(settings, (LENGTH,), 2)


def test_the_missing_package_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers") as info:
        check_model(config("hf/gpt2"))
    assert isinstance(info.value.__cause__, ImportError)
