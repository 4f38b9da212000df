"""torchvision/NAME: torchvision's classifiers (`resnet50`, `resnet50.IMAGENET1K_V2`)."""

from typing import Any

from torch import nn

from src.data import Preprocessing
from src.models.weights import out_of_reach
from src.support import bad_value, unknown_name

CHANNELS = 3
# which also take the means and stds that they were first trained with in TensorFlow
WITH_SIDE_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
HEAD_TYPES = (nn.Linear, nn.Conv2d)  # the latter in SqueezeNet


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int, *, is_pretrained: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """'resnet18', (3, 224, 224), 10 -> (model, names of its head).

    is_pretrained: with the weights that the name says, else torchvision's default ones, from the
    hub or its cache, the head new where the number of outputs is another; UserError where they
    can't be had, and where the network does not take such inputs.
    """
    from torchvision import models

    weights = look_up(name)
    architecture = name.partition(".")[0]
    if input_shape[0] != CHANNELS:
        like = [CHANNELS, *input_shape[1:]]
        expected = f"a model for {input_shape[0]} channels; torchvision's take {CHANNELS}"
        raise bad_value("model", f"torchvision/{name}", f"{expected} (model_input_shape: {like})")
    try:
        sizes = _sizes(architecture, input_shape)
        if is_pretrained:
            model = models.get_model(architecture, weights=weights, progress=False, **sizes)
        else:
            start = {"init_weights": True} if architecture in WITH_SIDE_HEADS else {}
            model = models.get_model(architecture, num_classes=n_outputs, **sizes, **start)
    except OSError as error:
        raise out_of_reach(f"torchvision/{name}", error) from error
    except (ValueError, AssertionError) as error:
        shape = f"a model for inputs of shape {input_shape} ({error})"
        raise bad_value("model", f"torchvision/{name}", shape) from None
    for side_head in WITH_SIDE_HEADS.get(architecture, ()):  # which give outputs of their own
        model.aux_logits = False
        setattr(model, side_head, None)
    # with weights it would change the mean and std of its inputs: preprocessing() says them
    model.transform_input = False
    _replace_head(model, n_outputs)
    return model, (_head(model),)


def look_up(name: str, *, is_pretrained: bool = False) -> Any:
    """The weights that are meant; UserError, with the closest, for names that torchvision lacks."""
    from torchvision import models

    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown_name("model", f"torchvision/{name}", [f"torchvision/{n}" for n in known])
    weights = models.get_model_weights(architecture)
    if not tag:
        return weights.DEFAULT
    if tag not in weights.__members__:
        tags = [f"torchvision/{architecture}.{one}" for one in weights.__members__]
        raise unknown_name("model", f"torchvision/{name}", tags)
    return weights[tag]


def preprocessing(name: str) -> Preprocessing:
    """How torchvision feeds the network that its weights belong to."""
    looks = look_up(name).transforms()
    (side,), (resized,) = looks.crop_size, looks.resize_size
    is_transformed = name.partition(".")[0] in WITH_SIDE_HEADS
    return Preprocessing(
        input_shape=(CHANNELS, side, side),
        mean=(0.5,) * CHANNELS if is_transformed else tuple(looks.mean),
        std=(0.5,) * CHANNELS if is_transformed else tuple(looks.std),
        interpolation=looks.interpolation.value,
        crop_pct=side / resized,
    )


def _sizes(architecture: str, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """What the builder must know of the images; ValueError for those that it can't be told."""
    if architecture.startswith("vit_"):
        if input_shape[1] != input_shape[2]:
            raise ValueError("it takes squares only")
        return {"image_size": input_shape[1]}
    if architecture.startswith("maxvit"):
        return {"input_size": input_shape[1:]}
    return {}


def _head(model: nn.Module) -> str:
    """In all of torchvision's classifiers the last module that has weights."""
    return [name for name, part in model.named_modules() if isinstance(part, HEAD_TYPES)][-1]


def _replace_head(model: nn.Module, n_outputs: int) -> None:
    """By a new one of its kind, where the number of outputs is another."""
    name = _head(model)
    head: Any = model.get_submodule(name)
    if n_outputs == head.weight.shape[0]:
        return
    if isinstance(head, nn.Linear):
        new: nn.Module = nn.Linear(head.in_features, n_outputs)
    else:
        new = nn.Conv2d(head.in_channels, n_outputs, head.kernel_size)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)
