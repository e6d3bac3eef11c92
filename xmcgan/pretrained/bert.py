"""BERT as a frozen text encoder: words and sentence of a caption.

Devlin et al., "BERT", NAACL 2019: post-layer-norm transformer, exact GELU, learned positions.
One module serves every size: bert-base-uncased as well as the small MiniLM.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from xmcgan.errors import WeightsError

# Far below any logit, and finite: a caption without any real word must not give NaN.
_MASKED = -1e9
SENTENCE_POOLINGS = ("masked_mean", "padded_mean")


class Bert(nn.Module):
    """Encode token ids to hidden states.

    Attributes:
        vocab_size: number of word pieces.
        hidden_size: width of the hidden states.
        num_layers: number of transformer layers.
        num_heads: attention heads per layer.
        intermediate_size: inner width of the feed-forward part.
        max_positions: the longest sequence that has learned positions.
        layer_norm_eps: added to the variance in layer norms.
        dtype: of the matrix products; layer norms, softmax and the residual stream stay float32.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    layer_norm_eps: float = 1e-12
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "b t"], word_mask: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Return the last layer's hidden states.

        Args:
            token_ids: word pieces in [0, vocab_size).
            word_mask: True where a real token stands; nothing attends to the others.

        Returns:
            Hidden states in float32, of padding too.
        """
        length = token_ids.shape[1]
        words = self.param(
            "word_embeddings", nn.initializers.normal(0.02), (self.vocab_size, self.hidden_size)
        )
        # The embedding of token type 0, the only one in use, is part of the positions.
        positions = self.param(
            "position_embeddings",
            nn.initializers.normal(0.02),
            (self.max_positions, self.hidden_size),
        )
        x = jnp.take(words, token_ids, axis=0) + positions[None, :length]
        x = _layer_norm(self.layer_norm_eps, "embeddings_norm")(x)
        for index in range(self.num_layers):
            layer = BertLayer(
                self.num_heads,
                self.intermediate_size,
                self.layer_norm_eps,
                self.dtype,
                name=f"layer_{index}",
            )
            x = layer(x, word_mask)
        return x


class BertLayer(nn.Module):
    """Apply self-attention and a feed-forward part, each with a residual and then a layer norm."""

    num_heads: int
    intermediate_size: int
    layer_norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], word_mask: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Return the layer's output; see `Bert`."""
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        # One product instead of three: small matrices leave an accelerator idle.
        query_key_value = dense(3 * width, name="query_key_value")(x)
        context = _attend(query_key_value, word_mask, self.num_heads)
        x = x + dense(width, name="attention_output")(context).astype(jnp.float32)
        x = _layer_norm(self.layer_norm_eps, "attention_norm")(x)
        hidden = nn.gelu(dense(self.intermediate_size, name="intermediate")(x), approximate=False)
        x = x + dense(width, name="output")(hidden).astype(jnp.float32)
        return _layer_norm(self.layer_norm_eps, "output_norm")(x)


def _attend(
    query_key_value: Float[Array, "b t d3"], word_mask: Bool[Array, "b t"], num_heads: int
) -> Float[Array, "b t d"]:
    batch, length, width = query_key_value.shape
    heads = query_key_value.reshape(batch, length, 3, num_heads, width // (3 * num_heads))
    query, key, value = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    logits = jnp.where(word_mask[:, None, None, :], logits, _MASKED)
    attention = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", attention, value).reshape(batch, length, width // 3)


def _layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, cancels; this is the literal one.
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, name=name)


def encode(
    module: Bert,
    params,
    token_ids: Int[Array, "b t"],
    word_mask: Bool[Array, "b t"],
    *,
    sentence_pooling: str = "masked_mean",
) -> tuple[Float[Array, "b t d"], Float[Array, "b d"]]:
    """Return the words and the sentence of captions.

    Words are BERT's last hidden states, the sentence is their mean (paper, implementation details).

    Args:
        module: the text encoder.
        params: its parameters, `{"word_embeddings": ..., ...}`.
        token_ids: word pieces, [CLS] and [SEP] included.
        word_mask: True where a real token stands, special tokens included.
        sentence_pooling: "masked_mean" averages over real tokens, so that padding changes nothing;
            "padded_mean" is the official code's: it adds up padded positions too, and divides by
            the number of real tokens.

    Returns:
        Words and sentence in float32. Words include special tokens and, unspecified, padding.

    Raises:
        WeightsError: there are more tokens than learned positions.
        ValueError: the pooling has another name.
    """
    if sentence_pooling not in SENTENCE_POOLINGS:
        raise ValueError(f"sentence_pooling is {sentence_pooling!r}, not in {SENTENCE_POOLINGS}")
    if token_ids.shape[1] > module.max_positions:
        raise WeightsError(
            f"captions of {token_ids.shape[1]} tokens do not fit this text encoder, which has "
            f"{module.max_positions} positions; lower the number of tokens per caption"
        )
    words = jnp.asarray(module.apply({"params": params}, token_ids, word_mask))
    weight = word_mask[..., None].astype(jnp.float32)
    added = words if sentence_pooling == "padded_mean" else words * weight
    return words, added.sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)
