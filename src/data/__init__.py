"""Data sets: splits of a family by name, their batches, augmentation, texts, where they live."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.data.batches import (
        Batch,
        Loading,
        evaluation_batches,
        micro_batches,
        shuffled_batches,
        training_batches,
    )
    from src.data.placement import is_to_hold, placed
    from src.data.registry import build_data, build_loading, check_dataset, found_in
    from src.data.splits import (
        NO_TOKEN,
        SECOND,
        ArraySplit,
        Data,
        Preprocessing,
        Split,
        TextSplit,
        has_several_labels,
        is_text,
        is_text_alone,
    )
else:
    __getattr__ = lazy_names(__name__)
