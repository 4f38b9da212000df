"""hf/NAME: networks of transformers, by their name on the hub (`bert-base-uncased`,
`google/vit-base-patch16-224`) or by a folder with config.json and, if there are any, weights."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from src.data import NO_TOKEN, SECOND, Preprocessing
from src.models.weights import MAX_REASON, cannot_fetch, shortened
from src.support import UserError, bad_value, one_line

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
IMAGES, TEXTS, NEXT_TOKENS = "images", "texts with classes", "texts with their next tokens"
KINDS = {  # what a network reads -> transformers' factory for it, and its table
    IMAGES: ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    TEXTS: ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    NEXT_TOKENS: ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
}
TOLERANCE = 1e-4  # of the largest output: smaller differences are rounding
POSITIONS = re.compile(r"\b(wpe|position_embeddings|embed_positions)$")  # tables of positions


# ---- What transformers' networks are wrapped in ------------------------------------------


class HFNetwork(nn.Module):
    """One tensor in, logits out, as all models here. `network` is transformers' own module:
    parameters are named network.…"""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layer that a parameter belongs to, in the way in which timm asks its networks."""
        return layer_numbers(name for name, _ in self.named_parameters()).__getitem__


class ImageClassifier(HFNetwork):
    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> logits (n, C)."""
        return self.network(pixel_values=images).logits


class TextClassifier(HFNetwork):
    """Classes of texts, or of pairs of texts."""

    def __init__(self, network: Any, *, padding: int) -> None:
        """padding: the token to put behind the end of a text."""
        super().__init__(network)
        self.padding = padding
        inputs = inspect.signature(network.forward).parameters
        num_types = getattr(network.config.get_text_config(), "type_vocab_size", None) or 1
        self.has_types = "token_type_ids" in inputs and num_types > 1

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, length) int64 -> logits. NO_TOKEN is behind the end of a text; tokens of the second
        text of a pair are SECOND minus the token."""
        if tokens.is_floating_point():
            raise UserError("model: hf/… takes images or texts, and the data are rows of numbers")
        is_there, is_second = tokens != NO_TOKEN, tokens <= SECOND
        ids = torch.where(is_second, SECOND - tokens, tokens)
        types = {"token_type_ids": is_second.long()} if self.has_types else {}
        try:
            return self.logits(torch.where(is_there, ids, self.padding), is_there, **types)
        except IndexError as error:
            expected = "null for the model's own, as there are tokens beyond its vocabulary"
            raise UserError(f"data_tokenizer: expected {expected}") from error

    def logits(self, ids: Tensor, is_there: Tensor, **types: Tensor) -> Tensor:
        """(n, C) for ids (n, length); is_there (n, length) is False on padding. types: which text
        of a pair a token is of, for networks that ask."""
        return self.network(input_ids=ids, attention_mask=is_there.long(), **types).logits


class LastTokenClassifier(TextClassifier):
    """Classes of texts by their last token, for decoders.

    transformers takes the last token that is not the padding token; but a text may end in that
    very token (GPT-2 has no other), and then it would take the one before.
    """

    def logits(self, ids: Tensor, is_there: Tensor, **_: Tensor) -> Tensor:
        hidden = self.network.base_model(input_ids=ids, attention_mask=is_there.long())[0]
        rows = torch.arange(len(ids), device=ids.device)
        return self.network.score(hidden[rows, is_there.sum(1) - 1])  # (n, length, d) -> (n, d)


class LanguageModel(TextClassifier):
    """The next token after each token. Padding comes last and no token sees what comes after it,
    so no mask is needed."""

    def logits(self, ids: Tensor, is_there: Tensor, **_: Tensor) -> Tensor:
        """(n, length, vocabulary)."""
        return self.network(input_ids=ids).logits


# A network's list of blocks, or of stages: encoder.layer.3 in BERT, h.3 in GPT-2, layers.3 in
# Llama and ViT; in a stage the block: stages.1.layers.3 in ResNet.
BLOCK = re.compile(
    r"((?:[^\d.][^.]*\.)*?(?:layer|layers|h|block|blocks|stage|stages)\.\d+)\."
    r"(?:(?:layers|blocks)\.(\d+)\.)?"
)


def layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """Parameters in the order of the network -> layers: 0 is what comes before the blocks, then
    the blocks one by one, then all the rest with the head (as Bao et al. 2022, BEiT, have it).

    What a stage has beside its blocks, such as a change of resolution, counts to the block before
    it, or to the first.

    >>> layer_numbers(["wte.weight", "h.0.weight", "h.1.weight", "ln_f.weight", "score.weight"])
    {'wte.weight': 0, 'h.0.weight': 1, 'h.1.weight': 2, 'ln_f.weight': 3, 'score.weight': 3}
    """
    numbers: dict[str, int | None] = {}
    stage, block, num_blocks = "", "", 0
    for name in names:
        if match := BLOCK.match(name):
            found = match[2] or (block if match[1] == stage else "0")
            num_blocks += (match[1], found) != (stage, block)
            stage, block = match[1], found
        numbers[name] = num_blocks if match or not num_blocks else None
    return {name: num_blocks + 1 if n is None else n for name, n in numbers.items()}


# ---- Settings ----------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its warnings and bars: we log what matters. UserError without it."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("model: hf/… needs a package: pip install transformers") from error
    logging = transformers.utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def names() -> list[str]:
    """The forms of what resolve() takes: the hub has too many."""
    return ["NAME", "OWNER/NAME", "FOLDER"]


@_quiet()
def resolve(name: str, *, is_pretrained: bool = False) -> Any:
    """transformers' settings of a network in a folder, None for one of the hub, which is asked
    when the network is built; UserError for a folder without settings, or without weights."""
    folder = Path(name)
    if not name or not folder.is_dir():
        if not HUB_NAME.fullmatch(name):
            raise bad_value("model", f"hf/{name}", "a folder that exists, or a name of the hub")
        return None
    found = sorted(path.name for path in folder.iterdir())
    there_is = f"there is {shortened(found) or 'nothing'}"
    if "config.json" not in found:
        raise bad_value("model", f"hf/{name}", f"config.json in this folder; {there_is}")
    if is_pretrained and not set(found).intersection(WEIGHTS):
        raise bad_value("model_pretrained", True, f"{WEIGHTS[0]} in {name}; {there_is}")
    return _read_settings(name)


def _read_settings(name: str) -> Any:
    """config.json of a folder or of the hub, as transformers reads it."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a broken file raises whatever its content leads to
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise UserError(
                f"model: 'hf/{name}' is no folder here, nor are its settings in the hub's cache, "
                f"nor could they be fetched ({type(error).__name__}); "
                f"run once where there is a network"
            ) from error
        expected = f"settings that can be read ({one_line(error, MAX_REASON)})"
        raise bad_value("model", f"hf/{name}", expected) from error
    if settings.model_type == "timm_wrapper":
        raise bad_value("model", f"hf/{name}", "timm/NAME for a network of timm")
    return settings


def _readable_kinds(settings: Any) -> list[str]:
    """What a network with these settings can read, as KINDS has it."""
    import transformers

    tables = {kind: getattr(transformers, table) for kind, (_, table) in KINDS.items()}
    return [kind for kind, table in tables.items() if type(settings) in table]


# ---- How the data are prepared -----------------------------------------------------------
#
# The processors of transformers are not called: they take one image at a time, in no worker
# process, and know nothing of augmentation. Their settings are translated instead.

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
MAX_TOKENS = 1024  # unless more are requested: attention costs their square


@_quiet()
def preprocessing(name: str, *, has_weights: bool) -> Preprocessing:
    """How the images were prepared for the weights; for a network that reads texts, weights or
    not, its tokenizer, unless a folder has none, and as many tokens as both take. Nothing is
    built."""
    settings = resolve(name) or _read_settings(name)
    if IMAGES in _readable_kinds(settings):
        return _image_preprocessing(name, settings) if has_weights else Preprocessing()
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    folder = Path(name)
    has_tokenizer = not folder.is_dir() or any(any(folder.glob(f)) for f in TOKENIZER_FILES)
    texts = settings.get_text_config()
    limit = getattr(texts, "max_position_embeddings", None)
    if limit and texts.model_type in FROM_PADDING:
        limit -= texts.pad_token_id + 1
    limits = [limit, get_tokenizer_config(name).get("model_max_length") if has_tokenizer else None]
    known = [int(limit) for limit in limits if limit]
    return Preprocessing(
        tokenizer=name if has_tokenizer else None,
        text_length=min([*known, MAX_TOKENS]) if known else None,
    )


def _image_preprocessing(name: str, settings: Any) -> Preprocessing:
    """What the file of the network's image processor says; nothing where there is none."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False).to_dict()
    except OSError:
        return Preprocessing()
    kind = processor["image_processor_type"]
    if kind.startswith(UNLIKE_OURS):
        logger.warning("hf/{}: its {} prepares images otherwise than is done here", name, kind)
    # Our mean and std are of pixels between 0 and 1; the processor's of pixels times this factor.
    scale = 255 * processor["rescale_factor"] if processor.get("do_rescale", True) else 255.0
    mean, std = (0.0,), (1 / scale,)
    if processor.get("do_normalize"):
        power = 2 if processor.get("include_top") else 1  # EfficientNet's divides by std twice
        mean = tuple(m / scale for m in processor["image_mean"])
        std = tuple(s**power / scale for s in processor["image_std"])
    size = processor["size"]
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    edge = size.get("shortest_edge")  # None: both sides are given
    sides = crop or (size if edge is None else {"height": edge, "width": edge})
    is_squashed = edge is None or (kind.startswith("ConvNext") and edge >= SQUASHED_FROM)
    if edge is None:
        resized = size["height"]
    elif is_squashed:
        resized = sides["height"]
    else:
        of_edge = processor.get("crop_pct") or (LEVIT_CROP if kind.startswith("Levit") else 1)
        resized = int(edge / of_edge)
    crop_pct = min(1.0, sides["height"] / resized)
    # Rounded so that floor(height / crop_pct) is what the processor resizes to.
    if crop_pct < 1 and math.floor(sides["height"] / crop_pct) < resized:
        crop_pct = math.nextafter(crop_pct, 0)
    channels = getattr(getattr(settings, "vision_config", settings), "num_channels", None)
    return Preprocessing(
        input_shape=(channels or 3, sides["height"], sides["width"]),
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"),
        crop_pct=crop_pct,
        is_squashed=is_squashed,
    )


# ---- The network -------------------------------------------------------------------------


@_quiet()
def build(
    name: str,
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    is_pretrained: bool = False,
    is_language_model: bool = False,
) -> tuple[nn.Module, tuple[str, ...]]:
    """See FAMILIES in registry.py; input_shape: of images (channels, height, width), of texts (most
    tokens,). is_pretrained: with the weights of the hub or the folder, as float32."""
    import transformers

    settings = resolve(name, is_pretrained=is_pretrained) or _read_settings(name)
    kind = IMAGES if len(input_shape) == 3 else NEXT_TOKENS if is_language_model else TEXTS
    if kind not in (kinds := _readable_kinds(settings)):
        reads = f"reads {' or '.join(kinds)}" if kinds else "reads neither images nor texts"
        expected = f"a network for {kind}, as the data are; {settings.model_type} {reads}"
        raise bad_value("model", f"hf/{name}", expected)
    # Where there are several classes of networks, transformers iterates over these unasked.
    settings.architectures = settings.architectures or []
    if kind == IMAGES:
        channels, height, width = input_shape
        for part in filter(None, (settings, getattr(settings, "vision_config", None))):
            if getattr(part, "num_channels", None) is not None:
                part.num_channels = channels
            if getattr(part, "image_size", None) is not None:
                is_one_number = isinstance(part.image_size, int) and height == width
                part.image_size = height if is_one_number else [height, width]
    if kind == NEXT_TOKENS:  # the vocabulary is at least as large as the tokenizer's
        texts = settings.get_text_config()
        if is_pretrained and texts.vocab_size < n_outputs:
            expected = f"one of at most {texts.vocab_size} tokens, which 'hf/{name}' knows"
            raise UserError(f"data_tokenizer: got one of {n_outputs} tokens, expected {expected}")
        texts.vocab_size = max(texts.vocab_size, n_outputs)
        texts.use_cache = False  # keys and values of earlier tokens are kept for generating alone
    else:
        settings.num_labels = n_outputs
    factory = getattr(transformers, KINDS[kind][0])
    if is_pretrained:
        network = _load_pretrained(factory, name, settings, n_outputs)
    else:
        try:
            network = factory.from_config(settings, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # from a network's own code
            expected = f"settings that make a network ({one_line(error, MAX_REASON)})"
            raise bad_value("model", f"hf/{name}", expected) from error
    model = ImageClassifier(network) if kind == IMAGES else _text_model(network, kind)
    if isinstance(model, TextClassifier):
        _check_texts(model.eval(), name, kind, length=input_shape[0])
    return model.train(), tuple(f"network.{head}" for head in _heads(network, n_outputs))


def _load_pretrained(factory: Any, name: str, settings: Any, n_outputs: int) -> Any:
    """The network with its weights; what is new is logged, UserError where that is too much."""
    try:
        network, report = factory.from_pretrained(
            name,
            config=settings,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise cannot_fetch(f"hf/{name}", error, "a folder with them, hf/FOLDER") from error
        expected = f"weights that can be read in {name} ({one_line(error, MAX_REASON)})"
        raise bad_value("model_pretrained", True, expected) from error
    heads = tuple(f"{head}." for head in _heads(network, n_outputs))
    for key, shape_in_file, shape in report["mismatched_keys"]:
        if not key.startswith(heads):
            expected = f"a network that the weights of 'hf/{name}' fit; there is {key} of shape "
            expected += f"{tuple(shape)}, and the file has {tuple(shape_in_file)}"
            raise bad_value("model_pretrained", True, f"{expected} (model_input_shape?)")
    body, missing = f"{_body(network)}.", sorted(report["missing_keys"])
    # A pooler is a part of the body, and networks that were trained without a head may lack it.
    lacking = [key for key in missing if key.startswith(body) and "pooler" not in key]
    if lacking:
        expected = f"all weights of the network in 'hf/{name}'; there is no {shortened(lacking)}"
        raise bad_value("model_pretrained", True, expected)
    embeddings = network.get_output_embeddings()
    new = sorted([*missing, *(key for key, *_ in report["mismatched_keys"])])
    if new:
        logger.info("hf/{}: new, as the weights have none that fit: {}", name, shortened(new))
    elif embeddings is None and n_outputs > 1:
        labels = [settings.id2label[number] for number in sorted(settings.id2label)]
        logger.info("hf/{}: its head is kept, for the classes {}", name, shortened(labels))
    is_tied = embeddings is None or embeddings.weight is network.get_input_embeddings().weight
    if not is_tied and network.config.get_text_config().tie_word_embeddings:
        # Built from the settings alone, as for a resumed run, it would be another network.
        expected = f"tie_word_embeddings: false in the config.json of {name}, as its file has both"
        raise bad_value("model_pretrained", True, f"{expected} embeddings")
    return network


def _text_model(network: Any, kind: str) -> TextClassifier:
    texts = network.config.get_text_config()
    padding = getattr(texts, "pad_token_id", None)
    padding = padding if padding is not None and 0 <= padding < texts.vocab_size else 0
    if kind == NEXT_TOKENS:
        return LanguageModel(network, padding=padding)
    is_decoder = isinstance(getattr(network, "score", None), nn.Linear)
    if is_decoder and not getattr(texts, "is_encoder_decoder", False):
        return LastTokenClassifier(network, padding=padding)
    texts.pad_token_id = padding  # by which some networks find the last token
    return TextClassifier(network, padding=padding)


@torch.no_grad()
def _check_texts(model: HFNetwork, name: str, kind: str, *, length: int) -> None:
    """UserError for a network that can't take such long texts, or sees the tokens that it should
    predict; a warning for one in which padding shows."""
    if kind == TEXTS:  # not so in XLNet, FNet and CANINE
        text, padding = torch.tensor([[0, 1, 0]]), torch.full((1, 2), NO_TOKEN)
        alone, padded = model(text), model(torch.cat([text, padding], 1))
        if not (alone - padded).abs().max() <= TOLERANCE * alone.abs().max():
            logger.warning(
                "hf/{}: what it makes of a text depends on the padding of its batch", name
            )
    lengths = []
    for path, table in model.network.named_modules():
        if isinstance(table, nn.Embedding) and POSITIONS.search(path):
            # Rows at the start go unused: 2 in OPT (offset), those up to the padding's in RoBERTa.
            before = -1 if table.padding_idx is None else table.padding_idx
            lengths.append(table.num_embeddings - getattr(table, "offset", before + 1))
    if length > (most := min(lengths, default=length)):
        raise bad_value("data_text_length", length, f"at most {most} tokens for 'hf/{name}'")
    if kind == NEXT_TOKENS:
        first, other = model(torch.tensor([[0, 0], [0, 1]]))[:, 0]
        if (first - other).abs().max() > TOLERANCE * first.abs().max():
            expected = "a network that sees what comes before a token alone, such as hf/gpt2"
            raise bad_value("model", f"hf/{name}", f"{expected} (or is_decoder in its config.json)")


def _body(network: Any) -> str:
    """The name of the part below the head: the child with most parameters."""
    sizes = {n: sum(p.numel() for p in c.parameters()) for n, c in network.named_children()}
    return max(sizes, key=lambda name: sizes[name])


def _heads(network: Any, n_outputs: int) -> list[str]:
    """The names of the layers that give the outputs: of each part beside the body the last layer,
    where it has as many outputs."""
    embeddings = network.get_output_embeddings()
    if embeddings is not None:  # of next tokens
        return [name for name, module in network.named_modules() if module is embeddings]
    body, heads = _body(network), []
    for child_name, child in network.named_children():
        modules = child.named_modules(prefix=child_name)
        layers = [(n, m) for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d)]
        if child_name != body and layers and len(layers[-1][1].weight) == n_outputs:
            heads.append(layers[-1][0])
    return heads
