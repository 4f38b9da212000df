"""Folders that TFDS prepares in a process of its own, so that TensorFlow stays out of ours."""

import io
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
FORMS = ("array_record", "tfrecord")
SIZES = {"train": 120, "test": 30}
COLOURS = ["red", "green", "blue"]


def example(split: str, number: int) -> tuple[bytes, int]:
    """A noisy image of 12 x 12 pixels, brighter in one colour, PNG or JPEG; the colour."""
    draw = np.random.default_rng([split == "train", number])
    pixels, label = draw.integers(0, 160, (12, 12, 3), dtype=np.uint8), number % 3
    pixels[..., label] += 60
    return encoded(pixels, "JPEG" if number % 4 == 3 else "PNG"), label


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@cache
def written(root: Path) -> dict[str, Path]:
    """Form -> a data_dir below root with all that tfds_sets builds."""
    made = {form: root / "tfds" / form for form in FORMS}
    script = "import sys, tfds_sets; tfds_sets.write(*sys.argv[1:])"
    for form, data_dir in made.items():
        subprocess.run(
            [sys.executable, "-c", script, form, data_dir],
            cwd=HERE,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            check=True,
        )
    return made
