"""Models by name: linear, tiny, timm, torchvision, open_clip, transformers; their weights."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.models.freezing import keeps_statistics
    from src.models.registry import (
        build_model,
        check_model,
        model_preprocessing,
        output_dim,
        without_weights,
    )
else:
    __getattr__ = lazy_names(__name__)
