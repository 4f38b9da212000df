import json

import pytest
import torch
from tiny_networks import SETTINGS
from torch import nn

from src.config import Config, make_config


@pytest.fixture
def config():
    """The Config of a model, by its name; keyword arguments are further keys."""

    def build(model: str, **keys) -> Config:
        return make_config({"model": model, "seed_model": 1, "seed_training": 2} | keys)

    return build


@pytest.fixture
def folder(tmp_path):
    """folder('bert', …) -> a folder with config.json; keyword arguments are further settings."""

    def write(kind: str, **settings) -> str:
        path = tmp_path / kind
        path.mkdir(exist_ok=True)
        content = {"model_type": kind} | SETTINGS[kind] | settings
        (path / "config.json").write_text(json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def weights(folder):
    """weights('bert', 'AutoModel', …) -> a folder with config.json and weights, and their names."""

    def write(kind: str, factory: str, **settings) -> tuple[str, dict]:
        import transformers

        path = folder(kind, **settings)
        torch.manual_seed(0)
        own = transformers.AutoConfig.from_pretrained(path)
        own.architectures = []
        network = getattr(transformers, factory).from_config(own)
        for parameter in network.parameters():  # so that every single one shows
            nn.init.normal_(parameter, std=0.3)
        network.save_pretrained(path)
        return path, network.state_dict()

    return write
