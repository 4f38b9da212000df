import random

import numpy as np
import torch

from src.runtime.checkpoints import read_state, write_state
from src.support.random_state import GlobalGenerators, isolate_rng, seed_everything


def draw() -> list:
    """Odd numbers of normal draws leave a second one waiting inside numpy's and Python's."""
    return [torch.randn(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)]


def test_all_generators_go_on_from_a_file(tmp_path):
    seed_everything(5)
    draw()
    write_state(tmp_path / "x.state", GlobalGenerators().state_dict())
    expected = [draw(), draw()]
    seed_everything(6)
    GlobalGenerators().load_state_dict(read_state(tmp_path / "x.state"))
    assert [draw(), draw()] == expected


def test_what_is_drawn_inside_leaves_no_trace():
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    with isolate_rng():
        draw()
    assert draw() == expected
