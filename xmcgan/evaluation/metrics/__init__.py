"""Metrics of generated images: one file each, found by name or by `module:Class` of your own.

    class Sharpness:
        paired = False  # True: the real images are those of the captions, row for row

        def __init__(self, scale=1.0): ...        # fields of config.evaluation.NAME
        def extract(self, images, captions): ...  # per batch: {name: array with one row per image}
        def compute(self, real, fake): ...        # all rows of both sides: {name: Score(...)}

What `extract` gives for real images is cached. A constructor parameter `protocol` gets one of the
feature protocols of the evaluation, and `context` what its metrics share (`Context`). With
`samples_per_caption = k`, `fake` has the shape (captions, k, ...) and covers the first 64 captions.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from xmcgan.errors import ConfigError, EvaluationError
from xmcgan.evaluation.features import Arrays, FeatureExtractor, Images, Networks
from xmcgan.evaluation.protocols import get_protocol
from xmcgan.utils import registry

METRICS = {
    "fid": "xmcgan.evaluation.metrics.fid:FrechetDistance",
    "kid": "xmcgan.evaluation.metrics.kid:KernelDistance",
    "inception_score": "xmcgan.evaluation.metrics.inception_score:InceptionScore",
    "precision_recall": "xmcgan.evaluation.metrics.precision_recall:PrecisionRecall",
    "retrieval": "xmcgan.evaluation.metrics.retrieval:Retrieval",
    "diversity": "xmcgan.evaluation.metrics.diversity:Diversity",
    "cmmd": "xmcgan.evaluation.metrics.cmmd:CMMD",
    "clip": "xmcgan.evaluation.metrics.clip_alignment:ClipAlignment",
    "shapes": "xmcgan.shapes.alignment:ShapesAlignment",
}
NUM_DISTRACTORS = 99  # among which retrieval and R-precision rank an image or a caption


@dataclasses.dataclass
class Context:
    """What the metrics of one evaluation share; feature networks are loaded once.

    The fields about captions are those of the present draw: read them in `compute`.
    """

    networks: Networks
    seed: int = 0
    resamples: int = 0
    image_size: int = 0
    cache_dir: Path = Path()
    num_real: int = 0
    captions: Sequence[str] = ()  # of the generated images, in their order
    image_ids: Sequence[str] = ()  # of the image that each caption describes
    # Its row among the real images; None if the real images are of another set.
    targets: Int[np.ndarray, "n"] | None = None
    # Rows of another real image with the same caption, -1 if there is none.
    find_twins: Callable[[], Int[np.ndarray, "n"]] | None = None

    def __post_init__(self) -> None:
        self.features = functools.cache(
            lambda protocol: FeatureExtractor(get_protocol(protocol), self.networks)
        )


class FeatureMetric:
    """Base of metrics that compare features `values` and `logits` of a protocol's network."""

    paired = False
    labels: tuple[str, ...] = ("FID", "FD")  # of the protocols whose features it scores

    def __init__(self, context: Context, protocol: str) -> None:
        self.extractor = context.features(protocol)
        self.prefix, self.recipe = protocol, self.extractor.recipe
        self.resampling: dict[str, Any] = {"resamples": context.resamples, "seed": context.seed}

    def extract(self, images: Images, captions: Sequence[str]) -> Arrays:
        """Features (n, d) and logits (n, k) of images."""
        return self.extractor(images)


class BuiltMetric:
    """A metric, with defaults for what its class omits; `settings` are name, type and fields."""

    def __init__(self, metric: Any, settings: Mapping[str, Any]) -> None:
        self.metric, self.settings = metric, settings
        self.paired: bool = getattr(metric, "paired", False)
        self.samples_per_caption: int = getattr(metric, "samples_per_caption", 1)
        # Its scores are called PREFIX/SCORE.
        self.prefix: str = getattr(metric, "prefix", settings.get("protocol", settings["name"]))
        extract = type(metric).extract
        if extract.__module__.startswith("xmcgan."):
            self.recipe = metric.recipe  # how it extracts
        else:  # code of a user may change between two runs, and the cache must not survive that
            source = Path(inspect.getfile(extract)).read_bytes()
            sha256 = hashlib.sha256(source).hexdigest()
            self.recipe = {"metric": settings, "source_sha256": sha256}
        # Metrics of which this is equal share what `extract` gives.
        self.extraction = json.dumps(self.recipe, sort_keys=True)


def quality_metrics(protocols: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Metrics that --metrics calls "quality"."""
    names = ["fid", "kid", "inception_score", "precision_recall"]
    return {name: {} for name in possible(names, protocols)}


def possible(names: Sequence[str], protocols: Sequence[str]) -> list[str]:
    """Those of some feature metrics of `METRICS` that one of the protocols can give."""
    labels = {get_protocol(name).label for name in protocols}
    return [name for name in names if labels & {*registry.find(name, METRICS, "metric").labels}]


def build_metrics(
    specs: Mapping[str, Mapping[str, Any]], protocols: Sequence[str], context: Context
) -> list[BuiltMetric]:
    """Metrics of a config: `{NAME: {"type": name or module:Class, field: value, ...}}`.

    A metric with a parameter `protocol` is built once for each of the protocols unless its fields
    name one.
    """
    built = []
    for number, protocol in enumerate(protocols):
        for name, spec in specs.items():
            fields = {key: value for key, value in spec.items() if key != "type"}
            cls = registry.find(spec.get("type", name), METRICS, "metric")
            takes = inspect.signature(cls).parameters
            if "protocol" in takes and "protocol" not in fields:
                label = get_protocol(protocol).label
                if label not in getattr(cls, "labels", (label,)):
                    continue
                fields["protocol"] = protocol
            elif number > 0:
                continue  # does not depend on the protocol
            arguments = fields | ({"context": context} if "context" in takes else {})
            try:
                inspect.signature(cls).bind(**arguments)
            except TypeError as error:
                raise ConfigError(f"evaluation.{name}: {error}") from error
            settings = {"name": name, "type": spec.get("type", name), **fields}
            built.append(BuiltMetric(cls(**arguments), settings))
    missing = specs.keys() - {metric.settings["name"] for metric in built}
    if missing or not built:
        raise EvaluationError(
            f"no metrics: {', '.join(protocols)} cannot give {', '.join(missing) or 'any'}"
        )
    return built
