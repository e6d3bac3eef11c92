"""The frozen encoders of training: functions, and parameters that are passed to them."""

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
from xmcgan.pretrained.params import Params
from xmcgan.utils.registry import find

# Loaders by name; a dotted path to a loader of your own, "my_networks:load", does as well.
# load(path, dtype=...) -> module and params; module.apply({"params": params}, images in [0, 1])
# -> pooled features (b, d) and logits (b, k).
IMAGE_NETWORKS = {
    "efficientnet_lite0": "xmcgan.pretrained.efficientnet_lite:load_efficientnet_lite0",
    "resnet50": "xmcgan.pretrained.resnet:load_resnet50",
    "vgg16": "xmcgan.pretrained.vgg:load_vgg16",
    "vgg19": "xmcgan.pretrained.vgg:load_vgg19",
}
# load(path, sentence_pooling=..., dtype=...) -> TextEncoder.
TEXT_ENCODERS = {"bert": "xmcgan.pretrained.encoders:load_bert_encoder"}


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder; `apply(params, token_ids, word_mask)` gives words and sentence.

    `params` are NumPy arrays, to be passed to the compiled step: it would copy closures of them.
    """

    apply: Callable[
        [Any, Int[Array, "b t"], Bool[Array, "b t"]],
        tuple[Float[Array, "b t d"], Float[Array, "b d"]],
    ]
    params: Params
    width: int
    vocab_size: int  # token ids must be below it
    max_tokens: int
    vocab_file: Path  # word pieces, one per line, for the tokenizer


def load_text_encoder(
    path: Path,
    kind: str = "bert",
    *,
    sentence_pooling: str = "masked_mean",
    dtype: DTypeLike = jnp.float32,
) -> TextEncoder:
    """Load a text encoder from its directory of weights, or the file in it; see `bert.encode`."""
    load = find(kind, TEXT_ENCODERS, "text encoder")
    return load(path, sentence_pooling=sentence_pooling, dtype=dtype)


def load_bert_encoder(path: Path, *, sentence_pooling: str, dtype: DTypeLike) -> TextEncoder:
    """Load a BERT from safetensors with `config.json` and `vocab.txt` beside it."""
    module, params = bert.load_bert(path, dtype=dtype)
    vocab_file = (path if path.is_dir() else path.parent) / "vocab.txt"
    if not vocab_file.is_file():
        raise WeightsError(f"no {vocab_file}: the tokenizer needs the text encoder's word pieces")

    def apply(params, token_ids, word_mask):
        return bert.encode(module, params, token_ids, word_mask, sentence_pooling=sentence_pooling)

    sizes = module.hidden_size, module.vocab_size, module.max_position_embeddings
    return TextEncoder(apply, params, *sizes, vocab_file)


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """A frozen, differentiable image encoder of width d; for `params` see `TextEncoder`."""

    apply: Callable[[Any, Float[Array, "b h w 3"]], Float[Array, "b d"]]  # images in [0, 1]
    params: Params
    width: int


def load_image_encoder(
    kind: str,
    path: Path,
    *,
    input_size: int = 224,
    feature: str = "pooled",
    dtype: DTypeLike = jnp.float32,
) -> ImageEncoder:
    """Load an image encoder from its file of weights, or the directory that holds it.

    Images are resized to `input_size`, bilinear. `feature` is "pooled", the mean of the last
    feature map, or "logits" of ImageNet's classes.
    """
    module, params = find(kind, IMAGE_NETWORKS, "image network")(path, dtype=dtype)
    if feature == "pooled" and hasattr(module, "without_classifier"):
        module, params = module.without_classifier(params)

    def apply(params, images):
        shape = (images.shape[0], input_size, input_size, images.shape[3])
        resized = jax.image.resize(images, shape, "bilinear")
        pooled, logits = module.apply({"params": params}, resized)
        return jnp.asarray(pooled if feature == "pooled" else logits)

    image = jax.ShapeDtypeStruct((1, input_size, input_size, 3), jnp.float32)
    width = jax.eval_shape(apply, params, image).shape[-1]
    return ImageEncoder(apply, params, width)
