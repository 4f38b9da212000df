"""Runs that one process trains together: a grid of small models as one model.

stackable.py   which runs can be trained so, and which of a grid together
stack.py       the rows' Sessions, the loop over epochs and steps, who leaves and who joins
row.py         a run of a stack: an ordinary Session, whose steps the stack makes
learner.py     R learners of train.py as one: a step, a batch of an evaluation; of linear models
networks.py    the same of networks, for GPUs
linear.py      the numbers: outputs, losses and gradients of stacked linear models
optimizers.py  SGD and the Adam family, a row's numbers each
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.stacking.stack import (
        run_stack,  # what train.py does with a stack's spec.yaml
        stacked_generator,  # train runs together, epoch by epoch
    )
    from src.stacking.stackable import (
        is_linear,  # whether its stacks are exact; else it is a network
        obstacle,  # why a run cannot be trained in a stack
        stack_key,  # equal for runs that may share one
    )
else:
    __getattr__ = lazy_names(__name__)
