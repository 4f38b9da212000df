"""Data sets: splits of a family by name, their batches, augmentation, texts, where they live."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.data.arrays import micro_batches
    from src.data.registry import build_data, build_loader_config, check_dataset, found_in
    from src.data.splits import (
        NO_TOKEN,
        SECOND,
        Batch,
        Data,
        LoaderConfig,
        Preprocessing,
        Split,
    )
else:
    __getattr__ = lazy_names(__name__)
