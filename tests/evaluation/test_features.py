"""Features: the same on any devices and in any batches, and no score from a wrong set."""

import jax
import numpy as np
import pytest
import tiny_network as tiny_network_module

from xmcgan.errors import EvaluationError, WeightsError
from xmcgan.evaluation import features as features_module
from xmcgan.evaluation.features import FeatureExtractor, Features
from xmcgan.evaluation.frechet import frechet_distance
from xmcgan.evaluation.networks import FeatureNetwork
from xmcgan.evaluation.protocols import get_protocol, preprocess
from xmcgan.evaluation.statistics import compute_statistics
from xmcgan.pretrained.efficientnet_lite import load_efficientnet_lite0
from xmcgan.pretrained.weights import FileIdentity, resolve
from xmcgan.utils.mesh import inference_batch_size, make_mesh

LITE0 = get_protocol("fd-effnet-lite0")


def mesh(num_devices: int):
    return make_mesh(jax.devices()[:num_devices])


def pixels(num: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


@pytest.fixture
def tiny_network(monkeypatch):
    tiny_network_module.install(monkeypatch)


@pytest.fixture(scope="module")
def lite0():
    try:
        resolve("efficientnet_lite0")
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.mark.mesh
@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("num_devices", [1, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
@pytest.mark.parametrize("split", [1, 7, 23])
def test_no_image_is_lost_or_doubled_in_any_batches_on_any_devices(num_devices, batch_size, split):
    images = pixels(23)
    extract = FeatureExtractor(LITE0, mesh=mesh(num_devices), batch_size=batch_size)
    batches = [images[i : i + split] for i in range(0, 23, split)]
    found = extract(batches, expected=23)
    quarters = images.reshape(23, 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(23, 12)
    # The resize blurs a little over the borders of the quarters.
    np.testing.assert_allclose(found.values, 2 * quarters / 255, atol=0.02)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits[:, 1], found.values.sum(axis=1), rtol=1e-5)


@pytest.mark.mesh
def test_of_several_cpu_devices_each_takes_one_image():
    assert [inference_batch_size(mesh(devices)) for devices in (1, 2, 8)] == [2, 2, 8]


@pytest.mark.mesh
@pytest.mark.usefixtures("lite0")
def test_devices_batches_and_order_change_a_score_by_less_than_1e_5():
    real, fake = pixels(8, seed=1), pixels(8, seed=2)
    fake[:, :16] //= 2

    def sides(num_devices: int, batch_size: int, order: int) -> list[np.ndarray]:
        extract = FeatureExtractor(LITE0, mesh=mesh(num_devices), batch_size=batch_size)
        return [extract([images[::order]]).values for images in (real, fake)]

    def distance(values: list[np.ndarray]) -> float:
        a, b = (compute_statistics(Features(v[:, :256], None), {}) for v in values)
        return frechet_distance(a.mu, a.sigma, b.mu, b.sigma)

    first = sides(1, 8, 1)
    assert distance(first) > 1
    for setting in ((1, 3, 1), (4, 8, -1), (8, 8, 1)):
        other = sides(*setting)
        np.testing.assert_allclose(other[0][:: setting[2]], first[0], rtol=0, atol=1e-5)
        assert abs(distance(other) - distance(first)) < 1e-5


@pytest.mark.usefixtures("lite0")
def test_features_are_the_network_on_the_preprocessed_image():
    images = pixels(2)
    module, params = load_efficientnet_lite0(resolve("efficientnet_lite0"))
    values, logits = jax.jit(module.apply)({"params": params}, preprocess(LITE0, images))
    found = FeatureExtractor(LITE0, mesh=mesh(1), batch_size=2)([images])
    np.testing.assert_allclose(found.values, values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("lite0")
def test_the_recipe_names_protocol_resize_and_weights():
    recipe = FeatureExtractor(LITE0, mesh=mesh(1)).recipe
    assert recipe["protocol"] == "fd-effnet-lite0"
    assert recipe["resize"] == "antialiased bicubic, clipped to 0..255, to 224"
    assert recipe["weights_sha256"].startswith("57934424")
    assert recipe["weights_verified"] is True


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(
    ("batches", "expected", "hint"),
    [
        ([pixels(3)], 4, "3 images came where 4 were expected"),
        ([pixels(5)], 4, "5 images came where 4 were expected"),
        ([], None, "no images"),
        ([pixels(9), pixels(2, side=31)], None, "image 9 .* is 31 x 31 .* 32 x 32"),
    ],
)
def test_a_wrong_set_gives_no_features(batches, expected, hint):
    extract = FeatureExtractor(LITE0, mesh=mesh(1), batch_size=4)
    with pytest.raises(EvaluationError, match=hint):
        extract(batches, expected)


@pytest.mark.usefixtures("tiny_network")
def test_features_that_are_not_finite_name_the_image():
    images = pixels(11)
    images[9] = 0
    with pytest.raises(EvaluationError, match="image 9 "):
        FeatureExtractor(LITE0, mesh=mesh(4), batch_size=4)([images])


@pytest.mark.usefixtures("tiny_network")
def test_float_images_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        FeatureExtractor(LITE0, mesh=mesh(1))([np.zeros((1, 8, 8, 3), np.float32)])


def test_products_are_asked_for_at_highest_precision(monkeypatch):
    seen = []

    def apply(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x.mean(axis=(1, 2)), x.mean(axis=(1, 2))

    network = FeatureNetwork(apply, {}, FileIdentity("", False))
    monkeypatch.setattr(features_module, "load_network", lambda *_, **__: network)
    FeatureExtractor(LITE0, mesh=mesh(1), batch_size=1)([pixels(1)])
    assert set(seen) == {"highest"}


@pytest.mark.parametrize("name", ["fid-2015", "fid-clean", "fid-keras"])
def test_inception_needs_a_path_of_weights(name):
    with pytest.raises(EvaluationError, match="--weights"):
        FeatureExtractor(get_protocol(name), mesh=mesh(1))


def test_other_weights_than_the_published_ones_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"not weights")
    for name in ("fid-2015", "fd-effnet-lite0"):
        with pytest.raises(WeightsError, match="cannot be verified"):
            FeatureExtractor(get_protocol(name), weights=str(path), mesh=mesh(1))
    with pytest.raises(WeightsError, match=r"\.h5"):
        FeatureExtractor(get_protocol("fid-keras"), weights=str(path), mesh=mesh(1))
