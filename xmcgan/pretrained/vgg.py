"""VGG-16 and VGG-19 of torchvision, without batch norm, as frozen image networks.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, configurations D and E.
"""

import functools
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.pretrained.params import Params, load_converted
from xmcgan.pretrained.resnet import standardize

NUM_CLASSES = 1000
# Convolutions of each stage; a maximum of 2x2 follows each.
DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_MAP_SIDE = 7  # of the map that the classifier sees


class VGG(nn.Module):
    """Images to features and ImageNet logits, float32.

    `feature` is "pooled", the mean of the last feature map (width 512), or "fc2", the second hidden
    layer of the classifier after its ReLU (width 4,096).
    """

    depths: tuple[int, ...]
    dtype: DTypeLike = jnp.float32
    feature: Literal["pooled", "fc2"] = "pooled"
    width: int = 64  # of the first stage
    hidden: int = 4096
    classify: bool = True  # False: no classifier, and None in the place of the logits

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b 1000"] | None]:
        """Return features and logits of images in [0, 1], of any size from 32."""
        x = standardize(images).astype(self.dtype)
        for stage, depth in enumerate(self.depths, start=1):
            width = self.width * min(2 ** (stage - 1), 8)
            for index in range(1, depth + 1):
                name = f"conv{stage}_{index}"
                x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=name)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        if not self.classify:
            return features, None
        x = _adaptive_mean(x.astype(jnp.float32), _MAP_SIDE).reshape(len(x), -1)
        for name in ("fc1", "fc2"):
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=name)(x))
        x = x.astype(jnp.float32)
        logits = nn.Dense(NUM_CLASSES, dtype=jnp.float32, name="logits")(x)
        return (features if self.feature == "pooled" else x), logits

    def without_classifier(self, params: Params) -> tuple["VGG", Params]:
        """Return the network of the pooled features alone: without 0.5 GB of dense layers."""
        kept = {name: value for name, value in params.items() if name.startswith("conv")}
        return self.clone(classify=False), kept


def _adaptive_mean(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b s s c"]:
    """Means over `side` x `side` areas, as PyTorch's `adaptive_avg_pool2d`: they may overlap."""
    if x.shape[1:3] == (side, side):  # the map of 224 pixels
        return x
    rows, columns = (_area_weights(size, side) for size in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def _area_weights(size: int, side: int) -> Float[np.ndarray, "s n"]:
    weights = np.zeros((side, size), np.float32)
    for index in range(side):
        area = slice(index * size // side, -(-(index + 1) * size // side))
        weights[index, area] = 1 / (area.stop - area.start)
    return weights


def load_vgg(
    path: Path,
    network: str,
    *,
    feature: Literal["pooled", "fc2"] = "pooled",
    dtype: DTypeLike = jnp.float32,
) -> tuple[VGG, Params]:
    """Load a converted network, a key of `DEPTHS`."""
    return load_converted(path, network, lambda _: VGG(DEPTHS[network], dtype, feature))


load_vgg16 = functools.partial(load_vgg, network="vgg16")
load_vgg19 = functools.partial(load_vgg, network="vgg19")
