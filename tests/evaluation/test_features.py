"""Features: the same on any devices and in any batches, and no score from a wrong set."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_network as tiny_network_module

from xmcgan.errors import EvaluationError, WeightsError
from xmcgan.evaluation import features as features_module
from xmcgan.evaluation.extraction import extract
from xmcgan.evaluation.features import FeatureExtractor, Networks
from xmcgan.evaluation.metrics.fid import frechet_distance, mean_and_covariance
from xmcgan.evaluation.protocols import FeatureNetwork, get_protocol, preprocess
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
def test_no_image_is_lost_or_doubled_in_any_batches_on_any_devices(num_devices, batch_size):
    images = pixels(23)
    extract = FeatureExtractor(LITE0, Networks(mesh(num_devices), batch_size))
    found = extract(images)
    quarters = images.reshape(23, 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(23, 12)
    # The resize blurs a little over the borders of the quarters.
    np.testing.assert_allclose(found["values"], 2 * quarters / 255, atol=0.02)
    np.testing.assert_allclose(found["logits"][:, 1], found["values"].sum(axis=1), rtol=1e-5)


@pytest.mark.mesh
def test_of_several_cpu_devices_each_takes_one_image():
    assert [inference_batch_size(mesh(devices)) for devices in (1, 2, 8)] == [2, 2, 8]


@pytest.mark.mesh
@pytest.mark.usefixtures("lite0")
def test_devices_batches_and_order_change_a_score_by_less_than_1e_5():
    real, fake = pixels(8, seed=1), pixels(8, seed=2)
    fake[:, :16] //= 2

    def sides(num_devices: int, batch_size: int, order: int) -> list[np.ndarray]:
        extract = FeatureExtractor(LITE0, Networks(mesh(num_devices), batch_size))
        return [extract(images[::order])["values"] for images in (real, fake)]

    def distance(values: list[np.ndarray]) -> float:
        a, b = (mean_and_covariance(v[:, :256]) for v in values)
        return frechet_distance(*a, *b)

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
    found = FeatureExtractor(LITE0, Networks(mesh(1), 2))(images)
    np.testing.assert_allclose(found["values"], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("lite0")
def test_the_recipe_names_protocol_resize_and_weights():
    recipe = FeatureExtractor(LITE0, Networks(mesh(1))).recipe
    assert recipe["protocol"] == "fd-effnet-lite0"
    assert recipe["resize"] == "antialiased bicubic, clipped to 0..255, to 224"
    assert recipe["weights_sha256"].startswith("57934424")
    assert recipe["weights_verified"] is True


def extract_rows(counts: list[int], expected: int, *parts: np.ndarray) -> np.ndarray:
    """Return what a metric's rows of batches of images become."""
    rows = iter(parts or [np.zeros((count, 2)) for count in counts])
    metric: Any = SimpleNamespace(extract=lambda images, captions: {"values": next(rows)})
    built: Any = SimpleNamespace(extraction="", metric=metric)
    batches = ((np.zeros((count, 1, 1, 3), np.uint8), ()) for count in counts)
    return extract([built], batches, expected, "")[""]["values"]


@pytest.mark.parametrize(
    ("counts", "expected", "hint"),
    [([3], 4, "3 .* 4"), ([2, 3], 4, "5 .* 4"), ([], 0, "0 images")],
)
def test_a_wrong_set_gives_no_features(counts, expected, hint):
    with pytest.raises(EvaluationError, match=hint):
        extract_rows(counts, expected)


def test_rows_of_batches_are_joined_in_order_and_one_per_image():
    assert extract_rows([3, 1], 4, np.arange(3), np.array([3])).tolist() == [0, 1, 2, 3]
    with pytest.raises(EvaluationError, match="2 images gave 3 rows of values"):
        extract_rows([2], 2, np.zeros(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_name_the_image(bad):
    values = np.zeros((4, 2))
    values[2, 1] = bad
    with pytest.raises(EvaluationError, match="image 9 "):
        extract_rows([7, 4], 11, np.zeros((7, 2)), values)


@pytest.mark.usefixtures("tiny_network")
def test_float_images_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        FeatureExtractor(LITE0, Networks(mesh(1)))(np.zeros((1, 8, 8, 3), np.float32))


def test_products_are_asked_for_at_highest_precision(monkeypatch):
    seen = []

    def apply(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x.mean(axis=(1, 2)), x.mean(axis=(1, 2))

    network = FeatureNetwork(apply, {}, FileIdentity("", False))
    monkeypatch.setattr(features_module, "load_network", lambda *_, **__: network)
    FeatureExtractor(LITE0, Networks(mesh(1), 1))(pixels(1))
    assert set(seen) == {"highest"}


@pytest.mark.parametrize("name", ["fid-2015", "fid-pytorch", "fid-clean", "fid-keras", "pr-vgg16"])
def test_a_network_of_a_publisher_says_how_to_fetch_it(name, monkeypatch, tmp_path):
    monkeypatch.setenv("XMCGAN_WEIGHTS_DIR", str(tmp_path))
    network = get_protocol(name).network
    with pytest.raises(WeightsError, match=rf"https://\S+[\s\S]*fetch_weights\.py {network}"):
        FeatureExtractor(get_protocol(name), Networks(mesh(1)))


def test_other_weights_than_the_published_ones_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    for name in ("fid-2015", "fid-pytorch", "fid-keras", "fd-effnet-lite0", "pr-vgg16"):
        with pytest.raises(WeightsError, match="--allow-unverified-weights"):
            FeatureExtractor(get_protocol(name), Networks(mesh(1), weights={name: str(path)}))
    (tmp_path / "other.pth").touch()
    networks = Networks(mesh(1), weights={"fid-2015": str(tmp_path / "other.pth")})
    with pytest.raises(WeightsError, match=r"convert_weights\.py inception-2015 .*other\.pth"):
        FeatureExtractor(get_protocol("fid-2015"), networks)
