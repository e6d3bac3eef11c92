"""Random weights of VGG in torchvision's naming, by a recipe that needs no file."""

import zlib
from collections.abc import Iterator

import numpy as np

from xmcgan.pretrained.vgg import DEPTHS, NUM_CLASSES


def shapes(network: str, width: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each weight; 64 and 4,096 are the published sizes."""
    inputs, place = 3, 0
    for stage, depth in enumerate(DEPTHS[network]):
        for _ in range(depth):
            outputs = width * min(2**stage, 8)
            yield f"features.{place}", (outputs, inputs, 3, 3)
            inputs, place = outputs, place + 2
        place += 1
    sizes = (49 * inputs, hidden, hidden, NUM_CLASSES)
    for place, fan_in, outputs in zip((0, 3, 6), sizes, sizes[1:], strict=False):
        yield f"classifier.{place}", (outputs, fan_in)


def tensors(network: str, width: int = 64, hidden: int = 4096) -> dict[str, np.ndarray]:
    """Return a state dictionary; activations keep their size from layer to layer."""
    found = {}
    for name, shape in shapes(network, width, hidden):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = np.float32((2 / np.prod(shape[1:])) ** 0.5)
        found[f"{name}.weight"] = rng.standard_normal(shape, np.float32) * scale
        found[f"{name}.bias"] = rng.uniform(-0.2, 0.2, shape[:1]).astype(np.float32)
    return found


def images(size: int) -> np.ndarray:
    """Return two images (2, s, s, 3) in [0, 1] of large color patches."""
    patches = np.random.default_rng(7).uniform(0, 1, (2, 16, 16, 3))
    return patches.repeat(14, axis=1).repeat(14, axis=2)[:, :size, :size].astype(np.float32)
