"""Image files and folders that the data tests write."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

NUM_TRAIN, NUM_VALIDATION = 40, 10  # of shapes/tiny


def encode(pixels: np.ndarray | Image.Image, image_format: str = "PNG", **options) -> bytes:
    """Encode pixels as an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def photo(seed: int = 0, width: int = 24, height: int = 16) -> bytes:
    """Return a small JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(pixels, "JPEG")


def write_folder(root: Path, num: int = 4, **lines: dict) -> Path:
    """Write `num` photographs and a captions.jsonl; `lines` are further lines."""
    (root / "images").mkdir(parents=True)
    entries = []
    for i in range(num):
        (root / "images" / f"{i}.jpg").write_bytes(photo(i))
        split = "train" if i < num - 1 else "dev"
        captions = [f"a photo of {i}", f"number {i}"]
        entries.append({"image": f"images/{i}.jpg", "split": split, "captions": captions})
    entries.extend(lines.values())
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    return root
