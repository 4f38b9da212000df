"""python examples/docstrings.py: texts to try, without a network, from Python's own documentation.

Writes data/docstrings.csv, what the docstrings of eight packages of the standard library say
(`text`) and which package it is (`label`), and data/tiny_gpt2, the settings of a small language
model with a tokenizer that was learned from these texts.
"""

import ast
import csv
import json
import random
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest")
PACKAGES += ("xml",)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LEAST_WORDS = 4
NUM_TOKENS = 1024
END = "<|endoftext|>"


def docstrings() -> list[tuple[str, str]]:
    """(text, package), each text once, in an order that is the same each time."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for package in PACKAGES:
        for file in sorted((library / package).rglob("*.py")):
            if {"test", "tests"} & set(file.parts):
                continue
            for node in ast.walk(ast.parse(file.read_bytes())):
                text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
                if text and len(text.split()) >= LEAST_WORDS:
                    found.setdefault(text, package)
    rows = sorted(found.items())
    random.Random(0).shuffle(rows)
    return rows


def write_table(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("text", "label"), *docstrings()])


def write_language_model(folder: Path) -> None:
    """config.json of a GPT-2 of 0.5 million parameters, and its tokenizer: byte pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS, special_tokens=[END], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([text for text, _ in docstrings()], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    made.save_pretrained(folder)
    settings = {"model_type": "gpt2", "vocab_size": NUM_TOKENS, "n_positions": 128}
    settings |= {"n_embd": 128, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    settings |= {f"{part}_pdrop": 0.0 for part in ("attn", "embd", "resid")}  # dropout
    (folder / "config.json").write_text(json.dumps(settings, indent=1))


if __name__ == "__main__":
    write_table(Path("data/docstrings.csv"))
    try:
        write_language_model(Path("data/tiny_gpt2"))
    except ImportError as error:
        sys.exit(f"wrote data/docstrings.csv; a language model needs `make extras` ({error})")
    print("wrote data/docstrings.csv and data/tiny_gpt2")
