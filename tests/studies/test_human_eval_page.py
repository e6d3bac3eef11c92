"""The page: what it shows, what it hides, and which folders it refuses."""

import base64
import io
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raters import CAPTIONS, MODELS, write_folder

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.models import read_models
from xmcgan.studies.human_eval.page import (
    MAX_PAGE_BYTES,
    Item,
    ShownImage,
    encode_webp,
    read_key,
    render,
    write_page,
)

DATA = re.compile(r'<script type="application/json" id="study">(.*?)</script>', re.S)


def study_of(page):
    return json.loads(DATA.search(page.read_text("utf-8"))[1])


def gray(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["webp"])))).mean()


def test_the_key_and_not_the_page_says_who_drew_what(page, folders):
    file, key = page
    text = file.read_text("utf-8")
    for name, folder in folders:
        assert name not in DATA.search(text)[1]
        assert str(folder) not in text
    study = study_of(file)
    assert study["page"] == key.page
    for item in study["items"]:
        assert set(item) == {"id", "caption", "images"}
        for image in item["images"]:
            model = key.items[item["id"]].models[image["id"]]
            if model is not None:
                assert abs(gray(image) - 40 * (MODELS.index(model) + 1)) < 4


def test_a_page_has_the_captions_and_checks_that_were_asked_for(page):
    _, key = page
    checks = [item for item in key.items.values() if item.noise]
    others = {item.caption for item in key.items.values() if not item.noise}
    assert len(checks) == 2
    assert len(others) == 4
    assert others | {item.caption for item in checks} == set(CAPTIONS)  # checks take the rest
    assert all(len(item.models) == 3 for item in key.items.values())


def test_models_stand_in_random_places(folders, tmp_path):
    models = read_models(folders, None)
    _, key = write_page(models, tmp_path / "p.html", num=6, checks=0, image_size=16)
    orders = {tuple(item.models.values()) for item in read_key(key).items.values()}
    assert len(orders) > 1


def test_a_page_is_a_function_of_its_seed(folders, tmp_path):
    models = read_models(folders, None)
    texts = [
        write_page(models, tmp_path / f"{n}.html", seed=seed)[0].read_text("utf-8")
        for n, seed in enumerate((0, 0, 1))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_page_needs_no_network(page):
    text = page[0].read_text("utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']?http|@import|url\(|fetch\(|XMLHttp""", text)


def test_an_installed_package_has_the_parts_of_the_page():
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    files = {path.name for path in (root / "xmcgan/studies/human_eval").glob("page.*")} - {
        "page.py"
    }
    assert set(project["tool"]["setuptools"]["package-data"]["xmcgan.studies.human_eval"]) == files


def test_images_of_a_caption_come_from_the_same_place_in_each_folder(folders, tmp_path):
    _, path = write_page(read_models(folders, None), tmp_path / "p.html", checks=0)
    for item in json.loads(path.read_text())["items"]:
        assert len({image["file"] for image in item["images"]}) == 1


def test_fifty_captions_of_four_models_stay_under_the_limit():
    # White noise, what compresses worst; photographs take a third.
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    images = (ShownImage("0" * 12, "a", "a.png"),) * 4
    items = [Item("0" * 12, "x" * 80, images)] * (50 + 5)  # with the default number of checks
    webp = {"0" * 12: encode_webp(pixels)}
    assert len(render("0" * 16, items, webp, "t")) < MAX_PAGE_BYTES


def test_a_page_that_is_too_large_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("xmcgan.studies.human_eval.page.MAX_PAGE_BYTES", 10_000)
    with pytest.raises(DataError, match="--image-size"):
        write_page(read_models(folders, None), tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_a_key_in_use_is_not_overwritten(folders, page):
    file, key = page
    with pytest.raises(DataError, match=r"study\.key\.json"):
        write_page(read_models(folders, None), file, seed=7)
    assert read_key(file.with_name("study.key.json")) == key


def test_captions_files_match_by_name_whatever_the_suffix(tmp_path):
    rows = [("0000_00", "a cat"), ("0001_01", "a dog")]
    text, lines = tmp_path / "c.txt", tmp_path / "c.jsonl"
    text.write_text("".join(f"{name}.jpg\t{caption}\n" for name, caption in rows))
    lines.write_text(
        "".join(json.dumps({"image": f"{n}.png", "captions": [c]}) + "\n" for n, c in rows)
    )
    folders = [(name, write_folder(tmp_path / name, 40)) for name in "ab"]
    for file in (text, lines):
        for model in read_models(folders, file):
            assert model.files == {"a cat": ["0000_00.png"], "a dog": ["0001_01.png"]}


def spoil_captions(folder):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("<thing> 3", "<thing> 33"))


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (spoil_captions, "'a picture of <thing> 3"),
        (lambda f: (f / "0002_00.png").unlink(), "0002_00.png"),
        (lambda f: (f / "manifest.json").unlink(), "--captions FILE"),
        (lambda f: (f / "manifest.json").write_text('{"images": [1]}'), "manifest.json"),
        (lambda f: [p.write_bytes(b"no") for p in f.glob("*.png")], ".png"),
    ],
)
def test_folders_that_do_not_fit_are_named(folders, tmp_path, spoil, hint):
    spoil(folders[1][1])
    with pytest.raises(DataError) as error:
        write_page(read_models(folders, None), tmp_path / "p.html")
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_one_model_or_the_same_twice_is_refused(folders):
    (name, folder), (_, other), _ = folders
    for given, hint in (
        ([(name, folder)], "models given: 1"),
        ([(name, folder), (name, other)], "twice"),
        ([(name, folder), ("b", folder)], "twice"),
    ):
        with pytest.raises(DataError, match=hint):
            read_models(given, None)


def test_an_image_that_a_captions_file_names_must_be_there(folders, tmp_path):
    (tmp_path / "c.txt").write_text("0000_00.png\ta cat\nabsent.png\ta dog\n")
    with pytest.raises(DataError, match=r"absent\.\* .*'a dog'"):
        read_models(folders, tmp_path / "c.txt")
