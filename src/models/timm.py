"""timm/NAME: every network of timm, by its name there (`resnet50`, `resnet50.a1_in1k`)."""

from typing import Any

from torch import nn

from src.data import Preprocessing
from src.models.weights import cannot_fetch
from src.support import bad_value, unknown_name


def names() -> list[str]:
    """As resolve() takes them, without the tags of their weights."""
    import timm

    return timm.list_models()


def resolve(name: str, *, is_pretrained: bool = False) -> Any:
    """timm's PretrainedCfg of a model; UserError, with the closest, for a name that timm does not
    have, and where is_pretrained asks for weights that it does not have."""
    import timm
    from timm.models import get_pretrained_cfg

    architecture, _, tag = name.partition(".")
    # create_model knows the new names of those that timm has given up, but the settings do not.
    known = timm.list_models()
    if tag and architecture in known:
        known = timm.list_models(f"{architecture}.*", pretrained=True)
    if name not in known:
        raise unknown_name("model", f"timm/{name}", [f"timm/{n}" for n in known])
    settings: Any = get_pretrained_cfg(name, allow_unregistered=False)
    if is_pretrained and not settings.has_weights:
        raise bad_value("model_pretrained", True, f"a model with weights; timm has none for {name}")
    return settings


def preprocessing(name: str) -> Preprocessing:
    """How timm prepares images for the network's pretrained weights."""
    settings = resolve(name)
    return Preprocessing(
        input_shape=settings.input_size,
        mean=settings.mean,
        std=settings.std,
        interpolation=settings.interpolation,
        crop_pct=settings.crop_pct,
    )


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int, *, is_pretrained: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """See FAMILIES in registry.py; is_pretrained: with the weights that timm names for it."""
    import timm

    settings = resolve(name, is_pretrained=is_pretrained)
    arguments: dict[str, Any] = {"num_classes": n_outputs, "in_chans": input_shape[0]}
    # The networks that timm calls of fixed size are those that take an img_size.
    if settings.fixed_input_size and input_shape[1:] != settings.input_size[1:]:
        arguments["img_size"] = input_shape[1:]
    try:
        model: Any = timm.create_model(name, pretrained=is_pretrained, **arguments)
    except OSError as error:
        raise cannot_fetch(f"timm/{name}", error) from error
    if "img_size" in arguments:
        # timm cuts off in silence what is left of an image beside whole patches.
        patches = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        patches = (patches, patches) if isinstance(patches, int) else patches
        pairs = list(zip(input_shape[1:], patches or (), strict=False))
        if any(side % patch for side, patch in pairs):
            like = [input_shape[0], *(-(-side // patch) * patch for side, patch in pairs)]
            expected = f"a model for images of shape {input_shape}; its patches are {patches}"
            expected += f" pixels (model_input_shape: {like})"
            raise bad_value("model", f"timm/{name}", expected)
    heads = settings.classifier or ()  # two of them in DeiT's distilled networks
    return model, (heads,) if isinstance(heads, str) else tuple(heads)
