"""The residual blocks of both networks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.models.convolution import (
    CONVOLUTION,
    Conv1x1,
    Conv3x3,
    average_pool,
    conv3x3,
    conv3x3_pool,
    upsample_conv3x3,
    upsample_nearest,
)
from xmcgan.models.modulation import STATISTICS, Condition, ConditionalBatchNorm

# What is kept of a block for the backward pass; the rest is computed again. `convolutions` computes
# normalization, modulation and activations again, which cost memory traffic and hardly any work;
# `generator` computes the blocks of that network again, `blocks` those of both.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "convolutions": jax.checkpoint_policies.save_only_these_names(CONVOLUTION, STATISTICS),
    "generator": jax.checkpoint_policies.nothing_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


def with_remat(block: type[nn.Module], policy: str, **options: Any) -> Any:
    """Return a block whose backward pass computes again what a policy does not keep."""
    if policy == "none" or (policy == "generator" and block is not GeneratorBlock):
        return block
    return nn.remat(block, policy=REMAT_POLICIES[policy], **options)


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0), of which the backward pass needs the result alone, as the convolution behind it.

    Without the barrier XLA compares `x` with 0 instead and keeps both, which is cheaper on a TPU
    and takes a sixth more memory on a GPU.
    """
    return jnp.maximum(x, 0)


def _relu_backward(y: Array, d_y: Array) -> tuple[Array]:
    barrier = jax.lax.optimization_barrier
    y = jax.lax.platform_dependent(y, cuda=barrier, default=lambda y: y)
    return (jnp.where(y > 0, d_y, 0),)


relu.defvjp(lambda x: (relu(x), relu(x)), _relu_backward)


class GeneratorBlock(nn.Module):
    """Double the size of a feature map under a condition.

    norm -> relu -> up -> conv3x3 -> norm -> relu -> conv3x3, plus up -> conv1x1. With a global
    condition it is the official code's GenBlock, with a spatial one its GenSpatialBlock.
    """

    features: int
    batch_norm_group_size: int = 0  # images that share batch statistics; 0: the whole batch
    dtype: Any = jnp.float32  # of the arithmetic; statistics are at least float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Condition, train: bool
    ) -> Float[Array, "b 2*h 2*w f"]:
        norm = partial(ConditionalBatchNorm, self.batch_norm_group_size, self.dtype)
        # A conv1x1 commutes with nearest upsampling: a quarter of the work at the small size.
        shortcut = upsample_nearest(Conv1x1(self.features, dtype=self.dtype, name="shortcut")(x))
        x = norm(name="norm_1")(x, condition, train=train)
        x = Conv3x3(self.features, self.dtype, upsample_conv3x3, name="conv_1")(x)
        x = norm(name="norm_2")(x, condition, train=train)
        return Conv3x3(self.features, self.dtype, name="conv_2")(x) + shortcut


class DiscriminatorBlock(nn.Module):
    """Encode a feature map, at half its size if `downsample`.

    (relu ->) conv3x3 -> relu -> conv3x3 (-> pool), plus (pool ->) conv1x1 where size or width
    changes.
    """

    features: int
    downsample: bool = True
    first: bool = False  # the stem, which takes an image: no relu before its first convolution
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        shortcut = x
        if self.downsample or x.shape[-1] != self.features:
            # Pooling commutes with a conv1x1, so it always comes first: a quarter of the work.
            shortcut = average_pool(x) if self.downsample else x
            shortcut = Conv1x1(self.features, dtype=self.dtype, name="shortcut")(shortcut)
        if not self.first:
            x = relu(x)
        x = relu(Conv3x3(self.features, self.dtype, name="conv_1")(x))
        conv_fn = conv3x3_pool if self.downsample else conv3x3
        return Conv3x3(self.features, self.dtype, conv_fn, name="conv_2")(x) + shortcut
