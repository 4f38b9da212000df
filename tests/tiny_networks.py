"""Tiny networks of transformers, texts for them, and tiny networks of open_clip."""

import json
from pathlib import Path

import torch
from torch import nn

from src.data.splits import NO_TOKEN
from src.models.registry import build_model

VOCABULARY, LENGTH = 40, 24
WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = WIDTH | {"vocab_size": VOCABULARY, "intermediate_size": 32}
ENCODER |= {"max_position_embeddings": LENGTH}
DECODER = ENCODER | {"num_key_value_heads": 1}
VIT = WIDTH | {"intermediate_size": 32, "image_size": 8, "patch_size": 4, "num_channels": 1}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_channels": 1}
SETTINGS = {
    "bert": ENCODER,
    "roberta": ENCODER | {"max_position_embeddings": LENGTH + 4, "pad_token_id": 3},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2}
    | {"hidden_dim": 32, "max_position_embeddings": LENGTH},
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2}
    | {"n_head": 2, "bos_token_id": None, "eos_token_id": 5},
    "llama": DECODER,
    "qwen2": DECODER | {"tie_word_embeddings": True},
    "opt": ENCODER | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "ctrl": {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2}
    | {"n_head": 2, "dff": 32},
    "vit": VIT,
    "deit": VIT,
    "resnet": STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "convnext": STAGES | {"num_stages": 2, "patch_size": 2},
    "swin": {"image_size": 8, "patch_size": 2, "num_channels": 1, "embed_dim": 8}
    | {"depths": [1, 2], "num_heads": [1, 2], "window_size": 2},
}
TEXTS = ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "opt", "ctrl")
DECODERS = LANGUAGE_MODELS = ("gpt2", "llama", "qwen2", "opt")
IMAGES = ("vit", "deit", "resnet", "convnext", "swin")
IMAGE = (1, 8, 8)


def texts_of(lengths, last=()) -> list[torch.Tensor]:
    """Random texts; the last ones end in the given tokens."""
    g = torch.Generator().manual_seed(1)
    texts = [torch.randint(VOCABULARY, (n,), generator=g) for n in lengths]
    for text, token in zip(texts, last, strict=False):
        text[-1] = token
    return texts


def padded(texts: list[torch.Tensor]) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=NO_TOKEN)


def language_model(config, path: str, n_tokens: int = VOCABULARY, **keys) -> nn.Module:
    return build_model(config(f"hf/{path}", loss="next_token", **keys), (LENGTH,), n_tokens)


CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TOWERS = {
    "vit": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "resnet": {"layers": [1, 2, 1, 1], "width": 8, "head_width": 32},
    "timm": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
}


def write_clip(folder: Path, tower: str = "vit", **preprocess) -> str:
    """A tiny CLIP with random weights as open_clip reads it from a folder; its name in YAML."""
    import open_clip
    from safetensors.torch import save_file

    settings = {"embed_dim": 32, "vision_cfg": {"image_size": 32, **TOWERS[tower]}}
    settings |= {"text_cfg": CLIP_TEXT, "custom_text": tower == "timm"}
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": settings, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(tower))
        whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        for parameter in whole.parameters():  # zeros in residual blocks and elsewhere say nothing
            parameter.data += 0.02 * torch.randn_like(parameter)
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean += torch.rand_like(module.running_mean)
    save_file(whole.state_dict(), folder / "open_clip_model.safetensors")
    return f"clip/{folder}"
