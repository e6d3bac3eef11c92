"""The embedded data set `shapes`: drawn scenes with captions, built without a download."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from xmcgan.shapes.captions import write_captions
from xmcgan.shapes.scene import (
    IMAGE_SIZE,
    MAX_OBJECTS,
    Scene,
    draw_scene,
    encode_png,
    sample_scene,
)

# Part of the random seed, so that no scene of one split is a scene of another.
_SPLIT_SEEDS = {"train": 0, "validation": 1}


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Hold how many scenes to draw, of how many objects, and from which seed."""

    name: str = "default"
    num_train: int = 20_000
    num_validation: int = 2_000
    max_objects: int = MAX_OBJECTS
    seed: int = 0

    def recipe(self) -> dict[str, int]:
        """Return the numbers that determine every image and caption."""
        return {
            "num_train": self.num_train,
            "num_validation": self.num_validation,
            "max_objects": self.max_objects,
            "seed": self.seed,
        }


# What is drawn on first use. With one object, its place is most of what tells captions apart.
STANDARD = {
    "shapes": ShapesConfig(),
    "shapes/default": ShapesConfig(),
    "shapes/single": ShapesConfig(name="single", max_objects=1),
}


def make_example(
    seed: int, split: str, index: int, max_objects: int = MAX_OBJECTS
) -> tuple[bytes, list[str], Scene]:
    """Draw one example; a pure function of its arguments.

    Args:
        seed: seed of the data set, at least 0.
        split: "train" or "validation".
        index: number of the scene within the split.
        max_objects: of the scene.

    Returns:
        PNG bytes (128 x 128, RGB), the captions, and the scene's attributes.
    """
    rng = np.random.default_rng([seed, _SPLIT_SEEDS[split], index])
    scene = sample_scene(rng, max_objects)
    captions = write_captions(scene, rng)
    return encode_png(draw_scene(scene, rng)), captions, scene


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Drawn scenes of one to three objects on varied backgrounds, five true captions each.

    Captions speak of left and right: train with `flip` off, a mirrored scene would make them false.
    """

    VERSION = tfds.core.Version("1.0.0")
    builder_config: ShapesConfig
    show_progress = False

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="png"
                    ),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "name": tfds.features.Text(),
                    "scene": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(self.builder_config.recipe()),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.num_train),
            "validation": self._generate_examples("validation", config.num_validation),
        }

    def _generate_examples(self, split: str, num: int) -> Iterator[tuple[int, dict[str, Any]]]:
        # None: a bar on a terminal, nothing in a file of logs.
        indices = tqdm(
            range(num),
            desc=f"drawing {split}",
            unit="img",
            disable=None if self.show_progress else True,
        )
        for index in indices:
            config = self.builder_config
            image, captions, scene = make_example(config.seed, split, index, config.max_objects)
            yield (
                index,
                {
                    "image": image,
                    "captions": captions,
                    "name": f"{split}-{index:06d}",
                    "scene": scene.to_json(),
                },
            )
