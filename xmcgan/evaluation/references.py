"""What was observed of real images, cached with all that it depends on."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.measures import Images, Measure, Observations
from xmcgan.evaluation.moments import Moments
from xmcgan.evaluation.npz_files import read_npz, save_npz
from xmcgan.evaluation.recipes import differences
from xmcgan.utils.distributed import broadcast_from_host0, is_host0, raise_on_all

_STATISTICS = ("mu", "sigma", "n")
# Entries of a measure's recipe that say how observations are compared, not how they are made.
_NOT_OBSERVING = ("metrics", "resamples", "seed", "package_version", "prefix")


def observe_all(measure: Measure, batches: Iterable[Images], expected: int) -> Observations:
    """Observe images that come in batches.

    Raises:
        EvaluationError: their number is not as expected.
    """
    parts = [measure.observe(images) for images in batches]
    return join(parts, expected)


def join(parts: list[Observations], expected: int) -> Observations:
    """Join the observations of batches, and make sure that every image is there once.

    Raises:
        EvaluationError: their number is not as expected.
    """
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, values in joined.items():
        if len(values) != expected:
            raise EvaluationError(
                f"{name} of {len(values)} images came where {expected} were expected: no score"
            )
    return joined


def cached_reference(
    path: Path,
    recipe: Mapping[str, Any],
    measure: Measure,
    batches: Iterator[Images],
    expected: int,
) -> Observations:
    """Return the observations of the real images, from the cache where they are there.

    The file of a protocol also holds mean and covariance of the features, so that
    `eval_fid.py compare` reads it. Of several processes the first reads and writes it; the others
    only help to observe.

    Args:
        path: of the .npz.
        recipe: of the images; that of the measure is added.
        measure: observes them.
        batches: the images, not read where the cache is there.
        expected: how many images there are.

    Returns:
        The observations; in processes other than the first only where they were made now.

    Raises:
        EvaluationError: the file was made another way; the differing entries are named.
    """
    wanted = {**recipe, **{k: v for k, v in measure.recipe.items() if k not in _NOT_OBSERVING}}
    if broadcast_from_host0(path.exists):
        with raise_on_all():
            return _read(path, wanted) if is_host0() else {}
    observations = observe_all(measure, batches, expected)
    with raise_on_all():
        if is_host0():
            _write(path, wanted, observations)
    return observations


def _write(path: Path, recipe: Mapping[str, Any], observations: Observations) -> None:
    arrays = dict(observations)
    if "values" in observations:
        moments = Moments.of(observations["values"])
        arrays |= {"mu": moments.mean, "sigma": moments.covariance(), "n": np.array(moments.n)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(path, arrays | {"recipe": np.array(json.dumps(recipe, sort_keys=True))})


def _read(path: Path, wanted: Mapping[str, Any]) -> Observations:
    arrays = read_npz(path)
    stored = json.loads(str(arrays.pop("recipe", "{}")))
    differing = differences(stored, wanted)
    if differing:
        raise EvaluationError(
            f"{path} was made another way than is asked for now ({'; '.join(differing)}); remove "
            "it to make it again"
        )
    return {name: array for name, array in arrays.items() if name not in _STATISTICS}
