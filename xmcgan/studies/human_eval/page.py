"""One self-contained HTML page that asks for rankings, and its key, which says who drew what.

The page needs no server and no network, and has no model names: they are in the key alone.
"""

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xmcgan.data.images import decode_image, resize_image
from xmcgan.errors import DataError
from xmcgan.studies.human_eval.models import ModelImages
from xmcgan.utils.files import parsing, write_text, writing

FORMAT = "xmcgan-ranking-1"
DEFAULT_TITLE = "Which picture is better?"
DEFAULT_NUM = 50
MAX_PAGE_BYTES = 25_000_000  # an e-mail attachment
WEBP_QUALITY = 90
NOISE_CELLS = 32  # cells along a side of the noise image; visibly noise at any size


@dataclasses.dataclass(frozen=True)
class ShownImage:
    """Image of an item; `model` is None for the noise of an attention check."""

    id: str  # says nothing
    model: str | None
    file: str


@dataclasses.dataclass(frozen=True)
class Item:
    """Caption and its images, one of each model, in random order."""

    id: str
    caption: str
    images: tuple[ShownImage, ...]

    @property
    def models(self) -> dict[str, str | None]:
        """Model by image id."""
        return {image.id: image.model for image in self.images}

    @property
    def noise(self) -> str | None:
        """Id of the image that an attentive rater puts last; None if this is no check."""
        return next((image.id for image in self.images if image.model is None), None)


@dataclasses.dataclass(frozen=True)
class Key:
    """What joins answers with models."""

    page: str
    models: tuple[str, ...]
    items: Mapping[str, Item]  # by id


def write_page(
    models: Sequence[ModelImages],
    out: Path,
    *,
    num: int | None = None,
    checks: int | None = None,
    seed: int = 0,
    image_size: int = 256,
    title: str = DEFAULT_TITLE,
) -> tuple[Path, Path]:
    """Write a page of `num` captions and `checks` attention checks, and its key beside it."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--out {out}: must end in .html")
    available = len(models[0].files)
    num = min(DEFAULT_NUM, available) if num is None else num
    if not 1 <= num <= available:
        raise DataError(f"--num {num}: the folders have {available} different captions")
    checks = max(2, round(num / 10)) if checks is None else checks
    items, webp = _choose_items(models, num, checks, seed, image_size)
    page = _page_id(items, webp)
    text = render(page, items, webp, title)
    size = len(text.encode())
    if size > MAX_PAGE_BYTES:
        raise DataError(
            f"the page would have {size / 1e6:.0f} MB: lower --image-size ({image_size}) or --num"
        )
    key = out.with_name(f"{out.stem}.key.json")
    if key.exists() and read_key(key).page != page:
        raise DataError(f"{key} belongs to another page: choose another --out")
    content = {"format": FORMAT, "page": page, "seed": seed}
    content |= {"models": [model.name for model in models]}
    content |= {"items": [dataclasses.asdict(item) for item in items]}
    with writing(out, DataError):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(key, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_text(out, text)
    return out, key


def read_key(path: Path) -> Key:
    """Read the key of a page; raises DataError if it is none."""
    with parsing(path, DataError, "a key of a ranking page"):
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        items = [
            Item(item["id"], item["caption"], tuple(ShownImage(**each) for each in item["images"]))
            for item in content["items"]
        ]
        return Key(content["page"], tuple(content["models"]), {item.id: item for item in items})


def render(page: str, items: Sequence[Item], webp: Mapping[str, bytes], title: str) -> str:
    """Return the text of a page, given its id and the files of its images by their id."""
    shown = [
        {"id": item.id, "caption": item.caption, "images": [
            {"id": image.id, "webp": base64.b64encode(webp[image.id]).decode()}
            for image in item.images
        ]}
        for item in items
    ]  # fmt: skip
    content = {"format": FORMAT, "page": page, "items": shown}
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _part("page.css"),
        "PROGRAM": _part("page.js"),
        # "<" would let a caption such as "</script>" end the data.
        "STUDY": json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"),
    }
    return re.sub("@@([A-Z]+)@@", lambda mark: parts[mark[1]], _part("page.html"))


def encode_webp(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return pixels as a WebP file, which even for white noise takes 2 bits per pixel."""
    buffer = io.BytesIO()
    # Flat colors keep their edges only if chroma is halved with care (sharp YUV).
    Image.fromarray(pixels).save(buffer, "WEBP", quality=WEBP_QUALITY, use_sharp_yuv=True)
    return buffer.getvalue()


def _choose_items(
    models: Sequence[ModelImages], num: int, checks: int, seed: int, image_size: int
) -> tuple[list[Item], dict[str, bytes]]:
    """Return captions with one image of each model, in random order, and WebP files by id."""
    rng = np.random.default_rng(seed)
    webp: dict[str, bytes] = {}

    def image(model: ModelImages | None, file: str) -> ShownImage:
        shown = ShownImage(rng.bytes(6).hex(), model.name if model else None, file)
        if model is None:
            cells = rng.integers(0, 256, (NOISE_CELLS, NOISE_CELLS, 3), np.uint8)
            size = (image_size, image_size)
            pixels = np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST))
        else:
            data = model.store.read(file)
            pixels = decode_image(data, f"{file} in {model.store.source}")
            pixels = resize_image(pixels, image_size, "crop")
        webp[shown.id] = encode_webp(pixels)
        return shown

    def item(caption: str, noisy: int | None) -> Item:
        # Of several images of the caption, the i-th of each model is taken.
        i = int(rng.integers(min(len(model.files[caption]) for model in models)))
        images = [
            image(None, "") if index == noisy else image(model, model.files[caption][i])
            for index, model in enumerate(models)
        ]
        shuffled = tuple(images[index] for index in rng.permutation(len(images)))
        return Item(rng.bytes(6).hex(), caption, shuffled)

    captions = sorted(models[0].files)
    order = [captions[index] for index in rng.permutation(len(captions))]
    items = [item(caption, None) for caption in order[:num]]
    # Checks have other captions than the chosen ones as long as there are any.
    others = order[num:] + order[:num]
    for index in range(checks):
        items.append(item(others[index % len(others)], int(rng.integers(len(models)))))
    return [items[index] for index in rng.permutation(len(items))], webp


def _page_id(items: Sequence[Item], webp: Mapping[str, bytes]) -> str:
    """Return a digest of all that the page shows."""
    sha = hashlib.sha256(FORMAT.encode())
    for item in items:
        sha.update(json.dumps([item.id, item.caption]).encode())
        for image in item.images:
            sha.update(image.id.encode() + hashlib.sha256(webp[image.id]).digest())
    return sha.hexdigest()[:16]


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
