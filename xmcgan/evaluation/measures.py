"""What an evaluation measures: each measure observes images, and scores what it observed.

Observing is what takes time (a network over every image), so the observations of the real images
are cached; scoring compares observations of generated images with them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from xmcgan.evaluation.alignment import alignment_scores
from xmcgan.evaluation.captions import CaptionManifest
from xmcgan.evaluation.clip_features import PREFIX, ClipExtractor
from xmcgan.evaluation.diversity import diversity_scores
from xmcgan.evaluation.features import FeatureExtractor, Features
from xmcgan.evaluation.retrieval import retrieval_scores
from xmcgan.evaluation.scores import Score, cmmd_score, image_scores
from xmcgan.shapes.alignment import detection_scores
from xmcgan.shapes.claims import parse_claims
from xmcgan.shapes.detections import Detections
from xmcgan.shapes.detector import Detector

METRICS = ("quality", "retrieval", "diversity")
Images = UInt8[np.ndarray, "n h w 3"]
Observations = dict[str, np.ndarray]  # arrays whose first axis is the images


class Measure(Protocol):
    """Observe images and score them.

    Attributes:
        name: short and unique; scores are called `NAME/SCORE`.
        recipe: JSON values that say how it observes and scores.
        paired: whether each real image is that of one caption, or the real images are a set.
    """

    name: str
    recipe: dict[str, Any]
    paired: bool

    def observe(self, images: Images) -> Observations:
        """Return what is to be known of each image."""
        ...

    def score(self, real: Observations, fake: Observations) -> list[Score]:
        """Compare the observations of all generated images with those of the real ones."""
        ...


class ImageQuality:
    """Score a set of images against real ones by the features of a protocol.

    Args:
        extractor: of the protocol.
        targets: row among the real images of the one that each generated image's caption describes.
        twins: row of another real image that has the same caption, -1 where there is none.
        metrics: some of `METRICS`.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the kernel distance's subsets.
    """

    paired = False

    def __init__(
        self,
        extractor: FeatureExtractor,
        targets: Int[np.ndarray, "n"],
        twins: Int[np.ndarray, "n"],
        metrics: Sequence[str],
        *,
        resamples: int,
        seed: int,
    ) -> None:
        self.name = extractor.protocol.name
        self.recipe = {
            **extractor.recipe, "metrics": list(metrics), "resamples": resamples, "seed": seed
        }  # fmt: skip
        self._extractor, self._metrics = extractor, metrics
        self._targets, self._twins = targets, twins
        self._resamples, self._seed = resamples, seed

    def observe(self, images: Images) -> Observations:
        """Return features, and logits where the network has them."""
        features = self._extractor([images], expected=len(images))
        logits = {} if features.logits is None else {"logits": features.logits}
        return {"values": features.values, **logits}

    def score(self, real: Observations, fake: Observations) -> list[Score]:
        """Return Frechet and kernel distance, precision, recall, retrieval and the like."""
        resampling: Any = {"resamples": self._resamples, "seed": self._seed}
        scores = []
        if "quality" in self._metrics:
            scores += image_scores(
                Features(real["values"], real.get("logits")),
                Features(fake["values"], fake.get("logits")),
                label=self._extractor.protocol.label,
                **resampling,
            )
        if "retrieval" in self._metrics:
            scores += retrieval_scores(
                real["values"], fake["values"], self._targets, self._twins, **resampling
            )
        return scores

    def diversity(self, real: Observations, samples: Sequence[Observations]) -> list[Score]:
        """Compare samples of the same captions, each with other noise, with real images.

        Args:
            real: observations of the real images.
            samples: of each noise, observations of the first captions.
        """
        num = min(len(each["values"]) for each in samples)
        groups = np.stack([each["values"][:num] for each in samples], axis=1)
        return diversity_scores(real["values"], groups, resamples=self._resamples, seed=self._seed)


class ShapesAlignment:
    """Look in images of `shapes` for what their captions claim.

    Args:
        detector: made for this size of image.
        captions: of the generated images, in their order.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the shuffling.
    """

    name, paired = "shapes", True

    def __init__(
        self, detector: Detector, captions: Sequence[str], *, resamples: int, seed: int
    ) -> None:
        self.recipe = {
            "detector": detector.recipe,
            "detector_sha256": detector.sha256,
            "detector_accuracy": detector.accuracy,
            "resamples": resamples,
            "seed": seed,
        }
        self._detector, self._resamples, self._seed = detector, resamples, seed
        self._claims = [parse_claims(caption) for caption in captions]

    def observe(self, images: Images) -> Observations:
        """Return what the detector sees."""
        return vars(self._detector(images))

    def score(self, real: Observations, fake: Observations) -> list[Score]:
        """Return the share of claims that hold, of each kind, beside real and shuffled."""
        scores = detection_scores(
            Detections(**fake),
            self._claims,
            real=Detections(**real),
            resamples=self._resamples,
            seed=self._seed,
        )
        return [_without_prefix(score, "shapes_") for score in scores]


class ClipAlignment:
    """Compare images with their captions by CLIP: CLIPScore and R-precision.

    Args:
        extractor: of the embeddings.
        manifest: the captions of the generated images, in their order.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the distractors.
    """

    name, paired = "clip", True

    def __init__(
        self, extractor: ClipExtractor, manifest: CaptionManifest, *, resamples: int, seed: int
    ) -> None:
        self.recipe = {**extractor.recipe, "prefix": PREFIX, "resamples": resamples, "seed": seed}
        self._extractor, self._manifest = extractor, manifest
        self._resamples, self._seed = resamples, seed
        self._texts = extractor.texts(manifest.captions)

    def observe(self, images: Images) -> Observations:
        """Return the embeddings of images."""
        return {"embeddings": self._extractor.images([images], expected=len(images))}

    def score(self, real: Observations, fake: Observations) -> list[Score]:
        """Return CLIPScore and R-precision, beside those of the real images."""
        scores = alignment_scores(
            fake["embeddings"],
            self._texts,
            self._manifest.captions,
            [choice.image_id for choice in self._manifest.choices],
            real_images_emb=real["embeddings"],
            resamples=self._resamples,
            seed=self._seed,
        )
        return [_without_prefix(score, "clip_") for score in scores]


class ClipQuality:
    """Score a set of images against real ones by CLIP's embeddings: CMMD.

    Args:
        extractor: of the embeddings; the paper's is ViT-L/14 at 336 pixels.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    name, paired = "cmmd", False

    def __init__(self, extractor: ClipExtractor, *, resamples: int, seed: int) -> None:
        self.recipe = {**extractor.recipe, "resamples": resamples, "seed": seed}
        self._extractor, self._resamples, self._seed = extractor, resamples, seed

    def observe(self, images: Images) -> Observations:
        """Return the embeddings of images."""
        return {"embeddings": self._extractor.images([images], expected=len(images))}

    def score(self, real: Observations, fake: Observations) -> list[Score]:
        """Return the CMMD."""
        embeddings = real["embeddings"], fake["embeddings"]
        return [cmmd_score(*embeddings, resamples=self._resamples, seed=self._seed)]


def _without_prefix(score: Score, prefix: str) -> Score:
    return dataclasses.replace(score, name=score.name.removeprefix(prefix))
