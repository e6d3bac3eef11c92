"""Conditional batch norm, the captions' way into the generator (paper, "self-modulation")."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.models.outputs import at_least_float32


class Condition(NamedTuple):
    vector: Float[Array, "b k"]  # projected sentence and noise
    context: Float[Array, "b s s d"] | None = None  # attended words; None before the attention


class BatchNorm(nn.Module):
    """Normalize over batch and space, without scale or offset, at least in float32."""

    momentum: float = 0.9  # of the running statistics, used when `train` is false
    epsilon: float = 1e-5
    # Images that share statistics; 0: the whole (global) batch. Smaller groups give the per-device
    # statistics of older set-ups; the running statistics are the mean over the groups.
    group_size: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        features = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        x = at_least_float32(x)
        if not train:
            inverse = jax.lax.rsqrt(running_var.value + self.epsilon)
            return (x - running_mean.value) * inverse

        groups = 1 if self.group_size == 0 else x.shape[0] // self.group_size
        grouped = x.reshape(groups, -1, *x.shape[1:])
        mean = jnp.mean(grouped, axis=(1, 2, 3), keepdims=True)
        # The two-pass variance: subtracting squared means cancels badly in float32.
        var = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 3), keepdims=True)
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_var, var)):
                value = jnp.mean(value, axis=0).reshape(features)
                running.value = self.momentum * running.value + (1 - self.momentum) * value
        normalized = (grouped - mean) * jax.lax.rsqrt(var + self.epsilon)
        return normalized.reshape(x.shape)


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
    """Normalize, then scale and shift each region by what its condition says.

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
        batch, height, width, channels = x.shape
        gamma = ModulationMap(channels, self.dtype, name="gamma")(condition)
        beta = ModulationMap(channels, self.dtype, name="beta")(condition)
        x = BatchNorm(group_size=self.group_size, name="norm")(x, train=train).astype(self.dtype)
        rows, columns = gamma.shape[1:3]
        blocks = x.reshape(batch, rows, height // rows, columns, width // columns, channels)
        gamma, beta = gamma[:, :, None, :, None], beta[:, :, None, :, None]
        return (blocks * (gamma + 1) + beta).reshape(x.shape)
