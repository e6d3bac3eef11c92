"""Fold the batch norms of a frozen network into its convolutions: exact algebra, fewer operations.

With running statistics, batch norm is x * s + (bias - mean * s), s = scale / sqrt(variance + eps),
and x * s is the convolution with kernel * s.
"""

from typing import NamedTuple

import numpy as np

from xmcgan.pretrained.tensors import Tensors


class Naming(NamedTuple):
    """Name the tensors of a convolution `conv` and its batch norm `norm` in one kind of file."""

    kernel: str
    scale: str
    bias: str
    mean: str
    variance: str
    is_torch: bool

    def shapes(
        self, conv: str, norm: str, kernel_shape: tuple[int, ...]
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the file must hold for a kernel of (height, width, in, out)."""
        height, width, inputs, outputs = kernel_shape
        stored = (outputs, inputs, height, width) if self.is_torch else kernel_shape
        names = [pattern.format(conv=conv, norm=norm) for pattern in self[:5]]
        return {names[0]: stored} | dict.fromkeys(names[1:], (outputs,))

    def fold(self, tensors: Tensors, conv: str, norm: str, epsilon: float) -> dict[str, np.ndarray]:
        """Return kernel (height, width, in, out) and bias of the convolution with its norm."""
        kernel, scale, bias, mean, variance = (
            tensors[pattern.format(conv=conv, norm=norm)] for pattern in self[:5]
        )
        if self.is_torch:
            kernel = kernel.transpose(2, 3, 1, 0)
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        return {"kernel": np.ascontiguousarray(kernel * factor), "bias": bias - mean * factor}


TORCH = Naming(
    "{conv}.weight",
    "{norm}.weight",
    "{norm}.bias",
    "{norm}.running_mean",
    "{norm}.running_var",
    is_torch=True,
)
FLAX = Naming(
    "params/{conv}/kernel",
    "params/{norm}/scale",
    "params/{norm}/bias",
    "batch_stats/{norm}/mean",
    "batch_stats/{norm}/var",
    is_torch=False,
)


def without_counters(tensors: Tensors) -> Tensors:
    """Return tensors without the step counters that PyTorch keeps beside running statistics."""
    suffix = ".num_batches_tracked"
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(suffix)}
