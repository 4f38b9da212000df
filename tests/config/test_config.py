import dataclasses
import re

import pytest
import yaml

from src.config import KEYS, Config, load_config, make_config, read_yaml, write_yaml
from src.config.config import MOST_LINES
from src.support.errors import UserError

HISTORY = "src/config/defaults.yaml"


def test_every_default_is_the_one_in_the_history():
    with open(HISTORY) as file:
        history = {key: entry["default"] for key, entry in yaml.safe_load(file).items()}
    defaults = dataclasses.asdict(Config())
    # null lets a larger first loss set it, and else is the number that it always was
    assert defaults["max_allowed_loss"] is None
    defaults["max_allowed_loss"] = Config().draw_missing().max_allowed_loss
    changed = {k for k in history.keys() & defaults if history[k] != defaults[k]}
    assert history.keys() <= defaults.keys(), (
        "a key disappeared: files of earlier experiments that set it no longer load"
    )
    assert not changed, (
        "a default changed: results that were written without the key would be read with a "
        "value they never had; keep the default, or add a new key"
    )
    assert defaults.keys() <= history.keys(), f"add the new keys to {HISTORY} with the version"


def test_the_history_gives_the_version_of_every_key():
    with open(HISTORY) as file:
        entries = yaml.safe_load(file).values()
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", entry["since"]) for entry in entries)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1e3", 1e3), ("1E+2", 100.0), ("-.5e1", -5.0), ("2.0e+3", 2000.0), ("7", 7)],
)
def test_numbers_are_numbers_however_they_are_written(text, value):
    assert read_yaml(text) == value
    assert make_config({"max_allowed_loss": read_yaml("1e3")}).max_allowed_loss == 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_lrr": 0.1}, "base_lrr=0.1: there is no such key; did you mean 'base_lr'?"),
        ({"num_epochs": 3}, "num_epochs=3: there is no such key; did you mean 'train_length'?"),
        ({"multi_gpu": "fdsp"}, "expected 'fsdp' or 'dp' or boolean; did you mean 'fsdp'?"),
        (
            {"averaging_bn": "recompute", "sync_bn": True},
            "averaging_bn: got 'recompute', expected average, as sync_bn is true",
        ),
        ({"batch_size": 0}, "batch_size: got 0, expected greater than or equal to 1"),
        ({"batch_size": "many"}, "batch_size: got 'many', expected integer"),
        ({"batch_size": "1" * 5000}, "batch_size: got '1111"),
        ({"batch_size": 1e16}, "batch_size: got 1e+16, expected less than or equal"),
        ({"train_length": 1e308}, "train_length: got 1"),
        ({"device": "cuda:999999999999"}, "device: got 'cuda:999999999999', expected cpu, cuda"),
        ({"k" * 200_000: 1}, "kkk…=1: there is no such key."),
        ({"model": ["x" * 200_000]}, "model: got ['xxx"),
        ({"a\nb": 1}, "a b=1: there is no such key; "),
        ({"batch_size": 1.5}, "batch_size: got 1.5, expected integer"),
        ({"batch_size": True}, "batch_size: got True, expected integer"),
        ({"wandb": "yes please"}, "wandb: got 'yes please', expected boolean"),
        ({"wandb": 1}, "wandb: got 1, expected boolean"),
        ({"model": 3}, "model: got 3, expected string"),
        ({"averaging": 3}, "averaging: got 3, expected string or a list, as [3]"),
        (
            {"trackers": "wandb"},
            "trackers: got 'wandb', expected a list, as [wandb]; in a grid [[wandb]]",
        ),
        ({"momentum": [0.9]}, "momentum: got [0.9], expected number or string"),
        ({"train_length_unit": "epochs"}, "expected 'epoch', 'step' or 'sample'; did you mean 'ep"),
        ({"label_smoothing": 1.0}, "label_smoothing: got 1.0, expected less than 1"),
        ({"weight_decay": float("nan")}, "weight_decay: got nan, expected"),
        ({"data_splits_map": {"test": "test"}}, "data_splits_map: got {'test': 'test'}, expected"),
        ({"data_splits_map": "dict(train="}, "data_splits_map: "),
        ({"data_splits_map": {"train": 3}}, "data_splits_map[train]: got 3, expected string"),
        ({"data_splits_map": "train"}, "data_splits_map: "),
        ({"batch_size": 10, "grad_accum_steps": 3}, "grad_accum_steps: got 3, expected a divisor"),
        ({"steps_per_epoch": 5, "samples_per_epoch": 5}, "samples_per_epoch: got 5, expected null"),
        ({"device": "gpu"}, "device: got 'gpu', expected cpu, cuda"),
        ({"base_lr": "__import__('os')"}, "base_lr: "),
        (
            {"base_lr": "abc"},
            "base_lr: 'abc', column 1: unknown name; expected a number ≥ 0, or an",
        ),
        ({"base_lr": "10.0**400"}, "base_lr: "),
        ({"base_lr": "'fast'"}, "base_lr: got \"'fast'\", expected an expression that gives a num"),
        (
            {"base_lr": -1},
            "base_lr: got -1, expected greater than or equal to 0 or an expression that gives such",
        ),
        ({"best_checkpoint_metric": "("}, "best_checkpoint_metric: got '(', expected a regular"),
        ({"seed_model": -1}, "seed_model: got -1, expected greater than or equal to 0"),
        ({"model_input_shape": [3, 0]}, "model_input_shape"),
    ],
)
def test_a_mistake_is_answered_with_key_value_and_what_is_allowed(values, message):
    with pytest.raises(UserError) as caught:
        make_config(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_very_many_mistakes_a_few_are_named():
    for values in ({f"key{n}": n for n in range(50_000)}, {"averaging": [1] * 50_000}):
        with pytest.raises(UserError) as caught:
            make_config(values)
        assert len(str(caught.value)) < 5_000
        assert str(caught.value).count("\n") == MOST_LINES
        assert "\n… and 49,98" in str(caught.value)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(UserError) as caught:
        make_config({"wandb": 3, "batch_size": 0})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "batch_size",
        "wandb",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n\n", "not YAML: did not find expected ',' or ']'"),
        ("- a", "expected lines of the form"),
        ("parameters: {base_lr: 1}", "is a job file: python submit_multiple.py"),
        ("", "expected lines of the form"),
        ("base_lr: 1\nbase_lr: 2", "cfg.yaml: base_lr: set twice in one block (line 2)"),
        ("? [a]\n: 1", "YAML"),
        ("x: !!python/object/apply:os.system ['touch owned']", "not YAML"),
    ],
)
def test_a_file_that_holds_no_settings_is_explained(tmp_path, text, message):
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(path)


def test_a_missing_file_and_a_binary_one_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        load_config(tmp_path / "binary.yaml")


def test_null_means_the_default():
    assert make_config(dict.fromkeys(KEYS)) == Config()


def test_overrides_are_yaml_and_win():
    values = {"base_lr": 5, "averaging": ["ema_0.9", "poly"]}
    overrides = ["base_lr=1e-3", "averaging=[ema_0.9, poly]", "model=tiny/lenet"]
    expected = {**values, "base_lr": 1e-3, "model": "tiny/lenet"}
    assert make_config({"base_lr": 5}, overrides) == make_config(expected)
    with pytest.raises(UserError, match="expected key=value"):
        make_config({}, ["base_lr"])


def test_splits_as_expression_equal_splits_as_mapping():
    expression = make_config({"data_splits_map": 'dict(train="train[:90%]", val="train[90%:]")'})
    mapping = make_config({"data_splits_map": {"train": "train[:90%]", "val": "train[90%:]"}})
    assert expression == mapping
    assert make_config({"data_splits_map": {"train": "train", "test": None}}).data_splits_map == {
        "train": "train"
    }


def test_a_saved_config_loads_as_itself(tmp_path):
    found = {"host_name": "h", "data_n_examples": {"train": 3}, "batch_size_accum": 50}
    config = make_config(
        {"base_lr": 1e-8, "model_input_shape": [1, 8, 8], "averaging": ["ema", "poly_8"], **found}
    )
    config = config.draw_missing()
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", ["spec.yaml", "config.yaml"])
def test_a_null_key_of_another_branch_is_none_in_what_a_run_has_saved(tmp_path, name):
    config = Config(seed_model=1, host_name="h" if name == "config.yaml" else None)
    path, text = tmp_path / name, write_yaml(dataclasses.asdict(config))
    path.write_text(text + "teacher: null\n")
    assert load_config(path) == Config.read(path) == config
    assert Config.of_saved(dataclasses.asdict(config) | {"teacher": None}) == config
    for read in (load_config, Config.read):
        path.write_text(text + "clip_nrm: 1.0\n")
        with pytest.raises(UserError, match=r"clip_nrm=1.0: .*; did you mean 'clip_norm'"):
            read(path)
    path.write_text(text)
    with pytest.raises(UserError, match="clip_nrm=None: there is no such key"):
        load_config(path, ["clip_nrm=null"])


def test_a_null_key_that_a_person_has_misspelt_is_reported(tmp_path):
    (tmp_path / "cfg.yaml").write_text("base_lr: 1\nclip_nrm: null\n")
    with pytest.raises(UserError, match="clip_nrm=None: there is no such key; did you mean"):
        load_config(tmp_path / "cfg.yaml")


def test_null_seeds_are_drawn_anew_and_given_ones_kept():
    first, second = Config().draw_missing(), Config().draw_missing()
    assert first.seed_model != second.seed_model
    assert first.seed_training != second.seed_training
    assert make_config({"seed_model": 5}).draw_missing().seed_model == 5


def test_a_random_learning_rate_is_a_function_of_the_training_seed():
    text = "10 ** np.random.uniform(-3, 0)"
    rates = [
        make_config({"base_lr": text, "seed_training": s}).draw_missing().base_lr for s in (1, 1, 2)
    ]
    assert rates[0] == rates[1] != rates[2]
    assert all(1e-3 <= rate <= 1 for rate in rates)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().base_lr = 3


def test_another_dataset_voids_what_was_found_in_the_first(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "dataset: sklearn/digits\ndata_n_classes: 10\nmodel_input_shape: [1, 8, 8]\nbase_lr: 0.1"
    )
    config = load_config(tmp_path / "config.yaml", ["dataset=sklearn/iris"])
    assert (config.data_n_classes, config.model_input_shape, config.base_lr) == (None, None, 0.1)
    assert load_config(tmp_path / "config.yaml", ["base_lr=1"]).data_n_classes == 10


@pytest.mark.parametrize("key", ["output_dir", "data_dir"])
def test_a_tilde_is_the_home_folder(monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(make_config({key: "~/here"}), key) == "/home/me/here"
    assert getattr(make_config({key: "~"}), key) == "/home/me"
    assert getattr(make_config({key: "a/~/b"}), key) == "a/~/b"
