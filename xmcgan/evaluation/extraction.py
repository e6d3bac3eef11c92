"""What metrics extract: from batches of images, and from the real images, which are cached."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from tqdm import tqdm

from xmcgan.data import Source
from xmcgan.data.images import Resize, decode_image, resize_image
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Arrays, Images, read_npz, save_npz
from xmcgan.evaluation.metrics import BuiltMetric
from xmcgan.evaluation.metrics.fid import mean_and_covariance
from xmcgan.utils.distributed import broadcast_from_host0, is_host0, raise_on_all

CHUNK = 512  # images in memory at once


@dataclasses.dataclass(frozen=True)
class RealImages:
    """Real images of a score, prepared as for training."""

    source: Source
    examples: Sequence[int]  # of the source
    size: int  # pixels
    resize: Resize
    recipe: Mapping[str, Any]  # which images of which data these are
    label: str  # the same for the name of a file
    captions: Sequence[str] | None = None  # None: the first one of each image
    mirrored: Bool[np.ndarray, "n"] | None = None

    def batches(self) -> Iterator[tuple[Images, Sequence[str]]]:
        """Images with their captions."""
        for start in range(0, len(self.examples), CHUNK):
            chunk = slice(start, start + CHUNK)
            with raise_on_all():
                examples = [self.source[index] for index in self.examples[chunk]]
                decoded = [decode_image(each.image, each.name) for each in examples]
                images = np.stack(
                    [resize_image(image, self.size, self.resize) for image in decoded]
                )
                if self.mirrored is not None:
                    rows = self.mirrored[chunk]
                    images[rows] = images[rows, :, ::-1]
            first = [each.captions[0] for each in examples]
            yield images, self.captions[chunk] if self.captions else first


def reference_arrays(
    metric: BuiltMetric, real: RealImages, cache_dir: Path
) -> dict[str, np.ndarray]:
    """Arrays of the real images; in process 0 alone if they are cached."""
    recipe = {**metric.recipe, **real.recipe}
    recipe |= {"image_size": real.size, "image_resize": real.resize, "n": len(real.examples)}
    recipe.pop("package_version", None)
    text = json.dumps(recipe, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    data = recipe["data"].replace("/", "_")
    name = f"{metric.prefix}_{data}_{recipe['split']}_{real.size}_{real.resize}_{real.label}"
    path = cache_dir / f"{name}_{digest}.npz"
    as_statistics = ("mu", "sigma", "n") if "protocol" in recipe else ()
    if broadcast_from_host0(path.exists):
        with raise_on_all():
            if not is_host0():
                return {}
            other = ("recipe", *as_statistics)
            return {key: array for key, array in read_npz(path).items() if key not in other}
    title = f"real images, {metric.prefix}"
    arrays = extract([metric], real.batches(), len(real.examples), title)[metric.extraction]
    with raise_on_all():
        if is_host0():
            stored = {**arrays, "recipe": np.array(text)}
            if as_statistics:  # `eval_fid.py compare` reads the file as statistics
                mu, sigma = mean_and_covariance(arrays["values"])
                stored |= {"mu": mu, "sigma": sigma, "n": np.array(len(arrays["values"]))}
            path.parent.mkdir(parents=True, exist_ok=True)
            save_npz(path, stored)
    return arrays


def extract(
    metrics: Sequence[BuiltMetric],
    batches: Iterator[tuple[Images, Sequence[str]]],
    expected: int,
    title: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of all images by `BuiltMetric.extraction`."""
    first = {}  # metrics of one recipe share what the first of them extracts
    for metric in metrics:
        first.setdefault(metric.extraction, metric.metric)
    parts: dict[str, list[Arrays]] = {key: [] for key in first}
    count = 0
    disable = None if is_host0() else True  # None: a bar on a terminal, nothing in a file of logs
    with tqdm(total=expected, desc=title, unit="image", leave=False, disable=disable) as progress:
        for images, captions in batches:
            for key, metric in first.items():
                arrays = metric.extract(images, captions)
                _check(arrays, len(images), count)
                parts[key].append(arrays)
            count += len(images)
            progress.update(len(images))
    if count != expected or not count:
        raise EvaluationError(f"{count} images came where {expected} were expected: no score")
    return {
        key: {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        for key, found in parts.items()
    }


def _check(arrays: Arrays, num: int, first: int) -> None:
    """Raise EvaluationError unless each of `num` images, counted from `first`, has a finite row."""
    if not isinstance(arrays, dict):
        raise EvaluationError("extract(images, captions) of a metric must return a dict")
    for name, array in arrays.items():
        if len(array) != num:
            raise EvaluationError(f"{num} images gave {len(array)} rows of {name}: no score")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            finite = np.isfinite(array).reshape(num, -1).all(axis=1)
            image = first + int(np.argmin(finite))
            raise EvaluationError(f"{name} of image {image} (from 0) are not finite: no score")
