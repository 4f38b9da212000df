import pytest

from src.config import make_config
from src.logging.same_run import LENGTH_INDEPENDENT_SCHEDULES, differing_keys
from src.optim.schedules import build_schedule


@pytest.mark.parametrize("kind", LENGTH_INDEPENDENT_SCHEDULES)
def test_endless_schedules_do_not_know_the_length_of_the_run(kind):
    short, long = (build_schedule(kind, num_steps=n, warmup_steps=5) for n in (10, 1000))
    assert [short(t) for t in range(10)] == [long(t) for t in range(10)]


def test_all_other_schedules_do():
    for name in ("cosine", "cosine_after_warmup", "step"):
        short, long = (build_schedule(name, num_steps=n) for n in (10, 1000))
        assert [short(t) for t in range(10)] != [long(t) for t in range(10)]
        assert name not in LENGTH_INDEPENDENT_SCHEDULES
    assert make_config({}).lr_schedule in LENGTH_INDEPENDENT_SCHEDULES


@pytest.mark.parametrize(
    ("limit", "asked", "in_force", "is_same"),
    [
        (None, None, 1e6, True),
        (None, None, 3e11, True),  # found in training
        (3e11, None, 3e11, True),  # config.yaml runs again
        (None, 1e6, 1e6, True),  # of an older copy
        (100.0, 100.0, 100.0, True),
        (100.0, None, 1e6, False),
        (1e12, None, 3e11, False),
        (None, 100.0, 100.0, False),
    ],
)
def test_another_limit_of_the_loss_is_another_run(limit, asked, in_force, is_same):
    earlier = [make_config({"max_allowed_loss": of}) for of in (in_force, asked)]
    found = differing_keys(make_config({"max_allowed_loss": limit}), earlier)
    assert found == ([] if is_same else ["max_allowed_loss"])
