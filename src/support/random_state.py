"""The global generators of random numbers: torch's, numpy's and Python's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Start all of them: dropout, augmentation, and whatever a fork draws in the loop."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_cpu(seed: int) -> None:
    """The same without those of GPUs, in a twentieth of the time: once an example counts."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """What is drawn inside leaves no trace outside."""
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)


class Generators:
    """All of them as a part of a run's state: tensors and numbers, as files without pickle hold."""

    def state_dict(self) -> dict[str, Any]:
        _, keys, *numpy_rest = np.random.get_state(legacy=True)
        version, words, next_gauss = random.getstate()
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": gpus,
            "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
            "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), *numpy_rest],
            "python": [version, torch.tensor(words), next_gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """On another number of GPUs than before, those that there are get their states back."""
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available():
            for number, gpu in enumerate(state["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(gpu, number)
        if state["mps"] is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"])
        keys, *numpy_rest = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *numpy_rest))
        version, words, next_gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), next_gauss))
