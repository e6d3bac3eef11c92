"""VGG-16 and VGG-19 compute what torchvision computes, from files in its naming.

expected/vgg.npz: torchvision 0.29.1's networks (PyTorch 2.14.1, float32, CPU) with the random
weights of `vgg_files` on `vgg_files.images`: every n-th of the means of the last feature maps, of
the classifier's second hidden layer after its ReLU, and of the logits. Networks of width 4 were
built with torchvision's own `make_layers` and `VGG`. expected/pr_vgg16.npz: every 16th feature of
torch-fidelity 0.4.0's FeatureExtractorVGG16 ("fc2_relu") with the same weights.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import vgg_files
from convert_weights import convert, vgg_params
from flax.traverse_util import flatten_dict
from torch_writer import Tensor, save_archive, save_legacy

from xmcgan.errors import WeightsError
from xmcgan.evaluation.features import FeatureExtractor, Networks
from xmcgan.evaluation.protocols import get_protocol
from xmcgan.pretrained.encoders import load_image_encoder
from xmcgan.pretrained.params import Tensors
from xmcgan.pretrained.vgg import DEPTHS, VGG, load_vgg
from xmcgan.utils.mesh import make_mesh

EXPECTED = Path(__file__).parent / "expected"
# Every n-th value is stored.
STEPS = {4: {"pooled": 1, "fc2": 1, "logits": 64}, 64: {"pooled": 16, "fc2": 128, "logits": 32}}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Convert a network of the published size from a file of torchvision."""

    @functools.cache
    def file(network):
        path = tmp_path_factory.mktemp(network) / "a.safetensors"
        safetensors.numpy.save_file(vgg_files.tensors(network), path)
        return convert(network, path)

    return file


def outputs(module, params, size):
    """Return pooled and hidden features, and logits."""
    images = vgg_files.images(size)
    found = {}
    for feature in ("pooled", "fc2"):
        apply = jax.jit(module.clone(feature=feature).apply)
        found[feature], found["logits"] = apply({"params": params}, images)
    return found


def check_outputs(network, width, size, found):
    with np.load(EXPECTED / "vgg.npz") as expected:
        for name, values in found.items():
            wanted = expected[f"{network}_{width}_{size}_{name}"]
            error = np.asarray(values)[:, :: STEPS[width][name]] - wanted
            assert np.abs(error).max() < 1e-4, name
            assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(wanted), name


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("network", DEPTHS)
def test_narrow_networks_are_those_of_torchvision_at_every_size(network, size):
    tensors = Tensors(Path("a.pth"), vgg_files.tensors(network, 4, 24))
    params = vgg_params(tensors, DEPTHS[network])
    assert not tensors
    module = VGG(DEPTHS[network], width=4, hidden=24)
    check_outputs(network, 4, size, outputs(module, params, size))


def test_pooled_features_need_no_classifier():
    params = vgg_params(Tensors(Path("a.pth"), vgg_files.tensors("vgg19", 4, 24)), DEPTHS["vgg19"])
    module, kept = VGG(DEPTHS["vgg19"], width=4, hidden=24).without_classifier(params)
    assert {name[:4] for name in kept} == {"conv"}
    pooled, logits = jax.jit(module.apply)({"params": kept}, vgg_files.images(96))
    assert logits is None
    check_outputs("vgg19", 4, 96, {"pooled": pooled})


@pytest.mark.slow
@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("network", DEPTHS)
def test_features_and_logits_are_those_of_torchvision(network, size, full):
    module, params = load_vgg(full(network), network)
    check_outputs(network, 64, size, outputs(module, params, size))


@pytest.mark.slow
def test_pr_vgg16_from_pixels_to_features_is_that_of_torch_fidelity(full):
    patches = np.random.default_rng(11).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    weights = {"pr-vgg16": str(full("vgg16"))}
    networks = Networks(make_mesh(jax.devices()[:1]), allow_unverified=True, weights=weights)
    extract = FeatureExtractor(get_protocol("pr-vgg16"), networks)
    found = extract(patches.repeat(8, axis=1).repeat(8, axis=2))["values"]
    assert found.shape == (2, 4096)
    with np.load(EXPECTED / "pr_vgg16.npz") as expected:
        np.testing.assert_allclose(found[:, ::16], expected["features"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_every_format_of_a_file_gives_the_same_parameters(full, tmp_path):
    expected = load_vgg(full("vgg19"), "vgg19")[1]
    state = {name: Tensor(tensor) for name, tensor in vgg_files.tensors("vgg19").items()}
    for save in (save_archive, save_legacy):
        file = convert("vgg19", save(tmp_path / "a.pth", state))
        jax.tree.map(np.testing.assert_array_equal, load_vgg(file, "vgg19")[1], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("feature", "width"), [("pooled", 512), ("logits", 1000)])
def test_the_encoder_resizes_and_multiplies_in_the_chosen_precision(feature, width, full):
    images = jnp.asarray(vgg_files.images(32))
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        encoder = load_image_encoder(
            "vgg19", full("vgg19"), input_size=64, feature=feature, dtype=dtype
        )
        assert encoder.width == width
        assert ("fc1" in encoder.params) == (feature == "logits"), "0.5 GB are not kept for nothing"
        apply = jax.jit(encoder.apply)
        found[dtype] = np.asarray(apply(encoder.params, images))
        assert found[dtype].dtype == np.float32
        grad = jax.grad(lambda x, e=encoder: e.apply(e.params, x).sum())(images)
        assert np.isfinite(grad).all()
        assert np.abs(grad).max() > 0
    a, b = found.values()
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05


@pytest.mark.parametrize(("network", "values"), [("vgg16", 138_357_544), ("vgg19", 143_667_240)])
def test_networks_have_the_published_number_of_values(network, values):
    module, image = VGG(DEPTHS[network]), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in flatten_dict(shapes).values()) == values


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda t: t.pop("features.28.bias"), r"features\.28\.bias"),
        (lambda t: t.update({"features.0.weight": np.zeros((4, 3), np.float32)}), r"features\.0"),
        (lambda t: t.update({"classifier.0.weight": np.zeros((24, 40), np.float32)}), "classifier"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(harm, named):
    tensors = vgg_files.tensors("vgg16", 4, 24)
    harm(tensors)
    with pytest.raises(WeightsError, match=rf"a\.pth .*{named}"):
        vgg_params(Tensors(Path("a.pth"), tensors), DEPTHS["vgg16"])


def test_the_network_with_batch_norms_is_refused(tmp_path):
    tensors = vgg_files.tensors("vgg16", 4, 24)
    # In vgg16_bn a batch norm stands after each convolution.
    tensors["features.1.weight"] = np.ones(4, np.float32)
    del tensors["features.2.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors .*features\.2\.weight"):
        convert("vgg16", tmp_path / "a.safetensors")
