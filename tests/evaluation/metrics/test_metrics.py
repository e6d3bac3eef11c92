"""Metrics are found by name or by dotted path, share networks, and give scores with intervals."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_network

from xmcgan.errors import ConfigError, EvaluationError
from xmcgan.evaluation.features import FeatureExtractor, Networks
from xmcgan.evaluation.metrics import METRICS, Context, build_metrics, possible, quality_metrics
from xmcgan.utils import registry
from xmcgan.utils.mesh import make_mesh
from xmcgan.utils.statistics import Score

ALL = ["fid", "kid", "is", "is_one_split", "precision", "recall", "density", "coverage"]
USERS = """
import numpy as np
from xmcgan.utils.statistics import Score

class Brightness:
    def __init__(self, scale=1.0):
        self.scale = scale

    def extract(self, images, captions):
        return {"mean": images.mean(axis=(1, 2, 3)) * self.scale}

    def compute(self, real, fake):
        return {"difference": Score(float(fake["mean"].mean() - real["mean"].mean()))}
"""


def features(n: int = 120, d: int = 10, seed: int = 0, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Return features and logits of random images."""
    values = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + shift
    return {"values": values, "logits": 2 * values[:, :5]}


def scores_of(real: dict, fake: dict, *, label: str = "FID", resamples: int = 0):
    """Return the quality scores of features."""
    extractor = SimpleNamespace(recipe={}, protocol=SimpleNamespace(label=label))
    context = SimpleNamespace(features=lambda _: extractor, resamples=resamples, seed=0)
    found: dict[str, Score] = {}
    for name in quality_metrics(["fid-2015" if label == "FID" else "fd-effnet-lite2"]):
        metric = registry.find(name, METRICS, "metric")(context, "")
        found |= metric.compute(real, fake)
    return found


def test_every_score_is_there_with_its_direction():
    found = scores_of(features(), features(seed=1, shift=0.4))
    assert list(found) == ALL
    assert {name for name, score in found.items() if score.better == "lower"} == {"fid", "kid"}
    assert all(score.low is score.high is None for score in found.values())
    others = [name for name in ALL if name not in ("fid", "is", "is_one_split")]
    assert list(scores_of(features(), features(seed=1), label="FD")) == ["fd", *others]


def test_intervals_hold_the_value_and_stay_in_range():
    sides = features(), features(seed=1, shift=0.3)
    found = scores_of(*sides, resamples=10)
    for name, score in found.items():
        assert score.low <= score.value <= score.high, name
        assert score.low < score.high, name
    fractions = [found[name] for name in ("precision", "recall", "coverage")]
    assert all(score.low >= 0 and score.high <= 1 for score in fractions)
    assert found["fid"].low >= 0
    assert found["is"].low >= 1
    for name, score in scores_of(*sides).items():
        assert found[name].value == pytest.approx(score.value, rel=1e-12), "resampling changes it"


def test_intervals_of_all_scores_are_as_wide_as_scores_scatter():
    rng = np.random.default_rng(0)

    def sample() -> dict[str, Score]:
        real, fake = rng.standard_normal((2, 150, 8)).astype(np.float32)
        sides = {"values": real}, {"values": 1.1 * fake + 0.3, "logits": fake}
        return scores_of(*sides, resamples=10)

    runs = [sample() for _ in range(25)]
    for name in ALL:
        scores = [run[name] for run in runs]
        half = np.mean([(score.high - score.low) / 2 for score in scores])
        ratio = half / 2.2622 / np.std([score.value for score in scores])
        assert 0.5 < ratio < 2, name


def test_small_subsets_and_unequal_numbers_are_noted():
    found = scores_of(features(120), features(90, seed=1))
    assert "from 1000 images to the 90" in found["kid"].note
    assert "90 random images" in found["recall"].note
    assert "over 10 splits" in found["is"].note


def test_few_images_have_no_interval():
    found = scores_of(features(12), features(12, seed=1), resamples=10)
    assert all(score.low is None for score in found.values())


@pytest.mark.parametrize("resamples", [-1, 1, 4])
def test_resamples_that_tell_no_spread_are_refused(resamples: int):
    with pytest.raises(EvaluationError, match=str(resamples)):
        scores_of(features(), features(), resamples=resamples)


@pytest.mark.parametrize("name", ["fid", "kid", "precision_recall"])
def test_features_of_too_few_images_give_no_score(name: str):
    extractor = SimpleNamespace(recipe={}, protocol=SimpleNamespace(label="FID"))
    context = SimpleNamespace(features=lambda _: extractor, resamples=0, seed=0)
    metric = registry.find(name, METRICS, "metric")(context, "")
    with pytest.raises(EvaluationError, match="at least"):
        metric.compute(features(), {"values": features()["values"][:1]})


def context() -> Context:
    return Context(Networks(make_mesh(jax.devices()[:1]), batch_size=4))


def test_metrics_of_one_protocol_share_one_network_and_what_it_extracts(monkeypatch):
    tiny_network.install(monkeypatch)
    loaded = []

    def load(protocol, *args, **options):
        loaded.append(protocol.name)
        return FeatureExtractor(protocol, *args, **options)

    monkeypatch.setattr("xmcgan.evaluation.metrics.FeatureExtractor", load)
    protocols = ["fid-2015", "fd-effnet-lite2"]
    built = build_metrics(quality_metrics(protocols), protocols, context())
    assert loaded == protocols
    assert len({metric.extraction for metric in built}) == 2
    names = [(metric.prefix, metric.settings["name"]) for metric in built]
    assert ("fid-2015", "inception_score") in names
    assert ("fd-effnet-lite2", "inception_score") not in names
    assert {metric.prefix for metric in built} == set(protocols)


def test_a_metric_of_a_user_is_found_and_gets_its_fields(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metrics.py").write_text(USERS)
    spec = {"dark": {"type": "own_metrics:Brightness", "scale": 2.0}}
    (built,) = build_metrics(spec, ["fid-2015", "fd-effnet-lite2"], context())
    assert (built.prefix, built.paired, built.samples_per_caption) == ("dark", False, 1)
    images = np.full((3, 4, 4, 3), 7, np.uint8)
    assert built.metric.extract(images, [])["mean"].tolist() == [14.0] * 3
    (tmp_path / "own_metrics.py").write_text(USERS + "# edited\n")
    (edited,) = build_metrics(spec, ["fid-2015"], context())
    assert edited.extraction != built.extraction, "what edited code extracted is not mixed up"


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ({"fidd": {}}, "'fid'"),
        ({"mine": {"type": "absent_module:Metric"}}, "absent_module"),
        ({"dark": {"type": "own_metrics:Brightness", "scal": 2.0}}, "evaluation.dark.*scal"),
        ({"cmmd": {}}, "evaluation.cmmd.*weights"),
    ],
)
def test_specs_that_cannot_be_built_are_named(tmp_path, monkeypatch, spec, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metrics.py").write_text(USERS)
    with pytest.raises(ConfigError, match=hint):
        build_metrics(spec, ["fid-2015"], context())


@pytest.mark.parametrize(
    ("metric", "protocol"), [("inception_score", "fd-effnet-lite2"), ("fid", "pr-vgg16")]
)
def test_a_score_that_no_protocol_has_is_an_error(metric, protocol):
    with pytest.raises(EvaluationError, match=f"{protocol} cannot give {metric}"):
        build_metrics({metric: {}}, [protocol], context())


def test_vgg16_features_give_precision_and_recall_beside_the_distance_of_others(monkeypatch):
    tiny_network.install(monkeypatch)
    protocols = ["fid-2015", "pr-vgg16"]
    built = build_metrics(quality_metrics(protocols), protocols, context())
    names = [m.settings["name"] for m in built if m.prefix == "pr-vgg16"]
    assert names == ["precision_recall"]
    assert "fid" in {m.settings["name"] for m in built if m.prefix == "fid-2015"}
    assert possible(["retrieval", "diversity", "precision_recall"], ["pr-vgg16"]) == names
