"""What stands in `shapes` images, area by area: of drawn scenes and as a detector sees it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from xmcgan.shapes.claims import DescribedObject
from xmcgan.shapes.scene import BACKGROUNDS, COLORS, POSITIONS, RADIUS, SHAPES, Scene

_COLORS, _SIZES, _BACKGROUNDS = tuple(COLORS), tuple(RADIUS), tuple(BACKGROUNDS)


@dataclasses.dataclass(frozen=True)
class Detections:
    """Objects and backgrounds of n images, as indices; areas are numbered as in `POSITIONS`."""

    present: Bool[np.ndarray, "n 9"]  # shape, color and size are of no meaning elsewhere
    shape: Int[np.ndarray, "n 9"]  # of `SHAPES`
    color: Int[np.ndarray, "n 9"]  # of `COLORS`
    size: Int[np.ndarray, "n 9"]  # of `RADIUS`
    background: Int[np.ndarray, " n"]  # of `BACKGROUNDS`

    def __len__(self) -> int:
        return len(self.background)

    def take(self, indices: Int[np.ndarray, " m"]) -> "Detections":
        """Detections of some of the images."""
        return Detections(**{name: array[indices] for name, array in vars(self).items()})

    def objects_of(self, image: int) -> list[DescribedObject]:
        """Objects of an image, in the order of their areas."""
        indices = (self.shape[image], self.color[image], self.size[image])
        return [
            DescribedObject(SHAPES[shape], _COLORS[color], _SIZES[size], position)
            for there, shape, color, size, position in zip(
                self.present[image], *indices, POSITIONS, strict=True
            )
            if there
        ]

    def background_of(self, image: int) -> str:
        """Background of an image."""
        return _BACKGROUNDS[self.background[image]]


def contents(scenes: Sequence[Scene]) -> Detections:
    """What a faultless detector would see in scenes."""
    present = np.zeros((len(scenes), len(POSITIONS)), bool)
    shape, color, size = np.zeros((3, *present.shape), np.int32)
    for index, scene in enumerate(scenes):
        for item in scene.objects:
            area = POSITIONS.index(item.position)
            present[index, area] = True
            shape[index, area] = SHAPES.index(item.shape)
            color[index, area] = _COLORS.index(item.color)
            size[index, area] = _SIZES.index(item.size)
    background = [_BACKGROUNDS.index(scene.background) for scene in scenes]
    return Detections(present, shape, color, size, np.array(background, np.int32))


def accuracy(found: Detections, truth: Detections) -> dict[str, float]:
    """Shares of right answers: over all areas, over the objects that are there, over images."""
    right = {name: array == getattr(truth, name) for name, array in vars(found).items()}
    there = truth.present
    shares = {name: right[name][there] for name in ("color", "shape", "size")}
    color_position = found.present[there] & shares["color"]
    shares |= {
        "present": right["present"],
        "color_position": color_position,
        "object": color_position & shares["shape"],
        "background": right["background"],
        "count": found.present.sum(axis=1) == truth.present.sum(axis=1),
    }
    return {name: float(np.mean(values)) for name, values in shares.items()}
