"""The parameters of a job file: which rows they expand to, in which order, and what is refused."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.grid.job_file import expand_grid, places_of, read_grid
from src.support.errors import UserError


def rows(**parameters) -> list[dict]:
    return expand_grid(parameters).rows


# ---- What a key goes through


def test_keys_are_crossed_the_last_fastest():
    assert rows(a=[1, 2], b="x", c=[3, 4]) == [
        {"a": 1, "b": "x", "c": 3},
        {"a": 1, "b": "x", "c": 4},
        {"a": 2, "b": "x", "c": 3},
        {"a": 2, "b": "x", "c": 4},
    ]
    assert [list(row) for row in rows(c=[1], b=[2, 3], a=4)] == [["c", "b", "a"]] * 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[float(x) for x in 2.0 ** np.arange(-1, 2)]", [0.5, 1.0, 2.0]),
        ("np.array([1, 2])", [1, 2]),
        ("(8, 16)", [8, 16]),
        ("{0.2, 0.1}", [0.2, 0.1]),
        ("list(map(float, [1, 2]))", [1.0, 2.0]),
        ("0.9,0.99", ["0.9,0.99"]),
        ("[(1, 2), [np.arange(2)]]", [[1, 2], [[0, 1]]]),
        ("[dict(a=(1, 2))]", [{"a": [1, 2]}]),
        ("tiny/lenet", ["tiny/lenet"]),
        ("10 ** np.random.uniform(-3, 0)", ["10 ** np.random.uniform(-3, 0)"]),
        ("dict(train='train[:90%]')", ["dict(train='train[:90%]')"]),
        ("np.outer([1, 2], [1, 2])", ["np.outer([1, 2], [1, 2])"]),
        ({"train": "train"}, [{"train": "train"}]),
        ({"uniform": [0, 1]}, [{"uniform": [0, 1]}]),
        ({"n": 3}, [{"n": 3}]),
        (None, [None]),
        (["[1, 2]", [3, 4], {"uniform": [0, 1], "n": 2}],) * 2,
    ],
)
def test_values_of_a_key(value, expected):
    got = [row["key"] for row in rows(key=value)]
    assert got == expected
    assert [type(item) for item in got] == [type(item) for item in expected]


def test_what_an_expression_draws_is_drawn_again():
    text = "[float(x) for x in np.random.uniform(0, 1, 3)]"
    assert rows(a=text, b=1) == rows(a=text, b=1)
    assert [r["a"] for r in rows(a=text)] != [r["b"] for r in rows(b=text)]


# ---- LIST


def test_a_list_unites_its_blocks_and_is_crossed_with_the_rest():
    assert rows(a=[1, 2], LIST=[{"b": [3, 4]}, {"c": 5}, {}], d=6) == [
        {"a": 1, "b": 3, "d": 6},
        {"a": 1, "b": 4, "d": 6},
        {"a": 1, "c": 5, "d": 6},
        {"a": 1, "d": 6},
        {"a": 2, "b": 3, "d": 6},
        {"a": 2, "b": 4, "d": 6},
        {"a": 2, "c": 5, "d": 6},
        {"a": 2, "d": 6},
    ]


def test_lists_nest_and_stand_beside_each_other():
    inner = [{"b": 1, "LIST": [{"c": [1, 2]}, {"d": 1}]}, {"b": 2}]
    assert rows(LIST_x=inner, LIST_y=[{"e": 1}, {}]) == [
        {"b": 1, "c": 1, "e": 1},
        {"b": 1, "c": 1},
        {"b": 1, "c": 2, "e": 1},
        {"b": 1, "c": 2},
        {"b": 1, "d": 1, "e": 1},
        {"b": 1, "d": 1},
        {"b": 2, "e": 1},
        {"b": 2},
    ]
    deep: dict = {"a": [1, 2]}
    for _ in range(60):
        deep = {"LIST": [deep]}
    assert expand_grid(deep).rows == [{"a": 1}, {"a": 2}]


numbers = st.lists(st.integers(), min_size=1, max_size=3, unique=True)


def blocks(keys: str) -> st.SearchStrategy:
    """Non-empty blocks that set the last of `keys`, so that no two rows of a block are equal."""
    own = st.fixed_dictionaries({keys[-1]: numbers})
    if len(keys) == 1:
        return own
    inner = st.tuples(blocks(keys[:-1]), blocks(keys[:-1])).map(
        # the mark makes rows of one block unlike those of the other
        lambda pair: {"LIST": [{**b, f"mark_{keys}": i} for i, b in enumerate(pair)]}
    )
    return st.tuples(own, inner).map(lambda pair: pair[0] | pair[1])


def size(block: dict) -> int:
    return math.prod(
        sum(map(size, v)) if k == "LIST" else len(v) if isinstance(v, list) else 1
        for k, v in block.items()
    )


@given(blocks("abcd"))
def test_rows_are_products_of_sums(parameters):
    grid = expand_grid(parameters)
    assert len(grid.rows) == size(parameters) == math.prod(len(f.options) for f in grid.factors)
    assert len({tuple(sorted(row.items())) for row in grid.rows}) == len(grid.rows)


# ---- ZIP and draws


def test_the_keys_of_a_zip_move_together():
    assert rows(ZIP_size={"width": "range(1, 4)", "lr": [0.3, 0.2, 0.1]}, seed=[0, 1]) == [
        {"width": width, "lr": lr, "seed": seed}
        for width, lr in [(1, 0.3), (2, 0.2), (3, 0.1)]
        for seed in [0, 1]
    ]


def drawn(**draw) -> list:
    return [row["key"] for row in rows(ZIP={"key": draw, "other": list(range(draw["n"]))})]


@pytest.mark.parametrize(("kind", "inside"), [("uniform", 0.5), ("loguniform", 0.1)])
def test_numbers_are_drawn_between_the_bounds(kind, inside):
    values = drawn(**{kind: [0.01, 1]}, n=2000, seed=3)
    assert all(type(value) is float and 0.01 <= value <= 1 for value in values)
    assert sum(value < inside for value in values) / 2000 == pytest.approx(0.5, abs=0.04)
    assert values[:2] == drawn(**{kind: [0.01, 1]}, n=2, seed=3)
    assert values[:2] != drawn(**{kind: [0.01, 1]}, n=2)


def test_rounding_does_not_leave_the_bounds():
    below_ten = math.nextafter(10, 0)  # exp(log(10)) is 10.000000000000002
    assert set(drawn(loguniform=[below_ten, 10], n=20)) <= {below_ten, 10.0}


def test_draws_never_change():
    assert drawn(uniform=[0, 1], n=2) == [0.5608512353318904, 0.7075111669797517]
    assert drawn(choice=list("abcde"), n=5) == list("ebacd")
    assert drawn(uniform=[0, 1], n=2) == drawn(uniform=[0, 1], n=2, seed=0)


def test_one_seed_draws_other_values_for_other_keys():
    draw = {"uniform": [0, 1], "n": 20}
    together = rows(ZIP={"a": draw, "b": draw})
    assert not any(row["a"] == row["b"] for row in together)


def test_a_choice_goes_through_all_options_before_it_repeats_one():
    options = ["a", "b", {"c": 1}, None]
    values = drawn(choice=options, n=10, seed=1)
    for first in (0, 4):
        assert all(option in values[first : first + 4] for option in options)
    assert values[8] != values[9]
    assert values[:4] != values[4:8]
    assert drawn(choice=list(range(9)), n=9) != list(range(9))


# ---- What is refused


DRAW = {"uniform": [0, 1], "n": 2}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (None, r"^parameters: got None, expected a mapping from keys to values$"),
        ({"a": []}, r"^parameters\.a: got \[\], expected at least one value"),
        ({"a": "[x for x in range(0)]"}, r"^parameters\.a: got \[\], expected at least one"),
        ({"LIST": []}, r"^parameters\.LIST: got \[\], expected at least one"),
        ({True: [1]}, r"^parameters\.True: got True, expected a name"),
        ({"a": "[floot(x) for x in range(3)]"}, r"^parameters\.a: 'floot\(x\)' in .*'float'\? \("),
        ({"LIST_a": {"b": 1}}, r"^parameters\.LIST_a: got \{'b': 1\}, expected a list of blocks$"),
        ({"LIST": [{}, {"LIST_b": [{}, 3]}]}, r"^parameters\.LIST\[1\]\.LIST_b\[1\]: got 3, exp"),
        ({"ZIP": [1]}, r"^parameters\.ZIP: got \[1\], expected a mapping from keys to lists"),
        ({"ZIP": {}}, r"^parameters\.ZIP: got \{\}, expected a mapping from keys to lists"),
        ({"ZIP": {"a": [1, 2], "b": [1, 2, 3]}}, r"^parameters\.ZIP: .* got 2 of a, 3 of b$"),
        ({"ZIP": {"LIST_b": [{}]}}, r"^parameters\.ZIP\.LIST_b: got .* expected no LIST and no"),
        ({"ZIP": {"ZIP_b": {"a": 1}}}, r"^parameters\.ZIP\.ZIP_b: got .* expected no LIST and no"),
        ({"a": DRAW | {"choice": [1]}}, r"^parameters\.a: .* expected one of uniform, loguniform"),
        ({"a": DRAW | {"sed": 1}}, r"^parameters\.a: unknown 'sed'; did you mean 'seed'\?"),
        ({"a": DRAW | {"n": 0}}, r"^parameters\.a\.n: got 0, expected a whole number from 1"),
        ({"a": DRAW | {"n": True}}, r"^parameters\.a\.n: got True, expected a whole number"),
        ({"a": DRAW | {"n": 10**9}}, r"^parameters\.a\.n: got 1000000000, expected a whole"),
        ({"a": DRAW | {"seed": -1}}, r"^parameters\.a\.seed: got -1, expected a whole number"),
        ({"a": DRAW | {"uniform": "12"}}, r"^parameters\.a\.uniform: got '12', expected \[low, h"),
        ({"a": DRAW | {"uniform": [1]}}, r"^parameters\.a\.uniform: got \[1\], expected \[low"),
        ({"a": DRAW | {"uniform": [1, 1]}}, r"^parameters\.a\.uniform: got \[1, 1\], expected"),
        ({"a": DRAW | {"uniform": ["x", 1]}}, r"^parameters\.a\.uniform: got \['x', 1\], exp"),
        ({"a": DRAW | {"uniform": [0, math.inf]}}, r"^parameters\.a\.uniform: got \[0, inf\]"),
        (
            {"a": DRAW | {"uniform": [-1e308, 1e308]}},
            r"^parameters\.a\.uniform: got \[-1e\+308, 1e",
        ),
        ({"a": DRAW | {"uniform": [0, 10**400]}}, r"^parameters\.a\.uniform: got \[0, 1000"),
        (
            {"a": {"loguniform": [0, 1], "n": 2}},
            r"^parameters\.a\.loguniform: .* 0 < low < high < inf$",
        ),
        ({"a": {"choice": [], "n": 2}}, r"^parameters\.a\.choice: got \[\], expected a list of"),
        ({"a": {"choice": 3, "n": 2}}, r"^parameters\.a\.choice: got 3, expected a list of"),
        (
            {"a": list(range(1001)), "LIST": [{"b": list(range(500))}, {"c": list(range(500))}]},
            r"^parameters: 1,001,000 runs, expected at most 1,000,000$",
        ),
        ({"a": list(range(1000)), "b": DRAW | {"n": 10**6}}, r"1,000,000,000 runs"),
    ],
)
def test_mistakes_show_where(parameters, words):
    with pytest.raises(UserError, match=words):
        expand_grid(parameters)


def test_all_mistakes_come_at_once():
    _, errors, unread = read_grid(
        {
            "a": [],
            "b": "[floot(x) for x in range(3)]",
            "c": {"uniform": [1, 1], "n": 3},
            "LIST": [3, {"d": {"choice": 3, "n": 2}, "e": [1, 2]}],
            "ZIP": {"f": [1, 2], "g": [1, 2, 3], "h": []},
            "e": 3,
            "fine": [1, 2],
        }
    )
    places = [error.partition(": ")[0] for error in errors]
    assert places == [
        "parameters.a",
        "parameters.b",
        "parameters.c.uniform",
        "parameters.LIST[0]",
        "parameters.LIST[1].d.choice",
        "parameters.ZIP.h",
        "parameters.ZIP",
        "e",
    ]
    assert unread == {"a", "b", "c", "d", "f", "g", "h"}


def test_what_can_be_read_is_there_beside_mistakes():
    grid, errors, _ = read_grid(
        {"a": [], "b": [1, 2], "LIST": [{"c": 1}, {"d": []}], "ZIP": {"e": []}}
    )
    assert len(errors) == 3
    assert [{k: v for k, v in row.items() if k in "bc"} for row in grid.rows] == [
        {"b": 1, "c": 1},
        {"b": 1},
        {"b": 2, "c": 1},
        {"b": 2},
    ]


@pytest.mark.parametrize(
    ("parameters", "one", "other"),
    [
        ({"a": 1, "LIST": [{"b": 1}, {"a": 2}]}, "a", "LIST[1].a"),
        ({"LIST_x": [{"b": 1}, {"a": 1}], "LIST_y": [{"a": 1}]}, "LIST_x[1].a", "LIST_y[0].a"),
        ({"ZIP_x": {"a": 1}, "ZIP_y": {"a": 1}}, "ZIP_x.a", "ZIP_y.a"),
        (
            {"LIST": [{"LIST": [{"ZIP": {"a": 1}}], "a": 3}]},
            "LIST[0].LIST[0].ZIP.a",
            "LIST[0].a",
        ),
    ],
)
def test_a_key_is_set_once_on_each_path(parameters, one, other):
    with pytest.raises(UserError) as error:
        expand_grid(parameters)
    places = f"parameters.{one} and at parameters.{other}"
    assert str(error.value) == f"a: set twice for one run, at {places}"


def test_blocks_of_one_list_may_set_the_same_key():
    parameters = {"LIST": [{"a": 1}, {"b": 2, "a": 2}], "ZIP": {"c": [1]}}
    places = {"a": "parameters.LIST[0].a", "b": "parameters.LIST[1].b", "c": "parameters.ZIP.c"}
    assert places_of(parameters) == (places, [])


@pytest.mark.parametrize(
    "equal", [[1, 1.0], [[1, {"a": 2}], [1.0, {"a": 2.0}]], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]]
)
def test_equal_rows_are_refused(equal):
    with pytest.raises(UserError, match=r"runs \(counted from 0\) are equal: 0 and 2 with a="):
        rows(a=[equal[0], "other", equal[1]], b=3)


@pytest.mark.parametrize(
    "values", [[1, True], [0, False], [1, "1"], [[1], [True]], [[1, 2], [2, 1]]]
)
def test_unequal_values_make_unequal_rows(values):
    assert len(rows(a=values)) == 2


def test_a_null_sets_as_much_as_no_key():
    assert len(rows(LIST=[{"a": [None]}, {}])) == 1
    assert len(rows(LIST=[{"a": [None]}, {"a": [0]}])) == 2


@pytest.mark.parametrize(
    ("parameters", "expected", "notes"),
    [
        (
            {"LIST": [{"a": [1, 2]}, {"a": [2.0, 3]}]},
            [{"a": 1}, {"a": 2}, {"a": 3}],
            ["parameters.LIST: merged 1 run that equals another"],
        ),
        (
            {"LIST": [{"a": [1, 1]}]},
            [{"a": 1}],
            ["parameters.LIST: merged 1 run that equals another"],
        ),
        (
            {"LIST": [{"a": None}, {}, {}]},
            [{"a": None}],
            ["parameters.LIST: merged 2 runs that equal others"],
        ),
        (
            {"b": [1, 2], "LIST_x": [{"LIST_y": [{"a": 1}, {"a": 1}]}, {"a": 1}]},
            [{"b": 1, "a": 1}, {"b": 2, "a": 1}],
            [
                "parameters.LIST_x[0].LIST_y: merged 1 run that equals another",
                "parameters.LIST_x: merged 1 run that equals another",
            ],
        ),
        ({"LIST": [{"a": 1}, {"b": 1}]}, [{"a": 1}, {"b": 1}], []),
    ],
)
def test_equal_rows_of_one_list_are_merged_and_it_is_reported(parameters, expected, notes):
    grid = expand_grid(parameters)
    assert (grid.rows, grid.notes) == (expected, notes)
    assert len(grid.rows) == math.prod(len(factor.options) for factor in grid.factors)
    with pytest.raises(UserError, match="are equal"):
        expand_grid({**parameters, "c": [0, 0]})


def test_of_many_equal_rows_some_are_shown():
    with pytest.raises(UserError) as error:
        rows(a=[1, 1, 1, 1, 1], b=[1, 2, 3, 4, 4], c=0)
    assert str(error.value) == (
        "parameters: runs (counted from 0) are equal: "
        "0, 5, 10 and 2 more with a=1, b=1; 1, 6, 11 and 2 more with a=1, b=2; "
        "2, 7, 12 and 2 more with a=1, b=3; and 9 more that repeat another"
    )


# ---- Its description


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "1 run"),
        ({"a": 1, "LIST": [{}]}, "1 run"),
        ({"a": 1, "b": [1, 2]}, "2 runs = 2 b"),
        (
            {
                "c": 0,
                "batch_size": [1, 2],
                "LIST": [{"d": 1, "base_lr": [1, 2]}, {"d": 1, "base_lr": 3, "momentum": 0}],
            },
            "6 runs = 2 batch_size × 3 (base_lr, momentum)",
        ),
        ({"ZIP": {"a": [1, 2], "b": [3, 4], "c": [5, 5]}}, "2 runs = 2 (a, b)"),
        ({"a": list(range(1500))}, "1,500 runs = 1,500 a"),
    ],
)
def test_a_description_names_what_varies(parameters, words):
    assert expand_grid(parameters).description() == words


def test_many_keys_are_refused_before_they_are_read():
    keys = dict.fromkeys(map(str, range(1001)), "[")
    assert read_grid(keys)[1] == ["parameters: 1,001 keys, expected at most 1,000"]
    _, mistakes = places_of({"LIST": [{key: [] for key in "abc"}, keys]})
    assert mistakes[3:] == ["parameters.LIST[1]: 1,001 keys, expected at most 1,000"]


def test_ten_thousand_rows_take_a_moment():
    wide = {f"key_{i}": "value" for i in range(20)}
    started = time.process_time()
    grid = expand_grid({"a": list(range(100)), "LIST": [{"b": list(range(100))}], **wide})
    assert (len(grid.rows), len(grid.rows[-1])) == (10_000, 22)
    assert time.process_time() - started < 2
