"""DiffAugment: differentiable augmentation of what the discriminator sees.

Zhao, Liu, Lin, Zhu, Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS
2020. Real and generated images are augmented alike, and gradients flow through to the generator.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

POLICIES = ("color", "translation", "cutout")
NUM_UNIFORMS = 7  # random numbers that an image's augmentation takes
_MAX_SHIFT = 1 / 8  # of the side
_CUTOUT = 1 / 2  # of the side


def diff_augment(
    images: Float[Array, "b h w 3"], uniforms: Float[Array, "b 7"], policies: tuple[str, ...]
) -> Float[Array, "b h w 3"]:
    """Augment images in [0, 1], which may leave it, by random numbers of each in [0, 1)."""
    if "color" in policies:
        images = _change_color(images, uniforms[:, :3])
    if "translation" in policies:
        images = _translate(images, uniforms[:, 3:5])
    if "cutout" in policies:
        images = _cut_out(images, uniforms[:, 5:7])
    return images


def _change_color(x: Array, uniforms: Array) -> Array:
    brightness, saturation, contrast = jnp.moveaxis(uniforms[:, :, None, None, None], 1, 0)
    # On [-1, 1] the original adds u - 0.5; on [0, 1] that is half as much.
    x = x + (brightness - 0.5) / 2
    gray = jnp.mean(x, axis=-1, keepdims=True)
    x = (x - gray) * (2 * saturation) + gray
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return (x - mean) * (contrast + 0.5) + mean


def _translate(x: Array, uniforms: Array) -> Array:
    """Shift by whole pixels; what comes in is gray."""
    _, height, width, _ = x.shape
    rows = _shifted_positions(height, uniforms[:, 0])
    columns = _shifted_positions(width, uniforms[:, 1])
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, x - 0.5, columns) + 0.5


def _shifted_positions(size: int, uniforms: Array) -> Float[Array, "b n n"]:
    """Return a matrix per image that moves a row of pixels."""
    # A product with it is a gather whose gradient is a product, too: a scatter is slow on TPUs.
    most = round(size * _MAX_SHIFT)
    shift = jnp.floor(uniforms * (2 * most + 1)).astype(jnp.int32) - most
    positions = jnp.arange(size)
    source = positions[None, :, None] + shift[:, None, None]
    return (source == positions[None, None, :]).astype(jnp.float32)


def _cut_out(x: Array, uniforms: Array) -> Array:
    """Make a square of half the side gray, around any pixel."""
    _, height, width, _ = x.shape

    def inside(size: int, u: Array) -> Array:
        length = round(size * _CUTOUT)
        first = jnp.floor(u * (size + 1 - length % 2)).astype(jnp.int32) - length // 2
        distance = jnp.arange(size)[None] - first[:, None]
        return (distance >= 0) & (distance < length)

    mask = inside(height, uniforms[:, 0])[:, :, None] & inside(width, uniforms[:, 1])[:, None, :]
    return jnp.where(mask[..., None], 0.5, x)
