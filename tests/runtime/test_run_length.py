import pytest

from src.runtime.run_length import StepSchedule
from src.support.errors import UserError


def steps(step_schedule, length, unit="epoch"):
    return step_schedule.num_steps(length, unit)


def test_units_of_a_run_are_turned_into_steps():
    step_schedule = StepSchedule(num_examples=25, batch_size=10)  # steps of 10, 10, 5
    assert steps(step_schedule, 2) == 6
    assert steps(step_schedule, 1.5) == 3 + 2  # round(1.5) is 2
    assert steps(step_schedule, 7, "step") == 7
    assert [steps(step_schedule, n, "sample") for n in (0, 1, 10, 11, 25, 26, 50)] == [
        0,
        1,
        1,
        2,
        3,
        4,
        6,
    ]


def test_dropping_the_short_step_shortens_the_pass():
    step_schedule = StepSchedule(num_examples=25, batch_size=10, drop_last=True)
    assert steps(step_schedule, 2) == 4
    assert step_schedule.samples_after(3) == 30
    with pytest.raises(UserError, match="batch_size: got 10 with drop_last"):
        StepSchedule(num_examples=9, batch_size=10, drop_last=True)


def test_samples_seen_count_the_short_step_as_it_is():
    step_schedule = StepSchedule(num_examples=25, batch_size=10)
    assert [step_schedule.samples_after(s) for s in range(8)] == [0, 10, 20, 25, 35, 45, 50, 60]


@pytest.mark.parametrize("num_examples", [7, 20, 21])
@pytest.mark.parametrize("drop_last", [False, True])
def test_step_reaching_is_the_first_that_does(num_examples, drop_last):
    step_schedule = StepSchedule(num_examples, batch_size=5, drop_last=drop_last)
    for samples in range(1, 60):
        step = step_schedule.step_reaching(samples)
        assert step_schedule.samples_after(step) >= samples > step_schedule.samples_after(step - 1)


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
    epochs = list(StepSchedule(num_examples=25, batch_size=10, **keys).epochs(7))
    assert [e.stop for _, e in epochs] == ends
    assert [step for _, epoch in epochs for step in epoch] == list(range(7))


def test_a_run_of_no_steps_is_evaluated_once():
    assert list(StepSchedule(10, 5).epochs(0)) == [(1, range(0, 0))]


def test_half_a_step_is_refused():
    with pytest.raises(UserError, match=r"train_length: got 2\.5"):
        StepSchedule(10, 5).num_steps(2.5, "step")
