"""Exact alignment of `shapes` images with their captions: is what the caption claims there?

As in Hinz et al., "Semantic Object Accuracy for Generative Text-to-Image Synthesis", TPAMI 2020,
a detector looks for what the caption names. Here captions have a grammar, so that colors, places
and relations are read from them too.
"""

import collections
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from xmcgan.errors import EvaluationError
from xmcgan.shapes.captions import relations
from xmcgan.shapes.claims import Claims, DescribedObject, parse_claims
from xmcgan.shapes.detections import Detections
from xmcgan.shapes.detector import open_detector
from xmcgan.utils.statistics import Score, mean_score

KINDS = ("all", "objects", "colors", "positions", "placement", "relations", "sizes", "background",
         "counts")  # fmt: skip
_MOST_SHUFFLES = 10  # partners of a caption: more than one, for a steadier estimate of chance


def shapes_alignment(
    detections: Detections, claims: Sequence[Claims]
) -> dict[str, Float[np.ndarray, " n"]]:
    """By kind, the share (0 to 1) of each caption's claims that hold; NaN if it claims none.

    objects: an object of the claimed shape and color is there.
    colors: an object of the claimed color is there, a different one for each claim.
    positions: the claimed object is in its claimed area.
    placement: of the objects that look like one with a claimed area, those that stand there; NaN
        also if none is found. Random placement gives 1/9, however good the objects are.
    relations: the areas of the two claimed objects are so related.
    sizes: the claimed object is there in its claimed size.
    background, counts: the image has the claimed background, and number of objects.
    all: 1 if everything holds at once, else 0.
    """
    rows = [_shares(detections, image, claim) for image, claim in enumerate(claims)]
    return {kind: np.array([row.get(kind, np.nan) for row in rows]) for kind in KINDS}


class ShapesAlignment:
    """Share of the claims of captions that a detector finds in their images."""

    paired = True

    def __init__(self, context: Any) -> None:
        detector = open_detector(context.cache_dir, context.image_size)
        self.recipe = {
            "detector": detector.recipe,
            "detector_sha256": detector.sha256,
            "detector_accuracy": detector.accuracy,
        }
        self._detector, self._context = detector, context
        # A foreign one is an error before an image is sampled.
        self._claims = [parse_claims(caption) for caption in context.captions]

    def extract(
        self, images: UInt8[np.ndarray, "n s s 3"], captions: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Detections in images, as arrays."""
        return vars(self._detector(images))

    def compute(
        self, real: Mapping[str, np.ndarray], fake: Mapping[str, np.ndarray]
    ) -> dict[str, Score]:
        """Scores of each kind of claim; see `detection_scores`."""
        return detection_scores(
            Detections(**fake),
            self._claims,
            real=Detections(**real),
            resamples=self._context.resamples,
            seed=self._context.seed,
        )


def detection_scores(
    fake: Detections, claims: Sequence[Claims], *, real: Detections, resamples: int, seed: int
) -> dict[str, Score]:
    """Scores `KIND`, `KIND_real` and `KIND_shuffled` of each kind that a caption claims.

    The real images of the captions bound what the detector can tell; generated images with the
    captions of others are chance. The bootstrap resamples captions.
    """
    if len(fake) < 2:
        raise EvaluationError("shuffled captions need at least two images")
    columns = {
        "": shapes_alignment(fake, claims),
        "_real": shapes_alignment(real, claims),
        "_shuffled": _shuffled(fake, claims, seed),
    }
    scores = {}
    for kind in KINDS:
        for suffix, values in columns.items():
            known = values[kind][~np.isnan(values[kind])]
            if len(known):
                note = f"over {len(known):,} captions"
                scores[f"{kind}{suffix}"] = mean_score(
                    known, resamples=resamples, seed=seed, note=note
                )
    return scores


def _shuffled(
    seen: Detections, claims: Sequence[Claims], seed: int
) -> dict[str, Float[np.ndarray, " n"]]:
    """Mean over the images of several other captions."""
    num = len(claims)
    order = np.random.default_rng(seed).permutation(num)
    runs = []
    for shift in range(1, min(_MOST_SHUFFLES, num - 1) + 1):
        partners = np.empty(num, int)
        partners[order] = np.roll(order, shift)  # nobody is its own partner
        runs.append(shapes_alignment(seen.take(partners), claims))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # all are NaN
        return {kind: np.nanmean([run[kind] for run in runs], axis=0) for kind in KINDS}


def _shares(detections: Detections, image: int, claims: Claims) -> dict[str, float]:
    """Share of each kind of claim that holds; kinds not claimed are absent."""
    seen = detections.objects_of(image)
    found = [[o for o in seen if (o.shape, o.color) == (c.shape, c.color)] for c in claims.objects]
    pairs = list(zip(claims.objects, found, strict=True))
    placed = [[o.position == c.position for o in objects] for c, objects in pairs if c.position]
    held: dict[str, list[bool]] = {
        "objects": list(map(bool, found)),
        "colors": _colors_held(claims.objects, seen),
        "positions": list(map(any, placed)),
        "relations": [
            any(_related(a, name, b) for a in found[subject] for b in found[other])
            for subject, name, other in claims.relations
        ],
        "sizes": [any(o.size == c.size for o in objects) for c, objects in pairs if c.size],
    }
    if claims.background is not None:
        held["background"] = [detections.background_of(image) == claims.background]
    if claims.count is not None:
        held["counts"] = [len(seen) == claims.count]
    # Each kind may hold for another of two equal objects; all must hold for the same ones.
    fitting = [
        [o for o in objects if c.size in (None, o.size) and c.position in (None, o.position)]
        for c, objects in pairs
    ]
    together = any(
        all(_related(chosen[a], name, chosen[b]) for a, name, b in claims.relations)
        for chosen in itertools.product(*fitting)
    )
    whole = together and all(itertools.chain.from_iterable(held.values()))
    held["placement"] = list(itertools.chain.from_iterable(placed))
    shares = {kind: float(np.mean(values)) for kind, values in held.items() if values}
    return {**shares, "all": float(whole)}


def _colors_held(claimed: Sequence[DescribedObject], seen: Sequence[DescribedObject]) -> list[bool]:
    left = collections.Counter(item.color for item in seen)
    held = []
    for item in claimed:
        held.append(left[item.color] > 0)
        left[item.color] -= 1
    return held


def _related(first: DescribedObject, relation: str, second: DescribedObject) -> bool:
    """Whether the captions' own rule relates an object in one area to one in another."""
    return relation in relations(str(first.position), str(second.position))
