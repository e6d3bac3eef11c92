"""The page in headless Chromium, with real clicks and keys, as wide as a desktop and a phone."""

import base64
import contextlib
import json
import os
import threading
import time
import zipfile
from pathlib import Path

import pytest
from headless import chromium_browser, needs_browser
from PIL import Image

uvicorn = pytest.importorskip("uvicorn", reason="pip install -r requirements-demo.txt")
pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

from xmcgan.serving.models import Models  # noqa: E402
from xmcgan.serving.routes import Service, make_app  # noqa: E402

pytestmark = needs_browser
# Where to leave screenshots for people to look at, and models to serve instead of the tiny one.
SCREENSHOTS, MODELS = os.environ.get("XMCGAN_SCREENSHOTS"), os.environ.get("XMCGAN_DEMO_MODELS")


@contextlib.contextmanager
def serving(*names):
    server = uvicorn.Server(
        uvicorn.Config(make_app(Service(Models(names))), port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def address(tiny_workdir):
    names = MODELS.split(",") if MODELS else [str(tiny_workdir), "nothere"]
    with serving(*names) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with chromium_browser(tmp_path_factory) as driver:
        yield driver


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(request, chromium, address):
    """Open the page, whose first images are drawn by itself where there are examples."""
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    chromium.get_log("browser")
    chromium.get(address)
    WebDriverWait(chromium, 60).until(lambda _: chromium.find_element(By.ID, "about").text)
    WebDriverWait(chromium, 60).until(lambda _: settled(chromium))
    chromium.test = request.node.name
    yield chromium
    width = chromium.execute_script("return document.documentElement.scrollWidth")
    assert width <= request.param  # nothing sticks out
    expected = chromium.expected_errors if hasattr(chromium, "expected_errors") else ()
    log = [entry["message"] for entry in chromium.get_log("browser")]
    assert [message for message in log if not any(each in message for each in expected)] == []


def settled(driver):
    status = driver.find_element(By.ID, "status").text
    return status.startswith("Done") or driver.find_element(By.ID, "error").text


def tab(driver, panel):
    driver.find_element(By.CSS_SELECTOR, f"[data-panel={panel}]").click()
    return driver.find_element(By.ID, panel)


def fill(form, **fields):
    for name, text in fields.items():
        field = form.find_element(By.NAME, name)
        field.clear()
        field.send_keys(text)


def click(driver, button):
    driver.execute_script("document.getElementById('status').textContent = ''")
    button.click()
    WebDriverWait(driver, 60).until(lambda _: settled(driver))


def submit(driver, form):
    click(driver, form.find_element(By.CSS_SELECTOR, ".actions button:first-child"))


def sources(form):
    """Return the images of a panel, all of them decoded."""
    images = form.find_elements(By.CSS_SELECTOR, ".result img")
    assert all(int(image.get_property("naturalWidth")) > 0 for image in images)
    return [image.get_attribute("src") for image in images]


def error(driver):
    return driver.find_element(By.ID, "error").text


def screenshot(driver):
    if SCREENSHOTS:
        height = driver.execute_script("return document.documentElement.scrollHeight")
        width = driver.execute_script("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        Path(SCREENSHOTS, f"{driver.test}.png").write_bytes(base64.b64decode(shot["data"]))


def downloaded(driver, pattern):
    for _ in range(200):
        files = [*driver.downloads.glob(pattern)]
        if files:
            (file,) = files
            content = file.read_bytes()
            file.unlink()
            return content
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} was saved")


def test_a_caption_is_drawn_redrawn_and_saved(page, tmp_path):
    form = tab(page, "draw")
    fill(form, caption="a red circle")
    form.find_element(By.NAME, "caption").send_keys(Keys.ENTER)
    WebDriverWait(page, 60).until(lambda _: settled(page) and len(sources(form)) == 8)
    submit(page, form)
    first = sources(form)
    submit(page, form)
    assert sources(form) == first
    click(page, form.find_element(By.CSS_SELECTOR, "[data-action=another]"))
    assert len(set(sources(form)) - set(first)) > 0
    assert page.find_element(By.ID, "seed").get_property("value") == "1"
    click(page, form.find_element(By.CSS_SELECTOR, "[data-action=save]"))
    (tmp_path / "saved.zip").write_bytes(downloaded(page, "*.zip"))
    with zipfile.ZipFile(tmp_path / "saved.zip") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert {"grid.png", "0000_07.png"} <= set(archive.namelist())
    assert (manifest["seed"], manifest["images"][0]["caption"]) == (1, "a red circle")
    screenshot(page)


def test_one_word_changed_shows_two_rows_of_the_same_noise(page):
    form = tab(page, "word")
    fill(form, caption="a red circle", other="a blue circle")
    submit(page, form)
    images = sources(form)
    assert len(images) == 8
    assert images[:4] != images[4:]
    assert [h.text for h in form.find_elements(By.TAG_NAME, "h2")] == [
        "a red circle", "a blue circle"]  # fmt: skip
    screenshot(page)
    fill(form, other="a red circle")
    submit(page, form)
    assert sources(form)[:4] == sources(form)[4:]


def test_the_way_between_has_a_slider_and_a_gif(page, tmp_path):
    form = tab(page, "way")
    fill(form, caption="a red circle", other="a blue star", end_seed="5")
    submit(page, form)
    (start,) = sources(form)
    slider = form.find_element(By.NAME, "place")
    slider.send_keys(Keys.END)
    assert "100 %" in form.text
    assert sources(form) != [start]
    slider.send_keys(*[Keys.ARROW_LEFT] * 7)
    assert "53 %" in form.text
    screenshot(page)
    click(page, form.find_element(By.CSS_SELECTOR, "[data-action=gif]"))
    (tmp_path / "way.gif").write_bytes(downloaded(page, "way*.gif"))
    assert Image.open(tmp_path / "way.gif").n_frames > 2


def test_every_word_has_its_map(page):
    form = tab(page, "attention")
    fill(form, caption="a red circle")
    submit(page, form)
    WebDriverWait(page, 10).until(lambda _: form.find_elements(By.TAG_NAME, "canvas"))
    captions = [caption.text for caption in form.find_elements(By.TAG_NAME, "figcaption")]
    names = [caption.rsplit(" ", 2)[0] for caption in captions[1:]]
    assert names == ["(start)", "a", "red", "circle", "(end)"]
    assert sum(int(caption.split()[-2]) for caption in captions[1:]) == pytest.approx(100, abs=3)
    assert error(page) == ""
    screenshot(page)


def test_models_side_by_side(page):
    form = tab(page, "compare")
    fill(form, captions="a red circle\na star")
    submit(page, form)
    heads = [head.text for head in form.find_elements(By.TAG_NAME, "h2")]
    assert len(heads) == 2
    assert len(sources(form)) == 2 * 2 * 4
    if not MODELS:
        assert heads == ["workdir, step 6", "workdir, step 6, raw weights"]
        assert sources(form)[:8] != sources(form)[8:]
    screenshot(page)


def test_a_broken_model_is_named_and_what_is_hostile_is_text(page):
    page.expected_errors = ("400 (Bad Request)",)
    if not MODELS:
        assert "nothere cannot be used: no model" in page.find_element(By.ID, "broken").text
    form = tab(page, "draw")
    caption = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    fill(form, caption=caption)
    submit(page, form)
    assert caption in form.text
    assert form.find_elements(By.TAG_NAME, "script") == []
    fill(form, caption=" ")
    submit(page, form)
    assert error(page) == "caption 1 is empty"
    fill(form, caption="a star")
    seed = page.find_element(By.ID, "seed")
    seed.clear()
    seed.send_keys("seven")
    submit(page, form)
    assert error(page) == "seed must be a whole number from 0 to 4294967295"
    screenshot(page)


def test_a_server_that_is_gone_is_said(chromium, tiny_workdir):
    with serving(str(tiny_workdir)) as address:
        chromium.get(address)
        WebDriverWait(chromium, 60).until(lambda _: settled(chromium))
    form = tab(chromium, "draw")
    fill(form, caption="a star")
    submit(chromium, form)
    assert "The server does not answer" in error(chromium)
