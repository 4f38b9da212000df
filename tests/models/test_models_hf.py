"""Networks of transformers: what they make of texts and images, their weights and heads."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from tiny_networks import (
    DECODERS,
    IMAGE,
    IMAGES,
    LANGUAGE_MODELS,
    LENGTH,
    TEXTS,
    VOCABULARY,
    language_model,
    padded,
    texts_of,
)
from torch import nn

from src.data.splits import NO_TOKEN, SECOND, LoaderConfig
from src.data.text import TextSplit
from src.losses import build_loss
from src.models.hf import layer_numbers
from src.models.registry import build_model
from src.optim.averaging import AveragedModel
from src.runtime.evaluation import Metrics, evaluate
from src.support.errors import UserError

CPU = torch.device("cpu")
PADDING = "what it makes of a text depends on the padding of its batch"


def shaken(model: nn.Module) -> nn.Module:
    """With weights large enough that every token shows in the outputs, in eval mode."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


# ---- Texts -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_of_a_pair_the_second_text_has_the_second_type(config, folder, kind):
    """Where a network tells them apart; others see the same tokens."""
    model = shaken(build_model(config(f"hf/{folder(kind)}"), (LENGTH,), 3))
    first, second = texts_of([4, 3])
    ids = torch.cat([first, second])[None]
    found = model(torch.cat([first, SECOND - second, torch.tensor([NO_TOKEN] * 2)])[None])
    types = {"token_type_ids": torch.tensor([[0] * 4 + [1] * 3])} if kind == "bert" else {}
    if kind in DECODERS:
        model.network.config.pad_token_id = None
    theirs = model.network(input_ids=ids, **types).logits
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)
    if kind == "bert":
        assert not torch.allclose(found, model(ids), atol=1e-2)


@torch.no_grad()
def test_a_network_that_sees_the_padding_is_reported(config, tmp_path, log_lines):
    settings = {"model_type": "fnet", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": 32}))
    build_model(config(f"hf/{tmp_path}"), (LENGTH,), 3)
    assert log_lines == [f"hf/{tmp_path}: {PADDING}"]


def test_embeddings_that_a_file_has_twice_are_not_the_settings_one(config, weights):
    path, state = weights("gpt2", "AutoModelForCausalLM", tie_word_embeddings=False)
    assert not torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    language_model(config, path, model_pretrained=True)
    file = Path(path, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"^model_pretrained: .* tie_word_embeddings: false"):
        language_model(config, path, model_pretrained=True)


def test_settings_of_which_no_network_can_be_made_are_reported(config, folder):
    with pytest.raises(UserError, match=r"^model: .* settings that make a network \(KeyError: 'ge"):
        build_model(config(f"hf/{folder('bert', hidden_act='gelux')}"), (LENGTH,), 3)


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("pad", [None, 0, 3])
def test_outputs_of_a_text_do_not_depend_on_the_padding(config, folder, kind, pad):
    """Also of one that ends in the token that transformers would take for padding."""
    path = folder(kind) if pad is None else folder(kind, pad_token_id=pad)
    model = shaken(build_model(config(f"hf/{path}"), (LENGTH,), 3))
    texts = texts_of([LENGTH - 3, 4, 9, 1, 6], last=(7, 0, 3, 5, 1))
    together = model(padded(texts))
    assert together.shape == (5, 3)
    alone = torch.cat([model(text[None]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    if kind in DECODERS:
        model.network.config.pad_token_id = None  # then they take the last of a single text
    theirs = torch.cat([model.network(input_ids=text[None]).logits for text in texts])
    torch.testing.assert_close(together, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_beyond_the_vocabulary_is_none(config, folder, kind):
    model = build_model(config(f"hf/{folder(kind, pad_token_id=-1)}"), (LENGTH,), 3)
    assert model(padded(texts_of([4, 7]))).isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_real_targets_have_one_output(config, folder, kind):
    model = build_model(config(f"hf/{folder(kind)}"), (LENGTH,), None)
    assert model(padded(texts_of([4, 7]))).shape == (2, 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_predictions_of_a_text_do_not_depend_on_the_padding(config, folder, kind):
    model = shaken(language_model(config, folder(kind)))
    texts = texts_of([LENGTH, 4, 9], last=(0, 0, 1))
    together = model(padded(texts))
    assert together.shape == (3, LENGTH, VOCABULARY)
    for outputs, text in zip(together, texts, strict=True):
        alone = model.network(input_ids=text[None]).logits[0]
        torch.testing.assert_close(outputs[: len(text)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_perplexity_is_that_of_transformers_own_loss_on_each_text_alone(
    config, folder, kind, batch_size
):
    model = shaken(language_model(config, folder(kind)))
    texts = texts_of([LENGTH, 4, 9, 2, 17, 5])
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    split = TextSplit(torch.cat(texts).int(), starts, ends)
    found = evaluate(
        model,
        split.evaluation_batches(LoaderConfig(batch_size, CPU)),
        Metrics(build_loss("next_token", n_classes=VOCABULARY, is_text_alone=True), CPU),
        name="test",
        log_interval=None,
    )
    total, count, right = 0.0, 0, 0
    for text in texts:
        with torch.no_grad():
            theirs = model.network(input_ids=text[None], labels=text[None])
        total += float(theirs.loss) * (len(text) - 1)
        right += int((theirs.logits[0, :-1].argmax(1) == text[1:]).sum())
        count += len(text) - 1
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["accuracy"] == right / count


@pytest.mark.parametrize(("n_tokens", "expected"), [(30, VOCABULARY), (50, 50)])
def test_a_vocabulary_grows_to_the_tokenizer_s(config, folder, n_tokens, expected):
    model = language_model(config, folder("gpt2"), n_tokens)
    assert model(torch.full((2, 3), n_tokens - 1)).shape == (2, 3, expected)


def test_nothing_is_kept_for_generating(config, folder):
    model = language_model(config, folder("llama"))
    outputs = model.network(input_ids=torch.ones(1, 3, dtype=torch.int64))
    assert outputs.past_key_values is None


# ---- Images ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("shape", [IMAGE, (3, 16, 16), (3, 8, 16)])
def test_networks_take_the_shape_of_the_images(config, folder, kind, shape):
    model = build_model(config(f"hf/{folder(kind)}"), shape, 7).eval()
    images = torch.rand(2, *shape)
    assert model(images).shape == (2, 7)
    assert torch.equal(model(images), model.network(pixel_values=images).logits)


# ---- Starts ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "resnet"])
def test_start_depends_on_seed_model_alone(config, folder, kind):
    path, shape = folder(kind), IMAGE if kind in IMAGES else (LENGTH,)
    torch.manual_seed(0)
    first = build_model(config(f"hf/{path}"), shape, 3).state_dict()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = build_model(config(f"hf/{path}"), shape, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = build_model(config(f"hf/{path}", seed_model=2), shape, 3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "resnet"])
def test_weights_come_from_the_folder_and_the_seed_makes_a_new_head(config, weights, kind):
    is_image = kind in IMAGES
    path, file = weights(kind, "AutoModel")
    shape = IMAGE if is_image else (LENGTH,)
    pretrained = [
        build_model(config(f"hf/{path}", model_pretrained=True, seed_model=s), shape, 3)
        for s in (1, 1, 2)
    ]
    first, again, other = (model.state_dict() for model in pretrained)
    assert all(torch.equal(first[name], again[name]) for name in first)
    (body,) = {name.split(".")[1] for name in first} - {"classifier", "score"}
    new = []
    for name, tensor in first.items():
        if (of_file := file.get(name.removeprefix(f"network.{body}."))) is not None:
            assert torch.equal(tensor, of_file), name
        else:
            new += [name] if not torch.equal(tensor, other[name]) else []
    head = {"gpt2": "score", "resnet": "classifier.1"}.get(kind, "classifier")
    assert f"network.{head}.weight" in new
    assert all(name.startswith(f"network.{head}.") for name in new)
    assert all(model.training for model in pretrained)


@pytest.mark.parametrize("n_outputs", [3, 5])
def test_a_head_stays_where_it_has_as_many_outputs(config, weights, log_lines, n_outputs):
    path, file = weights(
        "vit", "AutoModelForImageClassification", id2label={0: "a", 1: "b", 2: "c"}
    )
    model = build_model(config(f"hf/{path}", model_pretrained=True), IMAGE, n_outputs)
    head = model.network.classifier.weight
    assert head.shape[0] == n_outputs
    assert (n_outputs == 3) == (head.shape == file["classifier.weight"].shape)
    assert n_outputs == 5 or torch.equal(head, file["classifier.weight"])
    new = "new, as the weights have none that fit: classifier.bias, classifier.weight"
    kept = "its head is kept, for the classes a, b, c"
    assert log_lines == [f"hf/{path}: {new if n_outputs == 5 else kept}"]


@pytest.mark.parametrize("is_pretrained", [True, False])
def test_weights_are_float32_whatever_the_file_holds(config, weights, is_pretrained):
    path, _ = weights("bert", "AutoModelForMaskedLM", dtype="bfloat16")
    assert json.loads(Path(path, "config.json").read_text())["dtype"] == "bfloat16"
    model = build_model(config(f"hf/{path}", model_pretrained=is_pretrained), (LENGTH,), 2)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_transformers_itself_is_quiet(config, weights, capfd, caplog, log_lines):
    path, _ = weights("bert", "AutoModelForMaskedLM")
    other, _ = weights("gpt2", "AutoModel")
    transformers.logging.enable_propagation()  # to caplog
    capfd.readouterr()
    model = build_model(config(f"hf/{path}", model_pretrained=True), (LENGTH,), 2)
    model(padded(texts_of([3, 2])))
    language_model(config, other, model_pretrained=True)(padded(texts_of([3, 2])))
    transformers.logging.disable_propagation()
    out, err = capfd.readouterr()
    assert [line for line in (out + err).splitlines() if log_lines[0] not in line] == []
    assert caplog.messages == []
    assert len(log_lines) == 1


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "resnet"])
@pytest.mark.parametrize("n_outputs", [3, 4])
def test_our_own_files_of_weights_are_read(config, folder, tmp_path, kind, n_outputs):
    path, shape = folder(kind), IMAGE if kind in IMAGES else (LENGTH,)
    of_file = build_model(config(f"hf/{path}"), shape, 3).state_dict()
    torch.save({"epoch": 1, "last": of_file}, tmp_path / "w.pt")
    keys = {"seed_model": 5, "model_weights": str(tmp_path / "w.pt")}
    found = build_model(config(f"hf/{path}", **keys), shape, n_outputs).state_dict()
    differing = [n for n, t in found.items() if not torch.equal(t, of_file[n])]
    assert bool(differing) == (n_outputs == 4)
    assert all(name.startswith(("network.classifier.", "network.score.")) for name in differing)


# ---- Heads -------------------------------------------------------------------------------

HEADS = {"roberta": "classifier.out_proj", "gpt2": "score", "llama": "score", "qwen2": "score"}
HEADS |= {"opt": "score", "resnet": "classifier.1"}


@torch.no_grad()
@pytest.mark.parametrize("kind", [*TEXTS, *IMAGES])
@pytest.mark.parametrize("how", ["zero", "rand"])
def test_the_head_is_the_last_layer_alone(config, folder, kind, how):
    path, shape = folder(kind), IMAGE if kind in IMAGES else (LENGTH,)
    own = build_model(config(f"hf/{path}"), shape, 3).state_dict()
    model = build_model(config(f"hf/{path}", model_head_init=how), shape, 3)
    changed = {n.rpartition(".")[0] for n, t in model.state_dict().items() if (t != own[n]).any()}
    assert changed == {f"network.{HEADS.get(kind, 'classifier')}"}
    if how == "zero":
        inputs = torch.rand(2, *IMAGE) if kind in IMAGES else padded(texts_of([4, 7]))
        assert torch.equal(model.eval()(inputs), torch.zeros(2, 3))


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "vit", "resnet"])
def test_other_layers_with_as_many_outputs_are_no_head(config, folder, kind):
    path, shape = folder(kind), IMAGE if kind in IMAGES else (LENGTH,)
    own = build_model(config(f"hf/{path}"), shape, 16).state_dict()
    zero = build_model(config(f"hf/{path}", model_head_init="zero"), shape, 16).state_dict()
    changed = {n.rpartition(".")[0] for n, t in zero.items() if (t != own[n]).any()}
    assert changed == {f"network.{HEADS.get(kind, 'classifier')}"}


def test_the_head_of_a_language_model(config, folder):
    model = language_model(config, folder("llama"), model_head_init="zero")
    assert not model(padded(texts_of([4, 7]))).any()


@pytest.mark.parametrize("how", ["zero", "rand"])
def test_a_head_that_is_the_embedding_too_keeps_its_start(config, folder, how):
    with pytest.raises(UserError, match=r"model_head_init: .* null: .* shares its weights"):
        language_model(config, folder("gpt2"), model_head_init=how)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_tied_weights_stay_tied_in_averages_and_states(config, folder, kind):
    model = language_model(config, folder(kind))
    head, embedding = model.network.get_output_embeddings(), model.network.get_input_embeddings()
    assert head.weight is embedding.weight
    average = AveragedModel(model, lambda t: 0.5)
    copied = average.model.network
    assert copied.get_output_embeddings().weight is copied.get_input_embeddings().weight
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight += 1.0
    average.update()
    torch.testing.assert_close(copied.get_input_embeddings().weight, before + 0.5)
    other = language_model(config, folder(kind), seed_model=7)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other.network.get_output_embeddings().weight, head.weight)
    assert len(list(model.parameters())) == len(list(average.model.parameters()))


# ---- Layers ------------------------------------------------------------------------------


def layers(config, path: str, shape) -> list[set[str]]:
    """The parameters of each layer, up to three parts of their names."""
    model = build_model(config(f"hf/{path}"), shape, 3)
    numbers = {n: model.group_matcher(coarse=False)(n) for n, _ in model.named_parameters()}
    shown = {n: ".".join(n.split(".")[1:5]) for n in numbers}
    return [
        {shown[n] for n in numbers if numbers[n] == layer}
        for layer in sorted(set(numbers.values()))
    ]


@pytest.mark.parametrize(
    ("kind", "blocks", "stem", "last"),
    [
        (
            "bert",
            ["bert.encoder.layer.0", "bert.encoder.layer.1"],
            "bert.embeddings",
            "bert.pooler",
        ),
        ("gpt2", ["transformer.h.0", "transformer.h.1"], "transformer.w", "transformer.ln_f"),
        ("llama", ["model.layers.0", "model.layers.1"], "model.embed_tokens", "model.norm"),
        ("distilbert", [f"distilbert.transformer.layer.{i}" for i in (0, 1)], "distilbert.emb", ""),
        ("vit", ["vit.layers.0", "vit.layers.1"], "vit.embeddings", "vit.layernorm"),
    ],
)
def test_layers_are_the_stem_the_blocks_and_the_rest(config, folder, kind, blocks, stem, last):
    shape = IMAGE if kind in IMAGES else (LENGTH,)
    first, *inner, end = layers(config, folder(kind), shape)
    assert all(name.startswith(stem) for name in first)
    for names, block in zip(inner, blocks, strict=True):
        assert all(name.startswith(block) for name in names)
    assert {name.split(".")[0] for name in end} & {"classifier", "score"}
    assert any(name.startswith(last) for name in end)


def test_layers_of_a_network_in_stages():
    names = [
        "embeddings.patch_embeddings.weight",
        "encoder.stages.0.layers.0.dwconv.weight",
        "encoder.stages.1.downsampling_layer.0.weight",
        "encoder.stages.1.layers.0.dwconv.weight",
        "encoder.stages.1.layers.1.layer.0.weight",
        "encoder.stages.1.norm.weight",
        "layernorm.weight",
        "classifier.1.weight",
    ]
    assert layer_numbers(names) == dict(zip(names, [0, 1, 2, 2, 3, 3, 4, 4], strict=True))


def test_layers_of_an_encoder_and_a_decoder():
    names = [
        "shared.weight",
        "encoder.block.0.layer.0.q.weight",
        "encoder.block.0.layer.1.wi.weight",
    ]
    names += ["encoder.block.1.layer.0.q.weight", "encoder.norm.weight"]
    names += ["decoder.block.0.layer.0.q.weight", "decoder.block.1.layer.0.q.weight", "head.weight"]
    assert layer_numbers(names) == dict(zip(names, [0, 1, 1, 2, 5, 3, 4, 5], strict=True))
