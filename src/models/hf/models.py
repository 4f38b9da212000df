"""hf/NAME: networks of transformers, by their name on the hub (`bert-base-uncased`,
`google/vit-base-patch16-224`) or by a folder with config.json and, if there are any, weights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn

from src.data import NO_TOKEN, Preprocessing
from src.models.hf import preprocessing as hf_preprocessing
from src.models.hf.networks import Images, LastToken, Network, NextTokens, Texts, most_positions
from src.models.weights import out_of_reach
from src.support import UserError, bad_value

KEY = "model"
OF_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
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
MOST_SHOWN = 4
LEAST_CHANGE = 1e-4  # of the largest output, beyond rounding


def build(
    name: str,
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    is_pretrained: bool = False,
    is_language_model: bool = False,
) -> tuple[nn.Module, tuple[str, ...]]:
    """'bert-base-uncased', (128,), 2 -> (model, names of its head).

    (channels, height, width) are images, (most tokens,) texts. is_pretrained: with the weights of
    the hub or the folder, as float32, the head new where the number of outputs is another.
    UserError where the network is not for such data, or the weights are not for the network.
    """
    look_up(name, is_pretrained=is_pretrained)
    kind = IMAGES if len(input_shape) == 3 else NEXT_TOKENS if is_language_model else TEXTS
    with _quiet():
        settings = _settings(name)
        factory = _factory(settings, name, kind)
        if kind == IMAGES:
            _fit_to_images(settings, input_shape)
        if kind == NEXT_TOKENS:
            _fit_to_tokens(settings, n_outputs, name, is_pretrained=is_pretrained)
        else:
            settings.num_labels = n_outputs
        if is_pretrained:
            network = _with_weights(factory, name, settings, n_outputs)
        else:
            network = _at_random(factory, name, settings)
        model = _model(network, kind)
        _try_out(model, name, input_shape, kind)
    return model.train(), tuple(f"network.{head}" for head in _heads(network, n_outputs))


def look_up(name: str, *, is_pretrained: bool = False) -> Any:
    """transformers' settings of a network in a folder, None for one of the hub, which is asked
    when the network is built; UserError for a folder without settings, or without weights."""
    _library()
    folder = Path(name)
    if not name or not folder.is_dir():
        if not OF_HUB.fullmatch(name):
            raise bad_value(KEY, f"hf/{name}", "a folder that exists, or a name of the hub")
        return None
    found = sorted(path.name for path in folder.iterdir())
    if "config.json" not in found:
        raise bad_value(KEY, f"hf/{name}", f"config.json in this folder; there is {_some(found)}")
    if is_pretrained and not set(found).intersection(WEIGHTS):
        expected = f"{WEIGHTS[0]} in {name}; there is {_some(found)}"
        raise bad_value("model_pretrained", True, expected)
    with _quiet():
        return _settings(name)


def preprocessing(name: str, *, has_weights: bool) -> Preprocessing:
    """How the images were prepared that its weights belong to; of a network for texts, weights
    or not, its tokenizer. Nothing is built."""
    look_up(name)
    with _quiet():
        settings = _settings(name)
        if IMAGES not in _kinds(settings):
            return hf_preprocessing.of_texts(name, settings)
        return hf_preprocessing.of_images(name, settings) if has_weights else Preprocessing()


# ---- The settings ------------------------------------------------------------------------


def _settings(name: str) -> Any:
    """config.json of a folder or of the hub, as transformers reads it."""
    try:
        settings = _library().AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever a broken file brings to light
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise UserError(
                f"model: 'hf/{name}' is no folder here, nor are its settings in the hub's cache, "
                f"nor could they be fetched ({type(error).__name__}); "
                f"run once where there is a network"
            ) from error
        raise bad_value(KEY, f"hf/{name}", f"settings that can be read ({_line(error)})") from error
    if settings.model_type == "timm_wrapper":
        raise bad_value(KEY, f"hf/{name}", "timm/NAME for a network of timm")
    return settings


def _kinds(settings: Any) -> list[str]:
    """What a network with these settings can read."""
    tables = {kind: getattr(_library(), table) for kind, (_, table) in KINDS.items()}
    return [kind for kind, table in tables.items() if type(settings) in table]


def _factory(settings: Any, name: str, kind: str) -> Any:
    if kind not in (kinds := _kinds(settings)):
        reads = f"reads {' or '.join(kinds)}" if kinds else "reads neither images nor texts"
        expected = f"a network for {kind}, as the data are; {settings.model_type} {reads}"
        raise bad_value(KEY, f"hf/{name}", expected)
    # where there are several classes of networks, transformers looks for these without asking
    settings.architectures = settings.architectures or []
    return getattr(_library(), KINDS[kind][0])


def _fit_to_images(settings: Any, input_shape: tuple[int, ...]) -> None:
    """Tell a network that wants to know it the number of channels and the size."""
    channels, height, width = input_shape
    for part in filter(None, (settings, getattr(settings, "vision_config", None))):
        if getattr(part, "num_channels", None) is not None:
            part.num_channels = channels
        if getattr(part, "image_size", None) is not None:
            is_plain = isinstance(part.image_size, int) and height == width
            part.image_size = height if is_plain else [height, width]


def _fit_to_tokens(settings: Any, n_tokens: int, name: str, *, is_pretrained: bool) -> None:
    """A vocabulary at least as large as the tokenizer's."""
    texts = settings.get_text_config()
    if is_pretrained and texts.vocab_size < n_tokens:
        expected = f"one of at most {texts.vocab_size} tokens, which 'hf/{name}' knows"
        raise UserError(f"data_tokenizer: got one of {n_tokens} tokens, expected {expected}")
    texts.vocab_size = max(texts.vocab_size, n_tokens)
    texts.use_cache = False  # of what was computed for the tokens before, which is for generating


# ---- The network -------------------------------------------------------------------------


def _at_random(factory: Any, name: str, settings: Any) -> Any:
    try:
        return factory.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # of a network's own code
        expected = f"settings that make a network ({_line(error)})"
        raise bad_value(KEY, f"hf/{name}", expected) from error


def _with_weights(factory: Any, name: str, settings: Any, n_outputs: int) -> Any:
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
            raise out_of_reach(f"hf/{name}", error, "a folder with them, hf/FOLDER") from error
        expected = f"weights that can be read in {name} ({_line(error)})"
        raise bad_value("model_pretrained", True, expected) from error
    heads = _heads(network, n_outputs)
    for found in report["mismatched_keys"]:
        if not _is_in(found[0], heads):
            key, of_file, wanted = found
            shapes = f"{key} of shape {tuple(wanted)}, and the file has {tuple(of_file)}"
            expected = f"a network that the weights of 'hf/{name}' fit; there is {shapes}"
            raise bad_value("model_pretrained", True, f"{expected} (model_input_shape?)")
    body = _body(network)
    missing = sorted(report["missing_keys"])
    # a pooler stands below the head, and what was trained without a head may not have it
    lost = [key for key in missing if _is_in(key, [body]) and "pooler" not in key]
    if lost:
        expected = f"all weights of the network in 'hf/{name}'; there is no {_some(lost)}"
        raise bad_value("model_pretrained", True, expected)
    new = sorted([*missing, *(found[0] for found in report["mismatched_keys"])])
    if new:
        logger.info("hf/{}: new, as the weights have none that fit: {}", name, _some(new))
    elif network.get_output_embeddings() is None and n_outputs > 1:
        labels = [settings.id2label[number] for number in sorted(settings.id2label)]
        logger.info("hf/{}: its head is kept, for the classes {}", name, _some(labels))
    embeddings = network.get_output_embeddings()
    is_tied = embeddings is None or embeddings.weight is network.get_input_embeddings().weight
    if not is_tied and network.config.get_text_config().tie_word_embeddings:
        # from the settings alone, when the run goes on, it would be another network
        expected = f"tie_word_embeddings: false in the config.json of {name}, as its file has both"
        raise bad_value("model_pretrained", True, f"{expected} embeddings")
    return network


def _model(network: Any, kind: str) -> Network:
    if kind == IMAGES:
        return Images(network)
    texts = network.config.get_text_config()
    padding = getattr(texts, "pad_token_id", None)
    padding = padding if padding is not None and 0 <= padding < texts.vocab_size else 0
    if kind == NEXT_TOKENS:
        return NextTokens(network, padding=padding)
    is_decoder = isinstance(getattr(network, "score", None), nn.Linear)
    if is_decoder and not getattr(texts, "is_encoder_decoder", False):
        return LastToken(network, padding=padding)
    texts.pad_token_id = padding  # by which some find the last token
    return Texts(network, padding=padding)


@torch.no_grad()
def _try_out(model: Network, name: str, input_shape: tuple[int, ...], kind: str) -> None:
    """UserError for a network that can't take such images, such long texts, or sees the tokens
    that it should predict."""
    model.eval()
    if kind == IMAGES:
        try:
            model(torch.zeros(1, *input_shape))
        except (RuntimeError, ValueError) as error:
            expected = f"a network for images of shape {input_shape} ({_line(error)})"
            raise bad_value(KEY, f"hf/{name}", expected) from error
        return
    if kind == TEXTS and not _leaves_padding_out(model):
        logger.warning("hf/{}: what it makes of a text depends on the padding of its batch", name)
    most = most_positions(model.network)
    if most is not None and input_shape[0] > most:
        expected = f"at most {most} tokens for 'hf/{name}'"
        raise bad_value("data_text_length", input_shape[0], expected)
    if kind == NEXT_TOKENS:
        first, other = model(torch.tensor([[0, 0], [0, 1]]))[:, 0]
        if (first - other).abs().max() > LEAST_CHANGE * first.abs().max():
            expected = "a network that sees what comes before a token alone, such as hf/gpt2"
            raise bad_value(KEY, f"hf/{name}", f"{expected} (or is_decoder in its config.json)")


def _leaves_padding_out(model: Network) -> bool:
    """Whether a text has the outputs that it has alone; not so in XLNet, FNet and CANINE."""
    text, padding = torch.tensor([[0, 1, 0]]), torch.full((1, 2), NO_TOKEN)
    alone, padded = model(text), model(torch.cat([text, padding], 1))
    return bool((alone - padded).abs().max() <= LEAST_CHANGE * alone.abs().max())


def _body(network: Any) -> str:
    """The name of the part below the head: the child with most parameters."""
    sizes = {n: sum(p.numel() for p in c.parameters()) for n, c in network.named_children()}
    return max(sizes, key=lambda name: sizes[name])


def _heads(network: Any, n_outputs: int) -> list[str]:
    """The names of the layers that give the outputs: of what stands beside the body the last
    layer, where it has as many."""
    embeddings = network.get_output_embeddings()
    if embeddings is not None:  # of next tokens
        return [name for name, module in network.named_modules() if module is embeddings]
    heads = []
    for child_name, child in network.named_children():
        layers = [n for n, m in child.named_modules(prefix=child_name) if _has_outputs(m)]
        if child_name != _body(network) and layers:
            last = network.get_submodule(layers[-1])
            heads += [layers[-1]] if len(last.weight) == n_outputs else []
    return heads


def _has_outputs(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _is_in(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


# ---- The library -------------------------------------------------------------------------


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("model: hf/… needs a package: pip install transformers") from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines and bars of transformers; what we say is enough."""
    logging = _library().utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _some(names: Sequence[str]) -> str:
    """'a, b, c, d, …'"""
    return (", ".join(names[:MOST_SHOWN]) + ", …" * (len(names) > MOST_SHOWN)) or "nothing"
