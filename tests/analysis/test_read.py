"""Run folders, ours and older ones, in one dataframe."""

import json
import re
import shutil
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from src.analysis import choose, page, read_experiments, select, varying
from src.analysis import read as experiments
from src.analysis.choice import ChoiceWarning
from src.analysis.curves import best, last, numbers
from src.analysis.edges import edges, extension
from src.analysis.plots import against, learning_curves
from src.analysis.read import OlderCopyWarning
from src.analysis.runs import Unreadable, read_flat_yaml
from src.analysis.settings import differing, groups
from src.config import read_yaml, write_yaml
from src.support.errors import UserError
from train import run_experiment

# As config_keys.md has them, written before epoch and step were columns
OLDER_STATS = """\
,train/loss,train/accuracy,train/time,train/data_time,train/seen_examples,train/learning_rate,\
test/last/loss,test/last/accuracy,test/last/time,test/last/data_time
0,0.7,0.5,1.5,0.1,100,1.0,0.6,0.6,0.5,0.05
1,0.5,0.7,1.5,0.1,200,0.5,,0.8,0.5,0.05
"""


pytestmark = pytest.mark.filterwarnings("ignore::src.analysis.read.OlderCopyWarning")


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def older(results: Path, batch: str, name: str, stats: str = OLDER_STATS, **config) -> Path:
    folder = results / batch / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "linear", **config}))
    (folder / "stats.csv").write_text(stats)
    (folder / "done").write_text("")
    return folder


def test_runs_of_ours_are_read_with_every_key_and_curve(digits, results):
    batch = results / "26-11-22-x"
    stats = {}
    for rate in (0.01, 0.001):
        config = digits(base_lr=rate, averaging="ema", output_dir=str(batch / f"lr={rate}"))
        stats[f"lr={rate}"] = run_experiment(config)
    frame = read_experiments(["26-11-22-x"], index_field="train/seen_examples")
    assert frame.index.tolist() == ["lr=0.001", "lr=0.01"]
    for name, expected in stats.items():
        row = frame.loc[name]
        for column in expected.columns.drop("timestamp"):
            curve = row[column]
            np.testing.assert_array_equal(curve.to_numpy(), expected[column].to_numpy())
            assert curve.index.tolist() == [1438, 2876]
            assert (curve.name, curve.index.name) == (column, "train/seen_examples")
    assert frame["base_lr"].tolist() == [0.001, 0.01]
    assert frame["data_n_examples"].tolist() == [{"test": 359, "train": 1438}] * 2
    assert frame["state"].tolist() == ["done"] * 2
    assert frame["outcome"].tolist() == ["finished"] * 2
    assert frame["batch"].tolist() == ["26-11-22-x"] * 2
    assert (frame["seconds"] > 0).all()
    best = frame.query("base_lr < 0.005").pipe(lambda df: last(df["test/av/accuracy"]))
    assert best.tolist() == [stats["lr=0.001"]["test/av/accuracy"].iloc[-1]]


def test_arrays_come_back_as_arrays(digits, results):
    keys = ["class_accuracy", "top5_accuracy"]
    stats = run_experiment(digits(output_dir=str(results / "b" / "1_a"), metrics=keys))
    run_experiment(digits(output_dir=str(results / "b" / "2_b")))
    torn = results / "b" / "1_a" / "arrays" / "test.last.class_accuracy.npy"
    df = read_experiments(["b"])
    values, nothing = df["test/last/class_accuracy"]
    assert values.shape == (2, 10)
    assert nothing is None
    assert df["test/last/top5_accuracy"].iloc[0].tolist() == (
        stats["test/last/top5_accuracy"].tolist()
    )
    assert varying(df) == []
    with pytest.raises(UserError, match="class_accuracy holds no numbers"):
        numbers(df, "test/last/class_accuracy")
    np.save(torn, np.zeros((3, 10)))  # written before stats.csv, by a run that was killed then
    assert read_experiments(["b"])["test/last/class_accuracy"].iloc[0].shape == (2, 10)
    torn.write_bytes(torn.read_bytes()[:200])
    assert "test/last/class_accuracy" not in read_experiments(["b"])


def test_older_results_are_read_with_the_defaults_of_their_time(results):
    older(results, "25-01-01-old", "000_x", base_lr=0.5, my_own_key="kept")
    frame = read_experiments("25-01-01-old")
    (row,) = (frame.loc[name] for name in frame.index)
    assert row["test/last/accuracy"].to_dict() == {1: 0.6, 2: 0.8}
    assert np.isnan(row["test/last/loss"].iloc[-1])
    assert row["train/learning_rate"].tolist() == [1.0, 0.5]
    assert (row["base_lr"], row["batch_size"], row["loss"]) == (0.5, 100, "log")
    assert (row["my_own_key"], row["state"]) == ("kept", "done")
    assert row["seconds"] == 4.0
    for field, expected in {
        "train/seen_examples": [100, 200],
        "time": [2.0, 4.0],
        "epoch": [1, 2],
        "step": [1, 2],  # of batch_size=100, the default
    }.items():
        curve = read_experiments("25-01-01-old", index_field=field)["train/loss"].iloc[0]
        assert curve.index.tolist() == expected
    with pytest.raises(UserError, match=r"index_field: unknown 'steps'; did you mean 'step'"):
        read_experiments("25-01-01-old", index_field="steps")


@pytest.mark.parametrize("field", ["epoch", "step", "train/seen_examples", "time"])
def test_runs_of_any_age_have_each_index(digits, results, field):
    """Also beside each other, and where a column is lacking that another one tells."""
    run_experiment(digits(batch_size=10, output_dir="results/x/ours"))
    older(results, "x", "older", batch_size=50)
    few = ",step,train/loss\n0,3,0.7\n1,6,0.5\n"
    older(results, "x", "few columns", few, batch_size=10)
    older(results, "x", "no batch size", few, batch_size="many")
    frame = read_experiments("x", index_field=field)
    own = pd.read_csv(results / "x" / "ours" / "stats.csv")
    expected = {
        "epoch": {"ours": [1, 2], "older": [1, 2], "few columns": [1, 2], "no batch size": [1, 2]},
        "step": {"older": [2, 4], "few columns": [3, 6], "no batch size": [3, 6]},
        "train/seen_examples": {"older": [100, 200], "few columns": [30, 60], "no batch size": []},
        "time": {"older": [2.0, 4.0], "few columns": [0, 0], "no batch size": [0, 0]},
    }[field]
    if field in own:
        expected["ours"] = own[field].tolist()
    for name, index in expected.items():
        assert frame.loc[name, "train/loss"].index.tolist() == index


# Every key of the time, none with its default
OLDER_CONFIG = {
    "log_interval": 7,
    "log_interval_eval": 3,
    "save_freq": 2,
    "save_best_checkpoint": True,
    "best_checkpoint_metric": "val/.*/loss",
    "output_dir": "results/25-01-01-old/000_25-01-01-old+base_lr=0.5",
    "log_to_stdout": True,
    "device": "cuda",
    "host_name": "node007",
    "multi_gpu": False,
    "num_workers": 5,
    "eval_batch_size": 999,
    "max_allowed_loss": 50.0,
    "early_stopping_patience": 4,
    "seed_model": 11,
    "seed_training": 12,
    "dataset": "timm/torch/cifar10",
    "data_dir": "/scratch/data",
    "data_download": False,
    "data_n_examples": {"train": 100, "val": 20, "test": 30},
    "data_n_classes": 10,
    "data_splits_map": "dict(train='train[:80%]', val='train[80%:]', test='test')",
    "model": "tiny/wrn_40_2",
    "model_pretrained": True,
    "model_head_init": "zero",
    "model_output_dim": 10,
    "model_input_shape": [3, 32, 32],
    "loss": "xentropy",
    "batch_size": 64,
    "grad_accum_steps": 2,
    "batch_size_accum": 32,
    "train_length": 3,
    "train_length_unit": "step",
    "steps_per_epoch": 1,
    "samples_per_epoch": None,
    "optim_alg": "amsgradw",
    "base_lr": "10 ** np.random.uniform(-3, 0)",
    "momentum": "0.8,0.99",
    "ada_eps": 1e-6,
    "weight_decay": 5e-4,
    "weight_decay_biases": 1e-4,
    "lr_schedule": "step_150,100,50_0.2",
    "warmup_steps": 9,
    "averaging": "poly_8",
    "wandb": True,
    "wandb_project_name": "old",
    "wandb_run_name": "first",
    "wandb_tags": ["a", "b"],
}


def test_every_value_of_an_older_folder_is_found(results):
    measures = ("loss", "accuracy", "time", "data_time")
    columns = [f"train/{x}" for x in (*measures, "seen_examples", "learning_rate")]
    columns += [f"{s}/{m}/{x}" for s in ("val", "test") for m in ("last", "av") for x in measures]
    stats = pd.DataFrame(np.random.default_rng(0).random((3, len(columns))), columns=columns)
    stats["train/seen_examples"] = [64, 128, 192]
    folder = results / "25-01-01-old" / "000_25-01-01-old+base_lr=0.5"
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("model: tiny/wrn_40_2\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(OLDER_CONFIG))
    (folder / "training.log").write_text("started\n")
    stats.to_csv(folder / "stats.csv")
    (folder / "done").write_text("")
    frame = read_experiments("25-01-01-old", index_field="train/seen_examples")
    assert frame.index.tolist() == [folder.name]
    row = frame.iloc[0]
    spelled = {"train": "train[:80%]", "val": "train[80%:]", "test": "test"}
    assert row["data_splits_map"] == spelled
    for key, value in OLDER_CONFIG.items():
        if key == "data_splits_map":
            continue
        assert row[key] == value or (value is None and row[key] is None), key
    for column in columns:
        assert row[column].tolist() == stats[column].tolist(), column
        assert row[column].index.tolist() == [64, 128, 192]
    assert (row["batch"], row["state"], row["outcome"]) == ("25-01-01-old", "done", None)
    times = [c for c in columns if c.endswith("/time")]
    assert row["seconds"] == pytest.approx(stats[times].to_numpy().sum())


def test_batches_are_named_in_many_ways(results):
    for batch in ("26-11-21-x", "26-11-22-x", "26-11-22-y"):
        older(results, batch, f"000_{batch}")
    x = ["000_26-11-21-x", "000_26-11-22-x"]
    assert read_experiments(["26-11-21-x"]).index.tolist() == x[:1]
    assert read_experiments([results / "26-11-21-x"]).index.tolist() == x[:1]
    assert read_experiments(["results/26-11-21-x/000_26-11-21-x"]).index.tolist() == x[:1]
    assert read_experiments(["x"]).index.tolist() == x
    assert read_experiments(["jobs/x.yaml"]).index.tolist() == x
    assert len(read_experiments(["26-11-*", "x"])) == 3
    (results / "other.yaml").write_text("job_details: {name: y}\nparameters: {base_lr: 1}\n")
    assert read_experiments(["results/other.yaml"]).index.tolist() == ["000_26-11-22-y"]
    with pytest.raises(UserError, match=r"batches: got .* at least one"):
        read_experiments([])
    with pytest.raises(UserError, match="did you mean '26-11-22-y'"):
        read_experiments(["26-11-22-yy"])
    (results / "26-11-22-empty").mkdir()
    with pytest.raises(UserError, match="no runs there"):
        read_experiments(["26-11-22-empty"])


def test_what_is_broken_is_reported_and_left_out(results, capsys):
    older(results, "x", "good")
    broken = older(results, "x", "yaml")
    (broken / "config.yaml").write_text("model: [linear\nloss: log\n")
    older(results, "x", "numbers", OLDER_STATS.replace("0.7,0.5,1.5", "zero,0.5,1.5"))
    older(results, "x", "lengths", OLDER_STATS + "2,0.1\n")
    older(results, "x", "torn", OLDER_STATS + "2,0.1,0.")
    older(results, "x", "header", OLDER_STATS[:30])
    frame = read_experiments(["x"])
    assert frame.index.tolist() == ["good", "torn"]
    assert len(frame.loc["torn", "train/loss"]) == 2
    reasons = {Path(path).name: reason for path, reason in frame.attrs["skipped"]}
    assert reasons["lengths"] == "stats.csv: lines of different lengths"
    assert reasons["numbers"].startswith("stats.csv: train/loss: could not convert")
    assert reasons["yaml"].startswith("config.yaml, line 2: not YAML")
    assert reasons["header"] == "stats.csv: nothing in it, though the run is done"
    assert capsys.readouterr().err.count("skipped results/x/") == 4


def test_runs_that_are_not_done_are_there_unless_only_done(results):
    older(results, "x", "done")
    running = older(results, "x", "running")
    (running / "done").unlink()
    (running / "status.json").write_text(json.dumps({"state": "running", "host": "node3"}))
    waiting = results / "x" / "waiting"
    waiting.mkdir()
    (waiting / "spec.yaml").write_text("model: tiny/lenet\n")
    frame = read_experiments(["x"])
    assert frame["state"].to_dict() == {
        "done": "done",
        "running": "running",
        "waiting": "unstarted",
    }
    assert frame.loc["running", "node"] == "node3"
    assert len(frame.loc["waiting", "train/loss"]) == 0
    assert frame["model"].tolist() == ["linear", "linear", "tiny/lenet"]
    assert read_experiments(["x"], only_done=True).index.tolist() == ["done"]


def test_rows_that_have_not_begun_have_the_settings_of_those_that_have(results):
    splits = {"train": "train[:80%]", "test": "test"}
    older(results, "x", "begun", data_splits_map=splits, batch_size=100, base_lr=0.1)
    waiting = results / "x" / "waiting"
    waiting.mkdir()
    text = (
        "data_splits_map: dict(train='train[:80%]', test='test')\nbatch_size: null\nbase_lr: 0.1\n"
    )
    (waiting / "spec.yaml").write_text(text)
    frame = read_experiments(["x"])
    assert frame["batch_size"].tolist() == [100, 100]
    assert frame["data_splits_map"].tolist() == [splits] * 2
    assert varying(frame) == ["model"]  # which the spec leaves at its default
    assert np.isnan(frame.loc["waiting", "seconds"])


def test_what_is_changed_in_a_frame_is_not_read_again(results):
    older(results, "x", "a", wandb_tags=["mine"])
    frame = read_experiments(["x"])
    frame["wandb_tags"].iloc[0].append("more")
    frame["data_splits_map"].iloc[0]["train"] = "test"
    again = read_experiments(["x"])
    assert again["wandb_tags"].tolist() == [["mine"]]
    assert again["data_splits_map"].tolist() == [{"train": "train", "test": "test"}]


def test_half_written_folders_are_reported(results):
    older(results, "x", "000_x")
    (older(results, "x", "001_x") / "config.yaml").unlink()
    (results / "x" / "002_x").mkdir()
    for name in ("code", "submissions"):
        (results / "x" / name).mkdir()
    frame = read_experiments(["x"])
    assert frame.index.tolist() == ["000_x"]
    reason = "neither config.yaml nor spec.yaml"
    assert frame.attrs["skipped"] == [(f"results/x/{n}_x", reason) for n in ("001", "002")]


def replaced(name: str, content: str | Path | None = None):
    """A damage: the file of that name holds this text, is a link to this path, or is a folder."""

    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        if content is None:
            (run / name).mkdir()
        elif isinstance(content, Path):
            (run / name).symlink_to(content)
        else:
            (run / name).write_text(content)

    return damage


def no_folder(content: str | Path):
    """A damage: in the place of the run folder there is a file, or a link."""

    def damage(run: Path) -> None:
        shutil.rmtree(run)
        replaced(run.name, content)(run.parent)

    return damage


DEEP = "[" * 100_000
LOOP = "Too many levels of symbolic links"
DAMAGES = {
    "the run is a looping link": (no_folder(Path("001_x")), f"config.yaml: {LOOP}"),
    "the run is a link to nowhere": (no_folder(Path("nowhere")), "neither config"),
    "the run is a file": (no_folder("text"), "config.yaml: Not a directory"),
    "config: looping link": (replaced("config.yaml", Path("config.yaml")), f"config.yaml: {LOOP}"),
    "config: folder": (replaced("config.yaml"), "config.yaml: Is a directory"),
    "config: empty": (replaced("config.yaml", ""), "config.yaml: no lines of the form"),
    "config: binary": (replaced("config.yaml", "\0\1\2"), "config.yaml.*: not YAML"),
    "config: nested deeply": (replaced("config.yaml", "a: " + DEEP), "config.yaml.*nest"),
    "config: no number": (replaced("config.yaml", "a: !!int x\n"), "config.yaml"),
    "config: no time": (replaced("config.yaml", "a: !!timestamp x\n"), "config.yaml"),
    "config: digits": (replaced("config.yaml", f"a: {'9' * 5000}\n"), "config.yaml"),
    "stats: folder": (replaced("stats.csv"), "stats.csv: Is a directory"),
    "stats: looping link": (replaced("stats.csv", Path("stats.csv")), f"stats.csv: {LOOP}"),
    "stats: empty": (replaced("stats.csv", ""), "stats.csv: nothing in it"),
    "stats: ragged": (replaced("stats.csv", ",a\n0,1\n1,2,3\n"), "stats.csv: lines of different"),
    "stats: long name": (
        replaced("stats.csv", "a" * 200_000 + ",b\n0,1\n"),
        "stats.csv: field lar",
    ),
    "status: folder": (replaced("status.json"), "status.json: Is a directory"),
    "status: looping link": (replaced("status.json", Path("status.json")), f"status.json: {LOOP}"),
    "status: nested deeply": (replaced("status.json", DEEP), "status.json: nested too deeply"),
    "done: folder": (replaced("done"), "done: Is a directory"),
    "done: nested deeply": (replaced("done", DEEP), "done: nested too deeply"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_reported_with_its_reason_and_hides_no_other(results, damage, reason):
    for name in ("000_x", "001_x", "002_x"):
        older(results, "x", name)
    damage(results / "x" / "001_x")
    frame = read_experiments("x")
    assert frame.index.tolist() == ["000_x", "002_x"]
    ((path, why),) = frame.attrs["skipped"]
    assert path == "results/x/001_x"
    assert re.match(reason, why), why
    assert "\n" not in why


def test_stats_without_a_line_are_reported_of_a_run_that_still_runs(results):
    """Nothing that trains leaves such a file: the state of before would be shown for ever."""
    older(results, "x", "000_x")
    (older(results, "x", "001_x", stats="") / "done").unlink()
    frame = read_experiments("x")
    assert frame.attrs["skipped"] == [("results/x/001_x", "stats.csv: nothing in it")]


def test_names_that_no_file_can_have_are_answered(results):
    for name in ("x" * 300, "x" * 300 + ".yaml", "x\0"):
        with pytest.raises(UserError, match="no such batch"):
            read_experiments(name)


def test_a_batch_that_is_named_twice_is_read_once(results):
    older(results, "26-11-22-x", "000")
    older(results, "26-11-22-x", "001")
    (results / "link").symlink_to(results / "26-11-22-x")
    many = ["26-11-22-x", "results/26-11-22-x", results / "26-11-22-x", "link", "x"]
    many += ["results/26-11-22-x/../26-11-22-x/001", "results/26-*", f"{results}/26-*"]
    assert read_experiments(many).index.tolist() == ["000", "001"]
    for pattern in many:
        assert len(read_experiments(pattern)) >= 1
    older(results, "26-11-22-exes", "000")
    with pytest.raises(UserError, match="did you mean 'exes'"):
        read_experiments("exess")


def test_a_key_that_is_set_twice_is_unreadable_and_lines_keep_their_end(results):
    with pytest.raises(Unreadable, match="set twice"):
        read_flat_yaml("a: 1\nb: 2\na: 3\n", "x")
    assert read_flat_yaml("a: |\n  text\nb: 2\n", "x") == {"a": "text\n", "b": 2}


def test_a_column_that_some_runs_lack_is_empty_there(results):
    older(results, "x", "a")
    shorter = "\n".join(line.rsplit(",", 4)[0] for line in OLDER_STATS.splitlines()) + "\n"
    older(results, "x", "b", shorter)
    frame = read_experiments(["x"])
    assert frame["test/last/loss"].isna().tolist() == [False, True]
    assert pd.isna(last(frame["test/last/loss"])["b"])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.just("\n")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab# -", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.text("abc_", min_size=1), values, max_size=5))
def test_reading_by_blocks_is_reading_the_whole(content):
    text = write_yaml(content)
    assert repr(read_flat_yaml(text, "x") if content else {}) == repr(read_yaml(text))


@pytest.mark.parametrize(
    "text", ["{a: 1,\nb: 2}", "---\na: 1\nb: 2\n", "# note\na: 1 # one\n\nb: 2", "a: 1\nb: &x 2\n"]
)
def test_other_spellings_of_yaml_are_read_too(text):
    assert read_flat_yaml(text, "x") == {"a": 1, "b": 2}


@pytest.mark.parametrize("text", ["", "- a\n", "only text", "a: [1\n"])
def test_what_is_no_mapping_is_unreadable(text):
    with pytest.raises(Unreadable):
        read_flat_yaml(text, "x")


def test_columns_that_people_add_are_no_settings(results):
    for rate in (0.1, 0.2):
        older(results, "x", f"lr={rate}", base_lr=rate, mine=rate > 0.1)
    frame = read_experiments(["x"])
    frame["accuracy"] = [0.5, 0.6]
    frame = frame.assign(loss_of_last=last(frame["train/loss"])).query("accuracy > 0")
    assert varying(frame) == ["base_lr"]
    assert varying(pd.concat([frame, frame])) == ["base_lr"]
    assert varying(frame[["accuracy", "mine"]]) == ["mine"]


def test_what_is_computed_from_curves_is_drawn_and_chosen_by_as_they_are(results):
    for rate in (0.1, 0.2):
        older(results, "x", f"lr={rate}", base_lr=rate, seed_model=1, seed_training=1)
    frame = read_experiments("x")
    accuracy = frame["test/last/accuracy"]
    frame["below best/accuracy"] = accuracy - best(accuracy).max()
    figure = learning_curves(frame, "below best/accuracy", colour="base_lr")
    for line in figure.axes[0].lines[:2]:
        np.testing.assert_allclose(line.get_ydata(), [-0.2, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChoiceWarning)  # equally good
        assert choose(frame, "below best/accuracy")["below best/accuracy"].tolist() == [0]
    plt.close(figure)


def test_whole_numbers_stay_whole_where_some_runs_have_none(results):
    seeds = (3061773367, 3061773367, 9007199254740993, None)  # the third is no float
    for number, seed in enumerate(seeds):
        config = {} if seed is None else {"seed_model": seed, "early_stopping_patience": number}
        config |= {"aug_crop_scale": 3} if number else {}
        older(results, "x", f"{number}", base_lr=0.1, **config)
    frame = read_experiments("x")
    assert frame["aug_crop_scale"].tolist() == [pd.NA, 3, 3, 3]
    assert frame["seed_model"].tolist() == [*seeds[:3], pd.NA]
    assert "3061773367" in repr(frame[["seed_model"]])
    assert "3061773367,0" in frame[["seed_model", "early_stopping_patience"]].to_csv()
    assert frame.query("seed_model == 3061773367").index.tolist() == ["0", "1"]
    assert frame.query("early_stopping_patience > 0").index.tolist() == ["1", "2"]
    assert frame.groupby("seed_model").size().to_dict() == {seeds[0]: 2, seeds[2]: 1}
    assert select(frame, seed_model=seeds[2]).index.tolist() == ["2"]
    assert select(frame, seed_model=None).index.tolist() == ["3"]
    assert numbers(frame, "early_stopping_patience").tolist()[:3] == [0, 1, 2]
    (results / "x" / "3" / "config.yaml").write_text("seed_model: 5\n")
    assert read_experiments("x")["seed_model"].dtype == "int64"
    (results / "x" / "3" / "config.yaml").write_text(f"seed_model: {2**70}\n")
    assert read_experiments("x")["seed_model"].tolist() == [*seeds[:3], 2**70]


def test_whole_numbers_of_some_runs_are_drawn_shown_and_extended(results):
    for number, length in enumerate((1, 2, 4, None)):
        stats = OLDER_STATS.replace("0.8", f"0.8{number}") if length else OLDER_STATS
        run = older(results, "x", f"{number}", stats, data_text_length=length, seed_model=7)
        if not length:
            (run / "config.yaml").write_text("model: linear\n")
    frame = read_experiments("x")
    assert frame["data_text_length"].dtype == frame["seed_model"].dtype == "Int64"
    for df, places, names in (
        (frame, [0, 1, 2, 3], ["null", "1", "2", "4"]),
        (frame[frame["seed_model"].notna()], [1, 2, 4], ["1", "2", "4"]),
    ):
        figure = against(df, "data_text_length", "test/last/accuracy")
        assert figure.axes[0].lines[0].get_xdata().tolist() == places
        assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == names
        plt.close(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChoiceWarning)
        assert choose(frame)["data_text_length"].tolist() == [4]
        (edge,) = edges(frame, "test/last/accuracy")
    assert (edge.key, edge.value) == ("data_text_length", 4)
    assert edge.added == (8, 16)
    assert re.search(r"data_text_length:\s+- 8\s+- 16", extension(frame, [edge]))
    column = page._coded("seed_model", frame["seed_model"])
    assert column.options == ["7"]


# ---- Older copies of this template -------------------------------------------------------


def older_copy(results: Path, name: str, **config) -> Path:
    """A folder as an older copy has left it: its five files, and none that says who made it."""
    folder = older(results, "25-01-01-old", name, **config)
    (folder / "spec.yaml").write_text(yaml.safe_dump(config))
    (folder / "training.log").write_text("started\n")
    return folder


@pytest.fixture
def both_kinds(digits, results) -> Path:
    """Runs of an older copy in one batch, and one of ours beside a row that waits."""
    older_copy(results, "000_linear", model="linear", base_lr=0.1)
    for rate in (0.1, 0.2, 0.4):
        older_copy(
            results, f"00{rate:g}_tiny", model="tiny/lenet", base_lr=rate, averaging="ema_0.01"
        )
    waiting = results / "25-01-01-old" / "009_waits"
    waiting.mkdir()
    (waiting / "spec.yaml").write_text("model: linear\nbase_lr: 0.1\n")
    run_experiment(digits(base_lr=0.1, output_dir="results/26-11-22-new/000_ours"))
    (results / "26-11-22-new" / "001_waits").mkdir()
    (results / "26-11-22-new" / "001_waits" / "spec.yaml").write_text("model: timm/resnet18\n")
    (results / "26-11-22-new" / "rows.jsonl").write_text("")
    return results


def test_a_default_is_not_known_where_older_copies_did_otherwise(both_kinds, recwarn):
    frame = read_experiments(["25-01-01-old", "26-11-22-new"])
    unknown = "not known"
    assert frame["drop_last"].tolist() == [unknown] * 5 + [False, False]
    for key, default in {"aug_hflip": 0.0, "aug_mix_prob": 1.0}.items():
        assert frame[key].tolist() == [unknown] * 3 + [default] * 4
    for key in ("aug_crop_scale", "aug_auto"):
        assert frame[key].isna().tolist() == [False] * 3 + [True] * 4
    assert frame["batch_size"].tolist()[0] == 100  # a default that was in force
    assert frame["averaging"].tolist()[0] == "ema_0.01"  # as the file has it
    (warning,) = [str(w.message) for w in recwarn if "older copies" in str(w.message)]
    assert warning.startswith("5 of 7 runs are of older copies; not known of them: drop_last (5")
    assert "aug_* (3 runs), whether ema_G of averaging has G and 1-G swapped (3 runs)" in warning
    assert "\n" not in warning


def test_runs_of_ours_warn_of_no_older_copy(digits, results, recwarn):
    run_experiment(digits(output_dir="results/x/000_ours"))
    (results / "x" / "000_ours" / "status.json").unlink()  # provenance.json says it as well
    frame = read_experiments("x")
    config = results / "x" / "000_ours" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "drop_last" not in line))
    assert frame["drop_last"].tolist() == read_experiments("x")["drop_last"].tolist() == [False]
    assert not [w for w in recwarn if "older copies" in str(w.message)]


def test_what_an_older_config_says_is_known(results):
    older_copy(results, "000", model="tiny/lenet", drop_last=False, aug_hflip=0.25)
    with pytest.warns(OlderCopyWarning, match=r"aug_\* \(1 run\)"):
        frame = read_experiments("25-01-01-old")
    assert frame.iloc[0][["drop_last", "aug_hflip", "aug_erase"]].tolist() == [
        False,
        0.25,
        "not known",
    ]


@pytest.mark.filterwarnings("ignore::src.analysis.choice.ChoiceWarning")
def test_what_is_not_known_is_a_value_to_select_and_group_by(both_kinds, monkeypatch):
    monkeypatch.setattr(experiments, "WORTH_KEEPING", 1)
    for _ in range(2):  # the second time from the cache
        frame = read_experiments(["25-01-01-old", "26-11-22-new"])
        assert select(frame, drop_last="not known").index[-1] == "009_waits"
        assert select(frame, drop_last=False).index.tolist() == ["000_ours", "001_waits"]
        assert frame.query("aug_hflip == 'not known'")["model"].unique().tolist() == ["tiny/lenet"]
        assert [v["drop_last"] for v, _ in groups(frame, ["drop_last"])] == [False, "not known"]
        assert len(frame.groupby("drop_last")) == 2
        same = frame[(frame["base_lr"] == 0.1) & (frame["model"] != "tiny/lenet")]
        assert "drop_last" in differing(same)
    tiny = select(frame, model="tiny")
    figure = against(frame, "aug_hflip", "test/last/accuracy", colour="base_lr")
    assert "not known" in [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    plt.close(figure)
    tiny["train/loss"] = tiny["train/loss"] - tiny["base_lr"]
    (edge,) = edges(tiny, "train/loss")
    assert (edge.value, edge.added) == (0.4, (0.8, 1.6))
    assert "not known" not in extension(tiny, [edge])


def test_folders_of_ours_are_read_by_hand_as_those_of_older_copies(digits, results):
    """As notebooks of older copies do it: PyYAML, pandas, and a Series in each cell."""
    run_experiment(digits(base_lr=1e-5, averaging="ema", output_dir="results/x/000_ours"))
    older_copy(results, "001", base_lr=1e-5)
    rows = []
    for folder in (results / "x" / "000_ours", results / "25-01-01-old" / "001"):
        row = yaml.safe_load((folder / "config.yaml").read_text())
        stats = pd.read_csv(folder / "stats.csv", index_col=0)
        stats.index = pd.RangeIndex(1, len(stats) + 1, name="epoch")
        rows.append(row | {column: stats[column] for column in stats})
    frame = pd.DataFrame(rows)
    assert frame["base_lr"].tolist() == [1e-5, 1e-5]
    assert (frame["batch_size"][0], frame["ada_eps"][0]) == (100, 1e-8)
    assert frame["data_n_examples"][0] == {"train": 1438, "test": 359}
    gap = frame["test/last/accuracy"] - 0.5
    assert [curve.index.tolist() for curve in gap] == [[1, 2]] * 2
    own = read_experiments("x")
    for column in ("train/loss", "test/av/accuracy", "train/seen_examples"):
        pd.testing.assert_series_equal(
            frame[column][0], own[column].iloc[0], check_index=False, check_dtype=False
        )
