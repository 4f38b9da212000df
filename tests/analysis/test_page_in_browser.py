"""The page in a real browser, without a network: what a reader sees and can do."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from test_page import HOSTILE, half_done, write_batch, written

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage")
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"
SECONDS = 20


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        reason = "needs the Debian packages chromium and chromium-driver"
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in (*ARGUMENTS, NO_NETWORK):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    batch = half_done(tmp_path_factory.mktemp("browser") / "26-11-23-half")
    written(batch)
    return batch.with_suffix(".html")


@pytest.fixture
def opened(browser, path) -> webdriver.Chrome:
    browser.get(path.as_uri())
    WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
    return browser


def rows(browser) -> list[list[str]]:
    """The cells of the table of runs that are seen now."""
    script = """return [...document.querySelectorAll("table.runs tbody tr")].map(
        (row) => [...row.cells].map((cell) => cell.innerText));"""
    return browser.execute_script(script)


def titles(browser) -> list[str]:
    """'test/last/accuracy end'"""
    script = """return [...document.querySelectorAll("table.runs thead th")].map(
        (head) => head.innerText);"""
    return [" ".join(title.split()) for title in browser.execute_script(script)]


def column(browser, title: str) -> list[str]:
    """Of all pages of the table, as they follow each other."""
    at, found = titles(browser).index(title), []
    turn(browser, "first")
    while True:
        found += [row[at] for row in rows(browser)]
        if browser.find_elements(By.CSS_SELECTOR, "button.next.disabled"):
            return found
        turn(browser, "next")


def turn(browser, way: str) -> None:
    """To the first page of the table, or the next; its buttons are made anew each time."""
    browser.execute_script(f"document.querySelector('button.{way}').click()")


def sort_by(browser, title: str, expected: str) -> None:
    head = browser.find_elements(By.CSS_SELECTOR, "table.runs thead th")[
        titles(browser).index(title)
    ]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", head)
    head.click()
    WebDriverWait(browser, SECONDS).until(lambda _: head.get_attribute("aria-sort") == expected)


def show_ten(browser) -> None:
    browser.execute_script("""const select = document.querySelector(".dt-length select");
        select.value = "10"; select.dispatchEvent(new Event("change", {bubbles: true}));""")


@pytest.mark.slow
def test_it_opens_without_errors_and_asks_for_nothing_else(browser, path):
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
    assert browser.get_log("browser") == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [message["params"]["request"]["url"] for message in asked]
    assert path.as_uri() in urls
    assert {url.partition(":")[0] for url in urls} <= {"file", "data", "blob"}


def test_the_best_run_comes_first_and_null_last(opened):
    show_ten(opened)
    accuracies = column(opened, "test/last/accuracy end")
    assert accuracies[0] == "0.9600"
    assert accuracies[-1] == ""
    numbers = [float(text) for text in accuracies[:-1]]
    assert len(numbers) == 46
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("title", ["test/last/loss best", "base_lr"])
def test_a_touch_on_a_title_sorts_numbers_up_then_down(opened, title):
    show_ten(opened)
    for is_down in (False, True):
        sort_by(opened, title, "descending" if is_down else "ascending")
        texts = column(opened, title)
        numbers = [float(text) for text in texts if text]
        assert len(set(numbers)) > 2
        assert numbers == sorted(numbers, reverse=is_down)
        assert "" not in texts[: len(numbers)]


def test_search_filters(opened):
    field = opened.find_element(By.CSS_SELECTOR, ".dt-search input")
    field.send_keys("0.0001 ema")
    found = rows(opened)
    assert len(found) == 8
    assert all({"0.0001", "ema"} <= set(row) for row in found)
    field.clear()
    field.send_keys("</script>")
    assert {row[titles(opened).index("model")] for row in rows(opened)} == {HOSTILE}


def test_values_of_others_are_shown_and_not_run(opened):
    assert opened.title == "26-11-23-half"
    show_ten(opened)
    assert set(column(opened, "model")) == {"linear", HOSTILE}
    assert opened.title == "26-11-23-half"
    assert HOSTILE[:50] in opened.find_element(By.CSS_SELECTOR, ".trouble").text


@pytest.mark.slow
def test_values_are_text_to_the_search_as_well(browser, tmp_path):
    """It reads strings with & as HTML."""
    hostile = """<img src=x onerror="document.title='x'">&"""
    rates = [({"model": hostile, "base_lr": lr}, [0.5]) for lr in (1.0, 2.0)]
    batch = write_batch(tmp_path / "26-11-23-and", [*rates, ({"model": "plain"}, [0.5])])
    written(batch)
    browser.get_log("browser")
    browser.get(batch.with_suffix(".html").as_uri())
    WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
    field = browser.find_element(By.CSS_SELECTOR, ".dt-search input")
    at = titles(browser).index("model")
    for words, found in (("onerror=", {hostile}), ('x"> <img', set()), ("plain", {"plain"})):
        field.clear()
        field.send_keys(words)
        assert {row[at] for row in rows(browser) if len(row) > at} == found
    assert browser.get_log("browser") == []
    assert browser.title == "26-11-23-and"


def test_all_pictures_are_seen(opened):
    script = "return [...document.images].map((image) => [image.naturalWidth, image.alt]);"
    pictures = opened.execute_script(script)
    assert len(pictures) > 3
    assert all(width > 300 and alt for width, alt in pictures)


@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_no_wider_than_the_screen(opened, width):
    """What is wider scrolls in a box of its own."""
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    widest = opened.execute_script("return document.documentElement.scrollWidth")
    table = opened.execute_script("return document.querySelector('table.runs').scrollWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert widest <= width
    assert table > 500


def test_it_is_dark_where_the_reader_likes_it_dark(opened):
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        script = "return getComputedStyle(document.body).backgroundColor"
        colours[scheme] = opened.execute_script(script)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
