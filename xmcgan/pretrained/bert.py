"""BERT as a frozen text encoder: words and sentence of a caption.

Devlin et al., "BERT", NAACL 2019: post-layer-norm transformer, exact GELU, learned positions.
One module serves every size: bert-base-uncased as well as the small MiniLM.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from xmcgan.errors import WeightsError
from xmcgan.pretrained.params import Params, Tensors, check_params, flatten, read_sizes
from xmcgan.pretrained.weights import find_file, read_safetensors
from xmcgan.utils.files import parsing

# What config.json must say; see `read_sizes`. Its sizes are the fields of `Bert`.
_KIND = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
# Heads on top of the encoder, and a constant table: not part of what encodes words.
_NOT_NEEDED = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")


class Bert(nn.Module):
    """Token ids to hidden states; layer norms, softmax and the residual stream are float32."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float = 1e-12
    dtype: DTypeLike = jnp.float32  # of the matrix products

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "b t"], word_mask: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Return the last layer's hidden states, for padding too, to which nothing attends."""
        initializer = nn.initializers.normal(0.02)
        words = self.param("word_embeddings", initializer, (self.vocab_size, self.hidden_size))
        # The embedding of token type 0, the only one in use, is part of the positions.
        shape = (self.max_position_embeddings, self.hidden_size)
        positions = self.param("position_embeddings", initializer, shape)
        x = jnp.take(words, token_ids, axis=0) + positions[: token_ids.shape[1]]
        x = layer_norm(self.layer_norm_eps, "embeddings_norm")(x)
        sizes = (self.num_attention_heads, self.intermediate_size, self.layer_norm_eps)
        for index in range(self.num_hidden_layers):
            x = BertLayer(*sizes, self.dtype, name=f"layer_{index}")(x, word_mask)
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
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        mask = word_mask[:, None, None, :]
        x = x + self_attention(x, self.num_heads, self.dtype, mask=mask).astype(jnp.float32)
        x = layer_norm(self.layer_norm_eps, "attention_norm")(x)
        hidden = nn.gelu(dense(self.intermediate_size, name="intermediate")(x), approximate=False)
        x = x + dense(x.shape[-1], name="output")(hidden).astype(jnp.float32)
        return layer_norm(self.layer_norm_eps, "output_norm")(x)


def self_attention(
    x: Float[Array, "b t d"], num_heads: int, dtype: DTypeLike | None = None, **options: Any
) -> Float[Array, "b t d"]:
    """Self-attention in a compact module; `options` of `jax.nn.dot_product_attention`."""
    width = x.shape[-1]
    # One product instead of three: small matrices leave an accelerator idle.
    query_key_value = nn.Dense(3 * width, dtype=dtype, name="query_key_value")(x)
    heads = query_key_value.reshape(*x.shape[:2], 3, num_heads, -1)
    context = jax.nn.dot_product_attention(*jnp.moveaxis(heads, 2, 0), **options)
    return nn.Dense(width, dtype=dtype, name="attention_output")(context.reshape(x.shape))


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Layer norm in float32."""
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
    """Return words and sentence of captions, float32; words at padding are unspecified.

    Words are BERT's last hidden states, the sentence is their mean (paper, implementation details):
    "masked_mean" over the real tokens, [CLS] and [SEP] included. "padded_mean" is the official
    code's, which sums padded positions too, and divides by the number of real tokens.
    """
    if token_ids.shape[1] > module.max_position_embeddings:
        raise WeightsError(
            f"captions of {token_ids.shape[1]} tokens do not fit this text encoder, which has "
            f"{module.max_position_embeddings} positions; lower the number of tokens per caption"
        )
    words = jnp.asarray(module.apply({"params": params}, token_ids, word_mask))
    weight = word_mask[..., None].astype(jnp.float32)
    added = words if sentence_pooling == "padded_mean" else words * weight
    return words, added.sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)


def load_bert(path: Path, *, dtype: DTypeLike = jnp.float32) -> tuple[Bert, Params]:
    """Load a .safetensors file or its directory, with `config.json`, as its publishers write it."""
    file = find_file(path, "bert")
    module = read_config(file.with_name("config.json"), dtype)
    tensors, _ = read_safetensors(file)
    named = Tensors(file, {_rename(name): tensor for name, tensor in tensors.items()})
    try:
        params = _to_params(named, module.num_hidden_layers)
    except (IndexError, ValueError) as error:
        raise WeightsError(f"{file} does not fit the network: {error}") from error
    left_over = [name for name in named if not _NOT_NEEDED.match(name)]
    inputs = (jax.ShapeDtypeStruct((1, 1), np.int32), jax.ShapeDtypeStruct((1, 1), bool))
    check_params(flatten(params), module, *inputs, path=file, left_over=left_over)
    return module, params


def read_config(file: Path, dtype: DTypeLike) -> Bert:
    """Read the sizes of a BERT from its `config.json`; raises a WeightsError."""
    with parsing(file, WeightsError, "the config of a BERT"):
        return Bert(**read_sizes(json.loads(file.read_bytes()), file, Bert, _KIND), dtype=dtype)


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
