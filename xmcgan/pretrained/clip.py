"""CLIP as a frozen judge of how well an image fits a caption.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021:
two pre-layer-norm transformers with quick GELU, one of image patches and one of words.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xmcgan.pretrained.clip_tokenizer import ClipTokenizer

# Mean and deviation of the pixels that CLIP was trained on, in 0..1.
_PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_PIXEL_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Sizes(NamedTuple):
    """Describe one of the two transformers."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    layer_norm_eps: float


class ImageTransformer(nn.Module):
    """Encode images into the space that they share with captions.

    Attributes:
        sizes: of the transformer.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        embed_dim: width of the shared space.
    """

    sizes: Sizes
    image_size: int
    patch_size: int
    embed_dim: int

    @nn.compact
    def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b e"]:
        """Return embeddings, not normalised.

        Args:
            images: of `image_size`, standardised by CLIP's mean and deviation.
        """
        width = self.sizes.width
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(width, patch, patch, padding="VALID", use_bias=False, name="patches")(images)
        x = x.reshape(x.shape[0], -1, width)
        initializer = nn.initializers.normal(width**-0.5)
        first = self.param("class_embedding", initializer, (width,))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, width)), x], axis=1)
        x = x + self.param("position_embeddings", initializer, x.shape[1:])
        x = _layer_norm(self.sizes, "pre_norm")(x)
        for index in range(self.sizes.num_layers):
            x = Layer(self.sizes, causal=False, name=f"layer_{index}")(x)
        x = _layer_norm(self.sizes, "post_norm")(x[:, 0])
        return nn.Dense(self.embed_dim, use_bias=False, name="projection")(x)


class TextTransformer(nn.Module):
    """Encode captions into the space that they share with images.

    Attributes:
        sizes: of the transformer.
        vocab_size: number of tokens.
        max_positions: the longest caption in tokens.
        embed_dim: width of the shared space.
        end_token: the token whose first occurrence stands for the caption; None takes the highest
            id of the caption, as the original code does.
    """

    sizes: Sizes
    vocab_size: int
    max_positions: int
    embed_dim: int
    end_token: int | None = None

    @nn.compact
    def __call__(self, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Return embeddings, not normalised.

        Args:
            token_ids: in [0, vocab_size), at most `max_positions`. What stands after the end token
                changes nothing, because no token sees the ones after it.
        """
        initializer = nn.initializers.normal(0.02)
        width = self.sizes.width
        words = self.param("word_embeddings", initializer, (self.vocab_size, width))
        positions = self.param("position_embeddings", initializer, (self.max_positions, width))
        x = jnp.take(words, token_ids, axis=0) + positions[: token_ids.shape[1]]
        for index in range(self.sizes.num_layers):
            x = Layer(self.sizes, causal=True, name=f"layer_{index}")(x)
        is_end = token_ids if self.end_token is None else token_ids == self.end_token
        x = x[jnp.arange(x.shape[0]), jnp.argmax(is_end, axis=1)]
        x = _layer_norm(self.sizes, "final_norm")(x)
        return nn.Dense(self.embed_dim, use_bias=False, name="projection")(x)


class Layer(nn.Module):
    """Add self-attention and a feed-forward part, each of a layer norm of the residual stream."""

    sizes: Sizes
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the layer's output."""
        batch, length, width = x.shape
        # One product instead of three: small matrices leave an accelerator idle.
        normed = _layer_norm(self.sizes, "attention_norm")(x)
        query_key_value = nn.Dense(3 * width, name="query_key_value")(normed)
        heads = query_key_value.reshape(batch, length, 3, self.sizes.num_heads, -1)
        query, key, value = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        context = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + nn.Dense(width, name="attention_output")(context.reshape(x.shape))
        normed = _layer_norm(self.sizes, "mlp_norm")(x)
        hidden = _quick_gelu(nn.Dense(self.sizes.mlp_width, name="intermediate")(normed))
        return x + nn.Dense(width, name="output")(hidden)


def _quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x * jax.nn.sigmoid(1.702 * x)


def _layer_norm(sizes: Sizes, name: str) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, cancels; this is the literal one.
    return nn.LayerNorm(epsilon=sizes.layer_norm_eps, use_fast_variance=False, name=name)


@dataclasses.dataclass(frozen=True)
class Clip:
    """Hold a frozen CLIP.

    Attributes:
        image_transformer: the network of images.
        text_transformer: the network of captions.
        params: NumPy arrays; put them on the devices once, and pass them to compiled functions as
            an argument, or the compiler copies them into the program as constants.
        tokenizer: captions to token ids.
        sha256: of the file of weights.
        verified: whether that is a published file.
    """

    image_transformer: ImageTransformer
    text_transformer: TextTransformer
    params: dict[str, Any]
    tokenizer: ClipTokenizer
    sha256: str
    verified: bool

    @property
    def image_size(self) -> int:
        """Return the side of its images in pixels."""
        return self.image_transformer.image_size

    @property
    def embed_dim(self) -> int:
        """Return the width of the embeddings."""
        return self.image_transformer.embed_dim

    @property
    def architecture(self) -> str:
        """Return the image network's sizes in words, for records."""
        image = self.image_transformer
        return (
            f"ViT width {image.sizes.width}, {image.sizes.num_layers} layers, "
            f"patch {image.patch_size}, image {image.image_size}"
        )

    def encode_images(self, params: Any, images: Float[Array, "b s s 3"]) -> Float[Array, "b e"]:
        """Return the embeddings of images, not normalised.

        Args:
            params: `self.params`, wherever they lie.
            images: in [0, 1], of `image_size`.
        """
        standardised = (images - _PIXEL_MEAN) / _PIXEL_DEVIATION
        return jnp.asarray(self.image_transformer.apply({"params": params["image"]}, standardised))

    def encode_text(self, params: Any, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Return the embeddings of captions, not normalised.

        Args:
            params: `self.params`, wherever they lie.
            token_ids: from `tokenizer`.
        """
        return jnp.asarray(self.text_transformer.apply({"params": params["text"]}, token_ids))
