"""read_job: what a job file may say, and what it says by saying nothing."""

import pytest

from src.grid.job_file import Job, read_job
from src.support.errors import UserError


@pytest.fixture
def job(tmp_path):
    """The Job of a text, read from a file called grid-1.yaml."""

    def read(text: str) -> Job:
        path = tmp_path / "grid-1.yaml"
        path.write_bytes(text.encode())
        return read_job(path)

    return read


def test_a_job_says_what_its_file_says(job):
    text = """# a comment, and é\r
job_details: {name: "a b/$(c)", output_dir: out, wandb: true, wandb_project_name: p,
  trackers: [comet], wandb_tags: [t]}
parameters:
  base_lr: [1e-3, '[1, 2]']
  LIST: [{model: linear}, {}]
"""
    assert job(text) == Job(
        name="a b/$(c)",
        output_dir="out",
        common={
            "trackers": ["comet"],
            "wandb": True,
            "wandb_project_name": "p",
            "wandb_tags": ["t"],
        },
        parameters={"base_lr": [0.001, "[1, 2]"], "LIST": [{"model": "linear"}, {}]},
        text=text,
    )


@pytest.mark.parametrize("details", ["", "job_details:\n", "job_details: {name: , wandb: null}\n"])
def test_what_is_not_said_has_defaults(job, details):
    text = details + "parameters: {}"
    assert job(text) == Job("grid-1", "results", common={}, parameters={}, text=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "grid-1.yaml: expected `parameters:`"),
        ("[1]", "grid-1.yaml: expected `parameters:`"),
        ("parameters:", "grid-1.yaml: expected `parameters:`"),
        ("parameters: 3", "^parameters: got 3, expected a mapping"),
        ("parameters: {a: 1}\nparameter: {}", "grid-1.yaml: unknown 'parameter'; did you mean"),
        ("parameters: {a: }\njob_details: x", "^job_details: got 'x', expected a mapping with"),
        (
            "parameters: {a: }\njob_details: {nmae: x}",
            "^job_details: unknown 'nmae'; did you .*'na",
        ),
        ("parameters: {a: }\njob_details: {name: 3}", "^job_details.name: got 3, expected a text"),
        ("parameters: {a: }\njob_details: {name: ' '}", "^job_details.name: got ' ', expected a"),
        ("parameters: {a: }\njob_details: {output_dir: ''}", "^job_details.output_dir: got ''"),
        ('parameters: {a: }\njob_details: {output_dir: "a\\0"}', "^job_details.output_dir: got"),
        ("parameters: {output_dir: x}", "^parameters.output_dir: each run gets its own folder"),
        ("parameters: {LIST: [{}, {output_dir: x}]}", r"^parameters.LIST\[1\].output_dir: each"),
        (
            "parameters: {ZIP: {wandb: true}}\njob_details: {wandb: true}",
            "^wandb: set twice, at job_details.wandb and at parameters.ZIP.wandb$",
        ),
    ],
)
def test_mistakes_are_reported(job, text, words):
    with pytest.raises(UserError, match=words):
        job(text)


def test_all_mistakes_come_at_once(job):
    with pytest.raises(UserError) as error:
        job(
            "parameters: {output_dir: x, wandb: false, a: []}\nparameter: {}\nx: 1\n"
            "job_details: {nmae: x, name: 3, output_dir: '', wandb: true}"
        )
    starts = [
        "unknown 'parameter'",
        "unknown 'x'",
        "job_details: unknown 'nmae'",
        "job_details.name: got 3",
        "job_details.output_dir: got ''",
        "parameters.a: got []",
        "wandb: set twice",
        "parameters.output_dir: each run",
    ]
    lines = str(error.value).splitlines()
    assert [start in line for start, line in zip(starts, lines, strict=True)] == [True] * 8


def test_of_many_unknown_keys_some_are_named(job):
    details = ", ".join(f"k{number}: 1" for number in range(1000))
    with pytest.raises(UserError) as error:
        job(f"job_details: {{{details}}}\nparameters: {{}}")
    lines = str(error.value).splitlines()
    assert (len(lines), lines[-1]) == (6, "job_details: … and 995 more")


def test_a_file_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        read_job(tmp_path / "nowhere.yaml")


def test_a_configuration_is_told_from_a_job_file(tmp_path):
    (tmp_path / "cfg.yaml").write_text("base_lr: 1.0\n")
    with pytest.raises(UserError, match=r"python train\.py"):
        read_job(tmp_path / "cfg.yaml")
