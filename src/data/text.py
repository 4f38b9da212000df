"""Texts as tokens: tokenised once, kept on disk, and cut into splits that live in memory."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from src.data.sources.fetch import alone, why_out_of_reach
from src.data.splits import NO_TOKEN, SECOND, Batch, Batches, LoaderConfig, Spec, Split, renumbered
from src.data.splits_map import Range
from src.support import UserError, bad_value, one_line

KEY = "data_tokenizer"
Ids = list[list[int]]


@dataclass(frozen=True)
class TextSplit(Split):
    """Texts as tokens, in memory: text i is tokens[starts[i]:ends[i]]; texts may overlap.

    tokens: (all,) int32, see SECOND. starts, ends: (n,) int64, on the CPU. targets: (n,) int64
    class numbers or float32 for regression; None where each text's own next tokens are predicted.
    """

    tokens: Tensor
    starts: Tensor
    ends: Tensor
    targets: Tensor | None = None
    is_grouped: bool = False  # whether training batches are of texts of about the same length
    has_fixed_shape = False

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Tensor:
        """(n,) int64 tokens, on the CPU."""
        return self.ends - self.starts

    @property
    def predicts_next_token(self) -> bool:
        return self.targets is None

    @property
    def grouping_lengths(self) -> Tensor | None:
        return self.lengths if self.is_grouped else None

    def take(self, indices: Tensor) -> Batch:
        """The texts with these indices, (n,) on the CPU, padded to the longest with NO_TOKEN.

        inputs: (n, length) int64. targets: (n,), or the next tokens (n, length) where the split
        has none of its own; then inputs are without the last token.
        """
        device = self.tokens.device
        starts, lengths = self.starts[indices], self.lengths[indices]
        positions = torch.arange(int(lengths.max()))
        wanted = (starts[:, None] + positions).clamp_(max=len(self.tokens) - 1)
        is_there = (positions < lengths[:, None]).to(device, non_blocking=True)
        tokens = self.tokens[wanted.to(device, non_blocking=True)].long()
        tokens = torch.where(is_there, tokens, NO_TOKEN)
        if self.targets is not None:
            return tokens, self.targets[indices.to(device, non_blocking=True)]
        inputs = torch.where(is_there[:, 1:], tokens[:, :-1], NO_TOKEN)
        return inputs, tokens[:, 1:]

    def batches(self, order: Iterable[Tensor], loader: LoaderConfig) -> Batches:
        return (self.take(indices) for indices in order)

    def range_batches(self, ranges: Sequence[tuple[int, int]], loader: LoaderConfig) -> Batches:
        """By their lengths, the longest first: what doesn't fit into memory shows at once."""
        by_length = self.lengths.argsort(descending=True, stable=True)
        return self.batches((by_length[i:j] for i, j in ranges), loader)

    def to_device(self, device: torch.device) -> "TextSplit":
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, tokens=self.tokens.to(device), targets=targets)

    def input_spec(self, input_shape: tuple[int, ...]) -> Spec | None:
        longest = int(self.lengths.max())
        if (self.lengths < longest).sum() > 1:  # of packed texts the last is shorter
            return None
        # where the next token is predicted, the last one is no input
        return (longest - self.predicts_next_token,), torch.int64

    def augmentation_obstacle(self, name: str) -> str | None:
        return "texts cannot be augmented"

    def with_classes(self, table: Sequence[int]) -> "TextSplit":
        targets, kept = renumbered(self.targets, table)
        return replace(self, starts=self.starts[kept], ends=self.ends[kept], targets=targets)


# ---- The tokenizer -----------------------------------------------------------------------


def load_tokenizer(name: str, *, download: bool) -> Any:
    """That of a folder or, by name, of the hub or its cache; UserError where it can't be had."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(f"{KEY}: {name} needs `pip install transformers`") from error
    is_folder = Path(name).is_dir()
    reason = None if is_folder else why_out_of_reach() if download else "data_download is false"
    try:
        return AutoTokenizer.from_pretrained(
            name, local_files_only=is_folder or reason is not None, trust_remote_code=False
        )
    except Exception as error:  # whatever a broken file brings to light
        where = "a folder that holds a tokenizer" if is_folder else "a tokenizer of the hub"
        why = f"not in its cache, and {reason}" if reason else one_line(error)
        raise bad_value(KEY, name, f"{where} ({why})") from error


def end_of_text(tokenizer: Any) -> int | None:
    """The token that ends a text, if the tokenizer has one."""
    end, separator = tokenizer.eos_token_id, tokenizer.sep_token_id
    return separator if end is None else end


def fingerprint(tokenizer: Any) -> str:
    """Of all that decides which tokens a text becomes."""
    import tokenizers
    import transformers

    content = {"vocabulary": tokenizer.get_vocab()}
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        as_called = {"truncation": None, "padding": None}  # as the last call left them
        content = json.loads(backend.to_str()) | as_called
    content["special"] = {k: str(token) for k, token in tokenizer.special_tokens_map.items()}
    content["side"] = tokenizer.truncation_side
    versions = transformers.__version__, tokenizers.__version__
    return _hash(type(tokenizer).__name__, json.dumps(content, sort_keys=True), versions)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


# ---- What becomes of a text --------------------------------------------------------------


def ids_to_classify(tokenizer: Any, length: int, *columns: list[str]) -> Ids:
    """Texts or pairs of them as the tokenizer does it, at most `length` tokens.

    A text without any token becomes the one that ends texts.
    """
    own = tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
    if length <= own:  # which would leave the texts as long as they are
        expected = f"at least {own + 1}, as the tokenizer adds {own} of its own"
        raise bad_value("data_text_length", length, expected)
    has_types = len(columns) > 1 and "token_type_ids" in tokenizer.model_input_names
    found = tokenizer(
        *columns,
        truncation=True,
        max_length=length,
        return_attention_mask=False,
        return_token_type_ids=has_types,
    )
    ids = found["input_ids"]
    if has_types:
        ids = [
            [SECOND - i if kind == 1 else i for i, kind in zip(text, types, strict=True)]
            for text, types in zip(ids, found["token_type_ids"], strict=True)
        ]
    if all(ids):
        return ids
    end = end_of_text(tokenizer)
    if end is None:
        raise UserError("dataset: some texts have no tokens, and the tokenizer no eos_token")
    return [text or [end] for text in ids]


def ids_to_continue(tokenizer: Any, has_start: bool, texts: list[str]) -> Ids:
    """Texts for a language model, uncut, each with the token that ends texts at its end.

    has_start: with the token that starts them, where the tokenizer puts one there itself.
    """
    first = tokenizer("")["input_ids"][:1] if has_start else []
    starts = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    start, end = first if starts.issuperset(first) else [], end_of_text(tokenizer)
    if end is None:
        raise bad_value(KEY, tokenizer.name_or_path, "one with an eos_token or sep_token")
    found = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # that texts are longer than the model takes is no matter
    )["input_ids"]
    return [[*start, *ids, end] for ids in found]


def tokenise(part: Any, to_ids: Callable[..., Ids], key: tuple[Any, ...], cache: Path) -> TextSplit:
    """All texts of a part as tokens, from the cache where they are there.

    key: the columns that to_ids gets, and all that decides what becomes of them; the file goes by
    that and by what the data are.
    """
    from datasets import Features, Value
    from datasets import Sequence as ListOf

    columns = key[0]
    hashed = _hash(part._fingerprint, *key)
    file = cache / f"{hashed}.arrow"
    lock = alone(cache / f".{hashed}.lock", f"tokenises the same texts into {file}")
    with nullcontext() if file.exists() else lock:
        if not file.exists():
            logger.info("tokenising {:,} texts into {}", len(part), file)
        made = part.map(
            lambda *texts: {"ids": to_ids(*texts)},
            batched=True,
            input_columns=columns,
            remove_columns=part.column_names,
            features=Features({"ids": ListOf(Value("int32"))}),
            new_fingerprint=hashed,
            cache_file_name=str(file),
            load_from_cache_file=True,
            desc="tokenising",
        )
    chunks = made.with_format("arrow")[:]["ids"].chunks
    lengths = np.concatenate([np.asarray(chunk.value_lengths()) for chunk in chunks])
    values = np.concatenate([np.asarray(chunk.flatten()) for chunk in chunks])
    bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    return TextSplit(torch.from_numpy(values), bounds[:-1], bounds[1:])


# ---- Splits ------------------------------------------------------------------------------


def take(parts: Mapping[str, TextSplit], ranges: Iterable[Range]) -> TextSplit:
    """The texts of the ranges, in order; of one range the tokens are a view. parts: with their
    texts in a row."""
    tokens, starts, ends, total = [], [], [], 0
    for base, first, last in ranges:
        whole = parts[base]
        low, high = int(whole.starts[first]), int(whole.ends[last - 1])
        tokens.append(whole.tokens[low:high])
        starts.append(whole.starts[first:last] - low + total)
        ends.append(whole.ends[first:last] - low + total)
        total += high - low
    joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
    return TextSplit(joined, torch.cat(starts), torch.cat(ends))


def packed(texts: TextSplit, length: int) -> TextSplit:
    """The texts in a row, cut into `length` inputs an example.

    Examples overlap by one token, which is the last target of one and the first input of the
    next: every token but the very first is predicted once.
    """
    total = len(texts.tokens)
    starts = torch.arange(0, max(total - 1, 0), length)
    return TextSplit(texts.tokens, starts, (starts + length + 1).clamp(max=total))


def one_by_one(texts: TextSplit, length: int) -> TextSplit:
    """Each text an example of at most `length` inputs, the first; of one token there is none."""
    is_kept = texts.lengths > 1
    if dropped := len(texts) - int(is_kept.sum()):
        logger.warning("{:,} of {:,} texts are left out: too short", dropped, len(texts))
    starts, ends = texts.starts[is_kept], texts.ends[is_kept]
    return TextSplit(texts.tokens, starts, torch.minimum(ends, starts + length + 1))
