"""How devices, state and batches lie on the mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from xmcgan.config import check_devices, default_config
from xmcgan.errors import ConfigError
from xmcgan.utils.mesh import batch_sharding, fetch, make_mesh, put, put_shares, state_sharding

pytestmark = pytest.mark.mesh


def _spec(shape, fsdp):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    return state_sharding(make_mesh(fsdp=fsdp), leaf).spec


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((3, 3, 64, 96), 4, (None, None, None, "fsdp")),  # the largest
        ((3, 3, 128, 96), 4, (None, None, "fsdp")),
        ((64, 64, 3, 3), 8, (None, "fsdp")),  # the last of equals
        ((3, 3, 64, 98), 4, (None, None, "fsdp")),  # the largest that divides
        ((101, 103), 2, ()),  # none divides
        ((96,), 2, ()),  # too small
        ((3, 3, 64, 96), 1, ()),
        ((), 2, ()),
    ],
)
def test_state_is_split_along_the_largest_dimension_that_divides(shape, fsdp, spec):
    assert _spec(shape, fsdp) == PartitionSpec(*spec)


def test_a_split_state_takes_its_share_of_the_memory():
    mesh = make_mesh(fsdp=4)
    value = np.arange(64 * 96, dtype=np.float32).reshape(64, 96)
    placed = put(value, state_sharding(mesh, value))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(64, 24)}
    np.testing.assert_array_equal(fetch(placed), value)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_images_are_spread_over_both_axes_in_the_order_of_the_devices(fsdp):
    mesh = make_mesh(jax.devices()[::-1], fsdp)
    rows = np.arange(16).reshape(1, 16)
    for placed in (put(rows, batch_sharding(mesh)), put_shares(rows, batch_sharding(mesh))):
        found = {s.device.id: s.data.ravel().tolist() for s in placed.addressable_shards}
        assert found == {d.id: [2 * i, 2 * i + 1] for i, d in enumerate(jax.devices())}


def test_devices_that_cannot_share_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"mesh\.fsdp = 3 does not divide the 8 devices"):
        make_mesh(fsdp=3)
    config = default_config()
    with pytest.raises(
        ConfigError, match="batch_size = 56 does not divide over 64 devices; try 64"
    ):
        check_devices(config, 64)
    config.num_microbatches = 2
    with pytest.raises(ConfigError, match="over 8 devices in 2 microbatches; try 48 or 64"):
        check_devices(config, 8)
