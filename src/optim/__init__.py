"""What moves the weights: optimizers, learning rates, parameter groups, averaged models.

    optimizers.py  optim_alg -> torch's or timm's optimizer; its parameter groups: which parameter
                   decays how much, and how fast each layer learns
    schedules.py   lr_schedule -> a pure function: optimizer step -> factor of base_lr
    averaging.py   averaging -> copies of the model with running averages of its weights

Each table (OPTIMIZERS, SCHEDULES, COEFFICIENTS) maps the names of YAML to functions or classes:
a new one is a function and a line there, or a function that YAML names: module.path:function.
train.py multiplies base_lr by the schedule's factor and, in each parameter group, by its
`lr_scale`. An optimizer's state and an averaged model's (`t`, `model`) are saved in every
checkpoint. Nothing here draws a random number.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.optim.averaging import (
        AveragedModel,  # a frozen copy of the model, and its update()
        average_names,  # all of them, for --list
        build_averaged_models,  # averaging -> {"av": …, "av2": …}
        evaluated_models,  # which of last, av, … are evaluated
    )
    from src.optim.optimizers import (
        build_optimizer,  # on a model's trainable parameters
        describe_optimizer,  # "fused Adam", for the log
        optimizer_names,  # all of them, for --list
    )
    from src.optim.schedules import (
        build_schedule,  # step -> factor of base_lr
        schedule_names,  # all of them, for --list
    )
else:
    __getattr__ = lazy_names(__name__)
