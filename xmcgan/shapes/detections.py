"""What stands in `shapes` images, area by area: of drawn scenes and as a detector sees it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from xmcgan.shapes.scene import BACKGROUNDS, COLORS, POSITIONS, RADIUS, SHAPES, Scene

NUM_AREAS = len(POSITIONS)
_SHAPES, _COLORS, _SIZES = tuple(SHAPES), tuple(COLORS), tuple(RADIUS)
_BACKGROUNDS = tuple(BACKGROUNDS)
NUM_SIZES = len(_SIZES)


@dataclasses.dataclass(frozen=True)
class Detections:
    """The contents of n images; areas are numbered as in `POSITIONS`.

    Attributes:
        present: whether an object stands in the area.
        shape: index into `SHAPES`; of no meaning where nothing stands, like color and size.
        color: index into the keys of `COLORS`.
        size: index into the keys of `RADIUS`.
        background: index into the keys of `BACKGROUNDS`.
    """

    present: Bool[np.ndarray, "n 9"]
    shape: Int[np.ndarray, "n 9"]
    color: Int[np.ndarray, "n 9"]
    size: Int[np.ndarray, "n 9"]
    background: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.background)

    def take(self, indices: Int[np.ndarray, " m"]) -> "Detections":
        """Return the contents of some of the images."""
        fields = [getattr(self, field.name)[indices] for field in dataclasses.fields(self)]
        return Detections(*fields)

    def areas_of(self, image: int, shape: str, color: str) -> tuple[int, ...]:
        """Return the areas of an image where an object of this shape and color stands."""
        found = (
            self.present[image]
            & (self.shape[image] == _SHAPES.index(shape))
            & (self.color[image] == _COLORS.index(color))
        )
        return tuple(int(area) for area in np.flatnonzero(found))

    def colors_of(self, image: int) -> list[str]:
        """Return the color of each object of an image."""
        return [_COLORS[color] for color in self.color[image][self.present[image]]]

    def size_at(self, image: int, area: int) -> str:
        """Return the size of the object in an area."""
        return _SIZES[self.size[image, area]]

    def background_of(self, image: int) -> str:
        """Return the background of an image."""
        return _BACKGROUNDS[self.background[image]]


def contents(scenes: Sequence[Scene]) -> Detections:
    """Return what stands in scenes, as a faultless detector would."""
    present = np.zeros((len(scenes), NUM_AREAS), bool)
    shape, color, size = np.zeros((3, len(scenes), NUM_AREAS), np.int32)
    for index, scene in enumerate(scenes):
        for item in scene.objects:
            area = POSITIONS.index(item.position)
            present[index, area] = True
            shape[index, area] = _SHAPES.index(item.shape)
            color[index, area] = _COLORS.index(item.color)
            size[index, area] = _SIZES.index(item.size)
    background = [_BACKGROUNDS.index(scene.background) for scene in scenes]
    return Detections(present, shape, color, size, np.array(background, np.int32))


def accuracy(found: Detections, truth: Detections) -> dict[str, float]:
    """Return how often a detector is right.

    Args:
        found: what it saw.
        truth: what stands there.

    Returns:
        Shares of right answers: "present" over all areas; "color", "shape", "size" and "object"
        (present, with its shape and color) over the objects that stand there; "color_position"
        (present, with its color) likewise; "background" and "count" over images.
    """
    there = truth.present
    seen = found.present[there]
    color = found.color[there] == truth.color[there]
    shape = found.shape[there] == truth.shape[there]
    size = found.size[there] == truth.size[there]
    shares = {
        "present": found.present == truth.present,
        "color": color,
        "shape": shape,
        "size": size,
        "color_position": seen & color,
        "object": seen & color & shape,
        "background": found.background == truth.background,
        "count": found.present.sum(axis=1) == truth.present.sum(axis=1),
    }
    return {name: float(np.mean(right)) for name, right in shares.items()}
