"""Data sets: from `dataset: family/name` to splits that make their own batches.

registry.py            the table of families; builds Data, and the LoaderConfig of a run
sources/               a file a family: sklearn, libsvm, timm, tfds, hf, custom ones
splits.py              Split, what every kind of split can do, and Data, all about a data set
arrays.py              ArraySplit: dense or sparse rows in memory; normalisation
images.py              DatasetSplit: read one at a time; PixelSplit: cached on the device
text.py                TextSplit: tokens, tokenised once
order.py               which example comes when, and which process takes it: a function of the seed
workers.py             worker processes that read what does not fit in memory
transforms.py          from one image to a tensor
augmentation.py        what is done at random to single images
batch_augmentation.py  the same for whole batches on the device
mixing.py              mixup and CutMix
splits_map.py          train[:90%] and the like; splits of other data sets, with our classes

A family reads its files and hands over Data. The Session moves its splits to the device and asks
each for its batches: split.training_batches(), evaluation_batches(), shuffled_batches().
"""

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
