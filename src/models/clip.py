"""clip/NAME: the image tower of a CLIP of open_clip, and a linear head.

NAME is one of SHORT_NAMES, an architecture of open_clip (`ViT-B-32`), one with the tag of its
weights (`ViT-B-32.laion2b_s34b_b79k`), or a folder that holds open_clip_config.json. The text
tower is built only where it is needed: to load weights of a full CLIP, and for a zero-shot head.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from torch.nn import functional as F

from src.data import Preprocessing
from src.models.weights import MAX_REASON, cannot_fetch, load_weights
from src.support import UserError, bad_value, closest, one_line, unknown_name

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
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # which open_clip looks for beside it
CHANNELS = 3
HEADS = ("head",)
# A text tower that costs nothing, where none is needed: open_clip builds no CLIP without one.
SMALL_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


# ---- Names -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipSource:
    """An architecture of open_clip, and weights for it."""

    name: str  # as open_clip takes it
    settings: Mapping[str, Any]  # of the architecture
    weights: Mapping[str, Any]  # where they are, how images were prepared for them; may be empty
    folder: Path | None = None


def names() -> list[str]:
    """As resolve() takes them, without the tags of their weights."""
    return [*SHORT_NAMES, *_library().list_models()]


def _library() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("model: clip/… needs `pip install open_clip_torch`") from error
    return open_clip


def resolve(name: str, *, is_pretrained: bool = False) -> ClipSource:
    """What the name stands for; UserError, with the closest, where open_clip has no such model,
    and where is_pretrained asks for weights that do not exist."""
    open_clip = _library()
    architecture, _, tag = SHORT_NAMES.get(name, name).partition(".")
    known = open_clip.list_models()
    if architecture not in known:
        source = _read_folder(name, [*SHORT_NAMES, *known])
        has_weights = any(any(Path(name).glob(pattern)) for pattern in WEIGHTS)
    else:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag and tag not in tags:
            raise unknown_name("model", f"clip/{name}", [f"clip/{architecture}.{t}" for t in tags])
        tag = tag or ("openai" if "openai" in tags else next(iter(tags), ""))
        settings = open_clip.get_model_config(architecture)
        source = ClipSource(architecture, settings, open_clip.get_pretrained_cfg(architecture, tag))
        has_weights = bool(source.weights)
    if is_pretrained and not has_weights:
        where = "its folder" if source.folder else "open_clip"
        raise bad_value("model_pretrained", True, f"a model with weights; {where} has none: {name}")
    return source


def _read_folder(path: str, known: list[str]) -> ClipSource:
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
        weights = content.get("preprocess_cfg") or {}
        return ClipSource(f"local-dir:{path}", settings, weights, Path(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        expected = f"a readable {CONFIG} with model_cfg: embed_dim, vision_cfg, text_cfg"
        reason = one_line(error, MAX_REASON)
        raise bad_value("model", f"clip/{path}", f"{expected} ({reason})") from error


def preprocessing(name: str) -> Preprocessing:
    """How images were prepared for the weights."""
    source = resolve(name)
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    settings = merge_preprocess_dict(PreprocessCfg(), dict(source.weights))
    if settings["resize_mode"] not in ("shortest", "squash"):
        expected = f"a model whose images are cropped or squashed, not {settings['resize_mode']!r}"
        raise bad_value("model", f"clip/{name}", expected)
    size = source.settings["vision_cfg"].get("image_size", settings["size"])
    height, width = (size, size) if isinstance(size, int) else size
    mean, std = (
        tuple(values) if isinstance(values, list | tuple) else (values,) * CHANNELS
        for values in (settings["mean"], settings["std"])
    )
    return Preprocessing(
        input_shape=(CHANNELS, height, width),
        mean=mean,
        std=std,
        # bicubic also for its 'random'
        interpolation="bilinear" if settings["interpolation"] == "bilinear" else "bicubic",
        is_squashed=settings["resize_mode"] == "squash",
    )


# ---- The model ---------------------------------------------------------------------------


class ClipClassifier(nn.Module):
    """Images -> features of length 1 -> as CLIP scales them before its softmax -> linear head."""

    def __init__(self, visual: nn.Module, scale: Tensor, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.visual: Any = visual
        self.scale: Tensor
        self.register_buffer("scale", scale.detach().clone().reshape(()))
        self.head = nn.Linear(n_features, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) -> logits (n, C)."""
        features = F.normalize(image_features(self.visual, images), dim=1)  # (n, features)
        return self.head(self.scale * features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], float]:
        """The layer that a parameter belongs to, as timm's networks say it: layer_decay asks.

        The stem, each block, and with the head what follows the last block.
        """
        if hasattr(self.visual, "trunk"):  # a network of timm, which knows its own layers
            from timm.models import group_parameters

            trunk = self.visual.trunk
            layers = group_parameters(trunk, trunk.group_matcher(coarse=coarse), reverse=True)
            return lambda name: layers.get(name.removeprefix("visual.trunk."), inf)
        blocks = r"^visual\.transformer\.resblocks\.(\d+)", r"^visual\.layer(\d+)\.(\d+)"
        return {
            "stem": r"^visual\.(?:conv\d|bn\d|class_embedding|positional_embedding|ln_pre)",
            "blocks": [(pattern, None) for pattern in blocks],
        }


def image_features(visual: nn.Module, images: Tensor) -> Tensor:
    """(n, features); some towers return the tokens as well."""
    features = visual(images)
    return features[0] if isinstance(features, tuple) else features


def build(
    name: str,
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    is_pretrained: bool = False,
    weights: str | None = None,
    prompts: "Prompts | None" = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """See FAMILIES in registry.py; is_pretrained: with the weights that the name says; weights: of
    a file, a full CLIP of open_clip's or a checkpoint of such a model; prompts: with the
    head that the text tower makes of them."""
    source = resolve(name, is_pretrained=is_pretrained)
    is_resnet = isinstance(source.settings["vision_cfg"].get("layers"), list)
    if is_resnet and input_shape[1] != input_shape[2]:
        expected = f"a model for inputs of shape {input_shape} (it takes squares only)"
        raise bad_value("model", f"clip/{name}", expected)
    clip_file = weights if weights is not None and _is_full_clip(weights) else None
    if clip_file and name == source.name and source.weights:  # a name without a tag
        kind = "QuickGELU" if source.weights.get("quick_gelu") else "GELU"
        logger.warning("clip/{0}: with {1}; clip/{0}.TAG has what TAG's weights need", name, kind)
    tokenizer = None
    if prompts is not None:
        if weights is not None and clip_file is None:
            raise UserError(
                f"model_head_init: zero_shot reads the names with a text tower, which {weights!r} "
                f"lacks: a checkpoint of train.py holds the image tower and a head"
            )
        if not is_pretrained and clip_file is None:
            logger.warning("model_head_init: zero_shot knows nothing without pretrained weights")
        tokenizer = _tokenizer(name, source, prompts.class_names, n_outputs)
    clip, num_features = _create(
        name, source, input_shape, clip_file, is_pretrained=is_pretrained, has_text=bool(prompts)
    )
    model = ClipClassifier(clip.visual, clip.logit_scale.exp(), num_features, n_outputs)
    if weights is not None and clip_file is None:
        load_weights(model, weights, HEADS)
    if prompts is not None:
        init_zero_shot(model.head, clip, tokenizer, prompts)
    return model, HEADS


def _is_full_clip(path: str) -> bool:
    """Whether open_clip saved the file, and not train.py; False for what neither can read."""
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


def _create(
    name: str,
    source: ClipSource,
    input_shape: tuple[int, ...],
    file: str | None,
    *,
    is_pretrained: bool,
    has_text: bool,
) -> tuple[Any, int]:
    """(open_clip's model, number of features): with the weights of the file, with those of its
    name where is_pretrained, else randomly initialised."""
    import open_clip

    key = "model_pretrained" if is_pretrained else "model_weights" if file else "model"
    if is_pretrained and source.folder is None:
        try:
            file = open_clip.download_pretrained(dict(source.weights))  # or from the hub's cache
        except (OSError, RuntimeError) as error:
            raise cannot_fetch(f"clip/{name}", error) from error
    height, width = input_shape[1:]
    # For folders create_model takes no other weights than theirs.
    is_loaded = is_pretrained or (file is not None and source.folder is None)
    disabled = logging.root.manager.disable
    if not is_loaded:  # open_clip warns of random weights, which were requested
        logging.disable(logging.WARNING)
    try:
        clip = open_clip.create_model(
            source.name,
            pretrained=file,
            load_weights=is_loaded,
            # Not by itself: OpenAI's and others' weights need it, their architectures lack it.
            force_quick_gelu=source.weights.get("quick_gelu", False),
            force_image_size=height if height == width else (height, width),
            pretrained_text=False,
            **({} if has_text or key != "model" else {"text_cfg": dict(SMALL_TEXT)}),
        )
        if file is not None and not is_loaded:
            open_clip.load_checkpoint(clip, file)
        with torch.no_grad():
            features = image_features(clip.visual.eval(), torch.zeros(1, *input_shape))
        return clip.train(), features.shape[1]
    except Exception as error:  # whatever a broken file leads to
        fit = f"for inputs of shape {input_shape} ({one_line(error, MAX_REASON)})"
        if key == "model":
            raise bad_value(key, f"clip/{name}", f"a model {fit}") from error
        message = f"{key}: these weights do not make a 'clip/{name}' {fit}"
        raise UserError(message) from error
    finally:
        logging.disable(disabled)


# ---- A head that knows its classes by their names ----------------------------------------


@dataclass(frozen=True)
class Prompts:
    """What the text tower reads about each class."""

    class_names: Sequence[str] | None  # in the order of their numbers; None: they are not known
    templates: str | Sequence[str]  # sentences with {}, or the name of open_clip's: simple, openai
    device: torch.device  # where the sentences are read


def check_templates(templates: str | Sequence[str]) -> None:
    """UserError unless each sentence has a place for the class."""
    key = "model_zero_shot_templates"
    if not templates:
        raise bad_value(key, templates, "at least one sentence")
    for sentence in [] if isinstance(templates, str) else templates:
        if "{}" not in sentence:
            raise bad_value(key, sentence, "sentences with {} where the class is to stand")


def _tokenizer(
    name: str, source: ClipSource, class_names: Sequence[str] | None, n_outputs: int
) -> Any:
    """What cuts sentences into tokens; UserError, also where an output has no name to read."""
    import open_clip

    if class_names is None:
        raise UserError(
            "model_head_init: zero_shot needs the names of the classes, which these data do not "
            "have: give them as data_class_names"
        )
    if len(class_names) != n_outputs:
        expected = f"{len(class_names)}, the number of classes that have a name"
        raise bad_value("model_output_dim", n_outputs, expected)
    try:
        return open_clip.get_tokenizer(source.name)
    except Exception as error:  # the hub and transformers have many
        raise UserError(
            f"model_head_init: there is no tokenizer for 'clip/{name}' "
            f"({one_line(error, MAX_REASON)}); if it is one of the hub, "
            f"`pip install transformers`, and run once where there is a network"
        ) from error


@torch.no_grad()
def init_zero_shot(head: nn.Linear, clip: Any, tokenizer: Any, prompts: Prompts) -> None:
    """Row c of the head is the mean of the sentences about class c, each of length 1, made of
    length 1 again (Radford et al. 2021, section 3.1.4); no bias.

    clip: a model of open_clip with its text tower; it ends up on prompts.device.
    """
    import open_clip

    names = [name.replace("_", " ") for name in prompts.class_names or ()]
    if isinstance(prompts.templates, str):
        simple, openai = open_clip.SIMPLE_IMAGENET_TEMPLATES, open_clip.OPENAI_IMAGENET_TEMPLATES
        templates = list({"simple": simple, "openai": openai}[prompts.templates])
    else:  # by replace, as format gives a meaning to other braces
        templates = [partial(sentence.replace, "{}") for sentence in prompts.templates]
    logger.info("zero-shot head: {} classes in {} sentences each", len(names), len(templates))
    columns = open_clip.build_zero_shot_classifier(  # (features, classes)
        clip.to(prompts.device).eval(), tokenizer, names, templates, device=prompts.device
    )
    clip.train()
    head.weight.copy_(columns.t().float())
    head.bias.zero_()
