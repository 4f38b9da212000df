import pytest

from src.runtime.step_schedule import Timeline
from src.support.errors import UserError


def steps(timeline, length, unit="epoch"):
    return timeline.num_steps(length, unit)


def test_units_of_a_run_are_turned_into_steps():
    timeline = Timeline(num_examples=25, batch_size=10)  # steps of 10, 10, 5
    assert steps(timeline, 2) == 6
    assert steps(timeline, 1.5) == 3 + 2  # round(1.5) is 2
    assert steps(timeline, 7, "step") == 7
    assert [steps(timeline, n, "sample") for n in (0, 1, 10, 11, 25, 26, 50)] == [
        0,
        1,
        1,
        2,
        3,
        4,
        6,
    ]


def test_dropping_the_short_step_shortens_the_pass():
    timeline = Timeline(num_examples=25, batch_size=10, drop_last=True)
    assert steps(timeline, 2) == 4
    assert timeline.samples_after(3) == 30
    with pytest.raises(UserError, match="batch_size: got 10 with drop_last"):
        Timeline(num_examples=9, batch_size=10, drop_last=True)


def test_samples_seen_count_the_short_step_as_it_is():
    timeline = Timeline(num_examples=25, batch_size=10)
    assert [timeline.samples_after(s) for s in range(8)] == [0, 10, 20, 25, 35, 45, 50, 60]


@pytest.mark.parametrize("num_examples", [7, 20, 21])
@pytest.mark.parametrize("drop_last", [False, True])
def test_step_reaching_is_the_first_that_does(num_examples, drop_last):
    timeline = Timeline(num_examples, batch_size=5, drop_last=drop_last)
    for samples in range(1, 60):
        step = timeline.step_reaching(samples)
        assert timeline.samples_after(step) >= samples > timeline.samples_after(step - 1)


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        ({}, [3, 6, 7]),
        ({"steps_per_epoch": 2}, [2, 4, 6, 7]),
        ({"steps_per_epoch": 7}, [7]),
        ({"samples_per_epoch": 20}, [2, 5, 7]),  # 20 after step 2; 40 within step 5
        ({"samples_per_epoch": 5}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_epochs_cut_the_run_without_gap_or_overlap(keys, ends):
    epochs = list(Timeline(num_examples=25, batch_size=10, **keys).epochs(7))
    assert [e.stop for _, e in epochs] == ends
    assert [step for _, epoch in epochs for step in epoch] == list(range(7))


def test_a_run_of_no_steps_is_evaluated_once():
    assert list(Timeline(10, 5).epochs(0)) == [(1, range(0, 0))]


def test_half_a_step_is_refused():
    with pytest.raises(UserError, match=r"train_length: got 2\.5"):
        Timeline(10, 5).num_steps(2.5, "step")
