"""From the configuration to the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from src.config import is_import_path
from src.data import Preprocessing
from src.models import linear, own, timm, torchvision
from src.models.clip import towers as clip
from src.models.clip.zero_shot import Prompts, check_templates
from src.models.freezing import check_patterns, freeze
from src.models.hf import models as hf
from src.models.tiny import registry as tiny
from src.models.weights import init_head, load_weights
from src.support import UserError, bad_value, pick, random_state

if TYPE_CHECKING:
    from src.config import Config

USUAL_SIDE = 224  # of an image, from which on networks for photographs take all

# family -> module with look_up(name in the family), which raises where there is no such model,
# and build(name, input shape, number of outputs): the model, and the names of its head's modules
FAMILIES: dict[str, Any] = {
    "linear": linear,
    "tiny": tiny,
    "timm": timm,
    "torchvision": torchvision,
    "clip": clip,
    "hf": hf,
}
OWN = ":"  # of no name
# These also take is_pretrained, and say by preprocessing(name) how their weights were fed.
WITH_PRETRAINED = {"timm", "torchvision", "clip", "hf"}
IMAGES_ONLY = {"tiny", "timm", "torchvision", "clip"}


def without_weights(config: "Config") -> "Config":
    """The same, for a model whose weights come from elsewhere."""
    return replace(config, model_weights=None, model_pretrained=False, model_head_init=None)


def build_model(
    config: "Config",
    input_shape: tuple[int, ...],
    n_classes: int | None,
    class_names: Sequence[str] | None = None,
    device: torch.device | None = None,
) -> nn.Module:
    """The model of the configuration on the device (None: the CPU), a function of seed_model alone.

    input_shape: of one example. n_classes: None for regression. UserError for an unknown name,
    a model that does not take such inputs, and weights that can't be had or don't fit.
    """
    check_model(config)
    family, name = family_of(config.model)
    if family in IMAGES_ONLY and len(input_shape) != 3:
        expected = (
            f"a model for inputs of shape {input_shape}, such as 'linear'; this one takes images, "
            "as which rows pass where model_input_shape says [channels, height, width]"
        )
        raise bad_value("model", config.model, expected)
    options: dict[str, Any] = pretrained_options(config, family)
    if family == "hf":
        options["is_language_model"] = config.loss == "next_token"
    if family == "clip":
        options["weights"] = config.model_weights
    if config.model_head_init == "zero_shot":
        templates = config.model_zero_shot_templates
        options["prompts"] = Prompts(class_names, templates, device or torch.device("cpu"))
    # On the CPU: nothing is drawn on a GPU. A fork's own network may draw from any generator.
    with random_state.isolate_rng():
        random_state.seed_everything(config.seed_model, cpu_only=True)  # type: ignore[arg-type]
        model, heads = builder_of(family).build(
            name, input_shape, output_dim(config, n_classes), **options
        )
        if config.model_weights is not None and family != "clip":  # which has read them
            load_weights(model, config.model_weights, heads)
        if config.model_head_init is not None and config.model_head_init != "zero_shot":
            init_head(model, heads, config.model_head_init)
        if family in ("timm", "torchvision") and min(input_shape[1:]) < USUAL_SIDE:
            _try_out(model, input_shape, config.model)
    freeze(model, freeze_patterns(config))
    return model if device is None else model.to(device)


@torch.no_grad()
def _try_out(model: nn.Module, input_shape: tuple[int, ...], name: str) -> None:
    """UserError for a network that can't take images so small."""
    model.eval()
    try:
        model(torch.zeros(1, *input_shape))
    except Exception as error:  # each network has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        expected = f"a model for images of shape {input_shape} ({reason})"
        raise bad_value("model", name, f"{expected}; model_input_shape resizes them") from error
    model.train()


def check_model(config: "Config") -> None:
    """UserError for what shows before there are data: names, keys that contradict each other."""
    family, name = family_of(config.model)
    builder_of(family).look_up(name, **pretrained_options(config, family))
    check_patterns(freeze_patterns(config))
    if config.layer_decay not in (None, 1) and family == "linear":
        raise bad_value("layer_decay", config.layer_decay, "null, as a linear model is one layer")
    if config.loss == "next_token" and family not in ("hf", OWN):
        raise bad_value("model", config.model, "hf/… or one of your own, as loss is next_token")
    if config.model_head_init == "zero_shot":
        if family != "clip":
            raise bad_value("model_head_init", "zero_shot", "a model clip/… for it, or null")
        check_templates(config.model_zero_shot_templates)


def freeze_patterns(config: "Config") -> list[str]:
    given = config.model_freeze
    return [given] if isinstance(given, str) else given


def family_of(model: str) -> tuple[str, str]:
    """'timm/resnet18' -> ('timm', 'resnet18'); a fork's own 'module.path:function' -> (OWN, it)."""
    if is_import_path(model):
        return OWN, model
    family, _, name = model.partition("/")
    return family, name


def builder_of(family: str) -> Any:
    return own if family == OWN else pick(FAMILIES, family, "model")


def output_dim(config: "Config", n_classes: int | None) -> int:
    """model_output_dim if given, else the number of classes, else 1 (regression)."""
    given = config.model_output_dim
    if given is None:
        return n_classes or 1
    if given < (n_classes or 1):
        raise bad_value("model_output_dim", given, f"at least {n_classes}, the number of classes")
    return given


def model_preprocessing(config: "Config") -> Preprocessing | None:
    """How a network with weights from elsewhere was fed; the data room lets keys overrule it.

    None, take the data as they are, for a network that starts at random: it learns whatever it
    is given, and stretching small images to the size it was once published with costs time.
    """
    family, name = family_of(config.model)
    has_weights = config.model_pretrained or config.model_weights is not None
    if family == "hf":
        return hf.preprocessing(name, has_weights=has_weights)  # a text model's tokenizer
    is_known = has_weights and family in WITH_PRETRAINED
    return FAMILIES[family].preprocessing(name) if is_known else None


def pretrained_options(config: "Config", family: str) -> dict[str, bool]:
    """What a builder is told about weights; UserError where a family has none."""
    if not config.model_pretrained:
        return {}
    if config.model_weights is not None:
        raise UserError("model_pretrained and model_weights exclude each other: set one of them")
    if family not in WITH_PRETRAINED:
        raise UserError(
            f"model_pretrained: there are no pretrained weights for {config.model!r}; "
            f"set it to false, or give a file as model_weights"
        )
    return {"is_pretrained": True}
