"""A small network that names what stands in each of the nine areas of a `shapes` image."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

GRID = 3  # areas along a side
_LAST_SIDE = 6  # of the map that the head reads: coarser ones lose the outline


class AreaLogits(NamedTuple):
    """What the network says of areas, each as logits with the areas' leading axes."""

    present: Array
    shape: Array
    color: Array
    size: Array
    background: Array


def area_side(image_size: int) -> int:
    """Return the side in pixels of the square that is cut out for an area.

    Args:
        image_size: side of the image, a multiple of 16.
    """
    return 3 * image_size // 8


def cut_areas(images: Shaped[ArrayLike, "b s s c"]) -> Shaped[Array, "b 9 a a c"]:
    """Cut an image into nine overlapping squares, row by row.

    A side of 3/8 of the image, at 0, 5/16 and 10/16 of it, covers every third of the image with
    little more, and falls on whole pixels where the image's side is a multiple of 16.
    """
    pixels = jnp.asarray(images)
    image_size = pixels.shape[1]
    starts = [index * 5 * image_size // 16 for index in range(GRID)]
    side = area_side(image_size)
    areas = [pixels[:, i : i + side, j : j + side] for i in starts for j in starts]
    return jnp.stack(areas, axis=1)


class ShapesDetector(nn.Module):
    """Classify areas, all by the same weights: an object is the same thing in every area.

    Attributes:
        num_shapes: kinds of shape.
        num_colors: kinds of color.
        num_sizes: kinds of size.
        num_backgrounds: kinds of background.
        width: channels of the first convolution; the others have twice as many.
        hidden: units of the hidden layer of the head.
    """

    num_shapes: int
    num_colors: int
    num_sizes: int
    num_backgrounds: int
    width: int = 32
    hidden: int = 128

    @nn.compact
    def __call__(self, areas: Float[Array, "n a a 3"]) -> AreaLogits:
        """Return logits of n areas.

        Args:
            areas: in [0, 1], of side `area_side(image_size)`.
        """
        x = 2 * areas - 1
        x = nn.relu(_conv(self.width, 1, "conv0")(x))
        index = 1
        while x.shape[1] > _LAST_SIDE:
            x = nn.relu(_conv(2 * self.width, 2, f"conv{index}")(x))
            index += 1
        x = nn.relu(_conv(2 * self.width, 1, f"conv{index}")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(
            nn.Dense(self.hidden, kernel_init=nn.initializers.he_normal(), name="hidden")(x)
        )
        counts = (1, self.num_shapes, self.num_colors, self.num_sizes, self.num_backgrounds)
        logits = nn.Dense(sum(counts), name="head")(x)
        ends = [sum(counts[: k + 1]) for k in range(len(counts) - 1)]
        present, *others = jnp.split(logits, ends, axis=-1)
        return AreaLogits(present[:, 0], *others)


def detect(module: ShapesDetector, params: dict, images: Float[Array, "b s s 3"]) -> AreaLogits:
    """Return logits of each area of whole images; those of the background are their mean.

    Args:
        module: the network.
        params: its parameters.
        images: in [0, 1], the side a multiple of 16.

    Returns:
        Logits with leading axes (b, 9), those of the background (b, num_backgrounds).
    """
    areas = cut_areas(images)
    logits: Any = module.apply({"params": params}, areas.reshape(-1, *areas.shape[2:]))
    grids = jax.tree.map(lambda x: x.reshape(*areas.shape[:2], *x.shape[1:]), logits)
    return grids._replace(background=grids.background.mean(axis=1))


def _conv(features: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(features, (3, 3), stride, kernel_init=nn.initializers.he_normal(), name=name)
