"""Encoded image bytes to RGB pixels, with one defined result for every kind of file."""

import contextlib
import io
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from xmcgan.errors import DataError

Resize = Literal["crop", "squash", "squash_bilinear"]
RESIZE_MODES = ("crop", "squash", "squash_bilinear")
# A 64-megapixel photograph; what is larger is taken for a decompression bomb.
MAX_PIXELS = 64_000_000
# Not all that Pillow knows: it hands EPS files to Ghostscript, which runs them as programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_JPEG_END = b"\xff\xd9"

# Buffers of decoded images are kept for the next ones: new pages of memory cost 5 % of decoding.
KEPT_BLOCKS = 16
Image.core.set_blocks_max(KEPT_BLOCKS)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode: 16 bits keep the high byte, transparency is laid over white."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError(f"image {name}: integer pixels outside 0..65535 cannot be shown")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"image {name}: floating-point pixels have no defined range; save 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # Copies of whole photographs cost as much as half of their decoding.
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_image(data: bytes | UInt8[np.ndarray, "h w 3"], name: str) -> Image.Image:
    """Decode a whole image, in one of `FORMATS` whatever its name says, to upright RGB.

    Grayscale and CMYK are converted, palettes looked up, transparency is laid over white, 16-bit
    values keep their high byte, EXIF orientation is applied, of an animation the first frame is
    taken. Pixels are taken as they are.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            raise DataError(f"image {name} must be uint8 (h, w, 3), not {data.dtype} {data.shape}")
        return Image.fromarray(data)
    if not data:
        raise DataError(f"image {name} is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width} x {image.height}"
            raise DataError(f"image {name} is {size}, more than the {MAX_PIXELS:,} pixels allowed")
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, name)
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise many types on damaged files
        raise DataError(f"image {name} cannot be decoded: {error}") from error


def check_image(data: bytes, name: str) -> None:
    """Check that an image can be decoded; a JPEG file by its header and its end, others fully.

    Decoding every JPEG file would take 20 times as long as storing it. What this lets pass, such as
    a byte flipped among the pixels, decodes to some picture or stops training by name.
    """
    if data.endswith(_JPEG_END):
        with contextlib.suppress(Exception):  # which decoding raises again
            width, height = Image.open(io.BytesIO(data), formats=("JPEG",)).size
            if width * height <= MAX_PIXELS:
                return
    decode_image(data, name)


def resize_image(image: Image.Image, size: int, resize: Resize) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an RGB image to (size, size) with Pillow's antialiased bicubic filter.

    "crop" keeps proportions and the central square, "squash" scales both sides. "squash_bilinear"
    does so without antialiasing, as the official code (but rounded to 8 bits).
    """
    if resize == "squash_bilinear":
        return _resize_bilinear(np.asarray(image), size)
    box = None
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _resize_bilinear(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Bilinear interpolation at half-pixel centers, as `tf.image.resize` without antialiasing."""
    values = pixels.astype(np.float32)
    for axis, side in enumerate(pixels.shape[:2]):
        places = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
        low = np.floor(places).astype(int)
        weight = np.expand_dims((places - low).astype(np.float32), (1 - axis, 2))
        below, above = (values.take(row, axis) for row in (low, np.minimum(low + 1, side - 1)))
        values = below + weight * (above - below)
    return (values + 0.5).astype(np.uint8)
