"""CLIPs of open_clip as classifiers: names, weights, heads from names of classes, layers."""

import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from loguru import logger
from PIL import Image
from safetensors.torch import save_file
from tiny_networks import CLIP_TEXT, TOWERS, write_clip
from torch import nn

from src.data.transforms import image_transforms
from src.grid.check import answer
from src.models import clip
from src.models.registry import build_model, check_model, model_preprocessing
from src.optim.optimizers import param_groups
from src.support.errors import UserError

SHAPE = (3, 32, 32)
NAMES = ("grass_snake", "palace", "tiger cat")


def original(name: str) -> nn.Module:
    return open_clip.create_model(name.replace("clip/", "local-dir:", 1)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("clips")
    return {tower: write_clip(root / tower, tower) for tower in TOWERS}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def warnings():
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


def zero_shot(config, name: str, class_names=NAMES, **keys) -> nn.Module:
    keys = {"model_pretrained": True} | keys
    settings = config(name, model_head_init="zero_shot", **keys)
    return build_model(settings, SHAPE, len(NAMES), class_names).eval()


# ---- Names -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", clip.SHORT_NAMES)
def test_short_names_are_openai_s_weights(name):
    found = clip.resolve(name, is_pretrained=True)
    assert found.name in open_clip.list_openai_models()
    assert found.weights == open_clip.get_pretrained_cfg(found.name, "openai")


@pytest.mark.parametrize(
    ("name", "architecture", "tag"),
    [
        ("ViT-B-32", "ViT-B-32", "openai"),
        ("ViT-B-32.laion2b_s34b_b79k", "ViT-B-32", "laion2b_s34b_b79k"),
        ("convnext_base_w", "convnext_base_w", "laion2b_s13b_b82k"),
    ],
)
def test_names_of_open_clip_mean_what_they_mean_there(name, architecture, tag):
    found = clip.resolve(name, is_pretrained=True)
    assert found.name == architecture
    assert found.weights == open_clip.get_pretrained_cfg(architecture, tag)


def test_names_are_checked_without_building_and_without_weights(config):
    """10 GB of them, of which none are in the cache."""
    check_model(config("clip/ViT-bigG-14", model_pretrained=True, model_head_init="zero_shot"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_b23", r"unknown 'clip/vit_b23'; did you mean 'clip/vit_b32'\? .* in all"),
        ("vit-b-32", r"unknown 'clip/vit-b-32'; did you mean 'clip/ViT-B-32'"),
        ("ViT-B-32.opnai", r"did you mean 'clip/ViT-B-32.openai'\? there is: clip/ViT-B-32\."),
        ("ViT-S-32.openai", r"unknown 'clip/ViT-S-32.openai'; there is: none"),
        ("ViT-B/32", r"a name, or a folder with open_clip_config.json; .* 'clip/ViT-B-32'"),
        ("/no/where", r"a name, or a folder with open_clip_config.json$"),
        ("", r"unknown 'clip/'"),
    ],
)
def test_wrong_names_are_reported(config, name, message):
    with pytest.raises(UserError, match=f"^model: .*{message}"):
        check_model(config(f"clip/{name}"))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_cfg": {"vision_cfg": {}}}'])
def test_a_folder_with_a_broken_config_is_reported(config, tmp_path, text):
    (tmp_path / clip.CONFIG).write_text(text)
    with pytest.raises(UserError, match=r"^model: .* a readable open_clip_config.json with"):
        check_model(config(f"clip/{tmp_path}"))


def test_weights_that_there_are_not_are_reported(config, tmp_path):
    write_clip(tmp_path / "x")
    (tmp_path / "x" / "open_clip_model.safetensors").unlink()
    check_model(config(f"clip/{tmp_path / 'x'}"))
    for name, words in {
        f"clip/{tmp_path / 'x'}": "its folder",
        "clip/ViT-S-32": "open_clip",
    }.items():
        with pytest.raises(UserError, match=f"^model_pretrained: .*{words} has none"):
            check_model(config(name, model_pretrained=True))


def test_weights_that_cannot_be_fetched_are_reported(config):
    settings = config("clip/vit_b32", model_pretrained=True)
    with pytest.raises(UserError, match=r"'clip/vit_b32'.* a network.* model_weights"):
        build_model(settings, (3, 224, 224), 10)


def test_without_open_clip_the_package_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        check_model(config("clip/vit_b32"))
    assert "unknown" in answer("model", {"model": "clip/vit_b32"})


# ---- Towers and weights ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tower", "shape"),
    [("vit", (3, 32, 32)), ("vit", (3, 24, 40)), ("resnet", (3, 64, 64)), ("timm", (3, 48, 32))],
)
def test_networks_take_the_shape_of_the_data(config, folders, tower, shape):
    model = build_model(config(folders[tower]), shape, 7)
    assert all(module.training for module in model.modules())
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("tower", "shape", "message"),
    [
        ("vit", (1, 32, 32), r"a model for 1 channels; .* \(model_input_shape: \[3, 32, 32\]\)"),
        ("vit", (3, 4, 4), r"a model for inputs of shape \(3, 4, 4\)"),
        ("resnet", (3, 32, 64), "squares only"),
        ("resnet", (3, 16, 16), r"of shape \(3, 16, 16\)"),
        ("vit", (64,), r"of shape \(64,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_reported(config, folders, tower, shape, message):
    with pytest.raises(UserError, match=f"^model: .*{message}"):
        build_model(config(folders[tower]), shape, 7)


def test_the_start_is_a_function_of_seed_model_alone(config, folders):
    for keys in ({}, {"model_pretrained": True}):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = build_model(config(folders["vit"], **keys), SHAPE, 3).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        again = build_model(config(folders["vit"], **keys), SHAPE, 3).state_dict()
        other = build_model(config(folders["vit"], seed_model=2, **keys), SHAPE, 3).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        differing = [name for name in first if not torch.equal(first[name], other[name])]
        assert "head.weight" in differing
        assert ("visual.proj" in differing) == (not keys)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_logits_are_those_of_the_scaled_features(config, folders, images, tower):
    model = build_model(config(folders[tower], model_pretrained=True), SHAPE, 5).eval()
    whole = original(folders[tower])
    with torch.no_grad():
        features = whole.logit_scale.exp() * whole.encode_image(images, normalize=True)
        torch.testing.assert_close(model(images), model.head(features))
    assert {name.split(".")[0] for name in model.state_dict()} == {"visual", "head", "scale"}


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("vit_b32", open_clip.model.QuickGELU),
        ("ViT-B-32", open_clip.model.QuickGELU),
        ("ViT-B-32.laion2b_s34b_b79k", nn.GELU),
    ],
)
def test_the_activation_is_that_of_the_weights_even_without_them(config, name, activation):
    """As a resumed run takes its weights from its checkpoint."""
    model = build_model(config(f"clip/{name}"), SHAPE, 3)
    found = {type(m) for m in model.modules() if type(m).__name__.endswith("GELU")}
    assert found == {activation}


def test_weights_of_another_size_of_image_are_resized(config, folders):
    model = build_model(config(folders["vit"], model_pretrained=True), (3, 64, 64), 3)
    assert len(model.visual.positional_embedding) == 8 * 8 + 1
    with pytest.raises(UserError, match=r"^model_pretrained: .* \(3, 64, 64\) \(.*size mismatch"):
        build_model(config(folders["resnet"], model_pretrained=True), (3, 64, 64), 3)


def as_training_checkpoint(state: dict, path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": t for k, t in state.items()}}, path)


@pytest.mark.parametrize(
    ("file", "save"),
    [("w.safetensors", save_file), ("w.pt", torch.save), ("epoch_1.pt", as_training_checkpoint)],
)
@pytest.mark.parametrize("is_zero_shot", [False, True])
def test_a_file_of_open_clip_s_is_a_whole_clip(config, folders, tmp_path, file, save, is_zero_shot):
    """Here for another architecture of the same shape, whose own weights are elsewhere."""
    save(original(folders["vit"]).state_dict(), tmp_path / file)
    name = write_clip(tmp_path / "other")
    (tmp_path / "other" / "open_clip_model.safetensors").unlink()
    keys = {"model_weights": str(tmp_path / file)}
    keys |= {"model_head_init": "zero_shot"} if is_zero_shot else {}
    got = build_model(config(name, **keys), SHAPE, 3, NAMES).state_dict()
    keys = keys | {"model_weights": None, "model_pretrained": True}
    wanted = build_model(config(folders["vit"], **keys), SHAPE, 3, NAMES).state_dict()
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())


def test_a_file_of_open_clip_s_goes_with_names_as_well(config, tmp_path, images):
    whole = open_clip.create_model("ViT-S-32-alt", force_image_size=32).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    settings = config("clip/ViT-S-32-alt", model_weights=str(tmp_path / "w.pt"))
    model = build_model(settings, SHAPE, 3).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.visual(images), whole.encode_image(images))


def test_a_checkpoint_of_ours_is_loaded_with_its_head(config, folders, tmp_path, warnings):
    trained = zero_shot(config, folders["vit"]).state_dict()
    torch.save({"epoch": 3, "last": trained}, tmp_path / "w.pt")
    settings = config(folders["vit"], model_weights=str(tmp_path / "w.pt"))
    got = build_model(settings, SHAPE, 3).state_dict()
    assert all(torch.equal(got[key], tensor) for key, tensor in trained.items())
    new = build_model(settings, SHAPE, 5).state_dict()
    assert new["head.weight"].shape == (5, 32)
    assert torch.equal(new["visual.proj"], trained["visual.proj"])
    with pytest.raises(
        UserError, match=r"^model_head_init: zero_shot .* text tower, which .*w.pt'"
    ):
        zero_shot(
            config, folders["vit"], model_pretrained=False, model_weights=str(tmp_path / "w.pt")
        )


def test_files_that_do_not_fit_are_reported(config, folders, tmp_path):
    save_file(original(folders["resnet"]).state_dict(), tmp_path / "resnet.safetensors")
    (tmp_path / "broken.pt").write_bytes(b"half of it")
    messages = {
        "resnet.safetensors": "do not make a 'clip/.*vit' for inputs of .*Missing key",
        "broken.pt": "a readable state dict",
        "none.pt": "a file that exists",
    }
    for file, message in messages.items():
        settings = config(folders["vit"], model_weights=str(tmp_path / file))
        with pytest.raises(UserError, match=f"^model_weights: .*{message}") as caught:
            build_model(settings, SHAPE, 3)
        assert len(str(caught.value)) < 500


def test_broken_weights_in_a_folder_are_reported(config, tmp_path):
    name = write_clip(tmp_path / "x")
    (tmp_path / "x" / "open_clip_model.safetensors").write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"^model_pretrained: these weights do not make a 'clip/"):
        build_model(config(name, model_pretrained=True), SHAPE, 3)


# ---- Heads from names --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "templates"),
    [
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        ("openai", open_clip.OPENAI_IMAGENET_TEMPLATES),
        (["a photo of a {}.", "{}"], ["a photo of a {}.", "{}"]),
        (["{} {weird} {}"], [lambda name: f"{name} {{weird}} {name}"]),
    ],
)
def test_a_head_from_names_is_open_clip_s(config, folders, images, requested, templates):
    model = zero_shot(config, folders["vit"], model_zero_shot_templates=requested)
    whole, tokenizer = original(folders["vit"]), open_clip.get_tokenizer("ViT-B-32")
    names = ["grass snake", "palace", "tiger cat"]
    columns = open_clip.build_zero_shot_classifier(whole, tokenizer, names, templates)
    with torch.no_grad():
        features = whole.encode_image(images, normalize=True)
        expected = whole.logit_scale.exp() * features @ columns
        torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.head.weight, columns.T)
    assert torch.equal(model.head.bias, torch.zeros(3))
    assert model.head.weight.requires_grad


def test_a_head_from_names_leaves_the_rest_alone(config, folders):
    plain = build_model(config(folders["resnet"], model_pretrained=True), SHAPE, 3).state_dict()
    settings = config(folders["resnet"], model_pretrained=True, model_head_init="zero_shot")
    model = build_model(settings, SHAPE, 3, NAMES)
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize(
    ("keys", "names", "message"),
    [
        ({}, None, "model_head_init: .* give them as data_class_names"),
        ({"model_output_dim": 4}, NAMES, "model_output_dim: got 4, expected 3, the number of"),
        ({"model_zero_shot_templates": []}, NAMES, "templates: .* at least one"),
        ({"model_zero_shot_templates": ["{}", "a cat"]}, NAMES, "templates: got 'a cat', .* {}"),
    ],
)
def test_names_and_sentences_that_are_missing_are_reported(config, folders, keys, names, message):
    with pytest.raises(UserError, match=message):
        zero_shot(config, folders["vit"], names, **keys)


def test_sentences_are_checked_before_there_are_data(config):
    keys = {"model_head_init": "zero_shot", "model_zero_shot_templates": ["a cat"]}
    with pytest.raises(UserError, match="model_zero_shot_templates: got 'a cat'"):
        check_model(config("clip/vit_b32", **keys))
    with pytest.raises(UserError, match=r"model_head_init: .*clip/"):
        check_model(config("timm/resnet18", model_head_init="zero_shot"))


def test_a_head_from_names_without_weights_is_warned_of(config, folders, warnings):
    zero_shot(config, folders["vit"], model_pretrained=False)
    assert ["zero_shot knows nothing" in line for line in warnings] == [True]
    zero_shot(config, folders["vit"])
    assert len(warnings) == 1


def test_random_weights_that_were_asked_for_are_not_warned_of(config, folders, caplog):
    build_model(config(folders["vit"]), SHAPE, 3)
    assert caplog.records == []


def test_a_tokenizer_that_cannot_be_had_is_reported(config):
    settings = config("clip/ViT-B-16-SigLIP", model_head_init="zero_shot")
    with pytest.raises(UserError, match=r"^model_head_init: there is no tokenizer for 'clip/ViT-B"):
        build_model(settings, SHAPE, 3, NAMES)


def in_hub_cache(folder: Path, repository: str, state: dict[str, torch.Tensor]) -> None:
    """As the hub keeps what it has fetched."""
    kept = folder / f"models--{repository.replace('/', '--')}"
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    save_file(state, kept / "snapshots" / ("0" * 40) / "open_clip_model.safetensors")


def test_openai_s_weights_read_names_as_they_were_trained_to(config, tmp_path, monkeypatch):
    """Their text tower has another activation than open_clip's architecture of that name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, keys in {"RN50": {}, "RN50-quickgelu": {"quick_gelu": True}}.items():
        small = {"embed_dim": 32, "vision_cfg": {"image_size": 64, **TOWERS["resnet"]}}
        small |= {"text_cfg": CLIP_TEXT} | keys
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, small)
    whole = open_clip.create_model("RN50-quickgelu", force_image_size=64).eval()
    with torch.no_grad():
        half = {name: t.half() for name, t in whole.state_dict().items()}  # as OpenAI's are
    in_hub_cache(tmp_path, "timm/resnet50_clip.openai", half)
    whole.load_state_dict(half)
    keys = {"model_pretrained": True, "model_head_init": "zero_shot"}
    keys["model_zero_shot_templates"] = ["a photo of a {}."]
    model = build_model(config("clip/resnet_50", **keys), (3, 64, 64), 3, NAMES).eval()
    shutil.rmtree(tmp_path / "models--timm--resnet50_clip.openai")
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    names = ["a photo of a grass snake.", "a photo of a palace.", "a photo of a tiger cat."]
    with torch.no_grad():
        images, tokens = torch.rand(2, 3, 64, 64), open_clip.tokenize(names)
        expected, _ = whole.get_logits(images, tokens)
        torch.testing.assert_close(model(images), expected)


# ---- Images ------------------------------------------------------------------------------


def picture(width: int, height: int) -> Image.Image:
    """Smooth, with edges."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 9, height))
    pixels = np.stack([np.sin(x) ** 2, np.cos(y) ** 2, (np.sin(x * y) > 0)], axis=-1)
    return Image.fromarray((pixels * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(50, 41), (20, 33), (32, 32)])
@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"resize_mode": "squash", "mean": 0.5, "std": 0.25},
        {"interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    ],
)
def test_images_are_prepared_as_open_clip_does(config, tmp_path, preprocess, size):
    name = write_clip(tmp_path / "x", **preprocess)
    prepared = model_preprocessing(config(name, model_pretrained=True))
    _, transform = image_transforms(prepared, resize=True)
    _, _, theirs = open_clip.create_model_and_transforms(name.replace("clip/", "local-dir:", 1))
    image = picture(*size)
    torch.testing.assert_close(transform(image), theirs(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "is_squashed"),
    [
        ("vit_b32", (3, 224, 224), False),
        ("vit_l14_336", (3, 336, 336), False),
        ("resnet_50_64", (3, 448, 448), False),
        ("ViT-B-16-SigLIP", (3, 224, 224), True),
    ],
)
def test_images_are_prepared_as_for_the_weights(config, name, shape, is_squashed):
    prepared = model_preprocessing(config(f"clip/{name}", model_pretrained=True))
    wanted = clip.resolve(name).weights
    assert (prepared.input_shape, prepared.mean, prepared.std) == (
        shape,
        wanted["mean"],
        wanted["std"],
    )
    assert (prepared.interpolation, prepared.crop_pct, prepared.is_squashed) == (
        "bicubic",
        1,
        is_squashed,
    )
    assert model_preprocessing(config(f"clip/{name}")) is None


def test_images_in_a_frame_are_refused(config, tmp_path):
    name = write_clip(tmp_path / "x", resize_mode="longest")
    with pytest.raises(UserError, match="cropped or squashed, not 'longest'"):
        model_preprocessing(config(name, model_pretrained=True))


# ---- Layers ------------------------------------------------------------------------------


LAYERS = {
    "vit": [
        ["class_embedding", "positional_embedding", "conv1.weight", "ln_pre.bias"],
        ["transformer.resblocks.0.attn.in_proj_weight"],
        ["transformer.resblocks.1.mlp.c_proj.bias"],
        ["ln_post.weight", "proj"],
    ],
    "resnet": [
        ["conv1.weight", "bn1.bias", "conv3.weight", "bn3.weight"],
        ["layer1.0.conv1.weight", "layer1.0.downsample.0.weight"],
        ["layer2.0.bn1.weight"],
        ["layer2.1.conv3.weight"],
        ["layer3.0.conv2.weight"],
        ["layer4.0.bn2.bias"],
        ["attnpool.positional_embedding", "attnpool.c_proj.weight"],
    ],
}


def scales_of(model: nn.Module) -> dict[str, float]:
    """Name of a parameter -> the factor of its learning rate with layer_decay 0.5."""
    groups = param_groups(model, weight_decay=0, weight_decay_biases=0, layer_decay=0.5)
    scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    return {name: scales[p] for name, p in model.named_parameters()}


@pytest.mark.parametrize("tower", LAYERS)
def test_learning_rates_rise_from_layer_to_layer(config, folders, tower):
    model = build_model(config(folders[tower]), SHAPE, 3)
    scales = scales_of(model)
    layers = [[f"visual.{name}" for name in names] for names in LAYERS[tower]]
    layers[-1] += ["head.weight", "head.bias"]
    for number, names in enumerate(reversed(layers)):
        assert [scales[name] for name in names] == [0.5**number] * len(names)
    assert set(scales.values()) == {0.5**number for number in range(len(layers))}


def test_networks_of_timm_know_their_own_layers(config, folders):
    import timm

    model = build_model(config(folders["timm"]), SHAPE, 3)
    scales = scales_of(model)
    trunk = timm.create_model("test_vit", num_classes=0)
    own = scales_of(trunk)
    assert len(set(own.values())) > 3
    for name, scale in own.items():
        assert scales[f"visual.trunk.{name}"] == scale / 2, name
    assert {scales[n] for n in scales if ".trunk." not in n} == {1.0}
    assert {"visual.head.proj.weight", "head.weight"} <= set(scales)
