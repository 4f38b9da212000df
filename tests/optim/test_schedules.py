"""Schedules at their first, last and boundary steps, with values written by hand."""

import math

import pytest

from src.optim.schedules import build_schedule
from src.support.errors import UserError


@pytest.mark.parametrize(
    ("name", "num_steps", "factors"),
    [
        ("constant", 100, {0: 1.0, 99: 1.0}),
        ("cosine", 100, {0: 1.0, 25: 0.5 + 0.25 * math.sqrt(2), 50: 0.5, 99: 0.000246719817}),
        ("cosine", 1, {0: 1.0}),
        ("poly", 100, {0: 1.0, 3: 0.5, 99: 0.1}),
        ("poly_0.5", 7, {0: 1.0, 3: 0.5}),
        ("poly_2", 100, {0: 1.0, 1: 0.25, 9: 0.01}),
        # five spans of 20
        ("step", 100, {0: 1, 19: 1, 20: 0.1, 39: 0.1, 40: 0.01, 60: 1e-3, 79: 1e-3, 80: 1e-4}),
        ("step_4_0.1", 100, {19: 1, 20: 0.1, 80: 1e-4, 99: 1e-4}),
        # drops at 10/3 and 20/3: the first steps from there on are 4 and 7
        ("step_2_0.5", 10, {3: 1.0, 4: 0.5, 6: 0.5, 7: 0.25, 9: 0.25}),
        ("step_1", 10, {4: 1.0, 5: 0.1}),
        ("step_1_0.5", 1, {0: 1.0}),
        ("step_0_0.5", 10, {0: 1.0, 9: 1.0}),
        # spans of 10, 20, 30 steps; the end of the last is the end of the run
        ("step_1,2,3_0.2", 60, {9: 1.0, 10: 0.2, 29: 0.2, 30: 0.04, 59: 0.04}),
        ("step_0.1,0.2,0.7_0.1", 10, {0: 1.0, 1: 0.1, 2: 0.1, 3: 0.01, 9: 0.01}),
    ],
)
def test_factors_are_those_written_by_hand(name, num_steps, factors):
    schedule = build_schedule(name, num_steps=num_steps)
    assert {t: schedule(t) for t in factors} == pytest.approx(factors, rel=1e-9)


def test_warm_up_rises_to_the_whole_factor_and_leaves_the_rest():
    schedule = build_schedule("cosine", num_steps=100, warmup_steps=4)
    plain = build_schedule("cosine", num_steps=100)
    expected = [0.25 * plain(0), 0.5 * plain(1), 0.75 * plain(2), plain(3), plain(4), plain(99)]
    assert [schedule(t) for t in (0, 1, 2, 3, 4, 99)] == pytest.approx(expected)
    assert build_schedule("constant", num_steps=9, warmup_steps=1)(0) == 1.0


def test_cosine_after_warm_up_begins_where_the_warm_up_ends():
    schedule = build_schedule("cosine_after_warmup", num_steps=104, warmup_steps=4)
    # 100 steps are left: the middle of the cosine is step 54, its last step 99 of 100
    factors = {0: 0.25, 2: 0.75, 3: 1.0, 4: 1.0, 54: 0.5, 103: 0.000246719817}
    assert {t: schedule(t) for t in factors} == pytest.approx(factors, rel=1e-9)
    without = build_schedule("cosine_after_warmup", num_steps=100)
    plain = build_schedule("cosine", num_steps=100)
    assert [without(t) for t in range(100)] == [plain(t) for t in range(100)]


@pytest.mark.parametrize("num_steps", [0, 3, 4])
def test_a_run_may_end_within_its_warm_up(num_steps):
    schedule = build_schedule("cosine_after_warmup", num_steps=num_steps, warmup_steps=4)
    assert [schedule(t) for t in range(num_steps)] == [0.25, 0.5, 0.75, 1.0][:num_steps]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cosin", "did you mean 'cosine'"),
        ("stepp_4_0.1", "did you mean 'step'"),
        ("", "expected one of constant"),
        ("cosine_after_warmup_2", "cosine, cosine_after_warmup, poly"),
        *(
            (name, "step_N_F")
            for name in (
                *("poly_x", "poly_-1", "poly_nan", "poly_0.5_1", "cosine_2", "constant_1"),
                *(
                    "step_4_0",
                    "step_999999999999_0.1",
                    "step_4_x",
                    "step_-1_0.1",
                    "step_2.5_0.1",
                    "step_4_0.1_2",
                ),
                *("step_1,,2_0.1", "step_1,-1_0.1", "step_1,0_0.1", "step_1,2_inf", "step__0.1"),
            )
        ),
    ],
)
def test_what_is_no_schedule_is_reported(name, hint):
    with pytest.raises(UserError) as info:
        build_schedule(name, num_steps=10)
    assert f"lr_schedule: got {name!r}" in str(info.value)
    assert hint in str(info.value)


def test_a_function_of_ones_own_is_called_as_those_of_the_table_are():
    own = build_schedule("src.optim.schedules:cosine", num_steps=9, warmup_steps=3)
    plain = build_schedule("cosine", num_steps=9, warmup_steps=3)
    assert [own(t) for t in range(9)] == [plain(t) for t in range(9)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("triangel", "tests.own_parts has no function 'triangel'; did you mean '.*:triangle'"),
        ("of_three", r"can be called as of_three\(num_steps\): missing a required argument"),
        ("nothing", "gives a function of the step t, which gives a number, not None"),
        ("without_numbers", "which gives a number; at t=0 it gives 'half'"),
    ],
)
def test_what_is_no_schedule_of_ones_own_is_reported(function, message):
    with pytest.raises(UserError, match=f"^lr_schedule: .*{message}"):
        build_schedule(f"tests.own_parts:{function}", num_steps=10)
