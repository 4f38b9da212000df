"""How the processors and tokenizers of transformers prepare the data, in our words."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from src.data import Preprocessing

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
COLOURS = 3
SQUASHED_FROM = 384  # pixels a side, from which on the processor of ConvNeXt cuts nothing off
# whose processors do something else than to resize, crop and normalise
OTHERWISE = ("MobileViT", "PPLCNet", "Donut", "PoolFormer", "Perceiver", "TextNet", "ImageGPT")
LEVITS_CROP = 224 / 256  # which stands in its code
TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "*.model")
# which count positions from behind the padding's number
FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"),
    *("data2vec-text", "longformer", "mpnet", "luke", "ibert", "esm"),
)
MOST_TOKENS = 1024  # unless more are asked for: attention costs their square


def of_images(name: str, settings: Any) -> Preprocessing:
    """What the file of its processor says; nothing where there is none."""
    from transformers import AutoImageProcessor

    try:
        says = AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    except OSError:
        return Preprocessing()
    if says["image_processor_type"].startswith(OTHERWISE):
        kind = says["image_processor_type"]
        logger.warning("hf/{}: its {} prepares images otherwise than is done here", name, kind)
    channels = getattr(getattr(settings, "vision_config", settings), "num_channels", None)
    mean, std = _pixels(says)
    (height, width), crop_pct, is_squashed = _sides(says)
    return Preprocessing(
        input_shape=(channels or COLOURS, height, width),
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS.get(says.get("resample", 2), "bilinear"),
        crop_pct=crop_pct,
        is_squashed=is_squashed,
    )


def _pixels(says: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels between 0 and 1; the processor means pixels times some factor."""
    scale = 255 * says["rescale_factor"] if says.get("do_rescale", True) else 255.0
    if not says.get("do_normalize"):
        return (0.0,), (1 / scale,)
    mean, std = says["image_mean"], says["image_std"]
    if says.get("include_top"):  # EfficientNet's divides by the std twice
        return tuple(m / scale for m in mean), tuple(s * s / scale for s in std)
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def _sides(says: Mapping[str, Any]) -> tuple[tuple[int, int], float, bool]:
    """(height, width) of the input, crop_pct, and whether images are squeezed into it."""
    size, kind = says["size"], says["image_processor_type"]
    crop = says.get("crop_size") if says.get("do_center_crop") else None
    edge = size.get("shortest_edge")
    if edge is None:  # both sides are given
        shown = (crop or size)["height"], (crop or size)["width"]
        return shown, _share(shown[0], size["height"]), True
    shown = (crop["height"], crop["width"]) if crop else (edge, edge)
    if kind.startswith("ConvNext") and edge >= SQUASHED_FROM:
        return shown, 1.0, True
    crop_pct = says.get("crop_pct") or (LEVITS_CROP if kind.startswith("Levit") else 1)
    return shown, _share(shown[0], int(edge / crop_pct)), False


def _share(shown: int, resized: int) -> float:
    """shown / resized, from which floor(shown / share) gives resized back; at most 1."""
    share = min(1.0, shown / resized)
    is_rounded_down = share < 1 and math.floor(shown / share) < resized
    return math.nextafter(share, 0) if is_rounded_down else share


def of_texts(name: str, settings: Any) -> Preprocessing:
    """Its tokenizer, unless a folder has none, and as many tokens as both take."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    folder = Path(name)
    has_tokenizer = not folder.is_dir() or any(any(folder.glob(f)) for f in TOKENIZER_FILES)
    texts = settings.get_text_config()
    most = getattr(texts, "max_position_embeddings", None)
    if most and texts.model_type in FROM_PADDING:
        most -= texts.pad_token_id + 1
    limits = [most]
    if has_tokenizer:
        limits.append(get_tokenizer_config(name).get("model_max_length"))
    known = [int(limit) for limit in limits if limit]
    return Preprocessing(
        tokenizer=name if has_tokenizer else None,
        text_length=min([*known, MOST_TOKENS]) if known else None,
    )
