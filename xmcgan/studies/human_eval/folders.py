"""The images of each model by caption, from folders that hold the same captions."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from xmcgan.data.annotations import clean_captions, parse_jsonl
from xmcgan.data.archives import ImageStore
from xmcgan.errors import DataError

MANIFEST = "manifest.json"
MOST_MODELS = 10  # nobody ranks more pictures than that with care


@dataclasses.dataclass(frozen=True)
class ModelImages:
    """Hold where a model's images are.

    Attributes:
        name: of the model, for the report.
        store: the files.
        files: paths in the store for each caption, in the order of the manifest or of names.
    """

    name: str
    store: ImageStore
    files: Mapping[str, Sequence[str]]


def read_models(folders: Sequence[tuple[str, Path]], captions: Path | None) -> list[ModelImages]:
    """Find the images of each model, and check that all have the same captions.

    Args:
        folders: name and folder of each model.
        captions: which file shows which caption, in any of the folders: JSON lines with `image`
            and `captions`, or a text file of lines `NAME<tab>CAPTION`; suffixes of images do not
            matter. None reads `manifest.json` in each folder, as `scripts/generate.py` writes it.

    Raises:
        DataError: fewer than two models, a name or folder twice, an image that is missing, or
            different captions.
    """
    _check_folders(folders)
    by_name = None if captions is None else _read_captions(captions)
    models = []
    for name, folder in folders:
        store = ImageStore(folder)
        if by_name is None:
            files = _by_manifest(store, folder)
        else:
            files = _by_file_name(store, folder, by_name)
        models.append(ModelImages(name, store, files))
    _check_captions(models)
    return models


def _check_folders(folders: Sequence[tuple[str, Path]]) -> None:
    if not 2 <= len(folders) <= MOST_MODELS:
        raise DataError(
            f"models given: {len(folders)}; a ranking needs 2 to {MOST_MODELS}: repeat --images "
            "NAME=DIR"
        )
    names = [name for name, _ in folders]
    places = [folder.resolve() for _, folder in folders]
    for index, (name, folder) in enumerate(folders):
        if names.index(name) != index:
            raise DataError(f"the name {name!r} is given to two folders")
        if places.index(places[index]) != index:
            raise DataError(f"the folder {folder} is given twice")


def _read_captions(path: Path) -> dict[str, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if path.suffix in (".json", ".jsonl"):
        entries, _ = parse_jsonl(data, str(path))
        pairs = [(entry.image, entry.captions[0]) for entry in entries]
    else:
        pairs = list(_text_lines(data, path))
    captions: dict[str, str] = {}
    for file, caption in pairs:
        if _stem(file) in captions:
            raise DataError(f"{path}: {file!r} stands in it twice")
        captions[_stem(file)] = caption
    if not captions:
        raise DataError(f"{path} has no captions")
    return captions


def _text_lines(data: bytes, path: Path):
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            file, tab, caption = line.partition("\t")
            if not tab:
                raise DataError(f"{path}, line {number}: expected NAME<tab>CAPTION")
            yield file.strip(), clean_captions([caption], f"{path}, line {number}")[0][0]


def _stem(file: str) -> str:
    return PurePosixPath(file).with_suffix("").as_posix() if file else ""


def _by_file_name(
    store: ImageStore, folder: Path, captions: Mapping[str, str]
) -> dict[str, list[str]]:
    images: dict[str, str] = {}
    for image in store.images():
        if _stem(image) in images:
            raise DataError(f"{folder}: {images[_stem(image)]} and {image} have the same name")
        images[_stem(image)] = image
    files: dict[str, list[str]] = {}
    for stem in sorted(captions):
        if stem not in images:
            raise DataError(f"{folder}: there is no image {stem}.* for {captions[stem]!r}")
        files.setdefault(captions[stem], []).append(images[stem])
    return files


def _by_manifest(store: ImageStore, folder: Path) -> dict[str, list[str]]:
    if MANIFEST not in store:
        raise DataError(
            f"{folder} has no {MANIFEST} (scripts/generate.py writes one): give --captions FILE"
        )
    try:
        entries = [
            (str(entry["file"]), str(entry["caption"]))
            for entry in json.loads(store.read(MANIFEST))["images"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder / MANIFEST} is damaged: {error!r}; it should list images with file and "
            "caption"
        ) from None
    files: dict[str, list[str]] = {}
    for file, caption in entries:
        if file not in store:
            raise DataError(f"{folder}: the image {file} of {MANIFEST} is missing")
        text = clean_captions([caption], f"{folder / MANIFEST}, {file}")[0][0]
        files.setdefault(text, []).append(file)
    if not files:
        raise DataError(f"{folder / MANIFEST} lists no images")
    return files


def _check_captions(models: Sequence[ModelImages]) -> None:
    first = models[0]
    for other in models[1:]:
        for one, two in ((first, other), (other, first)):
            lacking = [caption for caption in one.files if caption not in two.files]
            if lacking:
                raise DataError(
                    f"different captions: {one.name} has {lacking[0][:80]!r} and {two.name} has "
                    f"not ({len(lacking)} of {len(one.files)} captions are lacking)"
                )
