"""Folders of images, and raters who answer without a browser."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from xmcgan.studies.human_eval.answers import checksum
from xmcgan.studies.human_eval.page import FORMAT, Key

MODELS = ("ours", "theirs", "old")
CAPTIONS = [f"a picture of <thing> {n} & </script> @@STUDY@@" for n in range(6)]


def write_folder(folder: Path, level: int, captions: list[str] = CAPTIONS) -> Path:
    """Write flat images of one gray level and the manifest of `scripts/generate.py`."""
    folder.mkdir(parents=True)
    entries = []
    for number, caption in enumerate(captions):
        for noise in range(2):
            name = f"{number:04d}_{noise:02d}.png"
            Image.fromarray(np.full((24, 24, 3), level + noise, np.uint8)).save(folder / name)
            entries.append({"file": name, "caption": caption, "noise": noise})
    (folder / "manifest.json").write_text(json.dumps({"seed": 0, "images": entries}))
    return folder


def answer_file(
    path: Path,
    key: Key,
    order: Callable[[str, str | None], float],
    *,
    name: str = "Ann",
    rater: str = "a" * 32,
    finished: str = "2025-01-01T00:00:00.000Z",
    skip: tuple[str, ...] = (),
) -> Path:
    """Write the file of a rater who sorts by `order(question, model)`, lowest first."""
    answers = []
    for item, content in key.items.items():
        entry = {"item": item, "shown": list(content.models), "failed": [], "seconds": 3}
        entry["skipped"] = "by the rater" if item in skip else None
        for question in ("quality", "alignment"):
            images = sorted(content.models, key=lambda i: order(question, content.models[i]))
            entry[question] = [] if item in skip else images
        answers.append(entry)
    body = {
        "format": FORMAT,
        "page": key.page,
        "rater": {"name": name, "id": rater},
        "started": "2025-01-01T00:00:00.000Z",
        "finished": finished,
        "answers": answers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body | {"checksum": checksum(body)}))
    return path


def by_quality(question: str, model: str | None) -> float:
    """Rank ours, theirs, old for quality, the models reversed for alignment, noise last."""
    if model is None:
        return 9
    return MODELS.index(model) if question == "quality" else -MODELS.index(model)


def noise_first(question: str, model: str | None) -> float:
    """Rank as nobody who looks would."""
    return -9 if model is None else by_quality(question, model)
