"""Whether names and their arguments exist, asked before there are data: the run's own code answers.

`python -m src.grid.name_lookup` reads questions from stdin as JSON, a list of [kind, settings], and
prints an answer to each: {}, {"errors": lines} or {"unknown": reason}. It imports torch, so that
submitting, which asks, need not.
"""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from typing import Any

from torch import nn

from src.config import Config, make_config
from src.data import check_dataset
from src.losses import LOSSES, BinaryCrossEntropy, NextToken, build_loss
from src.models import check_model
from src.optim import build_averaged_models, build_optimizer, build_schedule
from src.support import UserError, one_line


def check_loss(config: Config) -> None:
    """With targets that this loss is meant for, as those of the data are not known."""
    weights = config.loss_class_weights
    build_loss(
        config.loss,
        n_classes=2 if weights is None else len(weights),
        is_multilabel=LOSSES.get(config.loss) is BinaryCrossEntropy,
        is_text_alone=LOSSES.get(config.loss) is NextToken,
        label_smoothing=config.label_smoothing,
        class_weights=weights,
    )


@cache
def layer() -> nn.Module:
    """Something to optimise and to average."""
    return nn.Linear(2, 2)


CHECKS: dict[str, Callable[[Config], object]] = {
    "dataset": check_dataset,
    "model": check_model,
    "optim_alg": lambda config: build_optimizer(config, layer()),
    "lr_schedule": lambda config: build_schedule(
        config.lr_schedule, num_steps=100, warmup_steps=config.warmup_steps
    ),
    "averaging": lambda config: build_averaged_models(config.averaging, layer()),
    "loss": check_loss,
}


def answer(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with these settings, or why that can't be said on this machine.

    Settings that make no Config have no answer: whoever loads the whole row explains them.
    """
    try:
        config = make_config(settings)
    except UserError:
        return {}
    try:
        CHECKS[kind](config)
    except UserError as error:
        if not isinstance(error.__cause__, AssertionError | ImportError):
            return {"errors": str(error).splitlines()}
        return {"unknown": str(error)}  # the node that runs may have the GPU or the package
    except Exception as error:
        return {"unknown": f"{kind}: {one_line(error)}"}
    return {}


def main() -> None:
    with redirect_stdout(sys.stderr):  # of the libraries that print
        answers = [answer(kind, settings) for kind, settings in json.load(sys.stdin)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
