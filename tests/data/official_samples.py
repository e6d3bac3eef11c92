"""Small copies of the official data sets: their layouts, their file names, their schemas."""

import hashlib
import json
import zipfile
from pathlib import Path

from data_samples import photo

from xmcgan.utils.download import PinnedFile

NARRATIVE_FIELDS = {"timed_caption": [], "traces": [[{"x": 0.5, "y": 0.5, "t": 0.1}]]}


def coco_name(image_id: int, split: str, year: str) -> str:
    """Return COCO's file name of an image."""
    prefix = f"COCO_{split}2014_" if year == "2014" else ""
    return f"{prefix}{image_id:012d}.jpg"


def write_coco(root: Path, *, year: str = "2014", train: int = 4, val: int = 3) -> Path:
    """Write COCO's folder layout: images 1, 2, ... with two captions each, numbered 10 i and on."""
    (root / "annotations").mkdir(parents=True)
    next_id = 1
    for split, num in (("train", train), ("val", val)):
        folder = root / f"{split}{year}"
        folder.mkdir()
        images, annotations = [], []
        for i in range(next_id, next_id + num):
            name = coco_name(i, split, year)
            (folder / name).write_bytes(photo(i))
            images.append({"id": i, "file_name": name, "coco_url": "http://x", "height": 16})
            for k in (1, 0):
                caption = {"image_id": i, "id": 10 * i + k, "caption": f"photo {i}, caption {k}\n"}
                annotations.append(caption)
        next_id += num
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        path = root / "annotations" / f"captions_{split}{year}.json"
        path.write_text(json.dumps(content))
    return root


def zip_coco(root: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Pack each folder of `write_coco` into a zip, as COCO is handed out."""
    target.mkdir()
    for folder in root.iterdir():
        with zipfile.ZipFile(target / f"{folder.name}.zip", "w", compression) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{folder.name}/{file.name}")
    return target


def narrative(image_id: object, text: str, annotator: int = 1, dataset: str = "mscoco_val2017"):
    """Return a line of the official schema."""
    fields = {"dataset_id": dataset, "image_id": str(image_id), "annotator_id": annotator}
    recording = {"voice_recording": f"{dataset}/{image_id}_{annotator}.ogg"}
    return json.dumps({**fields, "caption": text, **NARRATIVE_FIELDS, **recording})


def write_narratives(root: Path, name: str, *lines: str) -> Path:
    """Write JSON lines."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines))
    return root


def write_open_images(root: Path) -> Path:
    """Write images a0 ... a3 (train) and b0, b1 (validation), with narratives of all but a3."""
    for split, letter, num in (("train", "a", 4), ("validation", "b", 2)):
        (root / split).mkdir(parents=True)
        for i in range(num):
            (root / split / f"{letter}{i}.jpg").write_bytes(photo(i))
        lines = [
            narrative(f"{letter}{i}", f"In this image {i}.", dataset=f"open_images_{split}")
            for i in range(min(num, 3))
        ]
        version = "_v6" if split == "train" else ""
        part = "-00000-of-00010" if split == "train" else ""
        name = f"open_images_{split}{version}_localized_narratives{part}.jsonl"
        write_narratives(root, name, *lines)
    return root


def hash_all(archives, url, folder):
    """Return archives as they would be if their files were served at `url`."""
    return tuple(
        PinnedFile(
            f"{url}/{a.file_name}",
            a.size and (folder / a.file_name).stat().st_size,
            a.sha256 and hashlib.sha256((folder / a.file_name).read_bytes()).hexdigest(),
        )
        for a in archives
    )


def served(folder):
    """Return the bytes of all files by path, for `file_server.serve`."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
