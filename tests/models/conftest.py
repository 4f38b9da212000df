import pytest

from src.config import Config, make_config


@pytest.fixture
def config():
    """The Config of a model, by its name; keyword arguments are further keys."""

    def build(model: str, **keys) -> Config:
        return make_config({"model": model, "seed_model": 1, "seed_training": 2} | keys)

    return build
