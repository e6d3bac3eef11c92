"""COCO's captions and images, of 2014 or 2017, from its folders or its zips."""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmcgan.data.records import Prepared
from xmcgan.data.shards import Contents, ImageEntry, digest
from xmcgan.data.sources import MAX_CAPTION_CHARS, FileRef, clean_caption, find_images, list_files
from xmcgan.errors import DataError
from xmcgan.utils.download import PinnedFile, download
from xmcgan.utils.files import parsing

# Images by year; the paper's are those of 2014, and the field evaluates on all 40,504.
PUBLISHED = {
    "2014": {"train": 82_783, "val": 40_504},
    "2017": {"train": 118_287, "val": 5_000},
}
KARPATHY_PUBLISHED = {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}

_HOST = "http://images.cocodataset.org"
ARCHIVES = (
    PinnedFile(
        f"{_HOST}/annotations/annotations_trainval2014.zip",
        252_872_794,
        "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    PinnedFile(
        f"{_HOST}/zips/val2014.zip",
        6_645_013_297,
        "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
    PinnedFile(
        f"{_HOST}/zips/train2014.zip",
        13_510_573_713,
        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
)

_CAPTIONS = re.compile(r"captions_(train|val)(2014|2017)\.json")
_IMAGE_STEM = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})")


def image_key(stem: str) -> str:
    """Return the number of a COCO image from its file name's stem, empty for other files."""
    # The images of 2017 are those of 2014 under other names, by the same numbers.
    match = _IMAGE_STEM.fullmatch(stem)
    return str(int(match[1])) if match else ""


class Coco(Prepared):
    """COCO's captioned images (Lin et al., ECCV 2014; Chen et al., 2015)."""

    name = "coco"
    source_flags = "--source DIR (or --download)"

    @classmethod
    def download(cls, folder: Path) -> None:
        """Fetch the official archives, which `read` can read in place."""
        download(ARCHIVES, folder)

    @classmethod
    def read(
        cls, sources: Sequence[Path], *, year: str = "", karpathy: Path | None = None
    ) -> Contents:
        """Read the captions and find their images, in any folders; images are not opened yet.

        Args:
            year: "2014" or "2017"; empty: that of the captions that are there.
            karpathy: dataset_coco.json of Karpathy and Fei-Fei (CVPR 2015); replaces the splits.
        """
        files, year = _caption_files(sources, year)
        counts: collections.Counter[str] = collections.Counter()
        wanted: dict[str, str] = {}
        captions: dict[str, list[tuple[int, str]]] = {}
        origins: dict[str, str] = {}
        for split, (name, ref) in files.items():
            names, texts = _read_captions(ref.read(), name, counts)
            wanted |= names
            captions |= texts
            origins |= dict.fromkeys(names, split)
        places = find_images(sources, wanted, image_key, counts)
        counts["images without captions"] += sum(not captions.get(i) for i in places)
        splits_of = _karpathy_splits(karpathy, wanted) if karpathy else origins
        splits: dict[str, list[ImageEntry]] = {}
        for image_id in sorted(filter(captions.get, places), key=int):
            if image_id not in splits_of:
                counts["images outside Karpathy's splits"] += 1
                continue
            ids, texts = zip(*sorted(captions[image_id]), strict=True)
            known = texts, image_id, tuple(map(str, ids)), f"{origins[image_id]}{year}"
            entry = ImageEntry(places[image_id], wanted[image_id], *known)
            splits.setdefault(splits_of[image_id], []).append(entry)
        published = KARPATHY_PUBLISHED if karpathy else PUBLISHED[year]
        splits = {split: splits[split] for split in published if split in splits}
        return Contents(splits, recipe(splits), sources, +counts, published)


class CocoCaptions(Prepared):
    """COCO's captions as TFDS itself prepares them."""

    name = "coco_captions"

    @classmethod
    def command(cls, data_dir: Path, variant: str = "") -> str:
        del data_dir, variant
        return "tfds build coco_captions --file_format=array_record"

    @staticmethod
    def parse(features: Any) -> dict[str, Any]:
        return {
            "image": features["image"].bytes_list.value[0],
            "captions": [text.decode() for text in features["captions/text"].bytes_list.value],
            "name": features["image/filename"].bytes_list.value[0].decode(),
            "image_id": str(features["image/id"].int64_list.value[0]),
            "caption_ids": [str(number) for number in features["captions/id"].int64_list.value],
        }


def recipe(splits: Mapping[str, Sequence[ImageEntry]]) -> dict[str, str]:
    """Return what tells two preparations apart: a digest of names, sizes, splits and captions."""
    rows = (
        (split, e.name, e.size, e.captions, e.caption_ids)
        for split, entries in splits.items()
        for e in entries
    )
    return {"digest": digest(rows)}


def _caption_files(
    sources: Sequence[Path], year: str
) -> tuple[dict[str, tuple[str, FileRef]], str]:
    """Find captions_SPLITYEAR.json of one year, by split."""
    found: dict[str, dict[str, tuple[str, FileRef]]] = {}
    for path, ref in list_files(sources):
        match = _CAPTIONS.fullmatch(ref.name)
        if match and (not year or match[2] == year):
            found.setdefault(match[2], {}).setdefault(match[1], (path, ref))
    where = ", ".join(map(str, sources))
    if not found:
        name = f"captions_train{year or '2014'}.json"
        raise DataError(f"no {name} in {where}; it is in annotations_trainval{year or '2014'}.zip")
    if len(found) > 1:
        raise DataError(f"{where} has captions of 2014 and of 2017; choose with --year")
    ((year, files),) = found.items()
    return {split: files[split] for split in ("train", "val") if split in files}, year


def _read_captions(
    data: bytes, file: str, counts: collections.Counter[str]
) -> tuple[dict[str, str], dict[str, list[tuple[int, str]]]]:
    """Return file names by image id, and (caption id, caption) pairs by image id."""
    with parsing(file, DataError, 'captions of COCO, with "images" and "annotations"'):
        content = json.loads(data, object_hook=_trim)
        names = {str(i["id"]): i["file_name"].rpartition("/")[2] for i in content["images"]}
        annotations = list(content["annotations"])
    captions: dict[str, list[tuple[int, str]]] = {}
    for number, annotation in enumerate(annotations):
        with parsing(f'{file}: "annotations"[{number}]', DataError, "a caption"):
            image_id, caption_id = str(annotation["image_id"]), int(str(annotation["id"]))
            text = clean_caption(annotation["caption"], MAX_CAPTION_CHARS, counts)
        if image_id not in names:
            counts["captions of images that the file does not list"] += 1
        elif text:
            captions.setdefault(image_id, []).append((caption_id, text))
    return names, captions


def _trim(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop addresses and dates as they are parsed: most of the memory."""
    if "coco_url" in fields or "flickr_url" in fields:
        return {key: fields[key] for key in ("id", "file_name") if key in fields}
    return fields


def _karpathy_splits(path: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the split of each image id in dataset_coco.json."""
    with parsing(path, DataError, "Karpathy's dataset_coco.json"):
        images = json.loads(path.read_bytes())["images"]
        splits = {str(image["cocoid"]): str(image["split"]) for image in images}
        if unknown := set(splits.values()) - set(KARPATHY_PUBLISHED):
            raise ValueError(f"split {min(unknown)!r}")
        if not set(splits) & set(wanted):
            raise ValueError("none of its images has captions here")
    return splits
