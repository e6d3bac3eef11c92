"""Requests to images, and images to bytes: the same request gives the same bytes."""

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xmcgan.sampling.exploration import (
    WordAttention,
    interpolate_captions,
    interpolate_noise,
    word_attention,
    write_video,
)
from xmcgan.sampling.grid import image_grid
from xmcgan.sampling.sample_files import MANIFEST
from xmcgan.sampling.sampler import sample_noise
from xmcgan.serving.models import Models
from xmcgan.serving.requests import Ask

FRAMES = 16  # of a way; always as many, so that one program is enough
_EPOCH = (1980, 1, 1, 0, 0, 0)  # in a zip, so that its bytes depend on nothing but the request


class Drawn(NamedTuple):
    """Images with their manifest, as scripts/generate.py writes it, and notes for the reader."""

    images: UInt8[np.ndarray, "n h w 3"]
    manifest: dict[str, Any]
    notes: list[str]


def generate(models: Models, requests: Sequence[Ask]) -> list[Drawn]:
    """Sample the images of several requests to one model in one batch."""
    model = models.get(requests[0].key)
    tokenizer, z_dim = model.sampler.tokenizer, model.sampler.generator.z_dim
    captions: list[str] = []
    noises, rows_of = [], []
    for request in requests:
        total = len(request.captions) * request.num
        rows = np.arange(total) % request.num if request.shared_noise else np.arange(total)
        noises.append(sample_noise(request.seed, rows.max() + 1, z_dim, request.truncation)[rows])
        rows_of.append(rows)
        captions += [caption for caption in request.captions for _ in range(request.num)]
    images = model(captions, np.concatenate(noises))
    drawn, start = [], 0
    for request, rows in zip(requests, rows_of, strict=True):
        end = start + len(rows)
        entries = [
            {"file": f"{n // request.num:04d}_{n % request.num:02d}.png",
             "caption": caption, "noise": int(row)}
            for n, (caption, row) in enumerate(zip(captions[start:end], rows, strict=True))
        ]  # fmt: skip
        manifest = {**model.origin, "seed": request.seed, "truncation": request.truncation}
        notes = [
            f"the model reads {tokenizer.max_tokens - 2} word pieces of a caption, not all of "
            f"“{caption}”"
            for caption in filter(tokenizer.is_cut, request.captions)
        ]
        drawn.append(Drawn(images[start:end], {**manifest, "images": entries}, notes))
        start = end
    return drawn


def between(models: Models, requests: Sequence[Ask]) -> list[UInt8[np.ndarray, "n h w 3"]]:
    """Sample the images of a way."""
    (request,) = requests
    model = models.get(request.key)
    z_dim = model.sampler.generator.z_dim
    seeds = request.seed, request.end_seed
    ends = [sample_noise(seed, 1, z_dim, request.truncation)[0] for seed in seeds]
    noise = interpolate_noise(ends[0], ends[1], FRAMES)
    if request.captions[0] == request.captions[1]:
        return [model([request.captions[0]] * FRAMES, noise)]
    return [interpolate_captions(model, request.captions[0], request.captions[1], noise)]


def attend(models: Models, requests: Sequence[Ask]) -> list[WordAttention]:
    """Sample an image with the share of each word in each region."""
    (request,) = requests
    model = models.get(request.key)
    z_dim = model.sampler.generator.z_dim
    noise = sample_noise(request.seed, 1, z_dim, request.truncation)[0]
    return [word_attention(model, request.captions[0], noise)]


def encode_drawn(drawn: Drawn, request: Ask) -> tuple[bytes, str]:
    """Return the answer to a request and its media type."""
    if request.format == "json":
        images = [_base64(image) for image in drawn.images]
        return json_bytes(
            {"images": images, "manifest": drawn.manifest, "notes": drawn.notes}
        ), "application/json"
    grid = io.BytesIO()
    total = len(drawn.images)
    columns = request.num if min(request.num, len(request.captions)) > 1 else min(total, 4)
    captions = [entry["caption"] for entry in drawn.manifest["images"]]
    image_grid(drawn.images, captions, columns).save(grid, "PNG")
    if request.format == "png":
        return grid.getvalue(), "image/png"
    names = [entry["file"] for entry in drawn.manifest["images"]]
    files = dict(zip(names, map(_png, drawn.images), strict=True))
    files |= {"grid.png": grid.getvalue(), MANIFEST: json_bytes(drawn.manifest, indent=1)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return archive.getvalue(), "application/zip"


def encode_attention(attention: WordAttention, _: Ask) -> tuple[bytes, str]:
    """Return the answer to a request and its media type."""
    image, words, maps = attention
    values = {"image": _base64(image), "words": words, "maps": maps.round(4).tolist()}
    return json_bytes(values), "application/json"


def encode_between(images: UInt8[np.ndarray, "n h w 3"], request: Ask) -> tuple[bytes, str]:
    """Return the answer to a request and its media type."""
    if request.format == "gif":
        with tempfile.TemporaryDirectory() as folder:
            return write_video(Path(folder) / "way.gif", images).read_bytes(), "image/gif"
    return json_bytes({"images": [_base64(image) for image in images]}), "application/json"


# By route: how to sample requests, and how to answer one with its result.
ROUTES: dict[str, tuple[Callable, Callable]] = {
    "generate": (generate, encode_drawn),
    "between": (between, encode_between),
    "attention": (attend, encode_attention),
}


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Return JSON in UTF-8, without spaces as JavaScript writes it, or indented."""
    separators = (",", ":") if indent is None else None
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators).encode()


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def _base64(image: UInt8[np.ndarray, "h w 3"]) -> str:
    return base64.b64encode(_png(image)).decode()
