"""Feature protocols: everything between an image's pixels and its features, by name."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from xmcgan.errors import EvaluationError, did_you_mean
from xmcgan.pretrained.efficientnet_lite import SCALES, load_efficientnet_lite
from xmcgan.pretrained.inception import PUBLISHED_MD5, load_inception
from xmcgan.pretrained.sources import SOURCES
from xmcgan.pretrained.vgg import load_vgg
from xmcgan.pretrained.weights import FileIdentity, find_file, identify_file, resolve


@dataclasses.dataclass(frozen=True)
class FeatureProtocol:
    """Network, resize and scaling of features; scores of two protocols are never compared.

    Deviation: all protocols read uint8 pixels. The official XMC-GAN code feeds its samples to the
    network without rounding; here images in memory score the same as on disk.
    """

    name: str
    # Only Inception features may be called "FID"; "PR" has precision, recall, density and coverage.
    label: Literal["FID", "FD", "PR"]
    network: str  # a key of `_NETWORKS`, and the name of its weights
    resize: str  # a key of `RESIZES`
    input_size: int  # pixels
    scaling: str  # of a pixel x of 0..255; a key of `SCALINGS`
    num_features: int


def tf1_bilinear_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "size_out size_in"]:
    """Matrix of `tf.image.resize_bilinear(align_corners=False)` of one side, in the first FID.

    No half pixel, no antialiasing: output i lies at i * size_in / size_out.
    """
    # In float32, as the kernel of TensorFlow: in float64 some points would round to the next pixel.
    places = np.arange(size_out, dtype=np.float32) * (np.float32(size_in) / np.float32(size_out))
    return _between_pixels(places, size_in)


def half_pixel_bilinear_matrix(
    size_in: int, size_out: int
) -> Float[np.ndarray, "size_out size_in"]:
    """Matrix of PyTorch's `interpolate(mode="bilinear", align_corners=False)` of one side.

    Output i lies at (i + 0.5) * size_in / size_out - 0.5; no antialiasing.
    """
    # PyTorch rounds the scale to float32, and the place once: a fused multiply-add.
    scale = np.float64(np.float32(size_in) / np.float32(size_out))
    places = np.maximum((np.arange(size_out) + 0.5) * scale - 0.5, 0)
    return _between_pixels(places.astype(np.float32), size_in)


def _between_pixels(
    places: Float[np.ndarray, "size_out"], size_in: int
) -> Float[np.ndarray, "size_out size_in"]:
    low = np.minimum(np.floor(places).astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    weight = (places - low.astype(np.float32))[:, None]
    unit = np.eye(size_in, dtype=np.float32)
    return (1 - weight) * unit[low] + weight * unit[high]


def antialiased_matrix(
    size_in: int, size_out: int, kernel: Literal["bilinear", "bicubic"] = "bilinear"
) -> Float[np.ndarray, "size_out size_in"]:
    """Matrix of Pillow's `Image.resize` of one side in mode "F", and of `jax.image.resize`.

    A bicubic kernel has negative weights: results may leave the range of the pixels.
    """
    scale = size_in / size_out
    centers = (np.arange(size_out) + 0.5) * scale - 0.5
    x = np.abs(centers[:, None] - np.arange(size_in)) / max(scale, 1.0)
    if kernel == "bilinear":
        weights = np.maximum(1 - x, 0)
    else:  # Keys' cubic with a = -1/2, as Pillow and jax.image.resize have it (OpenCV: -3/4)
        near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def apply_matrices(
    images: Float[Array, "b h w c"],
    rows: Float[np.ndarray, "i h"],
    columns: Float[np.ndarray, "j w"],
) -> Float[Array, "b i j c"]:
    """Resize images by a matrix for their rows and one for their columns."""
    # The default precision is TF32 on GPUs and bfloat16 on TPUs: 0.5 of 255 gray levels.
    highest = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("jw,bhwc->bhjc", jnp.asarray(columns), images, precision=highest)
    return jnp.einsum("ih,bhjc->bijc", jnp.asarray(rows), wide, precision=highest)


RESIZES: dict[str, Callable[[int, int], np.ndarray]] = {
    "bilinear of TensorFlow 1": tf1_bilinear_matrix,
    "bilinear of PyTorch": half_pixel_bilinear_matrix,
    "antialiased bilinear": antialiased_matrix,
    "antialiased bicubic, clipped to 0..255": partial(antialiased_matrix, kernel="bicubic"),
}
SCALINGS: dict[str, Callable[[Array], Array]] = {
    "(x - 128) / 128": lambda x: (x - 128) / 128,
    "2 x / 255 - 1": lambda x: 2 * (x / 255) - 1,
    "clip(2 x / 255 - 1, -1, 1)": lambda x: jnp.clip(2 * (x / 255) - 1, -1, 1),
    "x / 255": lambda x: x / 255,
}

_TF1, _BICUBIC = "bilinear of TensorFlow 1", "antialiased bicubic, clipped to 0..255"
_INCEPTION, _SIGNED = "inception-2015", "(x - 128) / 128"
# Name, label, network, resize and the side to which it is, scaling, number of features.
_PROTOCOLS = (
    # Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, and their code:
    # comparable with TTUR and torch-fidelity.
    FeatureProtocol("fid-2015", "FID", _INCEPTION, _TF1, 299, _SIGNED, 2048),
    # mseitzer/pytorch-fid: the same weights behind PyTorch's own resize.
    FeatureProtocol(
        "fid-pytorch", "FID", _INCEPTION, "bilinear of PyTorch", 299, "2 x / 255 - 1", 2048
    ),
    # Parmar, Zhang, Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR
    # 2022: Pillow's bicubic of each channel in float, clipped.
    FeatureProtocol("fid-clean", "FID", _INCEPTION, _BICUBIC, 299, _SIGNED, 2048),
    # The official XMC-GAN code's own measure: Keras' ImageNet weights, `jax.image.resize`
    # (which antialiases when it shrinks), and a clip after scaling.
    FeatureProtocol(
        "fid-keras", "FID", "inception-keras", "antialiased bilinear", 299,
        "clip(2 x / 255 - 1, -1, 1)", 2048,
    ),
    # Our own measure, never called FID: needs no download beyond a pinned wheel. The network was
    # trained on Pillow's bicubic at 224; we keep it in float and clip, as clean-fid does. Its own
    # scaling, (x - 127) / 128, is part of the network.
    FeatureProtocol("fd-effnet-lite0", "FD", "efficientnet_lite0", _BICUBIC, 224, "x / 255", 1280),
    # Training uses Lite0 (image loss, projected discriminator) but never Lite2. It is made for 260
    # pixels; 160 takes a quarter of the time and ranks as well (docs/evaluation.md).
    FeatureProtocol("fd-effnet-lite2", "FD", "efficientnet_lite2", _BICUBIC, 160, "x / 255", 1280),
    # Kynkaanniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019: the second hidden
    # layer of VGG-16 after its ReLU, as torch-fidelity extracts it. The network standardizes.
    # Deviation: torchvision's weights; the authors' file is converted from the first VGG-16's.
    FeatureProtocol("pr-vgg16", "PR", "vgg16", _TF1, 224, "x / 255", 4096),
)  # fmt: skip
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}
DEFAULT_PROTOCOL = "fd-effnet-lite2"


def get_protocol(name: str) -> FeatureProtocol:
    """Protocol of a name; raises EvaluationError if there is none."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = did_you_mean(name, PROTOCOLS)
    raise EvaluationError(f"no protocol is called {name!r} (known: {', '.join(PROTOCOLS)}){hint}")


def preprocess(
    protocol: FeatureProtocol, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"]
) -> Float[Array, "b s s 3"]:
    """Resize and scale pixels to the input of the protocol's network."""
    matrix, size = RESIZES[protocol.resize], protocol.input_size
    height, width = images.shape[1:3]
    pixels = jnp.asarray(images).astype(jnp.float32)
    resized = apply_matrices(pixels, matrix(height, size), matrix(width, size))
    # The bicubic kernel's negative lobes overshoot at edges; the others stay in range.
    return SCALINGS[protocol.scaling](jnp.clip(resized, 0, 255))


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """Frozen network: (params, preprocessed images) -> features (b, d) and logits (b, k)."""

    apply: Callable[[Any, Float[Array, "b s s 3"]], tuple[Array, Array]]
    params: Any  # NumPy arrays
    weights: FileIdentity


def _sha256(name: str) -> str:
    return SOURCES[name].files[0].sha256 or ""


# Digest of the published file that everybody scores with, and its loader.
_NETWORKS: dict[str, tuple[str, Callable[[Path], tuple[Any, Any]]]] = {
    "inception-2015": (_sha256("inception-2015"), partial(load_inception, "2015")),
    "inception-keras": (PUBLISHED_MD5, partial(load_inception, "keras")),
    "vgg16": (_sha256("vgg16"), partial(load_vgg, network="vgg16", feature="fc2")),
    **{name: (_sha256(name), partial(load_efficientnet_lite, network=name)) for name in SCALES},
}


def load_network(
    protocol: FeatureProtocol, weights: str | None = None, *, allow_unverified: bool = False
) -> FeatureNetwork:
    """Load the network of a protocol; `weights`: a file or its directory, None: as fetched."""
    path = find_file(resolve(weights or protocol.network), protocol.network)
    published, load = _NETWORKS[protocol.network]
    identity = identify_file(path, [published], allow_unverified=allow_unverified)
    module, params = load(path)
    return FeatureNetwork(lambda params, x: module.apply({"params": params}, x), params, identity)


def flattered_by(config: ConfigDict, protocol: FeatureProtocol) -> str:
    """Which part of a run's training used the protocol's network; empty if none did.

    Scores by a network that the generator is trained against rise faster than images get better.
    """
    loss, discriminator = config.losses.image_pretrained, config.discriminator
    trunk = discriminator.get("trunk", "efficientnet_lite0")
    used = {
        "image loss": loss.enabled and loss.network == protocol.network,
        "discriminator": discriminator.get("type") == "projected" and trunk == protocol.network,
    }
    return " and ".join(part for part, is_used in used.items() if is_used)
