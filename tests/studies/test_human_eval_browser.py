"""The page in headless Chromium, with real clicks and keys."""

import json
import time

import pytest
from file_server import serve
from headless import chromium_browser, needs_browser
from raters import by_quality

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.answers import attention, checksum, read_answers

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium_browser(tmp_path_factory) as driver:
        yield driver


@pytest.fixture
def address(page):
    """Serve the page on a port of its own, so that its localStorage is empty at first.

    From disk it would not do: Chromium 156 on a busy machine gives some loads of a file an empty
    storage (12 of 270 with four processes for each core, none of 160 over HTTP).
    """
    with serve({page[0].name: page[0].read_bytes()}) as (server, _):
        yield f"{server}/{page[0].name}"


@pytest.fixture
def opened(browser, address):
    """Open the page as a new rater."""
    browser.get(address)
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def text(browser, element):
    return browser.find_element(By.ID, element).text


def click(browser, element):
    browser.find_element(By.ID, element).click()


def start(browser, name="Ann"):
    browser.find_element(By.ID, "name").send_keys(name, Keys.ENTER)


def cards(browser, question):
    return browser.find_elements(By.CSS_SELECTOR, f"#{question} .card")


def ranks(browser, question):
    return [card.find_element(By.CLASS_NAME, "rank").text for card in cards(browser, question)]


def rank_like(browser, key, order):
    """Click the pictures of a caption in the order of a rater who knows the models."""
    models = {image: model for item in key.items.values() for image, model in item.models.items()}
    for question in ("quality", "alignment"):
        found = cards(browser, question)
        found.sort(key=lambda card: order(question, models[card.get_attribute("data-image")]))
        for card in found[:-1]:
            card.click()


def saved(browser, known=()):
    for _ in range(100):
        files = [path for path in browser.downloads.glob("*.json") if path not in known]
        if files:
            return files
        time.sleep(0.05)
    raise AssertionError("nothing was saved")


def test_clicks_through_the_page_become_a_file_that_scores(opened, page):
    _, key = page
    start(opened)
    for _ in key.items:
        rank_like(opened, key, by_quality)
        click(opened, "next")
    assert "6 captions ranked, 0 skipped" in text(opened, "summary")
    button = opened.find_element(By.ID, "download")
    webdriver.ActionChains(opened).double_click(button).perform()  # one submission, not two
    (file,) = saved(opened)
    answers = read_answers(file, key)
    assert answers.name == "Ann"
    assert attention(answers, key) == (4, 4)
    for item, content in key.items.items():
        for question in ("quality", "alignment"):
            order = [content.models[image] for image in answers.rankings[question][item]]
            assert order == sorted(order, key=lambda model: by_quality(question, model))
    # Closed after saving: a reload shows the end, and the same file comes again.
    opened.refresh()
    assert text(opened, "end-title") == "Thank you"
    assert not opened.find_element(By.ID, "review").is_displayed()
    click(opened, "download")
    (again,) = saved(opened, known=[file])
    assert again.read_bytes() == file.read_bytes()
    file.write_text(file.read_text().replace("Ann", "Eve"))
    with pytest.raises(DataError, match=file.name):
        read_answers(file, key)


def test_keys_alone_are_enough_and_progress_survives_a_reload(opened, page):
    start(opened, "Zoë 漢 <b>")
    opened.switch_to.active_element.send_keys("b")
    assert sorted(ranks(opened, "quality")) == ["1st, best", "not ranked", "not ranked"]
    opened.switch_to.active_element.send_keys("b")  # twice changes nothing
    opened.switch_to.active_element.send_keys("a")
    assert ranks(opened, "quality") == ["2nd", "1st, best", "3rd, worst"]
    opened.switch_to.active_element.send_keys(Keys.BACKSPACE, "c")
    assert ranks(opened, "quality") == ["3rd, worst", "1st, best", "2nd"]
    opened.refresh()
    WebDriverWait(opened, 10).until(lambda driver: cards(driver, "quality"))
    assert ranks(opened, "quality") == ["3rd, worst", "1st, best", "2nd"]
    opened.switch_to.active_element.send_keys("cb")
    assert opened.switch_to.active_element.get_attribute("id") == "next"
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert text(opened, "place") == "Caption 2 of 6"
    first = cards(opened, "quality")[0]
    first.send_keys(Keys.ARROW_RIGHT)
    opened.switch_to.active_element.send_keys(Keys.SPACE)
    assert ranks(opened, "quality")[1] == "1st, best"
    assert "Picture B, 1st, best" in opened.switch_to.active_element.get_attribute("aria-label")
    click(opened, "back")
    assert ranks(opened, "alignment") == ["3rd, worst", "2nd", "1st, best"]


def test_next_waits_for_both_rankings(opened, page):
    start(opened)
    cards(opened, "quality")[0].click()
    click(opened, "next")
    assert text(opened, "place") == "Caption 1 of 6"
    assert "Still to rank: 1. Image quality" in text(opened, "missing")


def test_a_picture_that_fails_to_load_is_reported_and_skipped(browser, page):
    file, key = page
    content = file.read_text("utf-8")
    start_of_image = content.index('"webp": "') + len('"webp": "')
    broken = file.with_name("broken.html")
    broken.write_text(content[:start_of_image] + "AAAA" + content[start_of_image:], "utf-8")
    browser.get(broken.as_uri())  # from disk, as it is mailed
    start(browser)
    for _ in key.items:
        time.sleep(0.1)
        if "failed to load" in text(browser, "broken"):
            cards(browser, "quality")[0].click()
            assert set(ranks(browser, "quality")) == {"not ranked"}
            click(browser, "skip")
        else:
            rank_like(browser, key, by_quality)
            click(browser, "next")
    assert "5 captions ranked, 1 skipped" in text(browser, "summary")
    assert "image failed to load" in text(browser, "skipped")
    known = list(browser.downloads.glob("*.json"))
    click(browser, "download")
    (result,) = saved(browser, known)
    assert list(read_answers(result, key).skipped.values()) == ["image failed to load"]
    assert sum(len(answer["failed"]) for answer in json.loads(result.read_text())["answers"]) == 1


def test_two_raters_of_one_name_stay_apart(opened):
    identities = []
    for _ in range(2):
        start(opened)
        kept = opened.execute_script("return Object.values(localStorage)[0]")
        identities.append(json.loads(kept)["rater"])
        opened.execute_script("localStorage.clear()")
        opened.refresh()
    assert [rater["name"] for rater in identities] == ["Ann", "Ann"]
    assert identities[0]["id"] != identities[1]["id"]


def test_without_storage_the_page_says_so_and_works(browser, page):
    command = "Page.addScriptToEvaluateOnNewDocument"
    refusal = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    script = browser.execute_cdp_cmd(command, {"source": refusal})
    try:
        browser.get(page[0].as_uri())
        assert "does not keep progress" in text(browser, "notice")
        start(browser)
        rank_like(browser, page[1], by_quality)
        click(browser, "next")
        assert text(browser, "place") == "Caption 2 of 6"
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
        browser.get("about:blank")  # the question before leaving is answered by the driver


def test_a_second_tab_takes_over_instead_of_overwriting(opened, address, page):
    start(opened)
    first = opened.current_window_handle
    opened.switch_to.new_window("tab")
    opened.get(address)
    rank_like(opened, page[1], by_quality)
    click(opened, "next")
    opened.close()
    opened.switch_to.window(first)
    assert text(opened, "place") == "Caption 2 of 6"
    assert "another tab" in text(opened, "notice")


def test_the_page_and_python_compute_the_same_checksum(opened):
    body = {"b": ["é", '"\\\n\u2028\U0001f600\x7f\x01'], "a": {"z": None, "A": 3, "_": "漢"}}
    source = opened.find_element(By.CSS_SELECTOR, "body > script:last-of-type").get_attribute(
        "textContent"
    )
    functions = source[source.index("  // Keys sorted") : source.rindex("  state = load();")]
    script = f"{functions}; return sha256(canonical(JSON.parse(arguments[0])));"
    assert opened.execute_script(script, json.dumps(body)) == checksum(body)
