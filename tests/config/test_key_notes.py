"""What is said of the keys is what src/keys.py declares."""

import json

import jsonschema
import pytest
import yaml

from src.config import KEYS, make_config, read_yaml_file
from src.config.key_notes import describe_keys, key_notes, write_schemas
from src.grid.job_file import DETAILS, DRAWS, TOP_KEYS
from src.support import ROOT, UserError
from train import main


def test_every_key_has_a_note_with_its_default():
    notes = key_notes()
    assert [note.name for note in notes] == list(dict.fromkeys(note.name for note in notes))
    assert {note.name for note in notes} == KEYS.keys()
    config = make_config({})
    for note in notes:
        assert json.loads(note.default) == getattr(config, note.name)
        assert note.kind
        assert note.meaning, f"{note.name} in src/keys.py needs a comment"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch_size", "whole number, at least 1"),
        ("averaging_bn", "average, recompute"),
        ("early_stopping_patience", "whole number, at least 1, or null"),
        ("data_crop_pct", "number, above 0, at most 1, or null"),
        ("metrics", "list of (text)"),
    ],
)
def test_types_are_words(name, kind):
    (note,) = [note for note in key_notes() if note.name == name]
    assert note.kind == kind


def test_a_pattern_is_looked_for_in_names_and_meanings():
    found = describe_keys("checkpoint")
    assert "  save_best_checkpoint: false\n" in found
    assert "  early_stopping_patience" not in found
    assert "  keep_state: true\n" not in found
    assert max(map(len, describe_keys().splitlines())) <= 80
    assert describe_keys("lr_shedule") == "no key matches 'lr_shedule'; did you mean 'lr_schedule'?"
    with pytest.raises(UserError, match=r"--keys: got '\(', expected a regular expression"):
        describe_keys("(")


def test_the_command_line_answers_and_ends(capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["--keys", "base_lr"])
    assert not end.value.code
    assert "\n  base_lr: " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg.yaml").write_text("dataset: sklearn/digits\nbatch_size: 7\n")
    with pytest.raises(SystemExit) as end:
        main(["cfg.yaml", "base_lr=0.5", "--print-config"])
    assert not end.value.code
    printed = capsys.readouterr().out
    assert make_config({"dataset": "sklearn/digits", "batch_size": 7, "base_lr": 0.5}) == (
        make_config(yaml.safe_load(printed))
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cfg.yaml"]
    assert main(["--keys", "("]) == 2
    assert "--keys: got '('" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config", "job"])
def test_the_schemas_are_those_of_the_keys(name, tmp_path):
    write_schemas(tmp_path)
    kept = ROOT / "schemas" / f"{name}.json"
    hint = "after a change of src/keys.py: python -m src.config.key_notes"
    assert kept.read_text() == (tmp_path / kept.name).read_text(), hint


def test_a_job_file_has_the_parts_that_its_reader_knows():
    job = json.loads((ROOT / "schemas" / "job.json").read_text())
    assert job["properties"].keys() == {*TOP_KEYS}
    assert job["properties"]["job_details"]["properties"].keys() == {*DETAILS}
    assert job["$defs"]["draw"]["properties"].keys() == {*DRAWS, "n", "seed"}


EXAMPLES = [(path, "config") for path in sorted(ROOT.glob("test_cfg_*.yaml"))]
EXAMPLES += [(path, "job") for path in sorted(ROOT.glob("jobs/*.yaml"))]


@pytest.mark.parametrize(("path", "name"), EXAMPLES, ids=lambda x: getattr(x, "stem", x))
def test_editors_find_the_schema_of_an_example_and_no_mistake_in_it(path, name):
    schema = json.loads((ROOT / "schemas" / f"{name}.json").read_text())
    assert not list(jsonschema.Draft7Validator(schema).iter_errors(read_yaml_file(path)))
    first = path.read_text().splitlines()[0]
    where = path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert where.resolve() == ROOT / "schemas" / f"{name}.json"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config", {"base_lrr": 1}),
        ("config", {"batch_size": 0}),
        ("config", {"precision": "fp8"}),
        ("job", {"job_details": {"name": "x", "output_dir": "y"}, "parameters": {"lr": [1]}}),
        ("job", {"job_details": {"name": "x"}, "parameters": {"base_lr": {"normal": [0, 1]}}}),
        ("job", {"parameters": {"LIST_a": [{"modle": "linear"}]}}),
    ],
)
def test_a_schema_refuses_what_we_refuse(name, values):
    schema = json.loads((ROOT / "schemas" / f"{name}.json").read_text())
    assert list(jsonschema.Draft7Validator(schema).iter_errors(values))
