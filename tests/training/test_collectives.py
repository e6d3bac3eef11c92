"""What the compiled step sends between devices: gradients, statistics and features, no images."""

import math

import jax
import pytest
from test_step import FROZEN_PARAMS, B, D, T, _batch, _networks, _new_state, _train_step

from xmcgan.planning.collectives import Collective, find_collectives
from xmcgan.utils.mesh import batch_sharding, make_mesh, replicated

pytestmark = pytest.mark.mesh
LOOP = """
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = (f32[8,4]{1,0}, bf16[16]{0}) all-gather(%x, %y), replica_groups=[2,4]<=[8], dimensions={0}
  %h = f32[4]{0} all-gather(%z), replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}
}

%wrapped (q: f32[2]) -> f32[2] {
  ROOT %s = f32[2]{0} all-reduce(%q), replica_groups={{0,1},{2,3}}, metadata={op_name="a/sum"}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (s32[], f32[8,4]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %r = pred[8]{0} all-reduce(%m), replica_groups=mesh['x_0'=2,'x_1'=8] {'x_0','x_1':(2)4}
  ROOT %f = f32[2]{0} call(%a), to_apply=%wrapped
}
"""

COUNTED = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %m = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}

%cond (p: (s32[], f32[4])) -> pred[] {
  %n = s32[]{:T(128)} constant(6)
  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body
}
"""


def test_a_loop_without_a_known_count_is_read_from_its_condition():
    (moved,) = find_collectives(COUNTED)
    assert (moved.kind, moved.times, moved.num_bytes) == ("collective-permute", 6, 16)
    with pytest.raises(ValueError, match="unknown length"):
        find_collectives(COUNTED.replace("direction=LT", "direction=EQ"))


def test_a_program_is_read_with_its_loops_and_all_ways_to_name_devices():
    gather, moved, flags, total = find_collectives(LOOP)
    assert gather == Collective("all-gather", ((8, 4), (16,)), 8 * 4 * 4 + 16 * 2, 4, 5, "")
    assert (moved.num_bytes, moved.group) == (16, 2)
    assert gather.sent_bytes == 5 * 160 * 3 / 4
    assert (flags.num_bytes, flags.group, flags.times) == (8, 8, 1)
    assert total == Collective("all-reduce", ((2,),), 8, 2, 1, "a/sum")
    assert total.sent_bytes == 2 * 8 / 2


def test_a_collective_in_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="unknown length"):
        find_collectives(LOOP.replace("known_trip_count", "other"))


@pytest.fixture(scope="module")
def networks():
    return _networks()


@pytest.fixture(scope="module")
def collectives(networks) -> list[Collective]:
    mesh = make_mesh()
    everywhere = replicated(mesh)
    step_fn = jax.jit(
        _train_step(networks),
        in_shardings=(everywhere, everywhere, batch_sharding(mesh)),
        out_shardings=everywhere,
    )
    compiled = step_fn.lower(_new_state(networks), FROZEN_PARAMS, _batch(1)).compile()
    return find_collectives(compiled.as_text())


def test_no_array_that_devices_exchange_is_an_image_or_a_tensor_of_all_pairs(collectives, networks):
    state = _new_state(networks)
    # Two stacked convolutions of a block are one kernel of 4x4, an upsampling one four of 2x2.
    kernels = {x.shape[-2:] for x in jax.tree.leaves((state.g_params, state.d_params))}
    for collective in collectives:
        for shape in collective.shapes:
            is_gradient = len(shape) < 4 or (max(shape[:2]) <= 4 and shape[-2:] in kernels)
            is_features = len(shape) < 4 and math.prod(shape) <= B * T * D
            assert is_gradient or is_features, collective
            of_all_pairs = [size for size in shape if size == B]
            assert len(shape) < 3 or len(of_all_pairs) < 2 or is_gradient, collective


def test_bytes_are_bounded_by_gradients_statistics_and_features(collectives, networks):
    state = _new_state(networks)

    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    # The compiler adds up a gradient's pieces after the exchange: those of real and of generated
    # images, and of kernels that have 16 values in place of 9.
    gradients = 16 / 9 * (2 * count(state.d_params) + count(state.g_params))
    statistics = 4 * count(state.g_batch_stats)  # mean and variance, forwards and backwards
    captions = B * T * (D + 1)
    feature = state.d_params["sentence"]["kernel"].shape[-1]
    features = 8 * captions + 16 * B * feature + 16 * B * B
    total = sum(c.num_bytes * c.times for c in collectives) / 4
    assert count(state.d_params) + count(state.g_params) < total
    assert total < gradients + statistics + features
