"""Fixtures: folders of images, and a page of them."""

from pathlib import Path

import pytest
from raters import MODELS, write_folder

from xmcgan.studies.human_eval.models import read_models
from xmcgan.studies.human_eval.page import Key, read_key, write_page


@pytest.fixture
def folders(tmp_path: Path) -> list[tuple[str, Path]]:
    """Return the images of three models."""
    return [
        (name, write_folder(tmp_path / "images" / name, 40 * (index + 1)))
        for index, name in enumerate(MODELS)
    ]


@pytest.fixture
def page(folders: list[tuple[str, Path]], tmp_path: Path) -> tuple[Path, Key]:
    """Return a page of four captions and two checks, and its key."""
    models = read_models(folders, None)
    file, key = write_page(models, tmp_path / "study.html", num=4, checks=2, image_size=32)
    return file, read_key(key)
