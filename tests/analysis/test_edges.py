"""The edge alarm: when it rings, what it adds, and that its job file has just that."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results import finish
from src.analysis import edge_alarm, read_experiments
from src.analysis.curves import CurveArray
from src.analysis.edges import edges, extension, extrapolate
from src.config import make_config
from src.grid.check import check_rows
from src.grid.folders import plan_batch, write_batch
from src.grid.job_file import Job, expand_grid, read_job
from src.support.errors import UserError

ROOT = Path(__file__).parents[2]
RATES = (0.5, 1.0, 2.0)
FOUND = {"data_n_classes": 10, "batch_size_accum": 100, "model_input_shape": [1, 8, 8]}


def frame(*rows: dict[str, Any], metric: str = "test/last/accuracy") -> pd.DataFrame:
    """A run a row, as read_experiments has them; its `score` becomes a curve that ends there."""
    filled = []
    for number, row in enumerate(rows):
        folder = {"output_dir": f"results/26-11-23-idea/{number}", "batch": "26-11-23-idea"}
        facts = {"state": "done", "outcome": "finished", "seed_model": 1}
        config = vars(make_config({k: v for k, v in row.items() if k not in ("score", *facts)}))
        filled.append({**config, **facts, **folder, **FOUND, **row})
    df = pd.DataFrame([{k: v for k, v in row.items() if k != "score"} for row in filled])
    curves = [(np.array([0.0, row["score"]]), np.arange(2)) for row in rows]
    return df.assign(**{metric: CurveArray.of(curves, metric, "epoch")})


def swept(scores: list[float], values: tuple = RATES, key: str = "base_lr", **row: Any) -> list:
    return [{**row, key: v, "score": s} for v, s in zip(values, scores, strict=True)]


def outline(df: pd.DataFrame, *args: Any, **keys: Any) -> list[tuple]:
    found = edges(df, *args, **keys)
    return [(e.key, e.side, e.value, e.added, len(e.at_edge), e.num_settings) for e in found]


def rows_of(text: str, folder: Path) -> list[dict[str, Any]]:
    job = job_of(text, folder)
    rows = expand_grid(job.parameters).rows
    for row in rows:
        make_config(row)  # or it raises
    return rows


def job_of(text: str, folder: Path) -> Job:
    (folder / "job.yaml").write_text(text)
    return read_job(folder / "job.yaml")


# ---- When it rings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.2, 0.3], [("base_lr", "largest", 2.0, (4.0, 8.0), 1, 1)]),
        ([0.3, 0.2, 0.1], [("base_lr", "smallest", 0.5, (0.25, 0.125), 1, 1)]),
        ([0.1, 0.3, 0.2], []),
        ([0.1, 0.3, 0.3], []),  # a tie with an inner value
        ([0.3, 0.1, 0.3], []),
        ([0.2, 0.2, 0.3], [("base_lr", "largest", 2.0, (4.0, 8.0), 1, 1)]),
        ([0.1, 0.3, np.nan], []),
        ([0.1, np.nan, 0.3], [("base_lr", "largest", 2.0, (4.0, 8.0), 1, 1)]),
        ([np.inf, 0.1, np.nan], []),
        ([np.nan, np.nan, np.nan], []),
    ],
)
def test_the_best_value_is_an_edge_where_it_alone_is_best_and_outermost(scores, expected):
    assert outline(frame(*swept(scores))) == expected


def test_less_is_better_where_the_metric_says_so():
    df = frame(*swept([0.1, 0.2, 0.3]), metric="val/last/loss")
    assert (
        outline(df)
        == outline(df, "val/last/loss")
        == [("base_lr", "smallest", 0.5, (0.25, 0.125), 1, 1)]
    )
    with pytest.raises(UserError, match="did you mean 'val/last/loss'"):
        edges(df, "val/last/lss/loss")


def test_when_says_which_epoch_counts():
    df = frame(*swept([-0.3, -0.2, -0.1]))  # curves from 0 down
    assert [one[:3] for one in outline(df)] == [("base_lr", "largest", 2.0)]
    assert outline(df, when="best") == outline(df, when=0) == []


@pytest.mark.parametrize("state", [{"outcome": "diverged"}, {"state": "failed"}])
def test_a_value_of_which_one_seed_came_to_nothing_is_worst(state):
    good = [*swept([0.1, 0.2, 0.3], seed_training=1), *swept([0.1, 0.2, 0.3], seed_training=2)]
    assert outline(frame(*good)) == [("base_lr", "largest", 2.0, (4.0, 8.0), 1, 1)]
    assert outline(frame(*good[:-1], good[-1] | state)) == []


@pytest.mark.parametrize("state", ["running", "unstarted", "unfinished", "stopped"])
def test_runs_that_have_not_ended_are_missing_and_their_values_are_tried(state):
    pending = {"state": state, "outcome": None}
    four = swept([0.1, 0.2, 0.3, 0.0], values=(*RATES, 4.0))
    assert outline(frame(*four[:3], four[3] | pending)) == []  # who knows
    better = [row | {"score": 0.4} for row in four[3:]]
    (only,) = outline(frame(four[0] | pending, *four[1:3], *better))
    assert only == ("base_lr", "largest", 4.0, (8.0, 16.0), 1, 1)
    assert outline(frame(*four[:2], four[2] | pending)) == []
    assert outline(frame(four[0] | pending, *four[1:3])) == []  # two results
    other_seed = [row | {"seed_training": 2} | pending for row in four[:3]]
    assert outline(frame(*four[:3], *other_seed))[0][:3] == ("base_lr", "largest", 2.0)
    done = [row | {"seed_training": 2} for row in four[:2]]  # the best value lacks nothing yet
    assert outline(frame(*four[:3], *done, other_seed[2]))[0][:3] == ("base_lr", "largest", 2.0)


def test_values_are_ranked_as_choose_ranks_them():
    """One that lacks a seed, as it was never made, is not the best; where all lack one, it is."""
    one, other = (swept([0.1, 0.2, 0.3], seed_training=seed) for seed in (1, 2))
    assert outline(frame(*one, *other[:2])) == []
    broken = [row | {"outcome": "diverged"} for row in other]
    assert outline(frame(*one, *broken))[0][:3] == ("base_lr", "largest", 2.0)


def test_two_values_a_single_run_and_no_run_have_no_edges():
    assert outline(frame(*swept([0.1, 0.2], values=(1.0, 2.0)))) == []
    assert outline(frame(*swept([0.1], values=(1.0,)))) == []
    assert outline(frame(*swept([0.1], values=(1.0,))).iloc[:0]) == []


def test_means_over_seeds_are_compared():
    scores = {1: [0.1, 0.5, 0.9], 2: [0.2, 0.8, 0.3]}  # means .15 .65 .6
    rows = [row for seed, of in scores.items() for row in swept(of, seed_training=seed)]
    assert outline(frame(*rows)) == []
    assert [one[1] for one in outline(frame(*rows[:3]))] == ["largest"]
    tie = {1: [0.0, 0.3, 0.1], 2: [0.0, 0.2, 0.2], 3: [0.0, 0.1, 0.3]}  # .3 + .2 + .1 < .1 + …
    rows = [row for seed, of in tie.items() for row in swept(of, seed_training=seed)]
    assert outline(frame(*rows)) == []


def test_settings_with_the_same_values_are_counted_together():
    scores = {16: [0.1, 0.2, 0.3], 32: [0.1, 0.3, 0.2], 64: [0.1, 0.2, 0.4]}
    rows = [row for size, of in scores.items() for row in swept(of, batch_size=size)]
    found = edges(frame(*rows), "test/last/accuracy")
    (rate,) = [edge for edge in found if edge.key == "base_lr"]
    assert (rate.tried, rate.at_edge) == (RATES, [{"batch_size": 16}, {"batch_size": 64}])
    assert str(rate) == (
        "In 2 of 3 settings the best base_lr is the largest of 0.5, 1, 2: add 4, 8 "
        "(batch_size=16; batch_size=64)."
    )
    diverged = [row | {"outcome": "diverged"} for row in swept([0.1, 0.2, 0.3], batch_size=80)]
    assert next(one for one in outline(frame(*rows, *diverged)) if one[0] == "base_lr")[-2:] == (
        2,
        3,
    )
    assert [(edge.key, edge.at_edge) for edge in found if edge is not rate] == [
        ("batch_size", [{"base_lr": 2.0}])
    ]


def test_blocks_with_learning_rates_of_their_own_are_examined_by_themselves():
    rows = [
        *swept([0.1, 0.2, 0.3], optim_alg="sgd", momentum=0.5, model="linear"),
        *swept([0.3, 0.2, 0.1], (0.001, 0.01, 0.1), optim_alg="adam", model="linear"),
        *swept([0.2, 0.1, 0.0], (0.001, 0.01, 0.1), optim_alg="adam", model="tiny/lenet"),
    ]
    assert outline(frame(*rows)) == [
        ("base_lr", "smallest", 0.001, (0.0001, 1e-05), 2, 2),
        ("base_lr", "largest", 2.0, (4.0, 8.0), 1, 1),
    ]


def test_keys_that_move_together_are_no_edges():
    rows = swept([0.1, 0.2, 0.3])
    tied = [row | {"batch_size": size} for row, size in zip(rows, (16, 32, 64), strict=True)]
    assert outline(frame(*tied)) == []


@pytest.mark.parametrize(
    ("key", "values", "is_edge"),
    [
        ("train_length", (1, 2, 4), True),
        ("seed_training", (1, 2, 4), False),
        ("num_workers", (1, 2, 4), False),
        ("save_freq", (1, 2, 4), False),
        ("data_n_classes", (1, 2, 4), False),
        ("momentum", ("0.8,0.9", "0.9,0.9", "0.99,0.9"), False),
        ("model_pretrained", (False, True, True), False),
    ],
)
def test_only_keys_of_numbers_that_make_a_setting_are_examined(key, values, is_edge):
    assert bool(outline(frame(*swept([0.1, 0.2, 0.3], values, key)))) == is_edge


def test_null_competes_but_is_no_edge():
    values = (0.1, 1.0, 10.0, None)
    assert outline(frame(*swept([0.1, 0.2, 0.3, 0.4], values, "clip_norm"))) == []
    (only,) = outline(frame(*swept([0.1, 0.2, 0.3, 0.2], values, "clip_norm")))
    assert only == ("clip_norm", "largest", 10.0, (100.0, 1000.0), 1, 1)


def test_what_the_configuration_refuses_is_not_proposed():
    smoothing = swept([0.1, 0.2, 0.3], (0.2, 0.4, 0.8), "label_smoothing")
    assert outline(frame(*smoothing)) == []
    assert outline(frame(*swept([0.3, 0.2, 0.1], (0.0, 0.1, 0.2), "weight_decay"))) == []
    divided = swept([0.3, 0.2, 0.1], (16, 32, 64), "batch_size", grad_accum_steps=8)
    whole = [row | {"grad_accum_steps": 2} for row in divided]
    found = edges(frame(*divided, *whole))
    assert [(edge.added, edge.at_edge, edge.num_settings) for edge in found] == [
        ((8, 4), [{"grad_accum_steps": 2}], 2),
        ((8,), [{"grad_accum_steps": 8}], 2),
    ]


# ---- Extrapolation -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 2, 4], [8, 16]),
        ([32, 16, 8], [4, 2]),
        ([4, 2, 1], []),  # no whole number is between 1 and 0
        ([4.0, 2.0, 1.0], [0.5, 0.25]),
        ([0.01, 0.0316, 0.1], [0.316228, 1.0]),
        ([0.1, 0.2, 0.3], [0.4, 0.5]),
        ([0.3, 0.2, 0.1], [0.05, 0.025]),
        ([96, 64, 32], [16, 8]),
        ([1, 2, 3, 4, 5], [6, 7]),
        ([0, 100, 200], [300, 400]),
        ([0.0, 1e-4, 1e-3], [0.01, 0.1]),
        ([200, 100, 0], []),
        ([1.0, 0.1, 0.0], []),
        ([1, 3, 10, 30], [100, 300]),
        ([0.3, 1.0, 3.0], [10.0, 30.0]),
        ([30.0, 10.0, 3.0], [1.0, 0.3]),
        ([1, 2, 5, 10], [20, 50]),
        ([32, 48, 64, 96, 128], [192, 256]),
        ([1.3, 2.9, 9.1, 40.0], [130.0, 390.0]),  # drawn: a factor of 3.13
        ([2.01, 2.02, 2.05], [2.07, 2.09]),  # drawn: steps of 0.02
        ([1, 2, 5], [11, 25]),
        ([2.0, 3.1, 5.0], [6.5, 8.0]),
        ([-1.0, 0.0, 1.0], [2.0, 3.0]),
        ([1.0, 0.0, -1.0], [-2.0, -3.0]),
    ],
)
def test_new_values_continue_the_row(row, expected):
    found = extrapolate("base_lr", row)
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.9, 0.95, 0.99], [0.995, 0.999]),
        ([0.9, 0.99, 0.999], [0.9999, 0.99999]),
        ([0.0, 0.5, 0.9], [0.95, 0.99]),
        ([0.0, 0.3, 0.6], [0.9, 0.95]),
        ([0.99, 0.95, 0.9], [0.5, 0.0]),
        ([0.9, 0.5, 0.0], []),
    ],
)
def test_momentum_is_continued_in_its_distance_from_one(row, expected):
    assert extrapolate("momentum", row) == expected


positive = st.floats(1e-6, 1e6).map(lambda x: float(f"{x:.4g}"))


@given(st.lists(positive, min_size=3, max_size=12, unique=True), st.booleans())
def test_new_values_are_two_positive_ones_outside_of_all(values, rises):
    row = sorted(values, reverse=not rises)
    found = extrapolate("base_lr", row)
    assert len(set(found)) == 2
    assert [*row, *found] == sorted([*row, *found], reverse=not rises)
    assert min(found) > 0


# ---- The job file ------------------------------------------------------------------------


def test_the_job_has_the_runs_at_the_edge_with_the_new_values(tmp_path):
    rows = [
        row
        for seed in (1, 2)
        for row in [
            *swept([0.1, 0.2, 0.3], dataset="sklearn/digits", train_length=9, seed_training=seed),
            *swept([0.1, 0.3, 0.2], dataset="sklearn/iris", train_length=7, seed_training=seed),
        ]
    ]
    found = edges(df := frame(*rows))
    text = extension(df, found)
    assert text == (
        "# Is it better still outside the edges of 26-11-23-idea? Runs: 4\n"
        "#   base_lr above 2\n"
        "#   python submit_multiple.py jobs/idea-edges.yaml -s local\n"
        "job_details:\n  name: idea-edges\n  output_dir: results\n"
        "parameters:\n  dataset: sklearn/digits\n  train_length: 9\n"
        "  LIST_edges:\n  - base_lr:\n    - 4.0\n    - 8.0\n"
        "  seed_model: 1\n  seed_training:\n  - 1\n  - 2\n"
    )
    digits = {"dataset": "sklearn/digits", "train_length": 9, "seed_model": 1}
    assert rows_of(text, tmp_path) == [
        digits | {"base_lr": rate, "seed_training": seed} for rate in (4.0, 8.0) for seed in (1, 2)
    ]
    assert job_of(extension(df, found, "further"), tmp_path).name == "further"
    with pytest.raises(UserError, match=r"found: got .*expected at least one edge"):
        extension(df, [])


def test_settings_that_are_a_product_are_written_as_one(tmp_path):
    rows = [
        row
        for model, averaging, seeds in itertools.product(
            ("linear", "tiny/lenet"), (None, "ema_0.9", ["ema_0.9", "poly"]), ((1, 1), (2, 2))
        )
        for row in swept(
            [0.1, 0.2, 0.3],
            dataset="sklearn/digits",
            model=model,
            averaging=averaging,
            seed_model=seeds[0],
            seed_training=seeds[1],
        )
    ]
    df = frame(*rows)
    text = extension(df, edges(df))
    parameters = job_of(text, tmp_path).parameters
    assert parameters["LIST_edges"] == [{"base_lr": [4.0, 8.0]}]
    assert parameters["ZIP_seeds"] == {"seed_model": [1, 2], "seed_training": [1, 2]}
    assert len(rows_of(text, tmp_path)) == 2 * 3 * 2 * 2
    without = df[
        [a is not None or m == "linear" for a, m in zip(df.averaging, df.model, strict=True)]
    ]
    assert len(rows_of(extension(without, edges(without)), tmp_path)) == 5 * 2 * 2


def test_null_is_a_value_of_a_setting(tmp_path):
    rows = [row for norm in (None, 1.0) for row in swept([0.1, 0.2, 0.3], clip_norm=norm)]
    df = frame(*[row | {"dataset": "sklearn/digits"} for row in rows])
    assert df["clip_norm"].dtype == float
    found = edges(df)
    assert [edge.at_edge for edge in found] == [[{"clip_norm": None}, {"clip_norm": 1.0}]]
    norms = [row.get("clip_norm") for row in rows_of(extension(df, found), tmp_path)]
    assert norms == [None, None, 1.0, 1.0]


def test_values_that_the_grid_would_take_for_others_are_kept(tmp_path):
    keys = {
        "dataset": "sklearn/digits",
        "data_splits_map": {"train": "train[:90%]", "val": "train[90%:]", "test": "test"},
        "averaging": ["ema_0.9", "poly"],
        "evaluate_models": ["last"],
        "data_normalize": "columns",
        "save_plot": False,
        "wandb_run_name": "mine",
        "wandb_project_name": "[1, 2]",
    }
    df = frame(*swept([0.1, 0.2, 0.3], **keys))
    (row, other) = rows_of(extension(df, edges(df)), tmp_path)
    drawn = frame(*swept([0.1, 0.2, 0.3], optim_args={"n": 2, "uniform": [0, 1]}))
    parameters = job_of(extension(drawn, edges(drawn)), tmp_path).parameters
    assert [row["optim_args"]["n"] for row in expand_grid(parameters).rows] == [2, 2]
    del keys["wandb_run_name"]
    assert (row, other) == tuple(keys | {"base_lr": r, "seed_model": 1} for r in (4.0, 8.0))


def test_a_run_that_was_made_twice_is_requested_once(tmp_path):
    once = swept([0.1, 0.2, 0.3], dataset="sklearn/digits")
    df = frame(*once, *(row | {"num_workers": 0, "save_plot": False} for row in once))
    rows = rows_of(extension(df, edges(df)), tmp_path)
    assert [(row["base_lr"], row.get("num_workers")) for row in rows] == [(4.0, None), (8.0, None)]


def test_the_batch_is_put_beside_the_one_that_was_examined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    df = frame(*swept([0.1, 0.2, 0.3]))
    found = edges(df)
    for folder, expected in [
        ("elsewhere/26-11-23-idea/0", "elsewhere"),
        (str(tmp_path / "here" / "26-11-23-idea" / "0"), "here"),
        ("/gone/results/26-11-23-idea/0", "results"),
        (None, "results"),
    ]:
        moved = df.assign(output_dir=folder)
        assert job_of(extension(moved, found), tmp_path).output_dir == expected
    again = df.assign(batch="26-11-24-idea-edges")
    assert job_of(extension(again, found), tmp_path).name == "idea-edges"
    unnamed = df.drop(columns=["output_dir", "batch"])
    assert job_of(extension(unnamed, found), tmp_path).name == "grid-edges"


GRID = {
    "dataset": "sklearn/digits",
    "LIST_model": [
        {"model": "linear", "train_length": 20, "num_workers": 0},
        {"model": "tiny/lenet", "train_length": 5, "weight_decay": [0.0, 1e-4, 1e-3]},
    ],
    "LIST_optimizer": [
        {"optim_alg": "sgd", "base_lr": [0.005, 0.01, 0.02]},
        {"optim_alg": "adamw", "base_lr": [0.05, 0.1, 0.2], "momentum": 0.95},
        {"optim_alg": "adam", "base_lr": [0.2, 0.4, 0.8], "averaging": [["ema", "poly"]]},
    ],
    "batch_size": [32, 64, 128],
    "seed_model": 1,
    "seed_training": [1, 2, 3],
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Path:
    """A finished batch of the grid, best at a learning rate of 0.1, and lenet at more decay."""
    folder = tmp_path_factory.mktemp("results") / "26-11-23-grid"
    plan = plan_batch(folder, expand_grid(GRID).rows, job_text="", common={})
    write_batch(plan, ROOT)
    for row in plan.batch.rows:
        finish(row.folder, row.values)
    return folder


@pytest.mark.usefixtures("warm_lookup")
def test_each_new_row_is_a_run_that_there_is_but_for_one_key(batch, tmp_path):
    df = read_experiments(batch)
    found = edges(df)
    assert [(e.side, e.tried, len(e.at_edge), e.num_settings) for e in found] == [
        ("smallest", (0.2, 0.4, 0.8), 12, 12),
        ("largest", (0.005, 0.01, 0.02), 12, 12),
    ]
    requested = expand_grid(GRID).rows
    expected = [
        row | {"base_lr": rate}
        for row in requested
        for rate in {0.02: (0.04, 0.08), 0.2: (0.1, 0.05)}.get(row["base_lr"], ())
        if (row["optim_alg"], row["base_lr"]) in {("sgd", 0.02), ("adam", 0.2)}
    ]
    rows = rows_of(extension(df, found), tmp_path)
    assert check_rows(rows) == []
    assert sorted(map(repr, map(make_config, rows))) == sorted(
        map(repr, map(make_config, expected))
    )


def test_of_any_few_runs_the_rows_are_those_at_the_edges_but_for_one_key(batch, tmp_path):
    """Whatever has ended, and whatever came out."""
    df = read_experiments(batch)
    requested = dict(zip(df.index, expand_grid(GRID).rows, strict=True))
    configs = {name: make_config(row) for name, row in requested.items()}
    rng = np.random.default_rng(0)
    for _ in range(4):
        some = df.iloc[rng.permutation(len(df))[: rng.integers(60, len(df))]]
        curves = [(np.array([x]), np.arange(1)) for x in rng.random(len(some))]
        some = some.assign(**{"val/last/loss": CurveArray.of(curves, "val/last/loss", "epoch")})
        found = edges(some, "val/last/loss")
        expected = [
            repr(make_config(requested[name] | {edge.key: value}))
            for edge in found
            for setting in edge.at_edge
            for name in some.index
            if vars(configs[name]).items() >= (setting | {edge.key: edge.value}).items()
            for value in edge.added
        ]
        rows = expand_grid(job_of(extension(some, found), tmp_path).parameters).rows
        assert len({edge.key for edge in found}) == 3
        assert sorted(repr(make_config(row)) for row in rows) == sorted(expected)
        assert not set(expected) & set(map(repr, configs.values()))


# ---- The alarm ---------------------------------------------------------------------------


def test_the_alarm_names_the_edges_and_gives_the_job(tmp_path):
    df = frame(*swept([0.1, 0.2, 0.3]))
    sentences, job = edge_alarm(df).split("\n\n")
    assert sentences == (
        "By test/last/accuracy (last):\nThe best base_lr is the largest of 0.5, 1, 2: add 4, 8."
    )
    assert job == extension(df, edges(df))
    drawn = frame(*swept(list(range(10)), tuple(1.5**i for i in range(10))))
    assert "the largest of 1, 1.5, 2.25, …, 17.09, 25.63, 38.44: add 57.66" in edge_alarm(drawn)


def test_the_alarm_names_what_it_examined_where_there_is_no_edge():
    inside = swept([0.1, 0.3, 0.2])
    assert edge_alarm(frame(*inside)) == (
        "By test/last/accuracy (last) the grid is wide enough: no best value is at an edge: "
        "base_lr in all settings."
    )
    few = swept([0.3, 0.1], RATES[:2], model="tiny/lenet")
    mixed = swept([0.1, 0.3, 0.2], model="linear") + few
    assert edge_alarm(frame(*mixed)).endswith("at an edge: base_lr in 1 of 2 settings.")
    assert edge_alarm(frame(*inside[:2])) == (
        "No edges to look for: no setting has results of 3 values of a numeric key."
    )
