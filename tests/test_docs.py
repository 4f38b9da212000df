"""What the documents say agrees with the code: sizes, links, commands, keys, files, numbers."""

import ast
import contextlib
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import prepare
import report
import submit_multiple
from src.config import KEYS, load_config, make_config
from src.config.key_notes import describe_keys
from src.grid import read_job
from src.models.tiny import build
from src.runtime.names import describe_names

ROOT = Path(__file__).parents[1]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "AGENTS.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
MOST_LINES = 199  # of a page
MOST_LINES_OF_README = 220
MOST_ROWS = 25  # of the table of what one wants to do
NO_KEYS = {
    "index_field",
    "key",
    "since",
    "token",
    "weights_only",
}  # that stand before a value in code
# What stands for a file of the reader's
ALONE = ("--print-config", "--json")  # options of train.py without a value
NAMES = {"cfg.yaml": "test_cfg_digits_linear.yaml", "jobs/x.yaml": "jobs/digits-example.yaml"}
NAMES |= dict.fromkeys(("spirals.yaml", "$1"), "test_cfg_digits_linear.yaml")
NAMES |= {"SCRIPT": "submit_cpu.sh"}
MADE_BY_READERS = ("results/", "my_", "spirals.py", "__init__.py")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def titles(page: Path) -> list[str]:
    """The anchors of its headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found]


def links(page: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target for target in targets if not target.startswith("http")]


# ---- Pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_pages_are_short(page):
    most = MOST_LINES_OF_README if page == README else MOST_LINES
    assert len(page.read_text().splitlines()) <= most


def test_the_readme_points_to_each_thing_once():
    table = re.search(r"\| I want to … \|.*?\n\n", README.read_text(), re.DOTALL)[0]
    rows = table.strip().splitlines()[2:]
    assert 0 < len(rows) <= MOST_ROWS
    for row in rows:
        assert len(re.findall(r"\]\(", row)) == 1, row


def test_every_page_is_in_the_index():
    linked = {(INDEX.parent / target.partition("#")[0]).resolve() for target in links(INDEX)}
    assert set(PAGES) - {INDEX} <= linked


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in titles(linked), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_are_named_exist(page):
    """In code within the text, where it is a whole path."""
    folders = r"(?:src|tests|jobs|recipes|examples|notebooks|benchmarks|docs|results|my_\w+)/"
    for name in re.findall(rf"`({folders}[\w./-]+|\w+\.(?:py|sh|toml))`", page.read_text()):
        if not name.startswith(MADE_BY_READERS):
            assert (ROOT / name).exists(), name


# ---- Commands ----------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """What a reader may type, without comments: lines of shell blocks, and code within the text."""
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")  # of a command over several lines
    lines = text.splitlines()
    lines += re.findall(r"`((?:python|make|torchrun) [^`]*)`", page.read_text())
    found = []
    for line in lines:
        for part in re.split(r"&&|;", line):
            words = [word for word in shlex.split(part, comments=True) if "…" not in word]
            words = [word.strip("[]") if word[0] == "[" else word for word in words]
            while words and re.match(r"[A-Z_]+=|srun$", words[0]):
                words.pop(0)
            if words:
                found.append([NAMES.get(word, word) for word in words])
    return found


def check_train(arguments: list[str]) -> None:
    if arguments[0].startswith("results/"):  # a run of the reader's
        arguments[0] = "test_cfg_digits_linear.yaml"
    if arguments[0] == "--keys":
        assert describe_keys(*arguments[1:])
        return
    if arguments[0] == "--list":
        assert describe_names(*arguments[1:])
        return
    rest = [argument for argument in arguments[1:] if argument not in ALONE]
    load_config(ROOT / arguments[0], rest)


def check_submit(arguments: list[str]) -> None:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = submit_multiple.command_line().parse_args(
        arguments[:split], submit_multiple.SubmitOptions(extra=arguments[split + 1 :])
    )
    submit_multiple.check_options(options)
    if options.job_file and not options.job_file.startswith("results/"):
        read_job(ROOT / options.job_file)


def check_report(arguments: list[str]) -> None:
    if arguments[:1] == ["notify"]:
        assert arguments[1:] == ["--test"] or len(arguments) == 2
    elif arguments[:1] == ["compare"]:
        report.compare_parser().parse_args(arguments[1:])
    elif arguments[:1] != ["sync"]:
        report.check_options(report.command_line().parse_intermixed_args(arguments))


def check_first_is_a_file(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file()


CHECKS = {
    "train.py": check_train,
    "submit_multiple.py": check_submit,
    "report.py": check_report,
    "prepare.py": lambda arguments: prepare.configurations(arguments[0], arguments[1:]),
    "verify_resume.py": check_first_is_a_file,
}


def check_command(words: list[str]) -> bool:
    """Whether it is a command of this project; what it would refuse raises."""
    program, *rest = words
    if program == "make":
        assert set(rest) <= set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
        return True
    if program == "torchrun":
        rest = rest[1:] or ["train.py", "test_cfg_digits_linear.yaml"]
    elif program != "python":
        return False
    script, *arguments = rest
    if script == "-m":
        script = arguments.pop(0).replace(".", "/") + ".py"
    assert (ROOT / script).is_file(), script
    if script in CHECKS and arguments:
        CHECKS[script](arguments)
    return True


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_can_be_typed_as_they_are_written(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        try:
            check_command(words)
        except SystemExit as error:  # argparse's
            raise AssertionError(shlex.join(words)) from error
        except Exception as error:
            raise AssertionError(f"{shlex.join(words)}: {error}") from error


def test_most_commands_of_ours_are_looked_at(monkeypatch):
    monkeypatch.chdir(ROOT)
    ours = [words for page in PAGES for words in commands(page) if check_command(words)]
    assert {words[1] for words in ours if words[0] == "python" and len(words) > 2} >= CHECKS.keys()


# ---- Code, keys, numbers -----------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_in_the_documents_parses_and_imports_what_exists(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            name = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and name.startswith(("src.", "train")):
                module = import_module(name)
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_in_yaml_are_configurations_or_job_files(page, tmp_path):
    for text in blocks(page, "yaml"):
        if "parameters:" in text:
            (tmp_path / "job.yaml").write_text(text)
            runs = read_job(tmp_path / "job.yaml").runs()
            for run in (runs[0], runs[-1]):
                make_config(run)
        else:
            make_config(yaml.safe_load(text))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_keys_with_values_are_keys_that_there_are(page):
    named = re.findall(r"`([a-z_]+)(?:: [^`]|=)[^`]*`", page.read_text())
    assert set(named) <= KEYS.keys() | NO_KEYS


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_values_of_keys_are_taken(page):
    """`key: value` within the text, where it is whole."""
    for text in re.findall(r"`([a-z_]+: [^`…]+)`", page.read_text()):
        with contextlib.suppress(yaml.YAMLError):
            values = yaml.safe_load(text)
            if isinstance(values, dict) and values.keys() <= KEYS.keys():
                make_config(values)


def test_keys_are_found_in_the_documents():
    assert sum(len(re.findall(r"`[a-z_]+: [^`]+`", page.read_text())) for page in PAGES) > 50


def test_the_readme_says_what_a_recipe_costs():
    said = re.search(r"takes (\d+) lines in one file", README.read_text())[1]
    assert f"| [`sam`](#sam) | 1 | {said} |" in (ROOT / "docs" / "recipes.md").read_text()


def test_parameter_counts_are_those_of_the_networks():
    text = (ROOT / "docs" / "older_copies.md").read_text()
    rows = re.findall(r"\| `tiny/(\w+)` \| [\d,]+ \| ([\d,]+) \|", text)
    rows += re.findall(r"`tiny/(\w+)`, ([\d,]+) parameters", text)
    assert len(rows) == 6
    for name, count in rows:
        model, _ = build(name, (3, 32, 32), 10)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == count, name
