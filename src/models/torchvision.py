"""torchvision/NAME: torchvision's classifiers (`resnet50`, `resnet50.IMAGENET1K_V2`)."""

from typing import Any

from torch import nn

from src.data import Preprocessing
from src.models.weights import cannot_fetch
from src.support import bad_value, unknown_name

CHANNELS = 3
# Auxiliary classifiers by network. These networks were first trained in TensorFlow, and change
# the mean and std of their inputs to the ones used there (transform_input).
WITH_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def names() -> list[str]:
    """As resolve() takes them, without the tags of their weights."""
    from torchvision import models

    return models.list_models(module=models)


def resolve(name: str, *, is_pretrained: bool = False) -> Any:
    """torchvision's Weights of 'NAME.TAG', or its default ones; UserError, with the closest name,
    for what it does not have."""
    from torchvision import models

    architecture, _, tag = name.partition(".")
    known = names()
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
    """How torchvision prepares images for the network's pretrained weights."""
    transforms = resolve(name).transforms()
    (side,), (resized,) = transforms.crop_size, transforms.resize_size
    is_transformed = name.partition(".")[0] in WITH_AUXILIARY_HEADS
    return Preprocessing(
        input_shape=(CHANNELS, side, side),
        mean=(0.5,) * CHANNELS if is_transformed else tuple(transforms.mean),
        std=(0.5,) * CHANNELS if is_transformed else tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        crop_pct=side / resized,
    )


def build(
    name: str, input_shape: tuple[int, ...], n_outputs: int, *, is_pretrained: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """See FAMILIES in registry.py; is_pretrained: with the weights that the name says."""
    from torchvision import models

    weights = resolve(name)
    architecture = name.partition(".")[0]
    options: dict[str, Any] = {"num_classes": n_outputs}
    if is_pretrained:
        options = {"weights": weights, "progress": False}
    elif architecture in WITH_AUXILIARY_HEADS:  # else they warn that their start will change
        options["init_weights"] = True
    try:
        if architecture.startswith("vit_"):
            if input_shape[1] != input_shape[2]:
                raise ValueError("it takes squares only")
            options["image_size"] = input_shape[1]
        elif architecture.startswith("maxvit"):
            options["input_size"] = input_shape[1:]
        model = models.get_model(architecture, **options)
    except OSError as error:
        raise cannot_fetch(f"torchvision/{name}", error) from error
    except (ValueError, AssertionError) as error:
        shape = f"a model for inputs of shape {input_shape} ({error})"
        raise bad_value("model", f"torchvision/{name}", shape) from None
    # Auxiliary heads would give outputs of their own in training.
    for auxiliary in WITH_AUXILIARY_HEADS.get(architecture, ()):
        model.aux_logits = False
        setattr(model, auxiliary, None)
    # preprocessing() says the mean and std that pretrained weights need: a model that changed
    # them again would be another one when it is built without weights, as for a resumed run.
    model.transform_input = False

    # In all of torchvision's classifiers the head is the last layer (in SqueezeNet a convolution).
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    head: Any = model.get_submodule(layers[-1])
    if head.weight.shape[0] != n_outputs:
        if isinstance(head, nn.Linear):
            new: nn.Module = nn.Linear(head.in_features, n_outputs)
        else:
            new = nn.Conv2d(head.in_channels, n_outputs, head.kernel_size)
        model.set_submodule(layers[-1], new)
    return model, (layers[-1],)
