"""Networks of transformers in the form of all models here: one tensor in, logits out."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from src.data import NO_TOKEN, SECOND
from src.support import UserError

# What transformers calls the list of a network's blocks, or of its stages: encoder.layer.3 in
# BERT, h.3 in GPT-2, layers.3 in Llama and ViT, stages.1.layers.3 in ResNet
LISTS = ("layer", "layers", "h", "block", "blocks", "stage", "stages")
LISTS_OF_STAGES = ("layers", "blocks")
POSITIONS = re.compile(r"\b(wpe|position_embeddings|embed_positions)$")
Place = tuple[str, int, int]  # a list, a number in it, and one in the stage


class Network(nn.Module):
    """`network` is transformers' own module: parameters are named network.…"""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Which layer a parameter is in, as timm asks its networks."""
        return layer_numbers(name for name, _ in self.named_parameters()).__getitem__


class Images(Network):
    """Classes of images."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> logits (n, C)."""
        return self.network(pixel_values=images).logits


class Texts(Network):
    """Classes of texts, or of pairs of them."""

    def __init__(self, network: Any, *, padding: int) -> None:
        """padding: the token that stands where a text has ended."""
        super().__init__(network)
        self.padding = padding
        inputs = inspect.signature(network.forward).parameters
        self.has_types = "token_type_ids" in inputs and _number_of_types(network) > 1

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, length) int64, NO_TOKEN where a text has ended, see SECOND -> logits."""
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
        """(n, C) for ids (n, length), where there are any (n, length), and which text they are
        of, for a network that asks."""
        return self.network(input_ids=ids, attention_mask=is_there.long(), **types).logits


class LastToken(Texts):
    """Classes of texts by their last token, of decoders.

    transformers looks for the last that is no padding, a token which may end a text as well.
    """

    def logits(self, ids: Tensor, is_there: Tensor, **_: Tensor) -> Tensor:
        hidden = self.network.base_model(input_ids=ids, attention_mask=is_there.long())[0]
        rows = torch.arange(len(ids), device=ids.device)
        return self.network.score(hidden[rows, is_there.sum(1) - 1])


class NextTokens(Texts):
    """What follows each token; as nothing after it has a say, there is no need of a mask."""

    def logits(self, ids: Tensor, is_there: Tensor, **_: Tensor) -> Tensor:
        """(n, length, vocabulary)."""
        return self.network(input_ids=ids).logits


def _number_of_types(network: Any) -> int:
    return getattr(network.config.get_text_config(), "type_vocab_size", None) or 1


def most_positions(network: nn.Module) -> int | None:
    """The longest text that a network with a table of positions takes; None: there is none."""
    return min(
        (
            module.num_embeddings - _rows_unused(module)
            for name, module in network.named_modules()
            if isinstance(module, nn.Embedding) and POSITIONS.search(name)
        ),
        default=None,
    )


def _rows_unused(positions: nn.Embedding) -> int:
    """At the start of the table: 2 in OPT, those up to the padding's in RoBERTa."""
    before = -1 if positions.padding_idx is None else positions.padding_idx
    return getattr(positions, "offset", before + 1)


def layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """Parameters in the order of the network -> layers: 0 is what comes before the blocks, then
    the blocks one by one, then all the rest with the head (as Bao et al. 2022, BEiT, have it).

    >>> layer_numbers(["wte.weight", "h.0.weight", "h.1.weight", "ln_f.weight", "score.weight"])
    {'wte.weight': 0, 'h.0.weight': 1, 'h.1.weight': 2, 'ln_f.weight': 3, 'score.weight': 3}
    """
    numbers: dict[str, int | None] = {}
    place: Place | None = None
    num_blocks = 0
    for name in names:
        found = _place(name, place)
        if found is None:
            numbers[name] = None if place else 0
            continue
        num_blocks += found != place
        place = found
        numbers[name] = num_blocks
    return {name: num_blocks + 1 if n is None else n for name, n in numbers.items()}


def _place(name: str, previous: Place | None) -> Place | None:
    """Where a parameter stands. What a stage has beside its blocks, such as a change of
    resolution, counts to the nearest of them."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    if not first or parts[first - 1] not in LISTS:
        return None
    stage = ".".join(parts[:first]), int(parts[first])
    inner = parts[first + 1 : first + 3]
    if len(inner) == 2 and inner[0] in LISTS_OF_STAGES and inner[1].isdigit():
        return (*stage, int(inner[1]))
    return previous if previous and previous[:2] == stage else (*stage, 0)
