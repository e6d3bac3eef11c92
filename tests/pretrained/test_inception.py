"""Inception-v3 computes what independent implementations compute, from files of either kind.

expected/inception.npz holds every 16th feature and logit. Random weights (`inception_files.draw`
for each tensor by its name) were put into independent implementations, in float32 on a CPU, and
`inception_files.images` passed through them: for "2015" torch-fidelity 0.4.0's
FeatureExtractorInceptionV3 with its resize and scaling left out ("2048" and "logits_unbiased"); for
"keras" keras.applications.InceptionV3 of Keras 3.15.1 with classifier_activation=None.
"""

from pathlib import Path

import inception_files
import jax
import numpy as np
import pytest
from convert_weights import convert

from xmcgan.errors import WeightsError
from xmcgan.evaluation.features import FeatureExtractor, Networks
from xmcgan.evaluation.protocols import get_protocol, load_network
from xmcgan.pretrained.inception import load_inception
from xmcgan.utils.mesh import make_mesh

VARIANTS = ("2015", "keras")
EXPECTED = Path(__file__).parent / "expected" / "inception.npz"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    return {v: convert(f"inception-{v}", inception_files.write(v, folder)) for v in VARIANTS}


def check_outputs(variant, file, size):
    module, params = load_inception(variant, file)
    found = jax.jit(module.apply)({"params": params}, inception_files.images(size))
    golden = np.load(EXPECTED)
    for name, array in zip(("features", "logits"), found, strict=True):
        expected = golden[f"{variant}_{name}_{size}"]
        error = np.asarray(array)[:, ::16] - expected
        assert np.abs(error).max() < 1e-4, name
        assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(expected), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_logits_are_those_of_an_independent_implementation(variant, files):
    check_outputs(variant, files[variant], 139)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_logits_agree_at_the_size_of_the_protocols(variant, files):
    check_outputs(variant, files[variant], 299)


@pytest.mark.slow
def test_fid_2015_from_pixels_to_features_is_that_of_torch_fidelity(files):
    # Expected: torch-fidelity 0.4.0 with these weights, every 8th feature and logit.
    patches = np.random.default_rng(11).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    networks = Networks(
        make_mesh(jax.devices()[:1]),
        allow_unverified=True,
        weights={"fid-2015": str(files["2015"])},
    )
    extract = FeatureExtractor(get_protocol("fid-2015"), networks)
    found = extract(patches.repeat(8, axis=1).repeat(8, axis=2))
    with np.load(EXPECTED.parent / "fid_2015.npz") as expected:
        for values, wanted in (
            (found["values"][:, ::8], expected["features"]),
            (found["logits"][:, ::8], expected["logits"]),
        ):
            np.testing.assert_allclose(values, wanted, atol=1e-4)
            assert np.linalg.norm(values - wanted) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_fid_pytorch_from_pixels_to_features_is_that_of_pytorch_fid(files):
    # Expected: pytorch-fid 0.3.0 on PyTorch 2.14.1 with these weights, every 8th feature.
    patches = np.random.default_rng(11).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    weights = {"fid-pytorch": str(files["2015"])}
    networks = Networks(make_mesh(jax.devices()[:1]), allow_unverified=True, weights=weights)
    extract = FeatureExtractor(get_protocol("fid-pytorch"), networks)
    found = extract(patches.repeat(8, axis=1).repeat(8, axis=2))["values"][:, ::8]
    with np.load(EXPECTED.parent / "fid_pytorch.npz") as expected:
        np.testing.assert_allclose(found, expected["features"], rtol=0, atol=1e-4)
        assert np.linalg.norm(found - expected["features"]) < 1e-5 * np.linalg.norm(found)
    with np.load(EXPECTED.parent / "fid_2015.npz") as other:
        assert np.abs(found - other["features"]).max() > 1e-2, "the resizes differ"


@pytest.mark.parametrize(("variant", "values"), [("2015", 23_885_392), ("keras", 23_851_784)])
def test_network_has_the_published_number_of_values(variant, values):
    classes, per_channel = {"2015": (1008, 4), "keras": (1000, 3)}[variant]
    shapes = [shape for _, _, shape in inception_files.layers(variant)]
    units = sum(np.prod(shape) + per_channel * shape[-1] for shape in shapes)
    assert len(shapes) == 94
    assert units + (2048 + 1) * classes == values


def test_numbers_of_keras_layers_may_start_anywhere(files, tmp_path):
    _, expected = load_inception("keras", files["keras"])
    # From 0 the first layer has no number; from 95, 99 stands before 100 though "100" < "99".
    for first in (0, 95):
        file = inception_files.write_keras(tmp_path / "a.h5", inception_files.tensors_keras(first))
        _, found = load_inception("keras", convert("inception-keras", file))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_keras_file_without_a_layer_is_refused(tmp_path):
    tensors = inception_files.tensors_keras()
    del tensors["conv2d_40/conv2d_40/kernel:0"]
    file = inception_files.write_keras(tmp_path / "a.h5", tensors)
    with pytest.raises(WeightsError, match=r"93 layers named conv2d_N .* 94"):
        convert("inception-keras", file)


def test_keras_layers_in_another_order_are_refused_with_their_shapes(tmp_path):
    tensors = inception_files.tensors_keras()
    one, two = (f"conv2d_{number}/conv2d_{number}/kernel:0" for number in (6, 7))
    tensors[one], tensors[two] = tensors[two], tensors[one]
    file = inception_files.write_keras(tmp_path / "a.h5", tensors)
    with pytest.raises(WeightsError, match=r"conv2d_6 .*\(1, 1, 192, 48\)"):
        convert("inception-keras", file)


def test_missing_and_unknown_tensors_of_the_2015_file_are_named(tmp_path):
    tensors = inception_files.tensors_2015()
    name = "Mixed_7c.branch_pool.bn.running_var"
    file = inception_files.write_2015(tmp_path / "a.pth", tensors | {"AuxLogits": tensors[name]})
    with pytest.raises(WeightsError, match=r"a\.pth [\s\S]*AuxLogits"):
        convert("inception-2015", file)
    del tensors[name]
    file = inception_files.write_2015(tmp_path / "a.pth", tensors)
    with pytest.raises(WeightsError, match=rf"a\.pth [\s\S]*{name}"):
        convert("inception-2015", file)


@pytest.mark.parametrize(
    ("protocol", "published"),
    [
        ("fid-2015", "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        ("fid-keras", "9a0d58056eeedaa3f26cb7ebd46da564"),
    ],
)
def test_other_file_than_the_published_one_needs_the_flag(protocol, published, files):
    file = files["2015" if protocol == "fid-2015" else "keras"]
    with pytest.raises(WeightsError, match=rf"{published}[\s\S]*--allow-unverified-weights"):
        load_network(get_protocol(protocol), str(file))


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_file_is_named(variant, tmp_path):
    with pytest.raises(WeightsError, match="absent"):
        load_inception(variant, tmp_path / "absent")


def test_the_other_variant_is_refused(files):
    with pytest.raises(WeightsError, match=r"keras\.safetensors .*'inception-keras'"):
        load_inception("2015", files["keras"])
