"""The images of each model by caption, from folders that hold the same captions."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from xmcgan.data.readers import decode_text, parse_jsonl
from xmcgan.data.sources import ImageStore, clean_captions
from xmcgan.errors import DataError
from xmcgan.sampling.sample_files import MANIFEST
from xmcgan.utils.files import parsing

MAX_MODELS = 10  # nobody ranks more pictures than that with care


@dataclasses.dataclass(frozen=True)
class ModelImages:
    """Images of one model: for each caption the paths of its images in the store."""

    name: str
    store: ImageStore
    files: Mapping[str, Sequence[str]]


def read_models(folders: Sequence[tuple[str, Path]], captions: Path | None) -> list[ModelImages]:
    """Find the images of each model, given its name and folder; all need the same captions.

    `captions` says which file shows which caption, in any of the folders: JSON lines with `image`
    and `captions`, or lines `NAME<tab>CAPTION`; suffixes of images do not matter. If None, each
    folder has a `manifest.json`, as `scripts/generate.py` writes it.
    """
    if not 2 <= len(folders) <= MAX_MODELS:
        raise DataError(f"models given: {len(folders)}; repeat --images for 2 to {MAX_MODELS}")
    names, places = {name for name, _ in folders}, {folder.resolve() for _, folder in folders}
    if min(len(names), len(places)) < len(folders):
        raise DataError("--images: a name or a folder is given twice")
    by_name = _read_captions(captions) if captions else None
    models = []
    for name, folder in folders:
        store = ImageStore(folder)
        found = _by_manifest(store, folder) if by_name is None else _by_name(store, folder, by_name)
        files: dict[str, list[str]] = {}
        for file, caption in found:
            files.setdefault(caption, []).append(file)
        models.append(ModelImages(name, store, files))
    first = models[0]
    for other in models[1:]:
        if differing := sorted(first.files.keys() ^ other.files.keys()):
            raise DataError(
                f"different captions: only one of {first.name} and {other.name} has "
                f"{differing[0][:80]!r}"
            )
    return models


def _read_captions(path: Path) -> dict[str, str]:
    """Return captions by the name of their image, without its suffix."""
    with parsing(path, DataError, "a file of captions"):
        data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        pairs = [
            (row.image, clean_captions(row.captions, row.where)[0])
            for row in parse_jsonl(data, str(path))
        ]
    else:
        pairs = []
        for number, line in enumerate(decode_text(data, str(path)).splitlines(), start=1):
            file, tab, caption = line.partition("\t")
            if line.strip() and not tab:
                raise DataError(f"{path}, line {number}: expected NAME<tab>CAPTION")
            if tab:
                text = clean_captions([caption], f"{path}, line {number}")[0]
                pairs.append((file.strip(), text))
    captions = {_stem(file): caption for file, caption in pairs}
    if not captions or len(captions) < len(pairs):
        raise DataError(f"{path} has {'the same image twice' if pairs else 'no captions'}")
    return captions


def _by_name(store: ImageStore, folder: Path, captions: Mapping[str, str]) -> list[tuple[str, str]]:
    images: dict[str, str] = {}
    for image in store.images():
        if images.setdefault(_stem(image), image) != image:
            raise DataError(f"{folder}: {images[_stem(image)]} and {image} have the same name")
    for stem in sorted(captions.keys() - images):
        raise DataError(f"{folder}: there is no image {stem}.* for {captions[stem]!r}")
    return [(images[stem], captions[stem]) for stem in sorted(captions)]


def _by_manifest(store: ImageStore, folder: Path) -> list[tuple[str, str]]:
    path = folder / MANIFEST
    if MANIFEST not in store:
        raise DataError(f"there is no {path} (scripts/generate.py writes it): give --captions FILE")
    with parsing(path, DataError, "a list of images"):
        entries = json.loads(store.read(MANIFEST))["images"]
        pairs = [(str(entry["file"]), str(entry["caption"])) for entry in entries]
    if missing := [file for file, _ in pairs if file not in store]:
        raise DataError(f"{folder}: the image {missing[0]} of {MANIFEST} is missing")
    return [(file, clean_captions([caption], f"{path}, {file}")[0]) for file, caption in pairs]


def _stem(file: str) -> str:
    return PurePosixPath(file).with_suffix("").as_posix() if file else ""
