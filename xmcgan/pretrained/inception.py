"""Inception-v3 as the fixed feature network of FID, in the two variants that scores are made with.

"2015" is the graph of 2015-12-05 with which the authors of FID measured (Heusel et al., NeurIPS
2017); "keras" is that of keras.applications, with which the official XMC-GAN code measures.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.errors import WeightsError
from xmcgan.pretrained import batch_norm
from xmcgan.pretrained.h5_files import read_h5
from xmcgan.pretrained.inception_layout import STEM, BlockSpec, Unit, Variant, block_specs, layers
from xmcgan.pretrained.tensors import Tensors, check_tensors
from xmcgan.pretrained.torch_files import read_torch
from xmcgan.pretrained.weights import find_file, identify_file

NUM_FEATURES = 2048
NUM_CLASSES: dict[Variant, int] = {"2015": 1008, "keras": 1000}
_BATCH_NORM_EPSILON = 1e-3
# The file pt_inception-2015-12-05-6726825d.pth.
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# The file inception_v3_weights_tf_dim_ordering_tf_kernels.h5: published with no better digest.
PUBLISHED_MD5 = "9a0d58056eeedaa3f26cb7ebd46da564"
_KERAS = batch_norm.Naming(
    "{conv}/kernel",
    "{norm}/gamma",
    "{norm}/beta",
    "{norm}/moving_mean",
    "{norm}/moving_variance",
    is_torch=False,
)


class InceptionV3(nn.Module):
    """Encode images to the pooled features of FID and to class scores; batch norms are folded.

    A CPU is fastest with one image a call: the first maps of a batch do not fit in its caches.

    Attributes:
        variant: "2015" or "keras".
        dtype: of the convolutions; pooled features and logits are float32.
    """

    variant: Variant
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b k"]]:
        """Return pooled features and logits.

        Args:
            images: scaled to about [-1, 1] by the protocol; made for 299 x 299, and any size from
                75 works.

        Returns:
            The features; and k = 1008 logits without bias ("2015", whose inception score is defined
            so), or k = 1000 with bias ("keras").
        """
        x = images.astype(self.dtype)
        for group in STEM:
            for unit in group:
                x = nn.relu(Convolution(unit, self.dtype, name=unit.name)(x))
            x = nn.max_pool(x, (3, 3), (2, 2))
        for spec in block_specs(self.variant):
            x = Block(spec, self.dtype, name=spec.name)(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        classes, has_bias = NUM_CLASSES[self.variant], self.variant == "keras"
        return features, nn.Dense(classes, has_bias, jnp.float32, name="logits")(features)


class Block(nn.Module):
    """Join the branches of a block; the 1x1 convolutions of its input are computed as one."""

    spec: BlockSpec
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        """Return the branches' outputs, joined along the channels."""
        widths = [unit.width for unit in self.spec.merged()]
        merged = Convolution(Unit("merged", (1, 1), sum(widths)), self.dtype, name="merged")(x)
        parts = jnp.split(merged, np.cumsum(widths)[:-1], axis=-1)
        known = {unit.name: part for unit, part in zip(self.spec.merged(), parts, strict=True)}
        outputs = []
        for branch in self.spec.branches:
            y = x
            for step in branch:
                y = jnp.concatenate([self._apply(unit, y, known) for unit in step], axis=-1)
            outputs.append(y)
        return jnp.concatenate([*outputs, self._pool_branch(x, known)], axis=-1)

    def _apply(self, unit: Unit, x: Array, known: Mapping[str, Array]) -> Array:
        if unit.name in known:
            return nn.relu(known[unit.name])
        return nn.relu(Convolution(unit, self.dtype, name=unit.name)(x))

    def _pool_branch(self, x: Array, known: Mapping[str, Array]) -> Array:
        unit = self.spec.pool_unit
        if unit is None:
            return nn.max_pool(x, (3, 3), (2, 2))
        if self.spec.pool == "max":
            return self._apply(unit, nn.max_pool(x, (3, 3), padding="SAME"), known)
        # The mean of the positions inside the image: padding is left out of sum and count.
        y = nn.avg_pool(known[unit.name], (3, 3), padding="SAME", count_include_pad=False)
        return nn.relu(y)


class Convolution(nn.Module):
    """Convolve and add a bias; a 1x1 kernel is a matrix product, which XLA's CPU does faster."""

    unit: Unit
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        """Return the convolution with its bias."""
        unit = self.unit
        shape = (*unit.kernel, x.shape[-1], unit.width)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (unit.width,)).astype(self.dtype)
        if unit.kernel == (1, 1):
            return x @ kernel[0, 0] + bias
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (unit.stride, unit.stride)
        return bias + lax.conv_general_dilated(
            x, kernel, strides, unit.padding, dimension_numbers=numbers
        )


def load_inception(
    variant: Variant, path: Path, *, allow_unverified: bool, dtype: DTypeLike = jnp.float32
) -> tuple[InceptionV3, dict[str, Any]]:
    """Return Inception-v3 and its parameters.

    Args:
        variant: "2015" reads the .pth of pytorch-fid and torch-fidelity, "keras" the .h5 of
            keras.applications with its classification head.
        path: the file, or the directory that holds it.
        allow_unverified: accept a file other than the published one.
        dtype: of the convolutions.

    Returns:
        The module, and its parameters as float32 NumPy arrays, batch norms folded in.

    Raises:
        WeightsError: the file is missing, damaged or unsafe, its tensors do not fit, or it is not
            the published one and this is not allowed.
    """
    file = find_file(path, (".pth" if variant == "2015" else ".h5",))
    identify_file(
        file,
        expected_sha256=PUBLISHED_SHA256 if variant == "2015" else None,
        expected_md5=None if variant == "2015" else PUBLISHED_MD5,
        allow_unverified=allow_unverified,
    )
    head, folded = _read_2015(file) if variant == "2015" else _read_keras(file)
    params: dict[str, Any] = {"logits": head, **folded[None]}
    for spec in block_specs(variant):
        units = folded[spec.name]
        merged = [units.pop(unit.name) for unit in spec.merged()]
        units["merged"] = {
            name: np.concatenate([unit[name] for unit in merged], axis=-1)
            for name in ("kernel", "bias")
        }
        params[spec.name] = units
    return InceptionV3(variant, dtype), params


# The units of each block by name; those of the stem under None.
_Folded = dict[str | None, dict[str, dict[str, np.ndarray]]]


def _read_2015(file: Path) -> tuple[dict[str, np.ndarray], _Folded]:
    """Return the classifier and the folded units of the .pth file."""
    names = []
    for layer in layers("2015"):
        prefix = layer.unit.name if layer.block is None else f"{layer.block}.{layer.unit.name}"
        names.append((f"{prefix}.conv", f"{prefix}.bn"))
    shapes = {"fc.weight": (NUM_CLASSES["2015"], NUM_FEATURES), "fc.bias": (NUM_CLASSES["2015"],)}
    tensors = batch_norm.without_counters(read_torch(file))
    check_tensors(tensors, shapes | _shapes("2015", batch_norm.TORCH, names), file)
    head = {"kernel": tensors["fc.weight"].T.copy()}
    return head, _fold("2015", batch_norm.TORCH, names, tensors)


def _read_keras(file: Path) -> tuple[dict[str, np.ndarray], _Folded]:
    """Return the classifier and the folded units of the .h5 file."""
    # "conv2d_1/conv2d_1/kernel:0": the outer group repeats the name of the layer; Keras 3 leaves
    # the ":0" out.
    tensors = {
        "/".join(name.removesuffix(":0").split("/")[-2:]): array
        for name, array in read_h5(file).items()
    }
    layer_names = {name.split("/")[0] for name in tensors}
    convs = _numbered(layer_names, "conv2d", file)
    norms = _numbered(layer_names, "batch_normalization", file)
    names = list(zip(convs, norms, strict=True))
    shapes = {
        "predictions/kernel": (NUM_FEATURES, NUM_CLASSES["keras"]),
        "predictions/bias": (NUM_CLASSES["keras"],),
    }
    shapes |= _shapes("keras", _KERAS, names)
    # Keras trained its batch norms without a scale: one.
    scales = {name: np.ones(shapes.pop(name), np.float32) for name in map(_scale_name, norms)}
    check_tensors(tensors, shapes, file)
    head = {"kernel": tensors["predictions/kernel"], "bias": tensors["predictions/bias"]}
    return head, _fold("keras", _KERAS, names, tensors | scales)


def _scale_name(norm: str) -> str:
    return _KERAS.scale.format(norm=norm)


def _numbered(names: set[str], prefix: str, file: Path) -> list[str]:
    """Return the layers of one kind in the order of their creation, which their numbers tell.

    Where the numbers start depends on what had been created before.
    """
    numbers = {}
    for name in names:
        if match := re.fullmatch(rf"{prefix}(?:_(\d+))?", name):
            numbers[name] = int(match[1] or 0)
    expected = len(list(layers("keras")))
    if len(numbers) != expected:
        raise WeightsError(
            f"{file} does not fit the network: it holds {len(numbers)} layers named {prefix}_N "
            f"where {expected} are expected"
        )
    return sorted(numbers, key=numbers.__getitem__)


def _shapes(
    variant: Variant, naming: batch_norm.Naming, names: list[tuple[str, str]]
) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for layer, (conv, norm) in zip(layers(variant), names, strict=True):
        shapes |= naming.shapes(conv, norm, layer.kernel_shape)
    return shapes


def _fold(
    variant: Variant, naming: batch_norm.Naming, names: list[tuple[str, str]], tensors: Tensors
) -> _Folded:
    """Return the units with their batch norms folded in float64: features agree to 1e-5."""
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    folded: _Folded = {}
    for layer, (conv, norm) in zip(layers(variant), names, strict=True):
        unit = naming.fold(exact, conv, norm, _BATCH_NORM_EPSILON)
        target = folded.setdefault(layer.block, {})
        target[layer.unit.name] = {name: value.astype(np.float32) for name, value in unit.items()}
    return folded
