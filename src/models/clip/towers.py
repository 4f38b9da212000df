"""clip/NAME: the image tower of a CLIP of open_clip, and a linear head.

NAME is one of SHORT_NAMES, an architecture of open_clip (`ViT-B-32`), one with the tag of its
weights (`ViT-B-32.laion2b_s34b_b79k`), or a folder that holds open_clip_config.json.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from torch.nn import functional as F

from src.data import Preprocessing
from src.models.clip.zero_shot import Prompts, check_prompts, init_zero_shot
from src.models.weights import load_weights, out_of_reach
from src.support import UserError, bad_value, closest, unknown_name

SHORT_NAMES = {
    "vit_b32": "ViT-B-32.openai",
    "vit_b16": "ViT-B-16.openai",
    "vit_l14": "ViT-L-14.openai",
    "vit_l14_336": "ViT-L-14-336.openai",
    "resnet_50": "RN50.openai",
    "resnet_101": "RN101.openai",
    "resnet_50_4": "RN50x4.openai",
    "resnet_50_16": "RN50x16.openai",
    "resnet_50_64": "RN50x64.openai",
}
CONFIG = "open_clip_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # that open_clip looks for beside it
CHANNELS = 3
HEADS = ("head",)
# Instead of a text tower that nobody will ask
SMALL_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
MOST_CHARACTERS = 200  # of an error of a library


@dataclass(frozen=True)
class Clip:
    """An architecture of open_clip, and weights for it.

    name: as open_clip takes it. settings: of the architecture. weights: where they are, how
    images were prepared for them, and whether they want quick_gelu; empty where there are none.
    """

    name: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Any]
    folder: Path | None = None

    @property
    def has_weights(self) -> bool:
        if self.folder is None:
            return bool(self.weights)
        return any(file for pattern in WEIGHTS for file in self.folder.glob(pattern))

    @property
    def is_resnet(self) -> bool:
        return isinstance(self.settings["vision_cfg"].get("layers"), list)


class ClipClassifier(nn.Module):
    """Images -> features of length 1 -> as CLIP scales them before its softmax -> linear head."""

    def __init__(self, visual: nn.Module, scale: Tensor, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.visual: Any = visual
        self.scale: Tensor
        self.register_buffer("scale", scale.detach().clone().reshape(()))
        self.head = nn.Linear(n_features, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(image_features(self.visual, images), dim=1)  # (n, features)
        return self.head(self.scale * features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], float]:
        """Which layer a parameter belongs to, as timm asks for it: layer_decay builds on it.

        The stem, each block, and with the head what follows the last block.
        """
        if hasattr(self.visual, "trunk"):  # a network of timm, which knows its own layers
            from timm.models import group_parameters

            trunk = self.visual.trunk
            layers = group_parameters(trunk, trunk.group_matcher(coarse=coarse), reverse=True)
            return lambda name: layers.get(name.removeprefix("visual.trunk."), inf)
        stage = r"^visual\.layer(\d+)" if coarse else r"^visual\.layer(\d+)\.(\d+)"
        return {
            "stem": r"^visual\.(?:conv\d|bn\d|class_embedding|positional_embedding|ln_pre)",
            "blocks": [(r"^visual\.transformer\.resblocks\.(\d+)", None), (stage, None)],
        }


def image_features(visual: nn.Module, images: Tensor) -> Tensor:
    """(n, features); some towers give the tokens as well."""
    features = visual(images)
    return features[0] if isinstance(features, tuple) else features


def look_up(name: str, *, is_pretrained: bool = False) -> Clip:
    """What the name stands for; UserError, with the closest, where open_clip has no such model,
    and where is_pretrained asks for weights that there are not."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError("model: clip/… needs `pip install open_clip_torch`") from error

    architecture, _, tag = SHORT_NAMES.get(name, name).partition(".")
    known = open_clip.list_models()
    if architecture not in known:
        clip = _in_folder(name, [*SHORT_NAMES, *known])
    else:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag and tag not in tags:
            raise unknown_name("model", f"clip/{name}", [f"clip/{architecture}.{t}" for t in tags])
        tag = tag or ("openai" if "openai" in tags else next(iter(tags), ""))
        settings = open_clip.get_model_config(architecture)
        clip = Clip(architecture, settings, open_clip.get_pretrained_cfg(architecture, tag))
    if is_pretrained and not clip.has_weights:
        where = "its folder" if clip.folder else "open_clip"
        raise bad_value("model_pretrained", True, f"a model with weights; {where} has none: {name}")
    return clip


def build(
    name: str,
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    is_pretrained: bool = False,
    weights: str | None = None,
    prompts: Prompts | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """'vit_b32', (3, 224, 224), 10 -> (model, names of its head).

    is_pretrained: with the weights that the name says, from the hub or its cache. weights: with
    those of a file, a whole CLIP of open_clip's or a checkpoint of such a model. prompts: with
    the head that the text tower makes of them. UserError where that can't be had or doesn't fit.
    """
    clip = look_up(name, is_pretrained=is_pretrained)
    _check_shape(name, clip, input_shape)
    is_whole = weights is not None and _holds_a_whole_clip(weights)
    if prompts is not None:
        check_prompts(prompts, n_outputs)
        _check_text_tower(weights, is_whole=is_whole, is_pretrained=is_pretrained)
    tokenizer = None if prompts is None else _tokenizer(name, clip)
    file = weights if is_whole else None
    if is_whole and name == clip.name and clip.weights:  # without a tag
        kind = "QuickGELU" if clip.weights.get("quick_gelu") else "GELU"
        logger.warning("clip/{0}: with {1}; clip/{0}.TAG has what TAG's weights need", name, kind)
    if is_pretrained and clip.folder is None:
        file = _fetched(name, clip)
    has_text = prompts is not None or is_pretrained or is_whole
    try:
        whole = _create(
            clip, input_shape, file=file, is_pretrained=is_pretrained, has_text=has_text
        )
        n_features = _num_features(whole.visual, input_shape)
    except Exception as error:  # whatever a broken file brings to light
        of = "model_pretrained" if is_pretrained else "model_weights" if is_whole else "model"
        raise _unfit(of, name, input_shape, error) from error
    model = ClipClassifier(whole.visual, whole.logit_scale.exp(), n_features, n_outputs)
    if weights is not None and not is_whole:
        load_weights(model, weights, HEADS)
    if prompts is not None:
        init_zero_shot(model.head, whole, tokenizer, prompts)
    return model, HEADS


def preprocessing(name: str) -> Preprocessing:
    """How images were prepared for the weights."""
    clip = look_up(name)
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    looks = merge_preprocess_dict(PreprocessCfg(), dict(clip.weights))
    if looks["resize_mode"] not in ("shortest", "squash"):
        expected = f"a model whose images are cropped or squashed, not {looks['resize_mode']!r}"
        raise bad_value("model", f"clip/{name}", expected)
    size = clip.settings["vision_cfg"].get("image_size", looks["size"])
    height, width = (size, size) if isinstance(size, int) else size
    is_bilinear = looks["interpolation"] == "bilinear"
    return Preprocessing(
        input_shape=(CHANNELS, height, width),
        mean=_a_channel(looks["mean"]),
        std=_a_channel(looks["std"]),
        interpolation="bilinear" if is_bilinear else "bicubic",  # also for its 'random'
        is_squashed=looks["resize_mode"] == "squash",
    )


def _a_channel(values: Any) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (values,) * CHANNELS


def _in_folder(path: str, known: list[str]) -> Clip:
    """What the folder's config says; UserError, with the closest of the known names."""
    file = Path(path) / CONFIG
    if not path or not file.is_file():
        if "/" not in path:
            raise unknown_name("model", f"clip/{path}", [f"clip/{name}" for name in known])
        near = closest(path, known)
        hint = f"; did you mean 'clip/{near}'?" if near else ""
        raise bad_value("model", f"clip/{path}", f"a name, or a folder with {CONFIG}{hint}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        settings = content["model_cfg"]
        settings["embed_dim"], settings["text_cfg"], settings["vision_cfg"].get("image_size")
        looks = content.get("preprocess_cfg") or {}
        return Clip(f"local-dir:{path}", settings, looks, Path(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        expected = f"a readable {CONFIG} with model_cfg: embed_dim, vision_cfg, text_cfg"
        raise bad_value("model", f"clip/{path}", f"{expected} ({_reason(error)})") from error


def _check_shape(name: str, clip: Clip, input_shape: tuple[int, ...]) -> None:
    if input_shape[0] != CHANNELS:
        like = [CHANNELS, *input_shape[1:]]
        expected = f"a model for {input_shape[0]} channels; CLIP's take {CHANNELS}"
        raise bad_value("model", f"clip/{name}", f"{expected} (model_input_shape: {like})")
    if clip.is_resnet and input_shape[1] != input_shape[2]:
        expected = f"a model for inputs of shape {input_shape} (it takes squares only)"
        raise bad_value("model", f"clip/{name}", expected)


def _holds_a_whole_clip(path: str) -> bool:
    """Whether open_clip saved the file, and not we; False for what neither can read."""
    try:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                names = list(file.keys())
        else:
            content = torch.load(path, map_location="meta", weights_only=True)  # no values
            names = list(content.get("state_dict", content))
    except Exception:  # load_weights says what is wrong with it
        return False
    return "logit_scale" in names or "module.logit_scale" in names


def _check_text_tower(weights: str | None, *, is_whole: bool, is_pretrained: bool) -> None:
    """UserError where there is none, a warning where it can't read."""
    if weights is not None and not is_whole:
        raise UserError(
            f"model_head_init: zero_shot reads the names with a text tower, which {weights!r} "
            f"lacks: a checkpoint of train.py holds the image tower and a head"
        )
    if not is_pretrained and not is_whole:
        logger.warning("model_head_init: zero_shot knows nothing without pretrained weights")


def _tokenizer(name: str, clip: Clip) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(clip.name)
    except Exception as error:  # the hub and transformers have many
        raise UserError(
            f"model_head_init: there is no tokenizer for 'clip/{name}' ({_reason(error)}); if it "
            f"is one of the hub, `pip install transformers`, and run once where there is a network"
        ) from error


def _fetched(name: str, clip: Clip) -> str:
    """The file of its weights in the hub's cache; the hub locks while it fetches."""
    import open_clip

    try:
        return open_clip.download_pretrained(dict(clip.weights))
    except (OSError, RuntimeError) as error:
        raise out_of_reach(f"clip/{name}", error) from error


def _create(
    clip: Clip,
    input_shape: tuple[int, ...],
    *,
    file: str | None,
    is_pretrained: bool,
    has_text: bool,
) -> Any:
    """open_clip's model, with the weights of the file, else with the folder's, else at random."""
    import open_clip

    height, width = input_shape[1:]
    is_loaded = is_pretrained or (file is not None and clip.folder is None)
    with nullcontext() if is_loaded else _unwarned():
        whole = open_clip.create_model(
            clip.name,
            pretrained=file,
            load_weights=is_loaded,
            # not by itself: OpenAI's and others' weights went with it, their architectures do not
            force_quick_gelu=clip.weights.get("quick_gelu", False),
            force_image_size=height if height == width else (height, width),
            pretrained_text=False,
            **({} if has_text else {"text_cfg": dict(SMALL_TEXT)}),
        )
    if file is not None and not is_loaded:  # for folders create_model takes no other weights
        open_clip.load_checkpoint(whole, file)
    return whole


@contextmanager
def _unwarned() -> Iterator[None]:
    """open_clip warns of random weights, which were asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _num_features(visual: nn.Module, input_shape: tuple[int, ...]) -> int:
    """What comes out for an image of this shape."""
    was_training = visual.training
    features = image_features(visual.eval(), torch.zeros(1, *input_shape))
    visual.train(was_training)
    return features.shape[1]


def _unfit(key: str, name: str, input_shape: tuple[int, ...], error: Exception) -> UserError:
    """The error for an architecture, or weights for it, that such images can't be given to."""
    model, shape = f"clip/{name}", f"for inputs of shape {input_shape} ({_reason(error)})"
    if key == "model":
        return bad_value(key, model, f"a model {shape}")
    return UserError(f"{key}: these weights do not make a {model!r} {shape}")


def _reason(error: Exception) -> str:
    """One line of it."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MOST_CHARACTERS else words[: MOST_CHARACTERS - 1] + "…"
