"""Localized Narratives (Pont-Tuset et al., ECCV 2020): JSON lines, and the images they speak of."""

import collections
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xmcgan.data import coco
from xmcgan.data.downloads import Archive
from xmcgan.data.file_index import FileRef, list_files
from xmcgan.data.official import CaptionCleaner, OfficialData, check_found, find_images
from xmcgan.data.shards import Entry
from xmcgan.errors import DataError

MAX_NARRATIVE_CHARS = 10_000  # minutes of speech
_HOST = "https://storage.googleapis.com/localized-narratives/annotations"
_COCO_HOST = "http://images.cocodataset.org/zips"
_FIELDS = '{"dataset_id": ..., "image_id": ..., "annotator_id": ..., "caption": ...}'


def _narratives(prefix: str, num: int) -> tuple[Archive, ...]:
    names = [f"{prefix}-{i:05d}-of-{num:05d}.jsonl" for i in range(num)]
    return tuple(Archive(f"{_HOST}/{name}") for name in names)


@dataclasses.dataclass(frozen=True)
class Edition:
    """Say where one edition's narratives and images are, and how many there should be.

    Attributes:
        files: pattern of the JSON lines' names; its group is the official split's name.
        published: narratives of each split.
        key: from an image file's stem to its id.
        image_name: from an id to the official file name.
        narratives: the official JSON lines; their publisher states no hashes.
        images: archives of images; none where images come one by one.
    """

    files: re.Pattern[str]
    published: Mapping[str, int]
    key: Callable[[str], str]
    image_name: Callable[[str], str]
    narratives: tuple[Archive, ...]
    images: tuple[Archive, ...] = ()


COCO = Edition(
    files=re.compile(r"coco_(train|val)_localized_narratives.*\.jsonl"),
    published={"train": 134_272, "val": 8_573},
    key=coco.image_key,
    image_name=lambda image_id: f"{int(image_id):012d}.jpg",
    narratives=(
        *_narratives("coco_train_localized_narratives", 4),
        Archive(f"{_HOST}/coco_val_localized_narratives.jsonl"),
    ),
    images=(
        Archive(
            f"{_COCO_HOST}/val2017.zip",
            815_585_330,
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ),
        Archive(
            f"{_COCO_HOST}/train2017.zip",
            19_336_861_798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
    ),
)
OPEN_IMAGES = Edition(
    files=re.compile(r"open_images_(train|validation)(?:_v6)?_localized_narratives.*\.jsonl"),
    published={"train": 507_444, "validation": 41_691},
    key=lambda stem: stem,
    image_name=lambda image_id: f"{image_id}.jpg",
    narratives=(
        *_narratives("open_images_train_v6_localized_narratives", 10),
        Archive(f"{_HOST}/open_images_validation_localized_narratives.jsonl"),
    ),
)
OPEN_IMAGES_HOST = "https://open-images-dataset.s3.amazonaws.com"  # SPLIT/ID.jpg


class Narrative(NamedTuple):
    """Hold what is kept of one line."""

    image_id: str
    annotator_id: str
    dataset_id: str
    text: str


def parse_narrative(line: bytes, where: str, edition: Edition) -> Narrative:
    """Read one line; timed captions, traces and the recording's name are not kept.

    Args:
        line: a JSON object of the official form.
        where: file and line number, for errors.
        edition: tells whether the image id is one.

    Raises:
        DataError: broken JSON, a field that is missing or of another type, or a strange image id.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}); expected {_FIELDS}") from error
    try:
        image_id, caption = str(fields["image_id"]), fields["caption"]
        narrative = Narrative(
            image_id,
            sys.intern(str(fields.get("annotator_id", ""))),  # few, and each in many lines
            sys.intern(str(fields.get("dataset_id", ""))),
            caption,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not a narrative ({error!r}); expected {_FIELDS}") from error
    if not isinstance(caption, str):
        raise DataError(f'{where}: "caption" must be a string; expected {_FIELDS}')
    try:
        stem = PurePosixPath(edition.image_name(image_id)).stem
    except ValueError:
        stem = ""
    if not re.fullmatch(r"[0-9A-Za-z_-]+", image_id) or not edition.key(stem):
        raise DataError(f'{where}: "image_id" {image_id!r} is not the name of an image')
    return narrative


def _read_lines(ref: FileRef, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield each line that is not blank, and where it stands; a plain file is never read whole."""
    if ref.member is not None:
        lines = iter(ref.read().splitlines())
        yield from ((f"{name}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip())
        return
    try:
        with open(ref.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{ref.path}, line {number}", line
    except OSError as error:
        raise DataError(f"cannot read {ref.path}: {error}") from error


def read_texts(
    sources: Sequence[Path], edition: Edition, counts: collections.Counter[str]
) -> dict[str, dict[str, list[Narrative]]]:
    """Read all narratives, without the empty ones and those that an image has twice.

    Args:
        sources: directories, zips or single files; their JSON lines are taken by name.
        edition: the one to read.
        counts: takes how many were dropped, by reason.

    Returns:
        Narratives by split and image id.

    Raises:
        DataError: no JSON lines, or one that is broken (file and line are named).
    """
    clean = CaptionCleaner(MAX_NARRATIVE_CHARS, counts)
    splits: dict[str, dict[str, list[Narrative]]] = {}
    files: set[str] = set()
    for path, ref in list_files(sources):
        name = PurePosixPath(path).name
        match = edition.files.fullmatch(name)
        if not match or name in files:
            continue
        files.add(name)
        images = splits.setdefault(match[1], {})
        for where, line in _read_lines(ref, path):
            narrative = parse_narrative(line, where, edition)
            text = clean(narrative.text)
            if not text:
                continue
            known = images.setdefault(narrative.image_id, [])
            if any(other.text == text for other in known):
                counts["duplicate narratives dropped"] += 1
            else:
                known.append(narrative._replace(text=text))
    if not splits:
        where = ", ".join(map(str, sources))
        raise DataError(f"no file in {where} is named like {edition.narratives[0].file_name}")
    return {split: splits[split] for split in edition.published if split in splits}


def read_narratives(sources: Sequence[Path], edition: Edition) -> OfficialData:
    """Read narratives and find their images; images are not opened yet.

    Args:
        sources: directories or zips with JSON lines and images, in any folders.
        edition: `COCO` (images of 2017, or the same ones under their names of 2014) or
            `OPEN_IMAGES`.

    Returns:
        Images and narratives of each split.

    Raises:
        DataError: of `read_texts`, or more than half of the images missing.
    """
    counts: collections.Counter[str] = collections.Counter()
    texts = read_texts(sources, edition, counts)
    wanted = {i: edition.image_name(i) for images in texts.values() for i in images}
    places, others = find_images(sources, wanted, edition.key)
    counts["images without narratives"] += others
    counts["images absent"] += check_found(wanted, places, sources)
    splits: dict[str, list[Entry]] = {}
    for split, images in texts.items():
        ids = sorted(images, key=lambda i: (len(i), i))
        counts["narratives of absent images"] += sum(len(images[i]) for i in ids if i not in places)
        entries = (_entry(wanted[i], images.pop(i), places[i]) for i in ids if i in places)
        splits[split] = list(entries)
    splits = {split: entries for split, entries in splits.items() if entries}
    return OfficialData(sources, splits, dict(+counts), edition.published, narratives=True)


def _entry(name: str, found: list[Narrative], place: FileRef) -> Entry:
    """Join an image's narratives; ids are annotators', numbered where one spoke twice."""
    spoken: collections.Counter[str] = collections.Counter()
    ids = []
    for narrative in found:
        spoken[narrative.annotator_id] += 1
        number = spoken[narrative.annotator_id]
        ids.append(narrative.annotator_id + (f"-{number}" if number > 1 else ""))
    return Entry(
        place,
        name,
        found[0].image_id,
        found[0].dataset_id,
        tuple(narrative.text for narrative in found),
        tuple(ids),
    )
