"""Data sets: from `dataset: family/name` to splits that make their own batches.

registry.py            the table of families; builds Data, and the LoaderConfig of a run
source.py              a data set as the configuration names it; what families share
sources/               a file a family, with check() and build()
splits.py              Split, what every kind of split can do, and Data, all about a data set
arrays.py              ArraySplit: dense or sparse rows in memory, cached images; normalisation
images.py              DatasetSplit: images read one at a time, by worker processes
text.py                TextSplit: tokens, tokenised once
order.py               which example comes when, and which process takes it: a function of the seed
transforms.py          from one image to a tensor, and what is done at random to single images
batch_augmentation.py  the same for whole batches in memory: arrays, and images on the device; and
                       what is done to all batches: mixup, CutMix, a function of your own
splits_map.py          train[:90%] and the like; splits of other data sets, with our classes

A family reads its files and hands over Data. The Session moves its splits to the device and asks
each for its batches: split.training_batches(), evaluation_batches(), shuffled_batches().
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.data.arrays import micro_batches  # a batch, cut for grad_accum_steps
    from src.data.registry import (
        build_data,  # Config -> Data
        build_loader_config,  # how the batches of a run are made
        check_dataset,  # the mistakes that show without the data
        dataset_names,  # all of them, for --list
    )
    from src.data.splits import (
        NO_TOKEN,  # where a text of a batch has ended
        SECOND,  # how tokens of a second text are marked
        Batch,  # (inputs, targets)
        Data,  # a data set: splits, shapes, classes
        LoaderConfig,  # batch size, device, shard, workers
        Preprocessing,  # how a network wants images and texts
        Split,  # one split, which makes its batches
    )
else:
    __getattr__ = lazy_names(__name__)
