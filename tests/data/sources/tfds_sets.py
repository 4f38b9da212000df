"""Builders of small data sets, for a process that prepares them as TFDS does.

The tests do not import this: to them the folders are of data sets that TFDS does not know.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from tfds_folders import COLOURS, SIZES, encoded, example


class Small(tfds.core.GeneratorBasedBuilder):
    """With SIZES examples, unless a class below says otherwise."""

    VERSION = tfds.core.Version("1.9.0")
    SUPPORTED_VERSIONS = [tfds.core.Version("1.10.0")]  # noqa: RUF012
    image, label = (12, 12, 3), {"names": COLOURS}

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=self.image),
            "label": tfds.features.ClassLabel(**self.label),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for number in range(SIZES[split]):
            image, label = self.example(split, number)
            yield number, {"id": f"{split}{number}", "image": io.BytesIO(image), "label": label}

    def example(self, split, number):
        return example(split, number)


class Colours(Small):
    name = "colours"


class Letter(tfds.core.BuilderConfig):
    pass


class Letters(Small):
    """Grey, of several sizes, classes without names; those of `test` are not known."""

    name = "letters"
    BUILDER_CONFIGS = [Letter(name="big"), Letter(name="small")]  # noqa: RUF012
    DEFAULT_BUILDER_CONFIG_NAME = "small"
    image, label = (None, None, 1), {"num_classes": 4}

    def example(self, split, number):
        size = 8 if self.builder_config.name == "small" else 16
        pixels = np.full((size, size + number % 2), number, np.uint8)
        return encoded(pixels), -1 if split == "test" else number % 4


class Boxes(Small):
    """Without classes."""

    name = "boxes"

    def _info(self):
        features = {"image": tfds.features.Image(), "box": tfds.features.BBoxFeature()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, split):
        box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        for number in range(3):
            yield number, {"image": io.BytesIO(example(split, number)[0]), "box": box}


with tfds.core.registered.skip_registration():

    class Cifar10(Small):
        """The real one's name, version and features."""

        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")
        image = (32, 32, 3)
        label = {"num_classes": 10}  # noqa: RUF012

        def example(self, split, number):
            draw = np.random.default_rng(number)
            return encoded(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)), number % 10


def write(form: str, data_dir: str) -> None:
    """All of them, in files of a few dozen examples."""
    config = tfds.download.DownloadConfig(num_shards=3)
    versions = {"version": "1.9.0"}, {"version": "experimental_latest"}
    configs = {"config": "small"}, {"config": "big"}
    for builder, options in [
        *((Colours, each) for each in versions),
        *((Letters, each) for each in configs),
        (Boxes, {}),
        (Cifar10, {}),
    ]:
        made = builder(data_dir=data_dir, file_format=form, **options)
        made.download_and_prepare(download_config=config)
