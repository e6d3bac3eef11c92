"""The one rounding of generated images to bytes: to the nearest level, never down."""

import numpy as np
import pytest

from xmcgan.sampling.sampler import to_uint8


@pytest.mark.parametrize("offset", [-0.49, -0.25, 0.0, 0.25, 0.49])
def test_every_level_is_the_nearest_one_byte_for_byte(offset):
    levels = np.arange(256, dtype=np.float64)
    images = ((levels + offset) / 255).astype(np.float32).reshape(1, 16, 16, 1).repeat(3, axis=3)
    found = np.asarray(to_uint8(images))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, :, :, 0].ravel(), levels)


def test_values_outside_the_range_are_clipped_and_not_wrapped():
    images = np.array([-1e3, -0.002, 1.002, 1e3], np.float32).reshape(1, 2, 2, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(
        np.asarray(to_uint8(images))[0, :, :, 0].ravel(), [0, 0, 255, 255]
    )


def test_rounding_adds_no_bias():
    images = np.random.default_rng(0).random((4, 64, 64, 3), np.float32)
    error = np.asarray(to_uint8(images)) - 255.0 * images
    assert abs(error.mean()) < 0.01
    assert np.abs(error).max() <= 0.5001
