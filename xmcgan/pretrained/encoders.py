"""The frozen encoders as training uses them: a function, and parameters that are passed to it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from xmcgan.errors import WeightsError
from xmcgan.pretrained import bert
from xmcgan.pretrained.bert_weights import load_bert
from xmcgan.pretrained.efficientnet_lite import load_efficientnet_lite0
from xmcgan.pretrained.resnet import load_resnet50

IMAGE_NETWORKS = ("efficientnet_lite0", "resnet50")
IMAGE_FEATURES = ("pooled", "logits")


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Hold a frozen text encoder.

    Attributes:
        apply: (params, token_ids (b, t), word_mask (b, t)) -> words (b, t, d), sentence (b, d).
        params: NumPy arrays; put them on the devices once, and pass them to the compiled step as an
            argument, or the compiler copies them into the program as constants.
        width: d, the width of words and sentence.
        vocab_size: number of word pieces; token ids must be below it.
        max_tokens: the longest caption that it can encode.
        vocab_file: the word pieces, one a line, for the tokenizer.
    """

    apply: Callable[
        [Any, Int[Array, "b t"], Bool[Array, "b t"]],
        tuple[Float[Array, "b t d"], Float[Array, "b d"]],
    ]
    params: Any
    width: int
    vocab_size: int
    max_tokens: int
    vocab_file: Path


def load_text_encoder(
    path: Path, *, sentence_pooling: str = "masked_mean", dtype: DTypeLike = jnp.float32
) -> TextEncoder:
    """Return the text encoder of a directory with safetensors, `config.json` and `vocab.txt`.

    Args:
        path: the directory, or the safetensors file in it.
        sentence_pooling: "masked_mean" or "padded_mean"; see `bert.encode`.
        dtype: of the matrix products; words and sentence are float32 in any case.

    Raises:
        WeightsError: a file is missing, damaged or does not fit.
    """
    module, params = load_bert(path, dtype=dtype)
    vocab_file = (path if path.is_dir() else path.parent) / "vocab.txt"
    if not vocab_file.is_file():
        raise WeightsError(f"no {vocab_file}: the tokenizer needs the text encoder's word pieces")

    def apply(params, token_ids, word_mask):
        return bert.encode(module, params, token_ids, word_mask, sentence_pooling=sentence_pooling)

    return TextEncoder(
        apply=apply,
        params=params,
        width=module.hidden_size,
        vocab_size=module.vocab_size,
        max_tokens=module.max_positions,
        vocab_file=vocab_file,
    )


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """Hold a frozen image encoder.

    Attributes:
        apply: (params, images (b, h, w, 3) in [0, 1]) -> features (b, d), float32; differentiable.
        params: NumPy arrays; see `TextEncoder.params`.
        width: d, the width of the features.
    """

    apply: Callable[[Any, Float[Array, "b h w 3"]], Float[Array, "b d"]]
    params: Any
    width: int


def load_image_encoder(
    kind: str,
    path: Path,
    *,
    input_size: int = 224,
    feature: str = "pooled",
    normalize: str = "auto",
    dtype: DTypeLike = jnp.float32,
) -> ImageEncoder:
    """Return the image encoder of a file of weights.

    Args:
        kind: "efficientnet_lite0" or "resnet50".
        path: the file, or the directory that holds it.
        input_size: side in pixels to which images are resized, bilinear; both networks were
            trained at 224, and smaller sides cost less.
        feature: "pooled", the mean of the last feature map, or "logits" of ImageNet's classes.
        normalize: see `resnet.load_resnet50`; EfficientNet-Lite0 has a scaling of its own.
        dtype: of the convolutions.

    Raises:
        WeightsError: the file is missing, damaged, unsafe or does not fit.
        ValueError: an option has an unknown value.
    """
    if kind not in IMAGE_NETWORKS:
        raise ValueError(f"kind is {kind!r}, not in {IMAGE_NETWORKS}")
    if feature not in IMAGE_FEATURES:
        raise ValueError(f"feature is {feature!r}, not in {IMAGE_FEATURES}")
    if kind == "efficientnet_lite0":
        module, params = load_efficientnet_lite0(path, dtype=dtype)
    else:
        module, params = load_resnet50(path, normalize=normalize, dtype=dtype)

    def apply(params, images):
        shape = (images.shape[0], input_size, input_size, images.shape[3])
        resized = jax.image.resize(images, shape, "bilinear")
        pooled, logits = module.apply({"params": params}, resized)
        return jnp.asarray(pooled if feature == "pooled" else logits)

    head = "logits" if kind == "efficientnet_lite0" else "head"
    pooled_width, num_classes = params[head]["kernel"].shape
    return ImageEncoder(
        apply=apply, params=params, width=pooled_width if feature == "pooled" else num_classes
    )
