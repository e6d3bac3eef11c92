"""Fetched weights for the tests that need real ones."""

from pathlib import Path

import pytest

from xmcgan.errors import WeightsError
from xmcgan.pretrained.weights import resolve


def _fetched(name: str) -> Path:
    try:
        return resolve(name)
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """Return the folder of the MiniLM text encoder, or skip where it was not fetched."""
    return _fetched("minilm")


@pytest.fixture(scope="session")
def efficientnet_dir() -> Path:
    """Return the folder of EfficientNet-Lite0, or skip where it was not fetched."""
    return _fetched("efficientnet_lite0")


@pytest.fixture(scope="session")
def efficientnet_lite2_dir() -> Path:
    """Return the folder of EfficientNet-Lite2, or skip where it was not fetched."""
    return _fetched("efficientnet_lite2")
