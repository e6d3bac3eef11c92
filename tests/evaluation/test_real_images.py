"""Scores of real photographs, clean and degraded: the worse the images, the worse the scores.

With the table that docs/evaluation.md shows:

    python -m pytest -m slow -s tests/evaluation/test_real_images.py
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from xmcgan.errors import WeightsError
from xmcgan.evaluation.features import Images, Networks
from xmcgan.evaluation.folders import ImageFolder
from xmcgan.evaluation.metrics import Context, build_metrics, quality_metrics
from xmcgan.pretrained.weights import resolve
from xmcgan.utils.mesh import make_mesh
from xmcgan.utils.statistics import Score

NUM_IMAGES = 1000
SHOWN = ("fd", "kid", "precision", "recall", "density", "coverage")


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def noise(image: np.ndarray, sigma: float) -> np.ndarray:
    drawn = np.random.default_rng(int(image.sum())).normal(0, sigma, image.shape)
    return np.clip(image + drawn + 0.5, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


# Each from the weakest to the strongest.
SWEEPS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
    "Gaussian blur, sigma": (blur, (0.5, 1, 2, 4)),
    "noise, sigma": (noise, (4, 8, 16, 32)),
    "JPEG, quality": (jpeg, (75, 50, 25, 10)),
}


@pytest.fixture(scope="module")
def folder(shared_dir) -> Path:
    return shared_dir / "data" / "flickr8k_128"


def choose(folder: Path, split: str) -> ImageFolder:
    """Return 1,000 images of a split of flickr8k_128, drawn by seed 0."""
    entries = map(json.loads, (folder / "captions.jsonl").read_text().splitlines())
    names = sorted(entry["image"] for entry in entries if entry["split"] == split)
    images = ImageFolder(folder)
    chosen = np.random.default_rng(0).choice(len(names), NUM_IMAGES, replace=False)
    images.names = [names[index] for index in sorted(chosen)]
    return images


def row(name: str, scores: dict[str, Score]) -> str:
    return f"| {name} | " + " | ".join(f"{scores[key].value:.4f}" for key in SHOWN) + " |"


@pytest.mark.slow
def test_scores_fall_with_the_strength_of_blur_noise_and_jpeg(folder):
    try:
        resolve("efficientnet_lite0")
    except WeightsError as error:
        pytest.skip(str(error))
    protocol = "fd-effnet-lite0"

    def images(split: str) -> Images:
        return np.concatenate(list(choose(folder, split).batches()))

    def scores_of(fake: Images, resamples: int = 0) -> dict[str, Score]:
        context.resamples = resamples
        scores = {}
        for built in build_metrics(quality_metrics([protocol]), [protocol], context):
            scores |= built.metric.compute(real, extract(fake))
        return scores

    context = Context(Networks(make_mesh()))
    extract = context.features(protocol)
    real, clean_images = extract(images("train")), images("dev")
    clean = scores_of(clean_images, resamples=20)
    print(f"\n| images | {' | '.join(SHOWN)} |\n|{'---|' * (len(SHOWN) + 1)}")
    print(row("dev", clean))
    intervals = [f"{clean[key].low:.4f} to {clean[key].high:.4f}" for key in SHOWN]
    print(f"| its 95 % interval | {' | '.join(intervals)} |")

    for name, (degrade, strengths) in SWEEPS.items():
        sweep = [clean]
        for strength in strengths:
            degraded = np.stack([degrade(image, strength) for image in clean_images])
            sweep.append(scores_of(degraded))
            print(row(f"{name} {strength}", sweep[-1]), flush=True)
        for key in ("fd", "kid"):
            values = [scores[key].value for scores in sweep]
            assert values == sorted(values), (name, key, values)
        for key in ("precision", "recall", "density", "coverage"):
            assert sweep[-1][key].value < clean[key].value - 0.1, (name, key)
