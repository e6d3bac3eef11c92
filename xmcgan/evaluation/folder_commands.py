"""Score folder against folder, without a training run: compare, features, stats.

All processes read all images and share the network's work; process 0 scores and writes.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from xmcgan.data.images import Resize
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.bootstrap import check_resamples
from xmcgan.evaluation.features import FeatureExtractor, Features
from xmcgan.evaluation.frechet import frechet_distance
from xmcgan.evaluation.image_sources import ImageFolder, list_images
from xmcgan.evaluation.npz_files import check_writable, save_npz
from xmcgan.evaluation.protocols import Protocol
from xmcgan.evaluation.scores import Score, frechet_score, image_scores
from xmcgan.evaluation.statistics import (
    COMPARED,
    Statistics,
    check_comparable,
    compute_statistics,
    load_statistics,
    save_statistics,
)
from xmcgan.utils.distributed import is_host0, raise_on_all, require_same
from xmcgan.utils.mesh import make_mesh
from xmcgan.utils.provenance import provenance

_OF_FEATURES = (*COMPARED, "weights_verified")


@dataclasses.dataclass(frozen=True)
class Options:
    """Say how images become features.

    Attributes:
        protocol: network, resize and scaling.
        weights: path of the network's weights; the protocol's own where None.
        allow_unverified: accept weights that are not the published file.
        image_size: side in pixels to which images are brought first; as stored where None.
        resize: "crop" or "squash", how that is done.
        num_samples: images taken of each set, at random; all where None.
        seed: of that choice and of the bootstrap.
        batch_size: images that go through the network at once; None fits the devices.
    """

    protocol: Protocol
    weights: str | None = None
    allow_unverified: bool = False
    image_size: int | None = None
    resize: Resize = "crop"
    num_samples: int | None = None
    seed: int = 0
    batch_size: int | None = None


def compare(
    real: Path, fake: Path, options: Options, *, resamples: int, allow_foreign: bool = False
) -> tuple[list[Score], dict[str, Any]]:
    """Score one set of images against another.

    Args:
        real: a directory or zip of images, or .npz statistics: the reference.
        fake: the same of the images to judge.
        options: how images become features.
        resamples: of the bootstrap that gives the intervals; 0 for none.
        allow_foreign: accept statistics that do not say how they were made.

    Returns:
        The scores (of two sets of images all, of statistics the Frechet distance alone), and
        their recipe as JSON values; nothing in processes other than the first.

    Raises:
        EvaluationError: the sets cannot be read or compared; nothing is scored.
        WeightsError: the weights are missing or wrong.
    """
    with raise_on_all():
        check_resamples(resamples)
        opened = {path: _open(path, options) for path in (real, fake)}
        folders = {path: each for path, each in opened.items() if isinstance(each, ImageFolder)}
        stored = {path: each for path, each in opened.items() if isinstance(each, Statistics)}
        extractor = _extractor(options) if folders else None
        recipe = dict(extractor.recipe) if extractor else {}
        for path, statistics in stored.items():
            _check_recipe(statistics, path, options.protocol, recipe, allow_foreign)
            recipe = recipe or {key: statistics.recipe.get(key) for key in _OF_FEATURES}
    sides: dict[Path, Features | Statistics] = dict(stored)
    for path, folder in folders.items():
        assert extractor is not None
        sides[path] = _extract(extractor, folder, options, path.name)
    with raise_on_all():
        if not is_host0():
            return [], {}
        scores = _scores(sides[real], sides[fake], options, resamples)
        described = [_describe(opened[path], path) for path in (real, fake)]
    _warn(described, options.protocol)
    recipe |= provenance() | {"bootstrap": resamples, "seed": options.seed}
    return scores, recipe | {"real": described[0], "fake": described[1]}


def write_features(images: Path, out: Path, options: Options) -> int:
    """Write names, features and logits (where the network has them) of images to a .npz.

    Args:
        images: a directory or zip; order is that of the names.
        out: the file to write.
        options: how images become features.

    Returns:
        The number of images.

    Raises:
        EvaluationError: the images cannot be read, or the file not be written.
        WeightsError: the weights are missing or wrong.
    """
    folder, extractor = _open_to_write(images, out, options)
    features = _extract(extractor, folder, options, images.name)
    arrays = {"names": np.array(folder.names), "features": features.values}
    if features.logits is not None:
        arrays["logits"] = features.logits
    with raise_on_all():
        if is_host0():
            save_npz(out, arrays)
    return len(features)


def write_statistics(images: Path, out: Path, options: Options) -> Statistics:
    """Write mean, covariance, count and recipe of images to a .npz, and return them.

    Args:
        images: a directory or zip.
        out: the file to write.
        options: how images become features.

    Raises:
        EvaluationError: the images cannot be read, or the file not be written.
        WeightsError: the weights are missing or wrong.
    """
    folder, extractor = _open_to_write(images, out, options)
    features = _extract(extractor, folder, options, images.name)
    with raise_on_all():
        recipe = extractor.recipe | provenance() | {"images": folder.recipe()}
        statistics = compute_statistics(features, recipe)
        if is_host0():
            _warn_of_few(len(features), options.protocol, str(images))
            save_statistics(out, statistics)
    return statistics


def _open(path: Path, options: Options) -> ImageFolder | Statistics:
    return load_statistics(path) if path.suffix == ".npz" else _open_images(path, options)


def _open_to_write(
    images: Path, out: Path, options: Options
) -> tuple[ImageFolder, FeatureExtractor]:
    with raise_on_all():
        if is_host0():
            check_writable(out)
        return _open_images(images, options), _extractor(options)


def _open_images(path: Path, options: Options) -> ImageFolder:
    folder = list_images(path, image_size=options.image_size, resize=options.resize)
    return folder if options.num_samples is None else folder.take(options.num_samples, options.seed)


def _extractor(options: Options) -> FeatureExtractor:
    return FeatureExtractor(
        options.protocol,
        weights=options.weights,
        mesh=make_mesh(),
        batch_size=options.batch_size,
        allow_unverified=options.allow_unverified,
    )


def _extract(
    extractor: FeatureExtractor, folder: ImageFolder, options: Options, name: str
) -> Features:
    require_same(
        {
            f"number of images in {name}": len(folder),
            "--batch-size": options.batch_size,
            "network": extractor.recipe,
        }
    )
    # None: a bar on a terminal, nothing in a file of logs.
    disable = None if is_host0() else True
    with tqdm(total=len(folder), desc=name, unit="img", disable=disable) as bar:

        def watched() -> Iterator[np.ndarray]:
            batches = folder.batches()
            while True:
                with raise_on_all():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                bar.update(len(batch))

        features = extractor(watched(), expected=len(folder))
    # Else a score would be of one half of each.
    require_same({f"images of {name}": folder.recipe() | {"source": ""}})
    return features


def _check_recipe(
    statistics: Statistics,
    path: Path,
    protocol: Protocol,
    recipe: dict[str, Any],
    allow_foreign: bool,
) -> None:
    """Refuse statistics of another protocol than asked for, or of another recipe."""
    if statistics.mu.size != protocol.num_features:
        raise EvaluationError(
            f"{path} has {statistics.mu.size} dimensions where {protocol.name} has "
            f"{protocol.num_features}: it is of another network"
        )
    if not statistics.recipe:
        if not allow_foreign:
            raise EvaluationError(
                f"{path} does not say how it was made: if you know that it was by {protocol.name} "
                "and with the same weights, pass --allow-foreign-statistics"
            )
        return
    if statistics.recipe.get("protocol") != protocol.name:
        raise EvaluationError(
            f"{path} was made by the protocol {statistics.recipe.get('protocol')}, not by "
            f"{protocol.name}: scores of two protocols cannot be compared"
        )
    if recipe:
        check_comparable(statistics.recipe, recipe)


def _scores(
    real: Features | Statistics, fake: Features | Statistics, options: Options, resamples: int
) -> list[Score]:
    label = options.protocol.label
    sampling: Any = {"resamples": resamples, "seed": options.seed}
    if isinstance(real, Features) and isinstance(fake, Features):
        return image_scores(real, fake, label=label, **sampling)
    if isinstance(real, Statistics) and isinstance(fake, Features):
        return [frechet_score(real, fake, label=label, **sampling)]
    if isinstance(real, Features) and isinstance(fake, Statistics):
        # The distance is symmetric; the images are what is resampled.
        return [frechet_score(fake, real, label=label, **sampling)]
    assert isinstance(real, Statistics)
    assert isinstance(fake, Statistics)
    distance = frechet_distance(real.mu, real.sigma, fake.mu, fake.sigma)
    return [Score(label.lower(), distance, None, None, "lower")]


def _describe(opened: ImageFolder | Statistics, path: Path) -> dict[str, Any]:
    if isinstance(opened, ImageFolder):
        return opened.recipe()
    known = opened.recipe.get("images", {})
    return {**known, "statistics": str(path), "num_images": opened.n}


def _warn(described: list[dict[str, Any]], protocol: Protocol) -> None:
    for each in described:
        _warn_of_few(each["num_images"], protocol, each.get("statistics") or each["source"])
    sizes = [each["image_size"] for each in described if "image_size" in each]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        _say(f"images of {sizes[0]} are compared with images of {sizes[1]} pixels")


def _warn_of_few(num: int | None, protocol: Protocol, name: str) -> None:
    if num is not None and num <= protocol.num_features:
        _say(
            f"{name}: {num} images are no more than the {protocol.num_features} dimensions of a "
            f"feature; the {protocol.label} is biased upwards and comparable at this number only"
        )


def _say(warning: str) -> None:
    print(f"warning: {warning}", file=sys.stderr)
