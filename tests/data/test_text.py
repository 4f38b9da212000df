"""Texts as tokens: tokenised once, packed or one by one, and what they cost a model."""

import json
import math
import multiprocessing
import os
import time
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from src.config import make_config
from src.data.registry import build_data
from src.data.splits import SECOND, LoaderConfig
from src.losses import NextToken
from src.runtime.evaluation import Metrics, evaluate
from src.support.errors import UserError

datasets.disable_progress_bars()
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps"]
BERT, GPT, BARE = "bert", "gpt", "bare"
TEXTS = [
    "the quick fox",
    "a dog",
    "",
    "over and over the lazy dog sleeps",
    "jumps",
    "the brown dog and a quick fox and a dog",
    "sleeps over",
    "a a a a",
]


def write_tokenizer(folder: Path, kind: str = BERT, words=WORDS) -> str:
    """One token a word. bert: [CLS] … [SEP]; gpt: nothing around, <eos> exists; bare: no such."""
    special = {BERT: ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], GPT: ["[UNK]", "<eos>"], BARE: ["[UNK]"]}
    vocabulary = {word: number for number, word in enumerate([*special[kind], *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    keys = {"unk_token": "[UNK]"}
    if kind == BERT:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        keys |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        keys |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    if kind == GPT:
        keys |= {"eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **keys).save_pretrained(folder)
    return str(folder)


def ids(text: str, kind: str) -> list[int]:
    """The tokens of a text's own words."""
    first = {BERT: 4, GPT: 2, BARE: 1}[kind]
    return [first + WORDS.index(word) for word in text.split()]


@pytest.fixture
def load(tmp_path):
    """load(kind of tokenizer, keys) on a file of TEXTS with labels."""

    def build(kind: str | None = BERT, columns=None, **keys):
        file = tmp_path / "texts.json"
        if columns is not None or not file.exists():
            given = columns or {"text": TEXTS, "label": [i % 3 for i in range(8)]}
            Dataset.from_dict(given).to_json(file)
        of_all = {"dataset": "hf/json:texts.json", "data_dir": str(tmp_path), "data_text_length": 6}
        of_all |= {"data_download": False, "data_splits_map": {"train": "train"}}
        if kind is not None:
            of_all["data_tokenizer"] = write_tokenizer(tmp_path / kind, kind)
        return build_data(make_config(of_all | keys), None)

    return build


def examples(split) -> list[list[int]]:
    return [split.tokens[i:j].tolist() for i, j in zip(split.starts, split.ends, strict=True)]


def tokenised(log_lines: list[str]) -> int:
    """How often so far."""
    return sum("tokenising" in line for line in log_lines)


# ---- Classes -----------------------------------------------------------------------------


def test_texts_are_what_the_tokenizer_makes_of_them_at_most_as_long_as_asked(load):
    data = load()
    split = data.splits["train"]
    expected = [[2, *ids(text, BERT)[:4], 3] for text in TEXTS]
    assert examples(split) == expected
    assert split.targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (data.input_shape, data.n_classes, data.class_names) == ((6,), 3, ("0", "1", "2"))
    assert (split.tokens.dtype, split.starts.dtype) == (torch.int32, torch.int64)


def test_slices_of_several_parts_are_those_of_their_texts(load, tmp_path):
    for part, texts in {"train": TEXTS, "test": TEXTS[::-1]}.items():
        folder = tmp_path / "both"
        folder.mkdir(exist_ok=True)
        Dataset.from_dict({"text": texts, "label": [0, 1] * 4}).to_json(folder / f"{part}.json")
    splits = {"train": "train[2:4]", "mixed": "train[6:]+test[1:3]+train[:1]"}
    data = load(dataset="hf/both", data_splits_map=splits, data_text_length=20)
    chosen = {"train": TEXTS[2:4], "mixed": [*TEXTS[6:], *TEXTS[::-1][1:3], TEXTS[0]]}
    for split, texts in chosen.items():
        assert examples(data.splits[split]) == [[2, *ids(text, BERT), 3] for text in texts]
    assert data.splits["mixed"].targets.tolist() == [0, 1, 1, 0, 0]
    assert len(data.splits["train"].tokens) < 15  # no more than its own goes to the device


def test_pairs_share_the_length(load):
    columns = {"a": TEXTS, "b": TEXTS[::-1], "label": [0, 1] * 4}
    data = load(columns=columns, data_input_columns=["a", "b"], data_text_length=8)
    first, second = examples(data.splits["train"])[:2]
    later = [SECOND - i for i in [*ids("a a a", BERT), 3]]
    assert first == [2, *ids("the quick", BERT), 3, *later]  # both were cut
    later = [SECOND - i for i in [*ids("sleeps over", BERT), 3]]
    assert second == [2, *ids("a dog", BERT), 3, *later]


@pytest.mark.parametrize("name", ["text", "sentence", "content", "anything"])
def test_the_column_of_texts_is_found(load, name):
    columns = {"id": list(range(8)), name: TEXTS, "label": [0, 1] * 4}
    if name != "anything":
        columns["other"] = ["x"] * 8
    assert examples(load(columns=columns).splits["train"])[4] == [2, *ids("jumps", BERT), 3]


def test_a_text_without_any_token_is_the_end_of_one(load):
    split = load(GPT).splits["train"]
    assert examples(split)[2] == [1]
    with pytest.raises(UserError, match="some texts have no tokens, and the tokenizer no eos_tok"):
        load(BARE)


def test_real_targets_are_learned_from_texts_too(load):
    columns = {"text": TEXTS, "y": [0.5] * 8}
    data = load(columns=columns, loss="mse")
    assert (data.n_classes, data.splits["train"].targets.dtype) == (None, torch.float32)


def test_without_a_given_length_it_is_the_model_s_or_512(load):
    assert load(data_text_length=None).input_shape == (512,)


# ---- Tokens are kept ---------------------------------------------------------------------


def test_only_what_changed_is_tokenised_again(load, tmp_path, log_lines):
    first = load()
    assert tokenised(log_lines) == 1
    again = load()
    assert torch.equal(again.splits["train"].tokens, first.splits["train"].tokens)
    load(data_splits_map={"train": "train[:5]"})
    load(data_text_length=None), load()
    assert tokenised(log_lines) == 2  # the other length
    time.sleep(0.01)
    load(columns={"text": TEXTS, "label": [0] * 8})  # the file is another one
    assert tokenised(log_lines) == 3
    load(columns={"text": TEXTS, "name": TEXTS[::-1], "label": [0, 1] * 4})
    load(data_input_columns=["name"])
    assert tokenised(log_lines) == 5
    file = tmp_path / BERT / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {"fox": 20, "cat": 7}
    other = tmp_path / "other"
    write_tokenizer(other)
    (other / "tokenizer.json").write_text(json.dumps(content))
    changed = load(data_tokenizer=str(other), data_input_columns=["text"])
    assert tokenised(log_lines) == 7 - 1
    assert examples(changed.splits["train"])[0] == [2, 4, 5, 20, 3]


def test_a_second_part_and_a_shuffled_one_are_found_as_well(load, tmp_path, log_lines):
    made = Dataset.from_dict({"text": TEXTS, "label": [0] * 4 + [1] * 4})
    datasets.DatasetDict(train=made, test=made.select(range(6))).save_to_disk(tmp_path / "s")
    keys = {"dataset": "hf/s", "data_splits_map": {"train": "train", "test": "test"}}
    first = load(**keys)
    assert tokenised(log_lines) == 2
    second = load(**keys)
    assert tokenised(log_lines) == 2
    for split in ("train", "test"):
        assert examples(first.splits[split]) == examples(second.splits[split])
        assert torch.equal(first.splits[split].targets, second.splits[split].targets)
    where = [TEXTS.index(text) for text in ("the quick fox", "sleeps over")]
    by_tokens = dict(
        zip(
            map(tuple, examples(first.splits["train"])),
            first.splits["train"].targets.tolist(),
            strict=True,
        )
    )
    assert [by_tokens[(2, *ids(TEXTS[i], BERT), 3)] for i in where] == [0, 1]


def test_two_processes_tokenise_once(load, tmp_path):
    load(kind=None, data_input_columns=["label"], data_target_column="text")  # reads the file
    context = multiprocessing.get_context("fork")
    barrier, logged = context.Barrier(2), context.SimpleQueue()

    def child() -> None:
        from loguru import logger

        logger.add(lambda message: logged.put(message.record["message"]))
        barrier.wait()
        load()

    processes = [context.Process(target=child) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    lines = []
    while not logged.empty():
        lines.append(logged.get())
    assert [process.exitcode for process in processes] == [0, 0], lines
    assert tokenised(lines) == 1


# ---- Next tokens -------------------------------------------------------------------------


def of_all_texts(kind: str, texts=TEXTS) -> list[int]:
    end = {BERT: 3, GPT: 1}[kind]
    return [token for text in texts for token in (*ids(text, kind), end)]


@pytest.mark.parametrize("kind", [BERT, GPT])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 34, 35, 36, 100])
def test_packed_texts_have_each_token_but_the_first_as_a_target_once(load, kind, length):
    data = load(kind, loss="next_token", data_text_length=length)
    split, tokens = data.splits["train"], of_all_texts(kind)
    found = examples(split)
    assert split.tokens.tolist() == tokens
    assert all(len(example) == length + 1 for example in found[:-1])
    assert len(found[-1]) > 1
    assert found[0][:1] + [token for example in found for token in example[1:]] == tokens
    assert all(a[-1] == b[0] for a, b in pairwise(found))
    batches = split.evaluation_batches(LoaderConfig(3, torch.device("cpu")))
    assert sum(int(NextToken().normalizer(targets)) for _, targets in batches) == len(tokens) - 1
    assert (data.input_shape, split.targets) == ((length,), None)
    assert data.n_classes == len(WORDS) + {BERT: 4, GPT: 2}[kind]


def test_slices_are_of_texts_which_are_packed_afterwards(load):
    splits = {"train": "train[:3]", "test": "train[3:]"}
    data = load(GPT, loss="next_token", data_text_length=4, data_splits_map=splits)
    for split, texts in {"train": TEXTS[:3], "test": TEXTS[3:]}.items():
        assert data.splits[split].tokens.tolist() == of_all_texts(GPT, texts)


@pytest.mark.parametrize("kind", [BERT, GPT])
def test_texts_one_by_one_end_and_start_as_the_tokenizer_has_it(load, kind, log_lines):
    data = load(kind, loss="next_token", data_text_pack=False, data_text_length=5)
    start, end = ([2], 3) if kind == BERT else ([], 1)
    whole = [[*start, *ids(text, kind), end] for text in TEXTS]
    expected = [text[:6] for text in whole if len(text) > 1]
    assert examples(data.splits["train"]) == expected
    assert any("1 of 8 texts are left out" in line for line in log_lines) is (kind == GPT)


def test_another_length_of_next_tokens_needs_no_tokenising(load, log_lines):
    for length in (5, 9):
        load(GPT, loss="next_token", data_text_length=length)
        load(GPT, loss="next_token", data_text_length=length, data_text_pack=False)
    assert tokenised(log_lines) <= 2


def test_lines_of_a_file_are_texts(load, tmp_path):
    (tmp_path / "story.txt").write_text("the fox\n\na dog\n")
    data = load(GPT, dataset="hf/text:story.txt", loss="next_token")
    assert data.splits["train"].tokens.tolist() == of_all_texts(GPT, ["the fox", "", "a dog"])


class Bigrams(torch.nn.Module):
    """Logits that depend on the last token alone, so that examples may be cut anywhere."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(size, size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.table(inputs.clamp(min=0))


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_perplexity_is_that_of_all_tokens_however_they_are_batched(load, is_packed, batch_size):
    torch.manual_seed(0)
    keys = {"loss": "next_token", "data_text_length": 5, "data_text_pack": is_packed}
    data = load(GPT, **keys)
    model = Bigrams(data.n_classes)
    rows = model.table.weight.double().log_softmax(1)
    whole = [[*ids(text, GPT), 1][:6] for text in TEXTS]
    texts = [of_all_texts(GPT)] if is_packed else whole
    losses = [-rows[a, b].item() for text in texts for a, b in pairwise(text)]
    best = [rows[a].argmax().item() == b for text in texts for a, b in pairwise(text)]
    device = torch.device("cpu")
    batches = data.splits["train"].evaluation_batches(LoaderConfig(batch_size, device))
    found = evaluate(model, batches, Metrics(NextToken(), device), name="all", log_interval=None)
    mean = sum(losses) / len(losses)
    assert found["loss"] == pytest.approx(mean, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert found["accuracy"] == pytest.approx(sum(best) / len(best), rel=1e-12)


# ---- Mistakes ----------------------------------------------------------------------------

PAIR = {"a": TEXTS, "b": TEXTS, "label": [0, 1] * 4}


@pytest.mark.parametrize(
    ("kind", "columns", "keys", "message"),
    [
        (None, None, {}, r"no numbers: 'text' \(text\); .* or for texts give a data_tokenizer"),
        (None, None, {"loss": "next_token"}, "data_tokenizer: got None, expected a tokenizer"),
        (BERT, PAIR, {}, "data_input_columns: got None, expected one or two of .*: a, b"),
        (
            BERT,
            PAIR,
            {"data_input_columns": ["a", "b"], "loss": "next_token"},
            r"data_input_columns: got \['a', 'b'\], expected one column, as loss is next_token",
        ),
        (
            BERT,
            PAIR | {"x": [1] * 8},
            {"data_input_columns": ["a", "x"]},
            r"got \['a', 'x'\], expected one column of texts, or two",
        ),
        (
            GPT,
            None,
            {"loss": "next_token", "data_group_by_length": True},
            "data_group_by_length: got True, expected false, as loss is next_token",
        ),
        (BERT, None, {"data_text_length": 2}, "data_text_length: got 2, expected at least 3, as t"),
        (
            BERT,
            PAIR,
            {"data_text_length": 3, "data_input_columns": ["a", "b"]},
            "data_text_length: got 3, expected at least 4, as the tokenizer adds 3 of its own",
        ),
        (BERT, None, {"data_normalize": "rows"}, "data_normalize: got 'rows', expected null or no"),
        (BERT, None, {"data_mean": [0.5], "data_std": [1]}, "data_mean, data_std: for images alon"),
        (BERT, None, {"model_input_shape": [7]}, r"got \[7\], expected null or \[6\], as data_tex"),
        (BERT, {"text": [None, *TEXTS[1:]], "label": [0] * 8}, {}, "1 of 8 values of column 'text"),
        (
            BERT,
            {"x": list(range(8)), "label": [0] * 8},
            {"loss": "next_token"},
            r"loss: got 'next_token', expected another one, as json:texts.json has no texts: x \(",
        ),
        (BARE, None, {"loss": "next_token"}, "expected one with an eos_token or sep_token"),
        (
            GPT,
            {"text": [""] * 8},
            {"loss": "next_token", "data_text_pack": False},
            "train: no text has a token to predict",
        ),
    ],
)
def test_what_does_not_fit_is_told(load, kind, columns, keys, message):
    with pytest.raises(UserError, match=message) as caught:
        load(kind, columns, **keys)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_cannot_be_had_is_told_at_once(load, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"got 'no/such', expected a tokenizer of the hub \(not in"):
        load(None, data_tokenizer="no/such")
    with pytest.raises(UserError, match=r"expected a folder that holds a tokenizer \(.*\)") as one:
        load(None, data_tokenizer=str(tmp_path / "empty"))
    assert "\n" not in str(one.value)
    assert "HF_HUB_OFFLINE" in os.environ  # and where it is not: test_hf_hub.py
