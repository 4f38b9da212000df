"""How the image processors and tokenizers of transformers prepare the data, as a Preprocessing.

The processors themselves are not called: they take one image at a time, in no worker process, and
know nothing of augmentation. Their settings are translated instead.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from src.data import Preprocessing

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
SQUASHED_FROM = 384  # pixels a side, from which on the processor of ConvNeXt crops nothing
LEVIT_CROP = 224 / 256  # a constant in the code of LeViT's processor
# Processors that do something else than to resize, crop and normalise.
UNLIKE_OURS = ("MobileViT", "PPLCNet", "Donut", "PoolFormer", "Perceiver", "TextNet", "ImageGPT")
TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "*.model")
# Networks that count positions from the padding token's number on, and so lose some of them.
FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"),
    *("data2vec-text", "longformer", "mpnet", "luke", "ibert", "esm"),
)
MAX_TOKENS = 1024  # unless more are asked for: attention costs their square


def image_preprocessing(name: str, settings: Any) -> Preprocessing:
    """What the file of the network's image processor says; nothing where there is none."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    except OSError:
        return Preprocessing()
    kind = processor["image_processor_type"]
    if kind.startswith(UNLIKE_OURS):
        logger.warning("hf/{}: its {} prepares images otherwise than is done here", name, kind)
    channels = getattr(getattr(settings, "vision_config", settings), "num_channels", None)
    # Our mean and std are of pixels between 0 and 1; the processor's of pixels times this factor.
    scale = 255 * processor["rescale_factor"] if processor.get("do_rescale", True) else 255.0
    mean, std = (0.0,), (1 / scale,)
    if processor.get("do_normalize"):
        power = 2 if processor.get("include_top") else 1  # EfficientNet's divides by std twice
        mean = tuple(m / scale for m in processor["image_mean"])
        std = tuple(s**power / scale for s in processor["image_std"])
    (height, width), crop_pct, is_squashed = _sides(processor, kind)
    return Preprocessing(
        input_shape=(channels or 3, height, width),
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"),
        crop_pct=crop_pct,
        is_squashed=is_squashed,
    )


def _sides(processor: Mapping[str, Any], kind: str) -> tuple[tuple[int, int], float, bool]:
    """(height, width) of the input, crop_pct, and whether images are squeezed into it."""
    size = processor["size"]
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    edge = size.get("shortest_edge")
    if edge is None:  # both sides are given
        sides = (crop or size)["height"], (crop or size)["width"]
        return sides, _crop_pct(sides[0], size["height"]), True
    sides = (crop["height"], crop["width"]) if crop else (edge, edge)
    if kind.startswith("ConvNext") and edge >= SQUASHED_FROM:
        return sides, 1.0, True
    crop_pct = processor.get("crop_pct") or (LEVIT_CROP if kind.startswith("Levit") else 1)
    return sides, _crop_pct(sides[0], int(edge / crop_pct)), False


def _crop_pct(cropped: int, resized: int) -> float:
    """cropped / resized, at most 1, rounded so that floor(cropped / crop_pct) is resized again."""
    crop_pct = min(1.0, cropped / resized)
    is_rounded_down = crop_pct < 1 and math.floor(cropped / crop_pct) < resized
    return math.nextafter(crop_pct, 0) if is_rounded_down else crop_pct


def text_preprocessing(name: str, settings: Any) -> Preprocessing:
    """The network's tokenizer, unless a folder has none, and as many tokens as both take."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    folder = Path(name)
    has_tokenizer = not folder.is_dir() or any(any(folder.glob(f)) for f in TOKENIZER_FILES)
    texts = settings.get_text_config()
    limit = getattr(texts, "max_position_embeddings", None)
    if limit and texts.model_type in FROM_PADDING:
        limit -= texts.pad_token_id + 1
    limits = [limit]
    if has_tokenizer:
        limits.append(get_tokenizer_config(name).get("model_max_length"))
    known = [int(limit) for limit in limits if limit]
    return Preprocessing(
        tokenizer=name if has_tokenizer else None,
        text_length=min([*known, MAX_TOKENS]) if known else None,
    )
