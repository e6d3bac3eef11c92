"""The embedded data set `shapes`: drawn scenes with captions, made without a download."""

from typing import Any, NamedTuple

import numpy as np

from xmcgan.data.records import Prepared
from xmcgan.data.shards import Contents
from xmcgan.errors import DataError
from xmcgan.shapes.captions import write_captions
from xmcgan.shapes.scene import MAX_OBJECTS, Scene, encode_png, render_scene, sample_scene

NUM_TRAIN, NUM_VALIDATION = 20_000, 2_000
# Part of the random seed, so that no scene of one split is a scene of another.
_SPLIT_SEEDS = {"train": 0, "validation": 1}
# Drawn on first use. With one object, its place is most of what tells captions apart.
_VARIANTS: dict[str, dict[str, int]] = {"": {}, "default": {}, "single": {"max_objects": 1}}


class SceneEntry(NamedTuple):
    """One scene, drawn when it is stored."""

    seed: int
    split: str
    index: int
    max_objects: int
    size: int = 3_600  # bytes of the PNG, about

    def load(self) -> dict[str, Any]:
        """Image, captions, name and scene."""
        image, captions, scene = make_example(self.seed, self.split, self.index, self.max_objects)
        name = f"{self.split}-{self.index:06d}"
        return {"image": image, "captions": captions, "name": name, "scene": scene.to_json()}


class Shapes(Prepared):
    """Drawn scenes of one to three objects on varied backgrounds, five true captions each.

    Captions speak of left and right: train with `flip` off, a mirrored scene would make them false.
    """

    name = "shapes"

    @classmethod
    def embedded(cls, variant: str) -> Contents | None:
        """Scenes of a standard variant."""
        return cls.read(**_VARIANTS[variant]) if variant in _VARIANTS else None

    @classmethod
    def read(
        cls,
        *,
        num_train: int = NUM_TRAIN,
        num_validation: int = NUM_VALIDATION,
        max_objects: int = MAX_OBJECTS,
        seed: int = 0,
    ) -> Contents:
        """Scenes to draw."""
        nums = {"train": num_train, "validation": num_validation}
        recipe = {f"num_{split}": num for split, num in nums.items()}
        recipe |= {"max_objects": max_objects, "seed": seed}
        if min(nums.values()) < 1 or seed < 0 or not 1 <= max_objects <= MAX_OBJECTS:
            raise DataError(
                f"shapes needs at least 1 image per split, a seed >= 0, and max_objects from 1 to "
                f"{MAX_OBJECTS}: {recipe}"
            )
        splits = {
            split: [SceneEntry(seed, split, index, max_objects) for index in range(num)]
            for split, num in nums.items()
        }
        return Contents(splits, recipe)


def make_example(
    seed: int, split: str, index: int, max_objects: int = MAX_OBJECTS
) -> tuple[bytes, list[str], Scene]:
    """PNG, captions and scene; a pure function of the data set's seed, the split and the index."""
    rng = np.random.default_rng([seed, _SPLIT_SEEDS[split], index])
    scene = sample_scene(rng, max_objects)
    captions = write_captions(scene, rng)
    return encode_png(render_scene(scene, rng)), captions, scene
