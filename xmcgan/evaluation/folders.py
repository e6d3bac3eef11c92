"""Score folder against folder, without a training run: compare, features, stats.

All processes read all images and share the network's work; process 0 scores and writes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from xmcgan.data.images import Resize, decode_image, resize_image
from xmcgan.data.sources import IMAGE_SUFFIXES, ImageStore
from xmcgan.errors import EvaluationError, listed
from xmcgan.evaluation.extraction import extract
from xmcgan.evaluation.features import Networks, check_writable, read_npz, save_npz
from xmcgan.evaluation.metrics import BuiltMetric, Context, build_metrics, quality_metrics
from xmcgan.evaluation.metrics.fid import frechet_score, mean_and_covariance, too_few
from xmcgan.evaluation.protocols import FeatureProtocol
from xmcgan.sampling.sample_files import MANIFEST
from xmcgan.utils.distributed import is_host0, raise_on_all, require_same
from xmcgan.utils.files import parsing
from xmcgan.utils.mesh import make_mesh
from xmcgan.utils.provenance import fingerprint_differences, provenance
from xmcgan.utils.statistics import Score, check_resamples

_READ_BATCH = 32  # images at least that are decoded together
# What two sets of features must have in common; their images, and how many, may differ.
_COMPARED = ("protocol", "network", "resize", "scaling", "weights_sha256")


@dataclasses.dataclass(frozen=True)
class Options:
    """How images become features."""

    protocol: FeatureProtocol
    weights: str | None = None  # path of the network's; None: the protocol's own
    allow_unverified: bool = False  # accept weights that are not the published file
    image_size: int | None = None  # side in pixels to bring images to first; None: as stored
    resize: Resize = "crop"
    num_samples: int | None = None  # random images of each set; None: all
    seed: int = 0  # of that choice and of the bootstrap
    batch_size: int | None = None  # None fits the devices


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of n images; None and {} if a file does not say."""

    mu: Float[np.ndarray, "d"]
    sigma: Float[np.ndarray, "d d"]
    n: int | None
    recipe: Mapping[str, Any]
    path: Path | None = None  # where they were loaded from

    def save(self, path: Path) -> None:
        """Write a .npz, atomically."""
        arrays = {"mu": self.mu, "sigma": self.sigma, "n": np.array(self.n)}
        save_npz(path, arrays | {"recipe": np.array(json.dumps(self.recipe, sort_keys=True))})

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote, or mu and sigma alone, as pytorch-fid and TTUR write them."""
        arrays = read_npz(path)
        if missing := {"mu", "sigma"} - arrays.keys():
            raise EvaluationError(
                f"{path} lacks {' and '.join(sorted(missing))} (it has: {', '.join(arrays)})"
            )
        mu, sigma = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        if mu.ndim != 1 or sigma.shape != mu.shape * 2 or not np.isfinite(mu.sum() + sigma.sum()):
            shapes = f"mu {mu.shape} and sigma {sigma.shape}"
            raise EvaluationError(f"{path}: {shapes} do not fit together, or are not finite")
        with parsing(path, EvaluationError, "a file of statistics, by its n or recipe"):
            recipe = json.loads(str(arrays["recipe"])) if "recipe" in arrays else {}
            n = int(arrays["n"]) if "n" in arrays else None
            return cls(mu, sigma, n, {**recipe}, path)

    def describe(self) -> dict[str, Any]:
        """What is known of the images, as JSON values."""
        images, size = self.recipe.get("images", {}), self.recipe.get("image_size")
        if isinstance(images, str):  # a job's references, described in the recipe itself
            names = ("images", "data", "split", "image_resize", "mirrored")
            known = {name: self.recipe[name] for name in names if name in self.recipe}
            prepared = f"{images}, as for training"
            images = known | {"image_size": [size, size], "preparation": prepared}
        return {**images, "statistics": str(self.path), "num_images": self.n}


class ImageFolder:
    """Images of a directory or of a zip, resized if asked for; all, or `num` random ones."""

    def __init__(
        self,
        path: Path,
        image_size: int | None = None,
        resize: Resize = "crop",
        num: int | None = None,
        seed: int = 0,
    ) -> None:
        self.path, self._image_size, self._chosen = path, image_size, {}
        self._resize: Resize = resize
        self._store = ImageStore(path)
        self._digests: dict[str, bytes] = {}
        self.names = _names(self._store)
        total = len(self.names)
        if not total:
            raise EvaluationError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        if num is not None:  # at random: the first names are often of one class
            if not 1 <= num <= total:
                raise EvaluationError(f"{num} images were asked for, and {path} has {total}")
            indices = np.random.default_rng(seed).choice(total, num, replace=False)
            self.names = [self.names[index] for index in sorted(indices)]
            self._chosen = {"chosen": f"{num} of {total} by numpy.random.default_rng({seed})"}

    @functools.cached_property
    def _shape(self) -> tuple[int, ...]:
        return self._pixels(self.names[0]).shape

    def batches(self, batch_size: int = _READ_BATCH) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
        """All images; files are read and decoded by threads, a batch ahead."""
        starts = range(0, len(self.names), batch_size)
        chunks = [self.names[start : start + batch_size] for start in starts]
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            ahead = pool.map(self._pixels, chunks[0])
            for names, following in zip(chunks, [*chunks[1:], []], strict=True):
                with raise_on_all():
                    images = list(ahead)
                    ahead = pool.map(self._pixels, following)
                    for name, image in zip(names, images, strict=True):
                        self._check_shape(name, image)
                yield np.stack(images)

    def _check_shape(self, name: str, image: np.ndarray) -> None:
        if image.shape != self._shape:
            (height, width, _), (other_height, other_width, _) = self._shape, image.shape
            raise EvaluationError(
                f"{self.path} has images of several sizes: {self.names[0]} is {width} x {height}, "
                f"{name} is {other_width} x {other_height}; resize them with --image-size"
            )

    def describe(self) -> dict[str, Any]:
        """Which images these are and how pixels are made of them, as JSON values."""
        size = self._image_size
        return {
            "source": str(self.path),
            "num_images": len(self.names),
            "images_sha256": self.digest(),
            "image_size": list(self._shape[:2]),
            "preparation": f"{self._resize} to {size}, bicubic" if size else "as stored",
            **self._chosen,
        }

    def digest(self) -> str:
        """sha256 over each image's name and the sha256 of its file."""
        sha = hashlib.sha256()
        for name in self.names:
            if name not in self._digests:
                self._read(name)
            sha.update(os.fsencode(name) + b"\0" + self._digests[name])
        return sha.hexdigest()

    def _read(self, name: str) -> bytes:
        data = self._store.read(name)
        self._digests[name] = hashlib.sha256(data).digest()
        return data

    def _pixels(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        image, size = decode_image(self._read(name), f"{self.path}/{name}"), self._image_size
        return resize_image(image, size, self._resize) if size else np.asarray(image)


def _names(store: ImageStore) -> list[str]:
    """Images of a folder; of one of samples those of its manifest, without the grid."""
    manifests = [name for name in store if PurePosixPath(name).name == MANIFEST]
    if len(manifests) > 1:
        raise EvaluationError(
            f"{store.source} holds several sets of samples, each with a {MANIFEST}; name one:"
            f"{listed([str(PurePosixPath(name).parent) for name in sorted(manifests)])}"
        )
    if manifests == [MANIFEST]:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # of another program
            files = {str(entry["file"]) for entry in json.loads(store.read(MANIFEST))["images"]}
            return [name for name in store.images() if name in files]
    return store.images()


def compare(
    real: Path, fake: Path, options: Options, *, resamples: int, allow_foreign: bool = False
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Scores, and their recipe, of two sets of images (directory, zip, or .npz statistics).

    Statistics have a Frechet distance only. `allow_foreign` accepts statistics that do not say how
    they were made. Only process 0 returns anything.
    """
    protocol = options.protocol
    with raise_on_all():
        check_resamples(resamples)
        sides = [
            Statistics.load(path) if path.suffix == ".npz" else _open_images(path, options)
            for path in (real, fake)
        ]
        has_images = any(isinstance(side, ImageFolder) for side in sides)
        metrics = _build_metrics(options, resamples) if has_images else []
        recipe = dict(metrics[0].recipe) if metrics else {}
        for side in sides:
            if isinstance(side, Statistics):
                check_statistics(side, protocol, recipe, allow_foreign)
                known = (*_COMPARED, "weights_verified")
                recipe = recipe or {key: side.recipe.get(key) for key in known}
    arrays = [
        vars(side) if isinstance(side, Statistics) else _extract(metrics, side, options)
        for side in sides
    ]
    with raise_on_all():
        if not is_host0():
            return {}, {}
        scores: dict[str, Score] = {}
        if all("values" in each for each in arrays):
            for metric in metrics:
                scores |= metric.metric.compute(*arrays)
        else:
            score = frechet_score(*arrays, resamples=resamples, seed=options.seed)
            scores[protocol.label.lower()] = score
        described = [side.describe() for side in sides]
    _warn(described, protocol)
    recipe |= provenance() | {"bootstrap": resamples, "seed": options.seed}
    return scores, recipe | {"real": described[0], "fake": described[1]}


def write(images: Path, out: Path, options: Options, *, statistics: bool) -> int:
    """Write names, features and logits, or statistics, to a .npz; return the number of images."""
    with raise_on_all():
        if is_host0():
            check_writable(out)
        folder = _open_images(images, options)
        if statistics:
            _require_frechet(options.protocol)
        metrics = _build_metrics(options)
    arrays = _extract(metrics, folder, options)
    with raise_on_all():
        if is_host0() and statistics:
            _warn([folder.describe()], options.protocol)
            recipe = metrics[0].recipe | provenance() | {"images": folder.describe()}
            moments = mean_and_covariance(arrays["values"])
            Statistics(*moments, len(folder.names), recipe).save(out)
        elif is_host0():
            named = {"names": np.array(folder.names), "features": arrays["values"]}
            save_npz(out, named | {"logits": arrays["logits"]})
    return len(folder.names)


def _open_images(path: Path, options: Options) -> ImageFolder:
    num, seed = options.num_samples, options.seed
    return ImageFolder(path, options.image_size, options.resize, num, seed)


def _build_metrics(options: Options, resamples: int = 0) -> list[BuiltMetric]:
    """All metrics of the protocol's features, which they share."""
    name = options.protocol.name
    weights = {name: options.weights} if options.weights else {}
    networks = Networks(make_mesh(), options.batch_size, options.allow_unverified, weights)
    context = Context(networks, seed=options.seed, resamples=resamples)
    return build_metrics(quality_metrics([name]), [name], context)


def _extract(
    metrics: Sequence[BuiltMetric], folder: ImageFolder, options: Options
) -> dict[str, np.ndarray]:
    name, num, unit = folder.path.name, len(folder.names), metrics[0].metric.extractor.batch_size
    same = {"--batch-size": options.batch_size, "network": metrics[0].recipe}
    require_same({f"number of images in {name}": num, **same})
    batches = ((images, ()) for images in folder.batches(-(-_READ_BATCH // unit) * unit))
    arrays = extract(metrics, batches, num, name)
    # Else a score would be of one half of each.
    require_same({f"images of {name}": folder.describe() | {"source": ""}})
    return arrays[metrics[0].extraction]


def check_statistics(
    statistics: Statistics,
    protocol: FeatureProtocol,
    recipe: Mapping[str, Any],
    allow_foreign: bool,
) -> None:
    """Raise EvaluationError if statistics are not of the features of a recipe."""
    _require_frechet(protocol)
    path = statistics.path
    if statistics.mu.size != protocol.num_features:
        raise EvaluationError(
            f"{path} has {statistics.mu.size} dimensions, not the {protocol.num_features} of "
            f"{protocol.name}"
        )
    if not statistics.recipe and not allow_foreign:
        raise EvaluationError(
            f"{path} does not say how it was made: if by {protocol.name}, pass "
            "--allow-foreign-statistics (files of pytorch-fid are fid-pytorch, of TTUR fid-2015)"
        )
    wanted = {key: recipe[key] for key in _COMPARED if key in recipe} or {"protocol": protocol.name}
    stored = {key: statistics.recipe.get(key) for key in wanted}
    if statistics.recipe and (differing := fingerprint_differences(stored, wanted)):
        raise EvaluationError(f"{path} was made differently ({'; '.join(differing)})")


def _require_frechet(protocol: FeatureProtocol) -> None:
    if protocol.label == "PR":
        raise EvaluationError(
            f"{protocol.name} compares images with images, not their means and covariances"
        )


def _warn(described: Sequence[Mapping[str, Any]], protocol: FeatureProtocol) -> None:
    warnings = []
    for each in described if protocol.label != "PR" else ():
        if note := too_few(each["num_images"], protocol.num_features):
            warnings.append(f"{each.get('statistics') or each['source']}: {note}")
    sizes = [each["image_size"] for each in described if "image_size" in each]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        warnings.append(f"{sizes[0]} pixels are compared with {sizes[1]}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
