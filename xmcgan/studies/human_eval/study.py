"""What a page asks: which captions, which images, in which order, and what checks attention."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xmcgan.data.images import decode_image, resize_image
from xmcgan.errors import DataError
from xmcgan.studies.human_eval.folders import ModelImages

FORMAT = "xmcgan-ranking-1"
WEBP_QUALITY = 90
NOISE_CELLS = 32  # cells along a side of the noise image; visibly noise at any size


@dataclasses.dataclass(frozen=True)
class Shown:
    """Hold one image of an item.

    Attributes:
        id: its name in the page; says nothing.
        model: who drew it; None for the noise of an attention check.
        file: where it was read.
        webp: the encoded pixels.
    """

    id: str
    model: str | None
    file: str
    webp: bytes


@dataclasses.dataclass(frozen=True)
class Item:
    """Hold a caption and its images, in random order."""

    id: str
    caption: str
    images: tuple[Shown, ...]

    @property
    def is_check(self) -> bool:
        """Whether this checks attention: one image is noise, which has to come last."""
        return any(image.model is None for image in self.images)


def build_items(
    models: Sequence[ModelImages], num: int | None, *, checks: int, seed: int, image_size: int
) -> list[Item]:
    """Choose captions and one image of each model, and put all in random order.

    Of a caption with several images, the i-th of each model is taken, i drawn at random. An
    attention check is an item in which noise stands for one of the models' images; its captions
    are others than the chosen ones as long as there are any.

    Args:
        models: with the same captions.
        num: captions; None for 50, or all where there are fewer.
        checks: attention checks besides.
        seed: of all that is drawn.
        image_size: side in pixels that all images are brought to (central square).

    Raises:
        DataError: there are fewer captions, or an image cannot be read.
    """
    rng = np.random.default_rng(seed)
    captions = sorted(models[0].files)
    num = min(50, len(captions)) if num is None else num
    if not 1 <= num <= len(captions):
        raise DataError(f"--num {num}: the folders have {len(captions)} different captions")
    order = [captions[index] for index in rng.permutation(len(captions))]
    chosen, others = order[:num], order[num:] + order[:num]
    items = [_item(models, caption, rng, image_size, None) for caption in chosen]
    for index in range(checks):
        noisy = int(rng.integers(len(models)))
        items.append(_item(models, others[index % len(others)], rng, image_size, noisy))
    return [items[index] for index in rng.permutation(len(items))]


def page_data(items: Sequence[Item]) -> tuple[str, list[dict[str, Any]]]:
    """Return the page's id, a digest of all that it shows, and its items without any model."""
    sha = hashlib.sha256(FORMAT.encode())
    shown = []
    for item in items:
        sha.update(json.dumps([item.id, item.caption]).encode())
        for image in item.images:
            sha.update(image.id.encode() + hashlib.sha256(image.webp).digest())
        images = [{"id": image.id, "webp": image.webp} for image in item.images]
        shown.append({"id": item.id, "caption": item.caption, "images": images})
    return sha.hexdigest()[:16], shown


def _item(
    models: Sequence[ModelImages],
    caption: str,
    rng: np.random.Generator,
    image_size: int,
    noisy: int | None,
) -> Item:
    which = int(rng.integers(min(len(model.files[caption]) for model in models)))
    images = []
    for index, model in enumerate(models):
        if index == noisy:
            images.append(Shown(_id(rng), None, "", encode_webp(_noise(rng, image_size))))
            continue
        file = model.files[caption][which]
        try:
            pixels = decode_image(model.store.read(file), file)
        except DataError as error:
            raise DataError(f"{error} ({model.store.source})") from None
        webp = encode_webp(resize_image(pixels, image_size, "crop"))
        images.append(Shown(_id(rng), model.name, file, webp))
    shuffled = tuple(images[index] for index in rng.permutation(len(images)))
    return Item(_id(rng), caption, shuffled)


def _id(rng: np.random.Generator) -> str:
    return rng.bytes(6).hex()


def _noise(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    cells = rng.integers(0, 256, (NOISE_CELLS, NOISE_CELLS, 3), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.NEAREST))


def encode_webp(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return pixels as a WebP file, which even for white noise takes 2 bits a pixel."""
    buffer = io.BytesIO()
    # Pictures of flat colours keep their edges only if colour is halved with care (sharp YUV).
    image = Image.fromarray(pixels)
    image.save(buffer, "WEBP", quality=WEBP_QUALITY, use_sharp_yuv=True)
    return buffer.getvalue()
