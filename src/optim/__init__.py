"""What moves the weights: optimizers, schedules, parameter groups, averages of the weights."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.optim.averaging import Average, build_averages, evaluated_models
    from src.optim.optimizers import build_optimizer, in_words
    from src.optim.schedules import build_schedule
else:
    __getattr__ = lazy_names(__name__)
