"""What classes are called."""

from collections.abc import Sequence
from dataclasses import replace

from src.data.splits import Data
from src.support import UserError, bad_value

MOST_SHOWN = 8


def named_classes(data: Data, names: Sequence[str] | None) -> Data:
    """The data with these names of the classes, where some are given. Raises UserError."""
    if names is None:
        return data
    if len(names) != data.n_classes:
        shown = ", ".join(map(str, names[:MOST_SHOWN])) + ", …" * (len(names) > MOST_SHOWN)
        raise bad_value("data_class_names", shown, f"{data.n_classes} names, not {len(names)}")
    return replace(data, class_names=tuple(names))


def imagenet_names() -> list[str]:
    """The 1000 of ImageNet in open_clip's words, which were chosen for zero-shot prompts."""
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise UserError("data_class_names: imagenet needs `pip install open_clip_torch`") from error
    return list(IMAGENET_CLASSNAMES)
