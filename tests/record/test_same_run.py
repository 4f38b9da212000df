import pytest

from src.config import make_config
from src.optim.schedules import build_schedule
from src.record.same_run import ENDLESS


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_schedules_do_not_know_the_length_of_the_run(kind):
    short, long = (build_schedule(kind, num_steps=n, warmup_steps=5) for n in (10, 1000))
    assert [short(t) for t in range(10)] == [long(t) for t in range(10)]


def test_all_other_schedules_do():
    for name in ("cosine", "cosine_after_warmup", "step"):
        short, long = (build_schedule(name, num_steps=n) for n in (10, 1000))
        assert [short(t) for t in range(10)] != [long(t) for t in range(10)]
        assert name not in ENDLESS
    assert make_config({}).lr_schedule in ENDLESS
