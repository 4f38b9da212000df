"""A head that knows its classes by their names: what CLIP's text tower makes of sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from src.support import UserError, bad_value

KEY = "model_zero_shot_templates"


@dataclass(frozen=True)
class Prompts:
    """What the classes are called, and how they are spoken of.

    class_names: in the order of the class numbers; None where nobody knows them. templates:
    sentences with {} for the class, or open_clip's: simple, openai. device: where they are read.
    """

    class_names: Sequence[str] | None
    templates: str | Sequence[str]
    device: torch.device


def check_templates(templates: str | Sequence[str]) -> None:
    """UserError unless each sentence has a place for the class."""
    if isinstance(templates, str):
        return  # open_clip's, by their name
    if not templates:
        raise bad_value(KEY, templates, "at least one sentence")
    for sentence in templates:
        if "{}" not in sentence:
            raise bad_value(KEY, sentence, "sentences with {} where the class is to stand")


def check_prompts(prompts: Prompts, n_outputs: int) -> None:
    """UserError unless there is a name for each output, and a place for it in each sentence."""
    check_templates(prompts.templates)
    if prompts.class_names is None:
        raise UserError(
            "model_head_init: zero_shot needs the names of the classes, which these data do not "
            "have: give them as data_class_names"
        )
    if len(prompts.class_names) != n_outputs:
        expected = f"{len(prompts.class_names)}, the number of classes that have a name"
        raise bad_value("model_output_dim", n_outputs, expected)


@torch.no_grad()
def init_zero_shot(head: nn.Linear, whole: Any, tokenizer: Any, prompts: Prompts) -> None:
    """Row c of the head is the mean of the sentences about class c, each of length 1, made of
    length 1 again (Radford et al. 2021, section 3.1.4); no bias.

    whole: a model of open_clip with its text tower; it ends up on prompts.device.
    """
    vectors = class_vectors(whole.to(prompts.device), tokenizer, prompts)
    head.weight.copy_(vectors)
    head.bias.zero_()


def class_vectors(whole: nn.Module, tokenizer: Any, prompts: Prompts) -> Tensor:
    """(classes, embedding) float32, rows of length 1."""
    from open_clip import build_zero_shot_classifier

    names = [name.replace("_", " ") for name in prompts.class_names or ()]
    templates = sentences(prompts.templates)
    logger.info("zero-shot head: {} classes in {} sentences each", len(names), len(templates))
    was_training = whole.training
    whole.eval()
    columns = build_zero_shot_classifier(whole, tokenizer, names, templates, device=prompts.device)
    whole.train(was_training)
    return columns.t().float()


def sentences(templates: str | Sequence[str]) -> list[Callable[[str], str]]:
    """name of a class -> sentence, for each template."""
    import open_clip

    known = {
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
    }
    if isinstance(templates, str):
        return list(known[templates])
    return [partial(_filled, sentence) for sentence in templates]


def _filled(sentence: str, name: str) -> str:
    """By replace, as format gives a meaning to other braces."""
    return sentence.replace("{}", name)
