"""Score folder against folder, without a training run: compare, features, stats.

All processes read all images and share the network's work; process 0 scores and writes.
"""

import contextlib
import dataclasses
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
from tqdm import tqdm

from xmcgan.data.images import Resize, decode_image, resize_image
from xmcgan.data.sources import IMAGE_SUFFIXES, ImageStore
from xmcgan.errors import EvaluationError, listed
from xmcgan.evaluation.features import (
    FeatureExtractor,
    Networks,
    Rows,
    check_writable,
    read_npz,
    save_npz,
)
from xmcgan.evaluation.metrics import Context, build_metrics, quality_metrics
from xmcgan.evaluation.metrics.fid import frechet_score, mean_and_covariance
from xmcgan.evaluation.protocols import FeatureProtocol
from xmcgan.sampling.sample_files import MANIFEST
from xmcgan.utils.distributed import is_host0, raise_on_all, require_same
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
                f"{path} lacks {' and '.join(sorted(missing))} (it has: {', '.join(arrays)}); make "
                "it with eval_fid.py stats"
            )
        mu, sigma = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        if mu.ndim != 1 or sigma.shape != mu.shape * 2 or not np.isfinite(mu.sum() + sigma.sum()):
            shapes = f"mu {mu.shape} and sigma {sigma.shape}"
            raise EvaluationError(f"{path}: {shapes} do not fit together, or are not finite")
        try:
            recipe = json.loads(str(arrays["recipe"])) if "recipe" in arrays else {}
            n = int(arrays["n"]) if "n" in arrays else None
            return cls(mu, sigma, n, {**recipe})
        except (TypeError, ValueError) as error:
            raise EvaluationError(f"{path}: its n or recipe is damaged: {error}") from None


class ImageFolder:
    """Images (all, or `names`, `chosen` how) of a directory or of a zip, resized if asked for."""

    def __init__(
        self,
        path: Path,
        image_size: int | None = None,
        resize: Resize = "crop",
        names: Sequence[str] | None = None,
        chosen: str = "",
    ) -> None:
        self._store = ImageStore(path)
        self.path, self._image_size, self._chosen = path, image_size, chosen
        self._resize: Resize = resize
        self._digests: dict[str, bytes] = {}
        self.names = list(_sampled(self._store, path) if names is None else names)
        if not self.names:
            raise EvaluationError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, num: int, seed: int = 0) -> "ImageFolder":
        """`num` random images: the first names are often of one class."""
        if not 1 <= num <= len(self):
            raise EvaluationError(f"{num} images were asked for, and {self.path} has {len(self)}")
        indices = np.random.default_rng(seed).choice(len(self), num, replace=False)
        names = [self.names[index] for index in sorted(indices)]
        chosen = f"{num} of {len(self)} by numpy.random.default_rng({seed})"
        return ImageFolder(self.path, self._image_size, self._resize, names, chosen)

    def batches(
        self, batch_size: int = _READ_BATCH, workers: int | None = None
    ) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
        """All images; files are read and decoded by threads, a batch ahead."""
        starts = range(0, len(self), batch_size)
        chunks = [self.names[start : start + batch_size] for start in starts]
        shape = self._pixels(self.names[0]).shape
        with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as pool:
            ahead = pool.map(self._pixels, chunks[0])
            for names, following in zip(chunks, [*chunks[1:], []], strict=True):
                images = list(ahead)
                ahead = pool.map(self._pixels, following)
                for name, image in zip(names, images, strict=True):
                    if image.shape != shape:
                        raise EvaluationError(
                            f"{self.path} has images of several sizes: {self.names[0]} is "
                            f"{shape[1]} x {shape[0]}, {name} is {image.shape[1]} x "
                            f"{image.shape[0]}; resize them with --image-size"
                        )
                yield np.stack(images)

    def recipe(self) -> dict[str, Any]:
        """Which images these are and how pixels are made of them, as JSON values."""
        size, chosen = self._image_size, self._chosen
        return {
            "source": str(self.path),
            "num_images": len(self),
            "images_sha256": self.digest(),
            "image_size": list(self._pixels(self.names[0]).shape[:2]),
            "preparation": f"{self._resize} to {size}, bicubic" if size else "as stored",
            **({"chosen": chosen} if chosen else {}),
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


def _sampled(store: ImageStore, path: Path) -> list[str]:
    """Images of a folder; of one of samples those of its manifest, without the grid."""
    manifests = [name for name in store if PurePosixPath(name).name == MANIFEST]
    if len(manifests) > 1:
        raise EvaluationError(
            f"{path} holds several sets of samples, each with a {MANIFEST}; name one:"
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
    with raise_on_all():
        check_resamples(resamples)
        sides = [_open(path, options) for path in (real, fake)]
        context = _context(options, resamples)
        has_images = any(isinstance(side, ImageFolder) for side in sides)
        extractor = context.features(options.protocol.name) if has_images else None
        recipe = dict(extractor.recipe) if extractor else {}
        for path, side in zip((real, fake), sides, strict=True):
            if isinstance(side, Statistics):
                check_statistics(side, path, options.protocol, recipe, allow_foreign)
                known = (*_COMPARED, "weights_verified")
                recipe = recipe or {key: side.recipe.get(key) for key in known}
    arrays = [
        vars(side) if isinstance(side, Statistics) else _extract(extractor, side, options)
        for side in sides
    ]
    with raise_on_all():
        if not is_host0():
            return {}, {}
        if all("values" in each for each in arrays):
            scores: dict[str, Score] = {}
            protocols = [options.protocol.name]
            for metric in build_metrics(quality_metrics(protocols), protocols, context):
                scores |= metric.metric.compute(*arrays)
        else:
            score = frechet_score(*arrays, resamples=resamples, seed=options.seed)
            scores = {options.protocol.label.lower(): score}
        described = [
            side.recipe()
            if isinstance(side, ImageFolder)
            else {**_described(side.recipe), "statistics": str(path), "num_images": side.n}
            for side, path in zip(sides, (real, fake), strict=True)
        ]
    _warn(described, options.protocol)
    recipe |= provenance() | {"bootstrap": resamples, "seed": options.seed}
    return scores, recipe | {"real": described[0], "fake": described[1]}


def write(images: Path, out: Path, options: Options, *, statistics: bool) -> int:
    """Write names, features and logits, or statistics, to a .npz; return the number of images."""
    with raise_on_all():
        if is_host0():
            check_writable(out)
        folder = _open(images, options)
        if isinstance(folder, Statistics):
            raise EvaluationError(f"{images} holds no images")
        if statistics:
            _require_frechet(options.protocol)
        extractor = _context(options).features(options.protocol.name)
    arrays = _extract(extractor, folder, options)
    with raise_on_all():
        if is_host0() and statistics:
            _warn([folder.recipe()], options.protocol)
            recipe = extractor.recipe | provenance() | {"images": folder.recipe()}
            Statistics(*mean_and_covariance(arrays["values"]), len(folder), recipe).save(out)
        elif is_host0():
            named = {"names": np.array(folder.names), "features": arrays["values"]}
            save_npz(out, named | {"logits": arrays["logits"]})
    return len(folder)


def _open(path: Path, options: Options) -> ImageFolder | Statistics:
    if path.suffix == ".npz":
        return Statistics.load(path)
    folder, num = ImageFolder(path, options.image_size, options.resize), options.num_samples
    return folder if num is None else folder.sample(num, options.seed)


def _context(options: Options, resamples: int = 0) -> Context:
    weights = {options.protocol.name: options.weights} if options.weights else {}
    networks = Networks(make_mesh(), options.batch_size, options.allow_unverified, weights)
    return Context(networks, seed=options.seed, resamples=resamples)


def _extract(
    extractor: FeatureExtractor | None, folder: ImageFolder, options: Options
) -> dict[str, np.ndarray]:
    assert extractor is not None
    name, unit = folder.path.name, extractor.batch_size
    same = {"--batch-size": options.batch_size, "network": extractor.recipe}
    require_same({f"number of images in {name}": len(folder), **same})
    rows = Rows()
    batches = folder.batches(-(-_READ_BATCH // unit) * unit)

    def next_batch() -> np.ndarray | None:
        with raise_on_all():
            return next(batches, None)

    # None: a bar on a terminal, nothing in a file of logs.
    disable = None if is_host0() else True
    with tqdm(total=len(folder), desc=name, unit="img", disable=disable) as bar:
        while (batch := next_batch()) is not None:
            rows.add(extractor(batch), len(batch))
            bar.update(len(batch))
    # Else a score would be of one half of each.
    require_same({f"images of {name}": folder.recipe() | {"source": ""}})
    return rows.joined(len(folder))


def check_statistics(
    statistics: Statistics,
    path: Path,
    protocol: FeatureProtocol,
    recipe: Mapping[str, Any],
    allow_foreign: bool,
) -> None:
    """Raise EvaluationError if statistics are not of the features of a recipe."""
    _require_frechet(protocol)
    if statistics.mu.size != protocol.num_features:
        raise EvaluationError(
            f"{path} has {statistics.mu.size} dimensions and {protocol.name} "
            f"{protocol.num_features}: it is of another network"
        )
    if not statistics.recipe and not allow_foreign:
        raise EvaluationError(
            f"{path} does not say how it was made: if it was by {protocol.name} with the same "
            "weights, pass --allow-foreign-statistics (files of pytorch-fid are fid-pytorch, those "
            "of TTUR fid-2015)"
        )
    wanted = {key: recipe[key] for key in _COMPARED if key in recipe} or {"protocol": protocol.name}
    stored = {key: statistics.recipe.get(key) for key in wanted}
    if statistics.recipe and (differing := fingerprint_differences(stored, wanted)):
        raise EvaluationError(
            f"{path} was made differently and cannot be compared ({'; '.join(differing)})"
        )


def _described(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of its images; that of a job's references says it in the recipe itself."""
    images = recipe.get("images", {})
    if isinstance(images, Mapping):
        return dict(images)
    names = ("images", "data", "split", "image_resize", "mirrored")
    size = recipe.get("image_size")
    described = {name: recipe[name] for name in names if name in recipe}
    return described | {"image_size": [size, size], "preparation": f"{images}, as for training"}


def _require_frechet(protocol: FeatureProtocol) -> None:
    if protocol.label == "PR":
        raise EvaluationError(
            f"{protocol.name} compares images with images: its scores do not follow from a mean "
            "and a covariance"
        )


def _warn(described: Sequence[Mapping[str, Any]], protocol: FeatureProtocol) -> None:
    for each in described if protocol.label != "PR" else ():
        num, name = each["num_images"], each.get("statistics") or each["source"]
        if num is not None and num <= protocol.num_features:
            print(
                f"warning: {name}: {num} images are no more than the {protocol.num_features} "
                f"dimensions of a feature; the {protocol.label} is biased upwards and comparable "
                "at this number only",
                file=sys.stderr,
            )
    sizes = [each["image_size"] for each in described if "image_size" in each]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        print(f"warning: {sizes[0]} pixels are compared with {sizes[1]}", file=sys.stderr)
