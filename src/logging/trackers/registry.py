"""trackers: [wandb, tensorboard] -> the modules that tell them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from src.config import Config
from src.logging.trackers.tracked import Tracker
from src.support import pick

# name -> (the module here, its class, the package to install)
TRACKERS = {
    "comet": ("comet", "Comet", "comet_ml"),
    "tensorboard": ("tensorboard", "TensorBoard", "tensorboard"),
    "trackio": ("trackio", "Trackio", "trackio"),
    "wandb": ("wandb", "Wandb", "wandb"),
}


@dataclass(frozen=True)
class Service:
    """What there is to know of a tracker."""

    build: Callable[..., Tracker]
    has_credentials: Callable[[], bool]


def tracker_names(config: Config) -> list[str]:
    """Those that the configuration asks for, each once."""
    return list(dict.fromkeys([*(["wandb"] * config.wandb), *config.trackers]))


def load_service(name: str) -> Service:
    """Imports the library. Raises ImportError with what to install."""
    module_name, class_name, package = pick(TRACKERS, name, "trackers")
    module = import_module(f"src.logging.trackers.{module_name}")
    try:
        import_module(package)
    except ImportError as error:
        raise ImportError(f"{error}; install it by: pip install {package}") from None
    return Service(getattr(module, class_name), module.has_credentials)
