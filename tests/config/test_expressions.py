"""Expressions in YAML: what is computed, what is refused, in bounded time and memory."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import evaluate, is_expression
from src.support.errors import UserError

MOST_SECONDS = 0.4
MOST_BYTES = 64e6

VALUES = {
    "[float(x) for x in 2.0 ** np.arange(-6, 3)]": [2.0**k for k in range(-6, 3)],
    'dict(train="train[:90%]", val="train[90%:]")': {"train": "train[:90%]", "val": "train[90%:]"},
    "dict(train='train', test=None)": {"train": "train", "test": None},
    "np.logspace(-3, 1, 5).tolist()": [0.001, 0.01, 0.1, 1.0, 10.0],
    "np.logspace(0, 3, 4, base=2).tolist()": [1.0, 2.0, 4.0, 8.0],
    "list(range(5))": [0, 1, 2, 3, 4],
    "[10 ** -k for k in range(3)]": [1, 0.1, 0.01],
    "[(a, b) for a in range(3) for b in 'xy' if a != 1 and b == 'x']": [(0, "x"), (2, "x")],
    "[x for x in [3, 1, 2] if not x in (1,)]": [3, 2],
    "{k: v for k, v in zip(['a', 'b'], [1, 2])}": {"a": 1, "b": 2},
    "[i * x for i, x in enumerate([5, 6], start=1)]": [5, 12],
    "sorted([3, 1, 2], reverse=True)[:2]": [3, 2],
    "sum(x ** 2 for x in range(4))": 14,
    "round(2 / 3, 2)": 0.67,
    "-7 // 2 + 7 % 4 - +1": -2,
    "1 < 2 < 3 and not 2 > 3": True,
    "'a' if 1 > 2 else 'b' + 'c' * 2": "bcc",
    "max(1, 2.5) + min([3, 4]) + abs(-1) + len('abc')": 9.5,
    "int('12') + float('1e-3')": 12.001,
    "[str(x) for x in (1, 0.5, None)]": ["1", "0.5", "None"],
    "np.clip(np.round(np.linspace(0, 1, 3) * 3), 1, 2).tolist()": [1.0, 2.0, 2.0],
    "np.concatenate([np.zeros(1), [5], np.arange(2)]).tolist()": [0.0, 5.0, 0.0, 1.0],
    "np.outer([1, 2], [3, 4])[1, :].tolist()": [6, 8],
    "np.unique([2, 1, 2]).tolist()": [1, 2],
    "np.full((2, 1), 0.5).tolist()": [[0.5], [0.5]],
    "np.mean([1, 2]) + np.pi - np.pi": 1.5,
    "np.inf": float("inf"),
    "0.9,0.99": (0.9, 0.99),
    " 1e-3 ": 0.001,
}


@pytest.mark.parametrize("text", VALUES)
def test_values_are_those_of_plain_python(text):
    value = evaluate(text)
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


def test_an_array_stays_an_array():
    np.testing.assert_array_equal(evaluate("2.0 ** np.arange(3)"), [1.0, 2.0, 4.0])


DRAWS = [
    "np.random.uniform(-3, 0)",
    "np.random.uniform(low=1, high=2, size=3).tolist()",
    "np.random.normal()",
    "np.random.lognormal(0, 2)",
    "np.random.randint(10, size=(2, 2)).tolist()",
    "np.random.rand(3).tolist()",
    "np.random.randn()",
    "np.random.choice([1e-3, 1e-2, 1e-1])",
    "np.random.choice(['sgd', 'adam'], size=2, p=[0.1, 0.9])",
    "np.random.permutation(5).tolist()",
]


@pytest.mark.parametrize("text", DRAWS)
def test_draws_come_from_the_generator_that_is_given_and_from_no_other(text):
    before = str(np.random.get_state())
    first, second = (evaluate(text, rng=np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert len({str(evaluate(text)) for _ in range(40)}) > 1
    assert str(np.random.get_state()) == before


def test_draws_follow_their_law():
    rng = np.random.default_rng(0)
    rates = [evaluate("10 ** np.random.uniform(-3, 0)", rng=rng) for _ in range(2000)]
    assert 0.001 <= min(rates) < 0.0011
    assert 0.9 < max(rates) <= 1.0
    assert np.mean(np.log10(rates)) == pytest.approx(-1.5, abs=0.06)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", True),
        ("list(range(5))", True),
        ("2.0 ** np.arange(3)", True),
        ("10 ** np.random.uniform(-3, 0)", True),
        *((text, True) for text in ("(8, 16)", "{0.1, 0.2}", "(8, 16) + (32,)", "(1, a)")),
        *((text, True) for text in ("{x for x in 'ab'}", "((1, 2), (3, 4))", "map(float, (1, 2))")),
        ("np.arangee(3)", True),  # a slip of the pen shall be told, not become a name
        *((name, False) for name in ("tiny/lenet", "train", "a-b", "cosine", "libsvm/a9a")),
        *((name, False) for name in ("0.9,0.99", "1e-3", "train[:90%]", "poly_8", "", "np.pi")),
        *((name, False) for name in ("{name}", "(a, b)", "(0.9)", "1, (2)", "{}", "()", "{a: 1}")),
        *((name, False) for name in ("baseline (old)", "test/.*/accuracy", "a\\d", "rand-m9-n3")),
    ],
)
def test_names_are_not_taken_for_expressions(text, expected):
    assert is_expression(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{0.2, 0.1, 0.2}", [0.2, 0.1]),
        ("{'b', 'a', 'c'}", ["b", "a", "c"]),
        ("{(1, 2), (1, 2), (2, 1)}", [(1, 2), (2, 1)]),
        ("{x % 3 for x in range(9)}", [0, 1, 2]),
        ("set([3, 1, 3])", [3, 1]),
        ("sorted({3, 1})", [1, 3]),
        ("list(map(float, [1, 2]))", [1.0, 2.0]),
        ("map(max, [1, 5], [2, 3])", [2, 5]),
        ("map(np.log2, [1, 2])", [0.0, 1.0]),
        ("map(np.arange, ())", []),
    ],
)
def test_sets_and_maps_are_lists_in_the_order_that_is_written(text, expected):
    value = evaluate(text)
    assert value == expected
    assert list(map(type, value)) == list(map(type, expected))


LAUGHS = "0"  # eight names of one list of eight names of one list of …: 8**9 elements, few bytes
for _ in range(9):
    LAUGHS = f"[[a, a, a, a, a, a, a, a] for a in [{LAUGHS}]][0]"

HOSTILE = [
    # What numpy would broadcast
    "np.linspace([0.0]*12000, [1.0]*12000, 12000)",
    "np.random.uniform(np.zeros((12000, 1)), np.ones((1, 12000)))",
    "np.full(9000, 1, 'S60000')",
    # What it could reach
    "().__class__.__bases__[0].__subclasses__()",
    "__import__('os').system('true')",
    "np.__loader__",
    "np.random.bit_generator",
    "np.load('x')",
    "np.lib.npyio.os.system('true')",
    "np.arange(3).tofile('x')",
    "np.arange(3).tolist.__self__",
    "{x for x in range(5000)}",
    "map(np.ones, [50000, 50000, 50000])",
    "map(__import__, ['os'])",
    "np.ones",
    "np",
    "float",
    "(lambda: 1)()",
    "(x := 5)",
    "open('x')",
    "eval('1')",
    "getattr(1, 'real')",
    "dict.fromkeys('ab')",
    "[].append(1)",
    "''.join(['a'])",
    "'{0.__class__}'.format(1)",
    "f'{1:>1000000000}'",
    "'%1000000000d' % 1",
    "b'a'",
    "...",
    "1j",
    "~5",
    "1 is 1",
    "{**{'a': 1}}",
    "dict(**{'a': 1})",
    "[*range(3)]",
    "max(*[1, 2])",
    "[1 for x.y in [1]]",
    "await x",
    "yield",
    "x = 5",
    "import os",
    "\x00",
    "\ud800",
    # How long it could take, how much it could hold
    "9 ** 9 ** 9",
    "(2 ** 1000) ** 1000",
    "(2 ** 1000) * (2 ** 1000)",
    "1 << 10 ** 10",
    "-(2 ** 70) ** np.arange(50)",
    "round(5, -10 ** 9)",
    "np.round([5], -10 ** 9)",
    "int('9' * 5000)",
    "0x" + "f" * 1000,
    "range(10 ** 9)",
    "range(10 ** 30)",
    "'a' * 10 ** 9",
    "[0] * 10 ** 9",
    "[[[0] * 99] * 99] * 99",
    "(1,) * 10 ** 10",
    "sum(range(99999))",
    "sorted(range(99999))",
    "len('ab' * 999999)",
    "[0 for a in range(9999) for b in range(9999)]",
    "[[0 for a in range(9999)] for b in range(9999)]",
    "[[a] * 9 for a in [[b] * 9 for b in [[c] * 9 for c in [[d] * 9 for d in range(99)]]]]",
    "[np.ones(9000) for x in range(9000)]",
    "[np.unique([1]) for x in range(9000)]",
    "[np.geomspace(1, 2, 1) for x in range(9000)]",
    "np.ones(10 ** 9)",
    "np.ones((10 ** 5, 10 ** 5))",
    "np.zeros((10 ** 9, 0)).tolist()",
    "np.ones((900, 1, 0)) * np.ones((1, 900, 0))",
    "np.full((999, 999), 1)",
    "np.outer(np.ones(999), np.ones(999))",
    "np.ones((999, 1)) * np.ones((1, 999))",
    "np.ones((999, 1)) < np.ones((1, 999))",
    "np.clip(np.ones((999, 1)), 0, np.ones((1, 999)))",
    "np.ones(9)[np.zeros(9)]",
    "np.arange(0, 1, 1e-12)",
    "np.arange(0, 1, 5e-324)",
    "np.arange(0, np.nan)",
    "np.linspace(0, 1, 10 ** 9)",
    "np.linspace(np.ones(999), 1, 999)",
    "np.random.normal(size=10 ** 9)",
    "np.random.rand(10 ** 5, 10 ** 5)",
    "np.random.permutation(10 ** 9)",
    "np.random.choice(10 ** 9, 5, False)",
    "np.random.uniform([[0]] * 999, [1] * 999)",
    "np.array([2 ** 70]) ** 10 ** 9",
    "np.array(['a' * 9999] * 999)",
    f"np.array({LAUGHS})",
    f"{LAUGHS} == {LAUGHS}",
    "{1: 2}",
    "{i * (2 ** 61 - 1): 0 for i in range(4000)}",
    "(" * 10_000,
    "(" * 250 + "1" + ")" * 250,
    "-" * 3000 + "1",
    "a" + ".a" * 1900,
    "a" + ".a" * 1900 + "()",
    "a" + "[0]" * 1200,
    "1" + " + 1" * 900,
    "[" * 300 + "]" * 300,
    "[" + "1, " * 10_000 + "]",
    "a" * 10**7,
    # Wrong in silence, were it computed
    "np.arange(5) ** 100",
    "np.prod(np.arange(1, 30))",
    "np.log(0)",
    "np.sqrt(-1)",
    "np.mean([])",
    "(-8) ** 0.5",
    "1 / 0",
    "'\\d'",
    "np.ones(2, 3)",
    "np.linspace(0, 1, dtype=3)",
    "[1][5]",
    "unknown",
    "",
]


def outcome_within_bounds(text: str) -> object:
    """The value or the UserError; anything else, slowness and greed fail."""
    seconds = []
    for _ in range(3):  # the best of three, as other programs run here too
        start = time.process_time()
        try:
            result = evaluate(text)
        except UserError as error:
            result = error
        seconds.append(time.process_time() - start)
        if seconds[-1] < MOST_SECONDS:
            break
    assert min(seconds) < MOST_SECONDS, text
    return result


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_all_else_is_refused_fast(text):
    is_expression(text)
    error = outcome_within_bounds(text)
    assert isinstance(error, UserError)
    assert isinstance(error, UserError)
    assert len(str(error)) < 400


def test_memory_is_bounded():
    for text in HOSTILE:
        tracemalloc.start()
        outcome_of(text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES, text


def outcome_of(text: str) -> object:
    try:
        return evaluate(text)
    except UserError as error:
        return error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2] + [foo]", "'foo' in '[1, 2] + [foo]', column 11: unknown name"),
        ("'é' + open('x')", "column 7: calls no function"),
        ("np.arangee(3)", "did you mean 'np.arange'?"),
        ("np.linspace()", "missing 2 required positional arguments"),
        ("1 + * 2", "column 5: invalid syntax"),
        ("map(lambda x: x, [1])", "column 1: map takes the name of a function"),
        ("map(flaot, [1])", "column 1: map takes the name of a function"),
        ("map(float)", "column 1: map takes the name of a function"),
        ("(1).real", "'(1).real', column 1: no attributes but"),
        ("range(10 ** 6)", "too large: at most some 4,000 rounds or 100,000 elements"),
    ],
)
def test_errors_show_the_part_the_column_and_the_reason(text, message):
    with pytest.raises(UserError) as info:
        evaluate(text)
    assert message in str(info.value)


def combined(children):
    """Longer texts of shorter ones; a good part of them is valid, and most of that is large."""
    templates = [
        "({} {op} {})",
        "[{}, {}]",
        "({}, {})",
        "[{} for x in {}]",
        "[{} for x, y in zip({}, {})]",
        "[x for x in {} for y in {} if {}]",
        "{{k: {} for k in 'abc'}}",
        "{}[{}]",
        "{}[{}:{}]",
        "{}.tolist()",
        "({} if {} else {})",
        "{function}({})",
        "{function}({}, {})",
        "np.arange({}, {}, {})",
        "np.random.choice({}, size={})",
        "dict(a={})",
        "(lambda x: {})({})",
        "{}.__class__",
        "f'{{{}}}'",
        "[*{}]",
        "{{{}, {}}}",
        "{{{} for x in {}}}",
        "map({function}, {})",
        "set({})",
    ]
    operators = """+ - * / // % **
        << @ < == in and or""".split()  # noqa: SIM905
    functions = """abs dict enumerate float int len list max min range round sorted str sum tuple
        zip np.array np.concatenate np.round np.clip np.cumprod np.exp np.linspace np.logspace
        np.geomspace np.full np.ones np.zeros np.max np.mean np.outer np.power np.prod np.sort
        np.unique np.random.rand np.random.uniform np.random.normal np.random.randint
        np.random.permutation np.load eval""".split()  # noqa: SIM905

    def fill(template, parts, op, function):
        named = template.replace("{op}", op).replace("{function}", function)
        return named.format(*parts)

    return st.builds(
        fill,
        st.sampled_from(templates),
        st.lists(children, min_size=3, max_size=3),
        st.sampled_from(operators),
        st.sampled_from(functions),
    )


atoms = st.sampled_from(
    """0 1 2 3 -1 7 0.5 -2.5 1e-9 1e308 300 20000 99999
    10**9 2**62 2**63 x y np.inf np.nan None
    True 'a' 'abc' [] () {} range(300) np.arange(300)
    np.ones((300,1)) np.ones((1,300)) [1,2,3]""".split()  # noqa: SIM905
)
texts = st.one_of(
    st.recursive(atoms, combined, max_leaves=25),
    st.text(max_size=60),
    st.text(alphabet="()[]{}0159.,:+-*/%'\"aefnpx _\\\n\t\r", max_size=120),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(texts)
def test_any_text_gives_a_value_or_an_expression_error(text):
    is_expression(text)
    tracemalloc.start()
    outcome_of(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_BYTES
    outcome_within_bounds(text)


def arithmetic(children):
    """(text, value) of longer terms, computed by Python as they are put together."""
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (f"({p[0][0]} + {p[1][0]})", p[0][1] + p[1][1])),
        pairs.map(lambda p: (f"({p[0][0]} - {p[1][0]})", p[0][1] - p[1][1])),
        pairs.map(lambda p: (f"{p[0][0]} * {p[1][0]}", p[0][1] * p[1][1])),
        pairs.map(lambda p: (f"({p[0][0]} < {p[1][0]})", p[0][1] < p[1][1])),
        pairs.map(lambda p: (f"max({p[0][0]}, {p[1][0]})", max(p[0][1], p[1][1]))),
        children.map(lambda c: (f"sum([x * {c[0]} for x in range(4)])", 6 * c[1])),
        children.map(lambda c: (f"[{c[0]}, 0][0]", c[1])),
    )


numbers = st.integers(0, 9).map(lambda n: (str(n), n))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.recursive(numbers, arithmetic, max_leaves=8))
def test_arithmetic_agrees_with_python(term):
    text, value = term
    assert evaluate(text) == value
