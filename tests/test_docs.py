"""What the documents say agrees with the code: keys, links, parameter counts."""

import re
from pathlib import Path

import pytest
import yaml

from src.config import KEYS, make_config
from src.models.tiny import build

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NO_KEYS = {"index_field", "key", "token"}  # that stand before a value in code


def ids(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES[1:], ids=ids)
def test_files_in_yaml_are_configurations(page):
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        make_config(yaml.safe_load(text))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_keys_with_values_are_keys_that_there_are(page):
    named = re.findall(r"`([a-z_]+)(?:: [^`]|=)[^`]*`", page.read_text())
    assert named or page.name == "recipes.md"  # whose keys come with the patches
    assert set(named) <= KEYS.keys() | NO_KEYS


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert anchor in slugs, target


def test_parameter_counts_are_those_of_the_networks():
    text = (ROOT / "docs" / "older_copies.md").read_text()
    rows = re.findall(r"\| `tiny/(\w+)` \| [\d,]+ \| ([\d,]+) \|", text)
    rows += re.findall(r"`tiny/(\w+)`, ([\d,]+) parameters", text)
    assert len(rows) == 6
    for name, count in rows:
        model, _ = build(name, (3, 32, 32), 10)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == count, name
