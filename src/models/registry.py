"""From the configuration to the model: `model: FAMILY/NAME` -> the module of the family, which
builds it; then its weights, its head and what is frozen."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from src.config import is_import_path
from src.data import Preprocessing
from src.models import clip, custom, hf, linear, timm, tiny, torchvision
from src.models.weights import MAX_REASON, compile_patterns, freeze, init_head, load_weights
from src.support import UserError, bad_value, one_line, pick, random_state

if TYPE_CHECKING:
    from src.config import Config

# Each family is a module with three functions. names() lists what resolve() takes, for --list.
# resolve(name in the family) raises UserError, with the closest, where there is no such model.
# build(name, input_shape, n_outputs) gives a model for such inputs, 'resnet18', (3, 224, 224), 10,
# and the names of the modules that make up its head; with pretrained weights the head is new where
# their number of outputs is another. UserError where it does not take such inputs, and where
# weights can't be had or don't fit.
FAMILIES: dict[str, Any] = {
    "linear": linear,
    "tiny": tiny,
    "timm": timm,
    "torchvision": torchvision,
    "clip": clip,
    "hf": hf,
}
# These also take is_pretrained, and say by preprocessing(name) how images were prepared for it.
WITH_PRETRAINED = (timm, torchvision, clip, hf)
IMAGES_ONLY = (tiny, timm, torchvision, clip)
COLOURS_ONLY = (torchvision, clip)  # three channels
USUAL_SIDE = 224  # pixels; networks for photographs take images of this side and larger ones


def model_names() -> Iterator[str]:
    """What `model` takes; of a family whose library is missing, how to install it."""
    for family, module in FAMILIES.items():
        try:
            yield from (f"{family}/{name}".removesuffix("/") for name in module.names())
        except UserError as error:
            yield f"{family}/… ({error})"


def find_family(model: str) -> tuple[Any, str]:
    """'timm/resnet18' -> (the module timm, 'resnet18'); 'my_nets:build' -> (custom, the same)."""
    if is_import_path(model):
        return custom, model
    family, _, name = model.partition("/")
    return pick(FAMILIES, family, "model"), name


def check_model(config: "Config") -> None:
    """UserError for what shows before there are data: names, keys that contradict each other."""
    family, name = find_family(config.model)
    if config.model_pretrained and config.model_weights is not None:
        raise UserError("model_pretrained and model_weights exclude each other: set one of them")
    if config.model_pretrained and family not in WITH_PRETRAINED:
        raise UserError(
            f"model_pretrained: there are no pretrained weights for {config.model!r}; "
            f"set it to false, or give a file as model_weights"
        )
    options = {"is_pretrained": True} if config.model_pretrained else {}
    family.resolve(name, **options)
    compile_patterns(config.model_freeze)
    if config.layer_decay not in (None, 1) and family is linear:
        raise bad_value("layer_decay", config.layer_decay, "null, as a linear model is one layer")
    if config.loss == "next_token" and family not in (hf, custom):
        raise bad_value("model", config.model, "hf/… or one of your own, as loss is next_token")
    if config.model_head_init == "zero_shot":
        if family is not clip:
            raise bad_value("model_head_init", "zero_shot", "a model clip/… for it, or null")
        clip.check_templates(config.model_zero_shot_templates)


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
    family, name = find_family(config.model)
    if family in IMAGES_ONLY and len(input_shape) != 3:
        expected = (
            f"a model for inputs of shape {input_shape}, such as 'linear'; this one takes images, "
            "as which rows pass where model_input_shape says [channels, height, width]"
        )
        raise bad_value("model", config.model, expected)
    if family in COLOURS_ONLY and input_shape[0] != 3:
        expected = f"a model for {input_shape[0]} channels; those of this family take 3"
        like = [3, *input_shape[1:]]
        raise bad_value("model", config.model, f"{expected} (model_input_shape: {like})")
    options: dict[str, Any] = {"is_pretrained": True} if config.model_pretrained else {}
    if family is custom:
        options["config"] = config
    if family is hf:
        options["is_language_model"] = config.loss == "next_token"
    if family is clip:
        options["weights"] = config.model_weights
        if config.model_head_init == "zero_shot":
            templates = config.model_zero_shot_templates
            options["prompts"] = clip.Prompts(class_names, templates, device or torch.device("cpu"))
    # On the CPU, so that a model starts the same on every machine. All generators are seeded, as
    # a custom network may draw from any of them; drawing here must not move those of training.
    with random_state.isolate_rng():
        random_state.seed_everything(config.seed_model, cpu_only=True)  # type: ignore[arg-type]
        model, heads = family.build(name, input_shape, output_dim(config, n_classes), **options)
        if config.model_weights is not None and family is not clip:  # which has read them
            load_weights(model, config.model_weights, heads)
        if config.model_head_init in ("zero", "rand"):
            init_head(model, heads, config.model_head_init)
        is_small = family in (timm, torchvision) and min(input_shape[1:]) < USUAL_SIDE
        if is_small or (family is hf and len(input_shape) == 3):
            check_takes_images(model, input_shape, config.model)
    freeze(model, config.model_freeze)
    return model if device is None else model.to(device)


@torch.no_grad()
def check_takes_images(model: nn.Module, input_shape: tuple[int, ...], name: str) -> None:
    """UserError for a network for photographs that shrinks small images to nothing."""
    model.eval()
    try:
        model(torch.zeros(1, *input_shape))
    except Exception as error:  # each network raises its own
        expected = f"a model for images of shape {input_shape} ({one_line(error, MAX_REASON)})"
        raise bad_value("model", name, f"{expected}; model_input_shape resizes them") from error
    model.train()


def output_dim(config: "Config", n_classes: int | None) -> int:
    """model_output_dim if given, else the number of classes, else 1 (regression)."""
    given = config.model_output_dim
    if given is None:
        return n_classes or 1
    if given < (n_classes or 1):
        raise bad_value("model_output_dim", given, f"at least {n_classes}, the number of classes")
    return given


def without_weights(config: "Config") -> "Config":
    """The same, for a model whose weights are restored from a checkpoint."""
    return replace(config, model_weights=None, model_pretrained=False, model_head_init=None)


def model_preprocessing(config: "Config") -> Preprocessing | None:
    """How the data were prepared for a network's weights; keys of the data overrule it.

    None, take the data as they are, for a network that starts at random: it learns whatever it
    is given, and stretching small images to the size it was once published with costs time.
    """
    family, name = find_family(config.model)
    has_weights = config.model_pretrained or config.model_weights is not None
    if family is hf:  # a network for texts has a tokenizer, with weights or without
        return hf.preprocessing(name, has_weights=has_weights)
    return family.preprocessing(name) if has_weights and family in WITH_PRETRAINED else None
