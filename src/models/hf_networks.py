"""Networks of transformers in the form of all models here: one tensor in, logits out."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from src.data import NO_TOKEN, SECOND
from src.support import UserError


class HFNetwork(nn.Module):
    """`network` is transformers' own module: parameters are named network.…"""

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


POSITIONS = re.compile(r"\b(wpe|position_embeddings|embed_positions)$")


def max_positions(network: nn.Module) -> int | None:
    """The longest text that a network with a table of positions takes; None: there is none."""
    lengths = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and POSITIONS.search(name):
            # Rows at the start go unused: 2 in OPT (offset), those up to the padding's in RoBERTa.
            before = -1 if module.padding_idx is None else module.padding_idx
            lengths.append(module.num_embeddings - getattr(module, "offset", before + 1))
    return min(lengths, default=None)


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
