"""The global generators of random numbers: torch's, numpy's and Python's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, *, cpu_only: bool = False) -> None:
    """Seed all of them: dropout, augmentation, and whatever a fork draws in the loop.

    cpu_only: leave those of GPUs, which takes a twentieth of the time: for what is seeded once an
    example.
    """
    if cpu_only:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def isolate_rng() -> Iterator[None]:
    """A context after which all of them continue as if nothing had been drawn inside."""
    # Not by the class below, which takes ten times as long: batches that are mixed do this.
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    python_state = random.getstate()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)


class GlobalGenerators:
    """The state of all of them as plain tensors and numbers: it is saved in checkpoints, which
    hold no pickle."""

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
        """Where there are fewer or more GPUs than before, those of both get their states back."""
        torch.set_rng_state(state["torch"])
        for number, gpu in enumerate(state["cuda"]):
            if number < torch.cuda.device_count():
                torch.cuda.set_rng_state(gpu, number)
        if state["mps"] is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state["mps"])
        keys, *numpy_rest = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *numpy_rest))
        version, words, next_gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), next_gauss))
