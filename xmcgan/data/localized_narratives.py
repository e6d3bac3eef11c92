"""Localized Narratives (Pont-Tuset et al., ECCV 2020): JSON lines, and the images they describe."""

import collections
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

from xmcgan.data import coco
from xmcgan.data.annotations import CaptionCleaner, find_images
from xmcgan.data.archives import FileRef, list_files
from xmcgan.data.records import Prepared
from xmcgan.data.shards import Contents, ImageEntry
from xmcgan.errors import DataError
from xmcgan.utils.download import Archive, download, download_images

MAX_NARRATIVE_CHARS = 10_000  # minutes of speech
_HOST = "https://storage.googleapis.com/localized-narratives/annotations"
_COCO_HOST = "http://images.cocodataset.org/zips"
_FIELDS = '{"dataset_id": ..., "image_id": ..., "annotator_id": ..., "caption": ...}'


class Narrative(NamedTuple):
    """What is kept of one line."""

    image_id: str
    annotator_id: str
    dataset_id: str
    text: str


def _archives(prefix: str, num: int, validation: str) -> tuple[Archive, ...]:
    """Return the official JSON lines; their publisher states no hashes."""
    names = [f"{prefix}-{i:05d}-of-{num:05d}.jsonl" for i in range(num)]
    return tuple(Archive(f"{_HOST}/{name}") for name in [*names, validation])


class Narratives(Prepared):
    """One edition: each narrative is an example, each image is stored once.

    Attributes:
        files: pattern of the JSON lines' names; its group is the official split's name.
        narratives: the official JSON lines.
        images: archives of images, if they do not come one by one.
        published: narratives per split.
    """

    source_flags = "--source DIR (or --download)"
    files: ClassVar[re.Pattern[str]]
    narratives: ClassVar[tuple[Archive, ...]]
    images: ClassVar[tuple[Archive, ...]] = ()
    published: ClassVar[Mapping[str, int]]

    # From an image file's stem to its id (empty for other files); from an id to the official name.
    image_key: ClassVar[Callable[[str], str]]
    image_name: ClassVar[Callable[[str], str]]

    @classmethod
    def download(cls, folder: Path) -> None:
        """Fetch the official files, which `read` can read in place."""
        download((*cls.narratives, *cls.images), folder)

    @classmethod
    def read(cls, sources: Sequence[Path]) -> Contents:
        """Read narratives and find their images, in any folders; images are not opened yet.

        Raises:
            DataError: of `read_texts`, or over half of the images missing.
        """
        counts: collections.Counter[str] = collections.Counter()
        texts = cls.read_texts(sources, counts)
        wanted = {i: cls.image_name(i) for images in texts.values() for i in images}
        places = find_images(sources, wanted, cls.image_key, counts)
        splits: dict[str, list[ImageEntry]] = {}
        for split, images in texts.items():
            for image_id in sorted(images, key=lambda i: (len(i), i)):
                found = images.pop(image_id)  # texts and entries at once would not fit memory
                if image_id in places:
                    entry = _entry(wanted[image_id], found, places[image_id])
                    splits.setdefault(split, []).append(entry)
                else:
                    counts["narratives of absent images"] += len(found)
        recipe = {"digest": coco.digest(splits)}
        return Contents(splits, recipe, sources, dict(+counts), cls.published, narratives=True)

    @classmethod
    def read_texts(
        cls, sources: Sequence[Path], counts: collections.Counter[str]
    ) -> dict[str, dict[str, list[Narrative]]]:
        """Return narratives by split and image id, without those that are empty or repeated.

        Raises:
            DataError: no JSON lines of the official names, or one that is broken.
        """
        clean = CaptionCleaner(MAX_NARRATIVE_CHARS, counts)
        splits: dict[str, dict[str, list[Narrative]]] = {}
        files: set[str] = set()
        for path, ref in list_files(sources):
            name = PurePosixPath(path).name
            match = cls.files.fullmatch(name)
            if not match or name in files:
                continue
            files.add(name)
            images = splits.setdefault(match[1], {})
            for where, line in _read_lines(ref, path):
                narrative = cls.parse_line(line, where)
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
            raise DataError(f"no file in {where} is named like {cls.narratives[0].file_name}")
        return {split: splits[split] for split in cls.published if split in splits}

    @classmethod
    def parse_line(cls, line: bytes, where: str) -> Narrative:
        """Read a JSON object; timed captions, traces and the recording's name are not kept.

        Raises:
            DataError: names `where` (file and line), and what is wrong with it.
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
            stem = PurePosixPath(cls.image_name(image_id)).stem
        except ValueError:
            stem = ""
        if not re.fullmatch(r"[0-9A-Za-z_-]+", image_id) or not cls.image_key(stem):
            raise DataError(f'{where}: "image_id" {image_id!r} is not the name of an image')
        return narrative


class LnCoco(Narratives):
    """Localized Narratives of COCO's images (Pont-Tuset et al., ECCV 2020)."""

    name = "ln_coco"
    files = re.compile(r"coco_(train|val)_localized_narratives.*\.jsonl")
    published: ClassVar[Mapping[str, int]] = {"train": 134_272, "val": 8_573}
    narratives = _archives(
        "coco_train_localized_narratives", 4, "coco_val_localized_narratives.jsonl"
    )
    images = (
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
    )

    image_key = staticmethod(coco.image_key)  # of 2017, or the same images' names of 2014
    image_name = staticmethod(lambda image_id: f"{int(image_id):012d}.jpg")


class LnOpenImages(Narratives):
    """Localized Narratives of Open Images (Pont-Tuset et al., ECCV 2020)."""

    name = "ln_open_images"
    files = re.compile(r"open_images_(train|validation)(?:_v6)?_localized_narratives.*\.jsonl")
    published: ClassVar[Mapping[str, int]] = {"train": 507_444, "validation": 41_691}
    narratives = _archives(
        "open_images_train_v6_localized_narratives",
        10,
        "open_images_validation_localized_narratives.jsonl",
    )
    image_host = "https://open-images-dataset.s3.amazonaws.com"  # SPLIT/ID.jpg

    image_key = staticmethod(lambda stem: stem)
    image_name = staticmethod(lambda image_id: f"{image_id}.jpg")

    @classmethod
    def download(cls, folder: Path) -> None:
        """Fetch the narratives, and one by one the images that have any."""
        super().download(folder)
        for split, images in cls.read_texts([folder], collections.Counter()).items():
            urls = (f"{cls.image_host}/{split}/{cls.image_name(i)}" for i in images)
            download_images(urls, folder / split)


def _read_lines(ref: FileRef, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield each line that is not blank, and its place; a plain file is never read whole."""
    if ref.member is not None:
        lines = enumerate(ref.read().splitlines(), start=1)
        yield from ((f"{name}, line {n}", line) for n, line in lines if line.strip())
        return
    try:
        with open(ref.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{ref.path}, line {number}", line
    except OSError as error:
        raise DataError(f"cannot read {ref.path}: {error}") from error


def _entry(name: str, found: Sequence[Narrative], place: FileRef) -> ImageEntry:
    """Join an image's narratives; ids are annotators', numbered if one spoke twice."""
    spoken: collections.Counter[str] = collections.Counter()
    ids = []
    for narrative in found:
        spoken[narrative.annotator_id] += 1
        number = spoken[narrative.annotator_id]
        ids.append(narrative.annotator_id + (f"-{number}" if number > 1 else ""))
    return ImageEntry(
        place,
        name,
        tuple(narrative.text for narrative in found),
        found[0].image_id,
        tuple(ids),
        found[0].dataset_id,
    )
