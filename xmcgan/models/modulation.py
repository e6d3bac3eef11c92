"""Conditional batch norm, the captions' way into the generator (paper, "self-modulation")."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from xmcgan.models.outputs import at_least_float32

STATISTICS = "statistics"  # what `remat` calls them
_EPSILON = 1e-5
# Pixels are (groups, images, r, h / r, s, w / s, channels): r x s blocks with one modulation each.
_OF_GROUP, _OF_BLOCK = (1, 2, 3, 4, 5), (3, 5)
_Blocks = Float[Array, "g n r y s x c"]


class Condition(NamedTuple):
    vector: Float[Array, "b k"]  # projected sentence and noise
    context: Float[Array, "b s s d"] | None = None  # attended words; None before the attention


class Statistics(NamedTuple):
    mean: Float[Array, "g 1 1 1 1 1 c"]
    var: Float[Array, "g 1 1 1 1 1 c"]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_relu(
    x: Float[Array, "b h w c"],
    gamma: Float[Array, "b r s c"],
    beta: Float[Array, "b r s c"],
    group_size: int = 0,
) -> tuple[Float[Array, "b h w c"], Statistics]:
    """relu((1 + gamma) * normalize(x) + beta), in the dtype of `gamma`, and the batch's statistics.

    Statistics are of `group_size` images (0: the whole batch), at least in float32; as a result
    they have no gradient. The backward pass is by hand: it keeps no array of the size of `x` but
    `x`, and autodiff keeps three.
    """
    return _forward(x, gamma, beta, group_size)[0]


def _forward(x: Array, gamma: Array, beta: Array, group_size: int) -> Any:
    blocks, slope, offset = _in_blocks(x, gamma, beta, group_size)
    # Of `x` and not of the blocks, so that XLA adds up where it computes `x`.
    grouped = at_least_float32(x).reshape(len(blocks), -1, 1, *x.shape[1:3], 1, x.shape[-1])
    mean = jnp.mean(grouped, _OF_GROUP, keepdims=True)
    # The two-pass variance: subtracting squared means cancels badly in float32.
    var = jnp.mean(jnp.square(grouped - mean), _OF_GROUP, keepdims=True)
    statistics = checkpoint_name(Statistics(mean, var), STATISTICS)
    y = nn.relu(_normalize(blocks, statistics) * slope + offset)
    return (y.astype(gamma.dtype).reshape(x.shape), statistics), (x, gamma, beta, statistics)


def _backward(group_size: int, residuals: Any, gradients: Any) -> tuple[Array, ...]:
    x, gamma, beta, statistics = residuals

    def normalize(x: Array, d_y: Array) -> tuple[Array, Array, Array, int]:
        """Return normalized pixels, their gradient behind the relu, 1 + gamma, a group's size."""
        blocks, slope, offset = _in_blocks(x, gamma, beta, group_size)
        normalized = _normalize(blocks, statistics)
        d_y = _reshape(d_y, gamma, group_size)
        d_y = jnp.where(normalized * slope + offset > 0, d_y, 0)
        return normalized, d_y, slope, blocks[0, ..., 0].size

    normalized, d_y, slope, num = normalize(x, gradients[0])
    # Both sums in one pass over the pixels; those over a group are sums of those over its blocks.
    sums: Any = jax.lax.reduce((d_y, d_y * normalized), (0.0, 0.0), _add, _OF_BLOCK)
    d_offset, d_slope = (jnp.expand_dims(total, _OF_BLOCK) for total in sums)
    means = [jnp.sum(slope * d, _OF_GROUP, keepdims=True) / num for d in (d_offset, d_slope)]
    # The second pass computes its input again, which a GPU would keep from the first in float32.
    again, mean, along = jax.lax.optimization_barrier(((x, gradients[0]), *means))
    normalized, d_y, slope, _ = normalize(*again)
    d_x = jax.lax.rsqrt(statistics.var + _EPSILON) * (d_y * slope - mean - along * normalized)
    pairs = ((d_x, x), (d_slope, gamma), (d_offset, beta))
    return tuple(d.reshape(value.shape).astype(value.dtype) for d, value in pairs)


batch_norm_relu.defvjp(_forward, _backward)


def _add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], a[1] + b[1]


def _normalize(blocks: Array, statistics: Statistics) -> Array:
    return (blocks - statistics.mean) * jax.lax.rsqrt(statistics.var + _EPSILON)


def _in_blocks(
    x: Array, gamma: Array, beta: Array, group_size: int
) -> tuple[_Blocks, Array, Array]:
    """Return pixels, 1 + gamma and beta in blocks."""
    blocks = _reshape(x, gamma, group_size)
    shape = tuple(1 if axis in _OF_BLOCK else size for axis, size in enumerate(blocks.shape))
    slope, offset = (at_least_float32(m).reshape(shape) for m in (1 + gamma, beta))
    return blocks, slope, offset


def _reshape(x: Array, gamma: Array, group_size: int) -> _Blocks:
    (batch, height, width, channels), (_, rows, columns, _) = x.shape, gamma.shape
    groups = batch // (group_size or batch)
    x = x.reshape(groups, -1, rows, height // rows, columns, width // columns, channels)
    # Without the barrier XLA reshapes the modulation instead, and writes it for every pixel.
    return at_least_float32(jax.lax.optimization_barrier(x))


class BatchNorm(nn.Module):
    """`batch_norm_relu` by the batch's statistics in training, else by their running mean."""

    # Images that share statistics; 0: the whole (global) batch. Smaller groups give the per-device
    # statistics of older set-ups; the running statistics are the mean over the groups.
    group_size: int = 0
    momentum: float = 0.9

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        gamma: Float[Array, "b r s c"],
        beta: Float[Array, "b r s c"],
        *,
        train: bool,
    ) -> Float[Array, "b h w c"]:
        size = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
        var = self.variable("batch_stats", "var", jnp.ones, (size,))
        if not train:
            blocks, slope, offset = _in_blocks(x, gamma, beta, group_size=0)
            y = nn.relu(_normalize(blocks, Statistics(mean.value, var.value)) * slope + offset)
            return y.reshape(x.shape).astype(gamma.dtype)
        output: Any = batch_norm_relu(x, gamma, beta, self.group_size)
        y, statistics = output
        if not self.is_initializing():
            for running, value in zip((mean, var), statistics, strict=True):
                value = jnp.mean(value, axis=0).reshape(size)
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        return y


class Whitening(nn.Module):
    """Subtract the mean of the data set's sentences and make their main directions vary alike.

    Deviation: the sentences of a narrow domain differ mostly in a few things, such as color;
    others, such as left and right, are a hundredth of the variance, which noise drowns.
    """

    @nn.compact
    def __call__(self, sentence: Float[Array, "b e"]) -> Float[Array, "b e"]:
        size = sentence.shape[-1]
        # Statistics of the data, set before training starts.
        mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
        matrix = self.variable("batch_stats", "matrix", jnp.eye, size)
        return (sentence - mean.value) @ matrix.value


class ModulationMap(nn.Module):
    """Predict one modulation value a channel from the condition: a Dense layer, or a conv1x1."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, condition: Condition) -> Float[Array, "b s s c"]:
        vector, context = condition
        context_dim = 0 if context is None else context.shape[-1]
        shape = (context_dim + vector.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        # The condition map is the context with the vector copied to every region: its share of the
        # product is the same everywhere and computed once.
        result = vector.astype(self.dtype) @ kernel[context_dim:] + bias
        result = result[:, None, None, :]
        if context is not None:
            result = result + context.astype(self.dtype) @ kernel[:context_dim]
        return result


class ConditionalBatchNorm(nn.Module):
    """Normalize, scale and shift each region by what its condition says, then relu.

    The modulation is computed at the condition's own size (1x1 for a sentence, 16x16 for words)
    and applied to blocks of pixels: the same as upsampling the condition map by nearest
    neighbor to the size of `x` first, since a conv1x1 commutes with nearest upsampling.
    """

    group_size: int = 0  # images that share batch statistics, see `BatchNorm`
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Condition, *, train: bool
    ) -> Float[Array, "b h w c"]:
        gamma = ModulationMap(x.shape[-1], self.dtype, name="gamma")(condition)
        beta = ModulationMap(x.shape[-1], self.dtype, name="beta")(condition)
        norm = BatchNorm(self.group_size, name="norm")
        return norm(x, gamma, beta, train=train)
