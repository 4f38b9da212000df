"""The page in a real browser, without a network: what a reader sees and can do."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
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
    show_all(browser)
    return browser


def show_all(browser) -> None:
    """Columns that the page leaves out."""
    browser.execute_script(
        "document.querySelectorAll('.columns input:not(:checked)').forEach((box) => box.click())"
    )


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
    show_all(browser)
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
def test_page_and_table_are_no_wider_than_the_screen(browser, path, width):
    """What the table has no room for is left out; brought back it scrolls in a box of its own."""
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        browser.get(path.as_uri())
        WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
        table = "return document.querySelector('table.runs').parentElement"
        assert browser.execute_script(f"{table}.scrollWidth") <= browser.execute_script(
            f"{table}.clientWidth"
        )
        assert titles(browser)[:2] == ["run", "test/last/accuracy end"]
        assert "averaging" in titles(browser) or width == 390
        show_all(browser)
        assert browser.execute_script(f"{table}.scrollWidth") > 500
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_is_the_same_in_all_runs_is_left_out(browser, tmp_path):
    rates = [({"base_lr": lr, "model": "linear"}, [0.5, lr]) for lr in (0.1, 0.2)]
    batch = write_batch(tmp_path / "26-11-23-same", rates)
    written(batch)
    browser.get(batch.with_suffix(".html").as_uri())
    WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
    assert not {"state", "epochs", "outcome"} & set(titles(browser))
    show_all(browser)
    assert {"state", "epochs", "outcome"} <= set(titles(browser))


def test_a_click_on_a_run_opens_its_settings_curves_and_log(browser, tmp_path):
    rates = [({"base_lr": lr, "model": "linear"}, [0.5, lr]) for lr in (0.1, 0.2)]
    batch = write_batch(tmp_path / "26-11-23-two", rates)
    (next(batch.glob("001_*")) / "training.log").write_text("early\n" * 90 + "<b>the end</b>\n")
    written(batch)
    browser.get(batch.with_suffix(".html").as_uri())
    WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
    browser.find_element(By.CSS_SELECTOR, "table.runs tbody tr").click()
    dialog = browser.find_element(By.ID, "run")
    assert dialog.text.splitlines()[1] == "Run 001"
    facts = [cell.text for cell in dialog.find_elements(By.CSS_SELECTOR, "dt, dd")]
    assert ("base_lr", "0.2") in zip(facts[::2], facts[1::2], strict=True)
    assert len(dialog.find_elements(By.CSS_SELECTOR, "svg path.curve")) == 1
    assert dialog.text.endswith("<b>the end</b>")
    assert dialog.text.count("early") < 20
    dialog.find_element(By.CSS_SELECTOR, "button").click()
    assert not dialog.is_displayed()


def drag(browser, svg, start: tuple[int, int], end: tuple[int, int] | None = None) -> None:
    """From and to places counted from the middle; without an end the pointer only goes there."""
    pointer = ActionChains(browser, duration=10).move_to_element_with_offset(svg, *start)
    if end:
        pointer.click_and_hold().move_to_element_with_offset(svg, *end).release()
    pointer.perform()


def test_curves_tell_values_zoom_and_can_be_switched_off(browser, tmp_path):
    grid = product([0.1, 0.2], ["a", "b"], [1.0, None])
    values = [{"base_lr": x, "model": m, "clip_norm": c} for x, m, c in grid]
    batch = write_batch(
        tmp_path / "26-11-23-curves", [(v, [0.2, 0.5, 0.9 + i / 100]) for i, v in enumerate(values)]
    )
    written(batch)
    browser.get(batch.with_suffix(".html").as_uri())
    WebDriverWait(browser, SECONDS).until(lambda _: rows(browser))
    place = browser.find_element(By.CSS_SELECTOR, ".curves")
    svg = place.find_element(By.CSS_SELECTOR, "svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)

    def curves() -> list[str]:
        return [path.get_attribute("d") for path in place.find_elements(By.CSS_SELECTOR, ".curve")]

    whole = curves()
    assert len(whole) == 8
    # The middle of the first curve, of three points, in pixels from the middle of the picture.
    x, y = map(float, re.findall(r"[\d.]+ [\d.]+", whole[0])[1].split())
    _, _, width, height = map(float, svg.get_dom_attribute("viewBox").split())
    scale = svg.rect["width"] / width
    drag(browser, svg, (round((x - width / 2) * scale), round((y - height / 2) * scale)))
    caption = place.find_element(By.CSS_SELECTOR, ".caption")
    assert re.match(r"00\d, epoch 2: 0\.5 ", caption.text)
    drag(browser, svg, (-100, -60), (200, 60))
    assert curves() != whole
    ActionChains(browser).move_to_element(svg).double_click().perform()
    if browser.find_element(By.ID, "run").is_displayed():  # the clicks met a line
        browser.find_element(By.CSS_SELECTOR, "#run button").click()
    assert curves() == whole
    place.find_element(By.CSS_SELECTOR, ".legend button").click()
    assert len(curves()) == 4
    Select(place.find_elements(By.CSS_SELECTOR, "select")[0]).select_by_visible_text("train/loss")
    assert len(set(curves())) == 1
    axes = browser.find_elements(By.CSS_SELECTOR, ".parallel .axis")
    assert len(axes) == 4
    assert len(browser.find_elements(By.CSS_SELECTOR, ".parallel .curve")) == 8
    assert browser.get_log("browser") == []


def test_it_is_dark_where_the_reader_likes_it_dark(opened):
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        script = "return getComputedStyle(document.body).backgroundColor"
        colours[scheme] = opened.execute_script(script)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
