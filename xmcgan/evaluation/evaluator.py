"""From a generator to its scores: sample, extract, compute."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from tqdm import tqdm

import xmcgan
from xmcgan.config import read_config
from xmcgan.data import DataSet
from xmcgan.data.images import decode_image, resize_image
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.captions import find_other_images, open_manifest
from xmcgan.evaluation.features import Arrays, Images, Networks, Rows, read_npz, save_npz
from xmcgan.evaluation.metrics import (
    METRICS,
    NUM_DISTRACTORS,
    BuiltMetric,
    Context,
    build_metrics,
    possible,
    quality_metrics,
)
from xmcgan.evaluation.metrics.fid import mean_and_covariance
from xmcgan.evaluation.protocols import DEFAULT_PROTOCOL, PROTOCOLS, flattered_by
from xmcgan.evaluation.results import Weights
from xmcgan.sampling.sampler import Sampler, sample_noise
from xmcgan.training import build
from xmcgan.utils.distributed import broadcast_from_host0, is_host0, raise_on_all, require_same
from xmcgan.utils.mesh import make_mesh, sampling_batch_size
from xmcgan.utils.provenance import fingerprint_differences
from xmcgan.utils.statistics import Score, check_resamples

CHUNK = 512  # images that are sampled before metrics extract from them
NUM_VARIED = 64  # captions that get several samples each, if a metric compares these


@dataclasses.dataclass(frozen=True)
class Options:
    """What an evaluation measures and how."""

    protocols: Sequence[str] = (DEFAULT_PROTOCOL,)
    # Names of METRICS or config.evaluation, "quality", or module:Class; the first one's first score
    # tells which checkpoint is best. None: config.evaluation, or else all that are possible.
    metrics: Sequence[str] | None = None
    network_weights: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by protocol
    clip_weights: str | None = None
    cmmd_weights: str | None = None
    num_samples: int | None = None  # None: 30,000, or one per distinct caption if there are fewer
    split: str = ""  # of captions and real images; empty: held-out images
    weights: Sequence[Weights] = ("ema", "raw")
    seed: int = 0  # of captions, noise and bootstrap
    resamples: int = 50  # of the bootstrap; 0 gives no intervals
    batch_size: int | None = None  # images at once; None fits the devices
    cache_dir: Path | None = None  # of captions and references; None: DATA_DIR/evaluation
    allow_unverified: bool = False  # accept weights that are not the published files


class Evaluator:
    """Scores of generators on fixed captions and noise against real images.

    All processes sample and extract, each on its devices; process 0 scores. Whatever would prevent
    a score is raised before an image is sampled.
    """

    def __init__(self, workdir: Path, options: Options) -> None:
        self._options = options
        with raise_on_all():
            self.config: ConfigDict = read_config(workdir / "config.json")
            self.config.dtype = "float32"  # also if training multiplied in bfloat16
            check_resamples(options.resamples)
            self.mesh = make_mesh()
            self._open_data()
            self._metrics = self._build_metrics()
            self._open_generator()
        # By protocol, which part of training used its network.
        self.flattered = {
            name: part
            for name in {metric.prefix for metric in self._metrics} & PROTOCOLS.keys()
            if (part := flattered_by(self.config, PROTOCOLS[name]))
        }
        require_same(
            {
                "captions_sha256": self.manifest.digest,
                "real images": len(self._real),
                "config.json": self.config.to_dict(),
                "--seed": options.seed,
                "--batch-size": options.batch_size,
                "metrics": [[dict(m.settings), dict(m.recipe)] for m in self._metrics],
            }
        )
        self._references: dict[tuple[str, bool], Arrays] = {}

    def _open_data(self) -> None:
        config, options = self.config, self._options
        name, data_dir = config.data.name, config.data.data_dir
        data_set = DataSet(name, data_dir, **config.data.fields)
        split = options.split or data_set.held_out()
        if split is None:
            raise EvaluationError(
                f"data set {name!r} has no held-out images; --split train scores against the "
                "images that were trained on, which flatters"
            )
        if options.num_samples is not None and options.num_samples < 2:
            raise EvaluationError(f"--num-samples is {options.num_samples}; at least 2 are needed")
        self._source = data_set.load(split)
        self._real = self._source.one_per_image()  # examples
        self._cache_dir = options.cache_dir or Path(data_dir) / "evaluation"
        fingerprint = self._source.fingerprint()
        identity = {"data": name, "fingerprint": fingerprint, "split": split, "seed": options.seed}
        self.manifest = open_manifest(self._cache_dir, self._source, options.num_samples, identity)

    def _build_metrics(self) -> list[BuiltMetric]:
        options, choices = self._options, self.manifest.choices

        def rows_of(examples: Sequence[int]) -> Int[np.ndarray, "n"]:
            """Row of each example's image among the real images; -1 stays."""
            # An image may have several examples, which follow each other.
            return np.searchsorted(self._real, examples, side="right") - 1

        unverified, weights = options.allow_unverified, options.network_weights
        context = Context(
            Networks(self.mesh, options.batch_size, unverified, weights),
            seed=options.seed,
            resamples=options.resamples,
            image_size=self.config.image_size,
            cache_dir=self._cache_dir,
            num_real=len(self._real),
            captions=self.manifest.captions,
            image_ids=[choice.image_id for choice in choices],
            targets=rows_of([choice.example for choice in choices]),
            find_twins=functools.cache(lambda: rows_of(find_other_images(self._source, choices))),
        )
        specs = metric_specs(self.config, options, len(self._real))
        return build_metrics(specs, list(dict.fromkeys(options.protocols)), context)

    def _open_generator(self) -> None:
        text, tokenizer = build.build_text_encoder(self.config)
        generator = build.build_generator(self.config)
        batch_size = self._options.batch_size or sampling_batch_size(self.mesh)
        self.sampler = Sampler(generator, text, tokenizer, self.mesh, batch_size)
        # One sample of each caption, then further ones of the first captions.
        num = len(self.manifest.choices)
        most = max(metric.samples_per_caption for metric in self._metrics)
        varied = min(num, NUM_VARIED)
        z = sample_noise(self._options.seed, num + (most - 1) * varied, generator.z_dim)
        self._z = [z[:num], *np.split(z[num:], most - 1)] if most > 1 else [z]

    def recipe(self) -> dict[str, Any]:
        """All that the scores depend on, except the checkpoint."""
        measures: dict[str, dict[str, Any]] = {}
        for metric in self._metrics:
            measure = measures.setdefault(metric.prefix, {**metric.recipe, "metrics": []})
            measure["metrics"].append(metric.settings)
        return {
            "data": self.manifest.header | {"captions_sha256": self.manifest.digest},
            "references": len(self._real),
            "image_size": self.config.image_size,
            "resize_of_references": self.config.data.resize,
            "samples": len(self.manifest.choices),
            "noise_seed": self._options.seed,
            "resamples": self._options.resamples,
            "rounding": "once, to the nearest of 256 levels",
            "arithmetic": "float32, highest matmul precision",
            "text_encoder": self.config.text.to_dict(),
            "measures": measures,
            "flattered": self.flattered,
            "package_version": xmcgan.__version__,
        }

    def score(self, variables: Any, title: str) -> dict[str, Score]:
        """Scores of a generator by names such as "fd-effnet-lite2/fd"; in process 0 alone."""
        self.extract_references()
        fake = self._extract_samples(variables, self._z[0], self._metrics, title)
        repeated = [metric for metric in self._metrics if metric.samples_per_caption > 1]
        more = [self._extract_samples(variables, z, repeated, title) for z in self._z[1:]]
        with raise_on_all():
            if not is_host0():
                return {}
            scores = {}
            for metric in self._metrics:
                arrays = fake[metric.extraction]
                if metric.samples_per_caption > 1:  # arrays (captions, samples, ...)
                    samples = [arrays, *(part[metric.extraction] for part in more)]
                    samples = samples[: metric.samples_per_caption]
                    num = len(self._z[-1])
                    arrays = {k: np.stack([s[k][:num] for s in samples], 1) for k in arrays}
                real = self._references[metric.extraction, metric.paired]
                flattered = metric.prefix in self.flattered
                for name, score in metric.metric.compute(real, arrays).items():
                    score = dataclasses.replace(score, flattered=flattered)
                    scores[f"{metric.prefix}/{name}"] = score
            if not scores:
                raise EvaluationError("the metrics gave no score")
            return scores

    def _extract_samples(
        self, variables: Any, z: Float[np.ndarray, "n z"], metrics: list[BuiltMetric], title: str
    ) -> dict[str, dict[str, np.ndarray]]:
        """Arrays of one image of each of the first captions."""
        captions = self.manifest.captions[: len(z)]

        def batches() -> Iterator[tuple[Images, Sequence[str]]]:
            for start in range(0, len(z), CHUNK):
                chunk = slice(start, start + CHUNK)
                with jax.default_matmul_precision("highest"):
                    yield self.sampler(variables, captions[chunk], z[chunk]), captions[chunk]

        return _extract(metrics, batches(), len(z), title)

    def extract_references(self) -> None:
        """Extract from the real images, or read the cache."""
        for metric in self._metrics:
            key = metric.extraction, metric.paired
            if key not in self._references:
                self._references[key] = self._reference(metric)

    def _reference(self, metric: BuiltMetric) -> dict[str, np.ndarray]:
        """Arrays of the real images; in process 0 alone if they are cached."""
        header = self.manifest.header
        if metric.paired:
            examples = [choice.example for choice in self.manifest.choices]
            captions = self.manifest.captions
            kind = {"images": "of the captions", "captions_sha256": self.manifest.digest}
            label = f"captions_{len(examples)}_{header['seed']}"
        else:
            examples, captions = self._real, None
            kind, label = {"images": "all of the split"}, "all"
        size, resize = self.config.image_size, self.config.data.resize
        recipe = dict(metric.recipe) | kind
        recipe |= {key: header[key] for key in ("data", "fingerprint", "split")}
        recipe |= {"image_size": size, "image_resize": resize, "n": len(examples)}
        recipe.pop("package_version", None)
        data = header["data"].replace("/", "_")
        name = f"{metric.cache_name}_{data}_{header['split']}_{size}_{resize}_{label}.npz"
        path = self._cache_dir / name
        if broadcast_from_host0(path.exists):
            with raise_on_all():
                return _read_reference(path, recipe) if is_host0() else {}
        batches = self._real_batches(examples, captions)
        extracted = _extract([metric], batches, len(examples), f"real images, {metric.prefix}")
        arrays = extracted[metric.extraction]
        with raise_on_all():
            if is_host0():
                _write_reference(path, recipe, arrays)
        return arrays

    def _real_batches(
        self, examples: Sequence[int], captions: Sequence[str] | None
    ) -> Iterator[tuple[Images, Sequence[str]]]:
        """Real images, prepared as for training, with captions or else their first ones."""
        size, resize = self.config.image_size, self.config.data.resize
        for start in range(0, len(examples), CHUNK):
            with raise_on_all():
                chunk = [self._source[index] for index in examples[start : start + CHUNK]]
                decoded = [decode_image(each.image, each.name) for each in chunk]
                images = np.stack([resize_image(image, size, resize) for image in decoded])
            first = [each.captions[0] for each in chunk]
            yield images, captions[start : start + CHUNK] if captions else first


def metric_specs(config: ConfigDict, options: Options, num_real: int) -> dict[str, dict[str, Any]]:
    """Metrics to build, as `build_metrics` takes them."""
    configured = config.evaluation.to_dict()
    names = options.metrics
    if names is None:
        # Retrieval that is named although the real images are too few is an error.
        retrieval = ["retrieval"] if num_real > NUM_DISTRACTORS else []
        others = possible([*retrieval, "diversity"], options.protocols)
        names = list(configured) or ["quality", *others]
    specs: dict[str, dict[str, Any]] = {}
    for name in names:
        if name == "quality":
            specs |= quality_metrics(options.protocols)
        elif ":" in name:
            specs[name.rpartition(":")[2].lower()] = {"type": name}
        else:
            specs[name] = configured.get(name, {})
    if not specs:
        raise EvaluationError(f"no metrics are given; known: quality, {', '.join(METRICS)}")
    if options.cmmd_weights:
        specs["cmmd"] = {"weights": options.cmmd_weights}
    if options.clip_weights:
        specs["clip"] = {"weights": options.clip_weights}
    if config.data.name.partition("/")[0] == "shapes" and not configured:
        specs["shapes"] = {}
    return specs


def _extract(
    metrics: Sequence[BuiltMetric],
    batches: Iterator[tuple[Images, Sequence[str]]],
    expected: int,
    title: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of all images by `BuiltMetric.extraction`."""
    first = {}  # metrics of one recipe share what the first of them extracts
    for metric in metrics:
        first.setdefault(metric.extraction, metric.metric)
    rows = {key: Rows() for key in first}
    disable = not is_host0()
    with tqdm(total=expected, desc=title, unit="image", leave=False, disable=disable) as progress:
        for images, captions in batches:
            for key, metric in first.items():
                rows[key].add(metric.extract(images, captions), len(images))
            progress.update(len(images))
    return {key: each.joined(expected) for key, each in rows.items()}


def _write_reference(path: Path, recipe: Mapping[str, Any], arrays: Arrays) -> None:
    stored = {**arrays, "recipe": np.array(json.dumps(recipe, sort_keys=True))}
    if "protocol" in recipe:  # `eval_fid.py compare` reads the file as statistics
        mu, sigma = mean_and_covariance(arrays["values"])
        stored |= {"mu": mu, "sigma": sigma, "n": np.array(len(arrays["values"]))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(path, stored)


def _read_reference(path: Path, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = read_npz(path)
    stored = json.loads(str(arrays.pop("recipe", "{}")))
    if differing := fingerprint_differences(stored, wanted):
        raise EvaluationError(
            f"{path} was made another way ({'; '.join(differing)}); remove it to make it again"
        )
    for name in ("mu", "sigma", "n") if "protocol" in wanted else ():
        del arrays[name]
    return arrays
