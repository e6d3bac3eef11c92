"""From images and captions to CLIP's embeddings, over all devices."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

import xmcgan
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.batches import Batches, rebatch, run_batches, whole_batch_size
from xmcgan.evaluation.resize import antialiased_matrix
from xmcgan.pretrained.clip import load_clip
from xmcgan.utils.mesh import put, replicated, sample_sharding

# Hessel et al., "CLIPScore", EMNLP 2021, section 3.
PREFIX = "A photo depicts "


class ClipExtractor:
    """Embed images and captions in float32 at highest precision, the same on any devices.

    Args:
        path: CLIP's weights; see `load_clip`.
        mesh: devices that share the work.
        batch_size: images or captions at once, rounded up to a multiple of the devices; None fits
            the devices.
        allow_unverified: accept weights that are not known to be a published file.

    Attributes:
        recipe: how embeddings are made: the network, and the digest of its weights.

    Raises:
        WeightsError: the weights are missing, damaged or not verified.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        mesh: Mesh,
        batch_size: int | None = None,
        allow_unverified: bool = False,
    ) -> None:
        clip = load_clip(Path(path).expanduser(), allow_unverified=allow_unverified)
        self.recipe: dict[str, Any] = {
            "network": f"CLIP, {clip.architecture}",
            "resize": f"Pillow's bicubic of the short side, centre crop, to {clip.image_size}",
            "weights_sha256": clip.sha256,
            "weights_verified": clip.verified,
            "package_version": xmcgan.__version__,
        }
        self._clip = clip
        self._mesh, self._batch_size = mesh, whole_batch_size(mesh, batch_size)
        params = put(clip.params, replicated(mesh))

        def encode_images(params: Any, images: Array) -> Array:
            with jax.default_matmul_precision("highest"):
                return clip.encode_images(params, preprocess(images, clip.image_size))

        def encode_text(params: Any, token_ids: Array) -> Array:
            with jax.default_matmul_precision("highest"):
                return clip.encode_text(params, token_ids)

        by_rows = sample_sharding(mesh)
        self._encode_images = functools.partial(
            jax.jit(encode_images, out_shardings=by_rows), params
        )
        self._encode_text = functools.partial(jax.jit(encode_text, out_shardings=by_rows), params)

    def images(self, batches: Batches, expected: int | None = None) -> Float[np.ndarray, "n e"]:
        """Return the embeddings of images, not normalised.

        Args:
            batches: uint8 images of one size, in batches of any sizes.
            expected: how many images there must be; not checked where None.

        Raises:
            EvaluationError: no images, another number than expected, images of several sizes, or
                an embedding that is not finite.
        """
        found = self._embed(self._encode_images, rebatch(batches, self._batch_size), "image")
        if expected is not None and len(found) != expected:
            raise EvaluationError(
                f"{len(found)} images came where {expected} were expected: no score"
            )
        return found

    def texts(self, captions: Sequence[str], prefix: str = PREFIX) -> Float[np.ndarray, "n e"]:
        """Return the embeddings of captions, not normalised.

        Args:
            captions: one a row; cut to the network's number of tokens.
            prefix: goes before each; by default that of CLIPScore.

        Raises:
            EvaluationError: no captions, or an embedding that is not finite.
        """
        token_ids = self._clip.tokenizer([prefix + caption for caption in captions])
        starts = range(0, len(token_ids), self._batch_size)
        batches = (token_ids[start : start + self._batch_size] for start in starts)
        return self._embed(self._encode_text, batches, "caption")

    def _embed(
        self, encode: Callable[[Array], Array], batches: Iterable[np.ndarray], kind: str
    ) -> Float[np.ndarray, "n e"]:
        """Return the embeddings of batches of at most `batch_size` rows."""
        embeddings = list(run_batches(encode, batches, self._batch_size, self._mesh))
        if not embeddings:
            raise EvaluationError(f"there are no {kind}s to score")
        joined = np.concatenate(embeddings)
        finite = np.isfinite(joined).all(axis=1)
        if not finite.all():
            raise EvaluationError(
                f"CLIP's embedding of {kind} {int(np.argmin(finite))} (counted from 0) is not "
                "finite: no score; the network's weights are damaged or not its own"
            )
        return joined


def preprocess(images: UInt8[Array, "b h w 3"], size: int) -> Float[Array, "b s s 3"]:
    """Resize the short side with Pillow's bicubic filter, crop the centre, and scale to [0, 1].

    The preprocessing of CLIP's own code. Pillow filters rows, rounds to whole grey levels, then
    filters columns and rounds again.

    Args:
        images: pixels; the function can be compiled for each height and width.
        size: side of the result.
    """
    height, width = images.shape[1:3]
    x = jnp.asarray(images).astype(jnp.float32)
    columns, rows = (_matrix(side, min(height, width), size) for side in (width, height))
    highest = jax.lax.Precision.HIGHEST
    x = _to_grey_levels(jnp.einsum("jw,bhwc->bhjc", columns, x, precision=highest))
    x = _to_grey_levels(jnp.einsum("ih,bhjc->bijc", rows, x, precision=highest))
    return x / 255


def _matrix(side: int, short_side: int, size: int) -> Float[np.ndarray, "size side"]:
    """Return the matrix that resizes one side and keeps its centre."""
    resized = size * side // short_side
    # Halves go to the even pixel, as in torchvision's crop.
    first = round((resized - size) / 2)
    return antialiased_matrix(side, resized, "bicubic")[first : first + size]


def _to_grey_levels(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
