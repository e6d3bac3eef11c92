"""BERT as a frozen text encoder: words and sentence of a caption.

Devlin et al., "BERT", NAACL 2019: post-layer-norm transformer, exact GELU, learned positions.
One module serves every size: bert-base-uncased as well as the small MiniLM.
"""

import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from xmcgan.errors import WeightsError
from xmcgan.pretrained.params import Params, Tensors, check_params, flatten, read_fields, read_json
from xmcgan.pretrained.weights import find_file, read_safetensors

# Far below any logit, and finite: a caption without any real word must not give NaN.
_MASKED = -1e9
SENTENCE_POOLINGS = ("masked_mean", "padded_mean")
# What config.json must say, and may leave out unless None; see `read_fields`.
_CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "layer_norm_eps": 1e-12,
    "vocab_size": None,
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": None,
}
# Heads on top of the encoder, and a constant table: not part of what encodes words.
_NOT_NEEDED = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")


class Bert(nn.Module):
    """Token ids to hidden states.

    `dtype` is that of the matrix products; layer norms, softmax and the residual stream stay
    float32.
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
        """Return the last layer's hidden states, float32, for padding too.

        Args:
            token_ids: Word pieces in [0, vocab_size).
            word_mask: True at real tokens; nothing attends to the others.
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
    """Self-attention and a feed-forward part, each with a residual and then a layer norm."""

    num_heads: int
    intermediate_size: int
    layer_norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], word_mask: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Return the layer's output."""
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
    """Return words and sentence of captions, float32.

    Words are BERT's last hidden states, the sentence is their mean (paper, implementation details).

    Args:
        module: The text encoder.
        params: Its parameters.
        token_ids: Word pieces, [CLS] and [SEP] included.
        word_mask: True at real tokens, special ones included; words elsewhere are unspecified.
        sentence_pooling: "masked_mean" averages over real tokens, so that padding changes nothing;
            "padded_mean" is the official code's: it sums padded positions too, and divides by
            the number of real tokens.

    Raises:
        WeightsError: More tokens than learned positions.
        ValueError: Unknown pooling.
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


def load_bert(path: Path, *, dtype: DTypeLike = jnp.float32) -> tuple[Bert, Params]:
    """Load a BERT as its publishers write it.

    Args:
        path: A .safetensors file, or the directory that holds it, with `config.json` beside it.
        dtype: Of the matrix products.

    Returns:
        The module and its parameters, float32 NumPy arrays.

    Raises:
        WeightsError: A file is missing, damaged or of another kind of network.
    """
    file = find_file(path, "bert")
    module = read_config(file.with_name("config.json"), dtype)
    tensors, _ = read_safetensors(file)
    named = Tensors(file, {_rename(name): tensors[name] for name in tensors})
    try:
        params = _to_params(named, module.num_layers)
    except (IndexError, ValueError) as error:
        raise WeightsError(f"{file} does not fit the network: {error}") from error
    left_over = [name for name in named if not _NOT_NEEDED.match(name)]
    inputs = (jax.ShapeDtypeStruct((1, 1), np.int32), jax.ShapeDtypeStruct((1, 1), bool))
    check_params(flatten(params), module, *inputs, path=file, left_over=left_over)
    return module, params


def read_config(file: Path, dtype: DTypeLike) -> Bert:
    """Read the sizes of a BERT from its `config.json`; raises a WeightsError."""
    config = read_fields(read_json(file), file, _CONFIG)
    return Bert(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        layer_norm_eps=float(config["layer_norm_eps"]),
        dtype=dtype,
    )


def _rename(name: str) -> str:
    """Return the name in a BERT without heads; bert-base-uncased has older names of norms."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _to_params(tensors: Tensors, num_layers: int) -> Params:
    positions = tensors.take("embeddings.position_embeddings.weight")
    token_types = tensors.take("embeddings.token_type_embeddings.weight")
    if token_types.shape != (2, *positions.shape[1:]):
        raise ValueError(f"embeddings.token_type_embeddings.weight {token_types.shape}")
    params: Params = {
        "word_embeddings": tensors.take("embeddings.word_embeddings.weight"),
        "position_embeddings": positions + token_types[0],
        "embeddings_norm": tensors.norm("embeddings.LayerNorm"),
    }
    for index in range(num_layers):
        layer = f"encoder.layer.{index}"
        attention = f"{layer}.attention"
        params[f"layer_{index}"] = {
            "query_key_value": tensors.dense(
                *(f"{attention}.self.{part}" for part in ("query", "key", "value"))
            ),
            "attention_output": tensors.dense(f"{attention}.output.dense"),
            "attention_norm": tensors.norm(f"{attention}.output.LayerNorm"),
            "intermediate": tensors.dense(f"{layer}.intermediate.dense"),
            "output": tensors.dense(f"{layer}.output.dense"),
            "output_norm": tensors.norm(f"{layer}.output.LayerNorm"),
        }
    return params
