"""Localized Narratives (Pont-Tuset et al., ECCV 2020): JSON lines, and the images they describe."""

import collections
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from xmcgan.data import coco
from xmcgan.data.records import Prepared
from xmcgan.data.shards import Contents, ImageEntry
from xmcgan.data.sources import FileRef, clean_caption, find_images, list_files
from xmcgan.errors import DataError
from xmcgan.utils.download import PinnedFile, download, download_images
from xmcgan.utils.files import parsing

MAX_NARRATIVE_CHARS = 10_000  # minutes of speech
_HOST = "https://storage.googleapis.com/localized-narratives/annotations"
_COCO_HOST = "http://images.cocodataset.org/zips"
_FIELDS = '{"dataset_id": ..., "image_id": ..., "annotator_id": ..., "caption": ...}'


class Narrative(NamedTuple):
    image_id: str
    annotator_id: str
    dataset_id: str
    text: str


def _archives(prefix: str, num: int, validation: str) -> tuple[PinnedFile, ...]:
    """Return the official JSON lines; their publisher states no hashes."""
    names = [f"{prefix}-{i:05d}-of-{num:05d}.jsonl" for i in range(num)]
    return tuple(PinnedFile(f"{_HOST}/{name}") for name in [*names, validation])


class Narratives(Prepared):
    """One edition: each narrative is an example, each image is stored once."""

    source_flags = "--source DIR (or --download)"
    files: ClassVar[re.Pattern[str]]  # names of the JSON lines; the group is the split
    narratives: ClassVar[tuple[PinnedFile, ...]]  # the official JSON lines
    images: ClassVar[tuple[PinnedFile, ...]] = ()  # if they do not come one by one
    published: ClassVar[Mapping[str, int]]  # narratives per split
    image_id: ClassVar[re.Pattern[str]]
    image_key: ClassVar[Callable[[str], str]]  # from a file's stem to its id, empty for others
    image_name: ClassVar[Callable[[str], str]]  # from an id to the official file name

    @classmethod
    def download(cls, folder: Path) -> None:
        """Fetch the official files, which `read` can read in place."""
        download((*cls.narratives, *cls.images), folder)

    @classmethod
    def read(cls, sources: Sequence[Path]) -> Contents:
        """Read narratives and find their images, in any folders; images are not opened yet."""
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
        recipe = coco.recipe(splits)
        return Contents(splits, recipe, sources, +counts, cls.published, narratives=True)

    @classmethod
    def read_texts(
        cls, sources: Sequence[Path], counts: collections.Counter[str]
    ) -> dict[str, dict[str, list[Narrative]]]:
        """Return narratives by split and image id, without those that are empty or repeated."""
        splits: dict[str, dict[str, list[Narrative]]] = {}
        files: set[str] = set()
        for _, ref in list_files(sources):
            match = cls.files.fullmatch(ref.name)
            if not match or ref.name in files:
                continue
            files.add(ref.name)
            images = splits.setdefault(match[1], {})
            for where, line in _read_lines(ref):
                narrative = cls.parse_line(line, where)
                if text := clean_caption(narrative.text, MAX_NARRATIVE_CHARS, counts):
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
        """Read a JSON object; timed captions, traces and the recording's name are not kept."""
        with parsing(where, DataError, f"a narrative such as {_FIELDS}"):
            fields = json.loads(line)
            image_id, caption = str(fields["image_id"]), fields["caption"]
            if not isinstance(caption, str):
                raise TypeError('"caption" must be a string')
            if not cls.image_id.fullmatch(image_id):
                raise ValueError(f'"image_id" {image_id!r} is not the name of an image')
            # Few annotators and data sets, and each in many lines.
            who, dataset = (str(fields.get(key, "")) for key in ("annotator_id", "dataset_id"))
            return Narrative(image_id, sys.intern(who), sys.intern(dataset), caption)


class LnCoco(Narratives):
    """Localized Narratives of COCO's images (Pont-Tuset et al., ECCV 2020)."""

    name = "ln_coco"
    files = re.compile(r"coco_(train|val)_localized_narratives.*\.jsonl")
    published: ClassVar[Mapping[str, int]] = {"train": 134_272, "val": 8_573}
    narratives = _archives(
        "coco_train_localized_narratives", 4, "coco_val_localized_narratives.jsonl"
    )
    images = (
        PinnedFile(
            f"{_COCO_HOST}/val2017.zip",
            815_585_330,
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ),
        PinnedFile(
            f"{_COCO_HOST}/train2017.zip",
            19_336_861_798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
    )

    image_id = re.compile(r"[0-9]{1,12}")
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

    image_id = re.compile(r"[0-9A-Za-z_-]+")
    image_key = staticmethod(lambda stem: stem)
    image_name = staticmethod(lambda image_id: f"{image_id}.jpg")

    @classmethod
    def download(cls, folder: Path) -> None:
        """Fetch the narratives, and one by one the images that have any."""
        super().download(folder)
        for split, images in cls.read_texts([folder], collections.Counter()).items():
            urls = (f"{cls.image_host}/{split}/{cls.image_name(i)}" for i in images)
            download_images(urls, folder / split)


def _read_lines(ref: FileRef) -> Iterator[tuple[str, bytes]]:
    """Yield each line that is not blank, and its place; a plain file is never read whole."""
    with (
        parsing(ref.path, DataError, "text"),
        open(ref.path, "rb") if ref.member is None else io.BytesIO(ref.read()) as file,
    ):
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{ref.member or ref.path}, line {number}", line


def _entry(name: str, found: Sequence[Narrative], place: FileRef) -> ImageEntry:
    """Join an image's narratives; ids are annotators', numbered if one spoke twice."""
    spoken: collections.Counter[str] = collections.Counter()
    ids = []
    for who in (narrative.annotator_id for narrative in found):
        spoken[who] += 1
        ids.append(f"{who}-{spoken[who]}" if spoken[who] > 1 else who)
    texts = tuple(narrative.text for narrative in found)
    return ImageEntry(place, name, texts, found[0].image_id, tuple(ids), found[0].dataset_id)
