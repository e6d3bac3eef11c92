"""From a generator to its scores: sample, extract, compute."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

import xmcgan
from xmcgan.config import apply_override, read_config
from xmcgan.data import DataSet
from xmcgan.errors import BUCKET, EvaluationError
from xmcgan.evaluation.captions import (
    MAX_CAPTIONS,
    CaptionManifest,
    find_other_images,
    open_manifest,
)
from xmcgan.evaluation.extraction import CHUNK, RealImages, extract, reference_arrays
from xmcgan.evaluation.features import Arrays, Images, Networks
from xmcgan.evaluation.metrics import (
    METRICS,
    NUM_DISTRACTORS,
    BuiltMetric,
    Context,
    build_metrics,
    possible,
    quality_metrics,
)
from xmcgan.evaluation.protocols import PROTOCOLS, flattered_by
from xmcgan.evaluation.results import Weights
from xmcgan.sampling.sample_files import SampleWriter, part_of
from xmcgan.sampling.sampler import Sampler, sample_noise
from xmcgan.training import build
from xmcgan.utils.distributed import is_host0, raise_on_all, require_same
from xmcgan.utils.mesh import make_mesh, sampling_batch_size
from xmcgan.utils.statistics import Score, check_resamples, mean_of_draws

_DEPEND_ON_NUMBER = ("fid", "is", "is_one_split", "precision", "recall", "density", "coverage")
NUM_VARIED = 64  # captions that get several samples each, if a metric compares these


@dataclasses.dataclass(frozen=True)
class Options:
    """What an evaluation measures and how; what is None follows from `config.evaluation`."""

    protocols: Sequence[str] | None = None
    # Names of METRICS or config.evaluation, "quality", or module:Class; the first one's first score
    # tells which checkpoint is best. None: config.evaluation, or else all that are possible.
    metrics: Sequence[str] | None = None
    network_weights: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by protocol
    clip_weights: str | None = None
    cmmd_weights: str | None = None
    num_samples: int | None = None
    repeat_captions: bool | None = None  # with other noise, if distinct ones are too few
    draws: int | None = None  # sets of captions and noise; the seeds follow `seed`
    split: str = ""  # of captions and real images; empty: held-out images
    reference_split: str = ""  # of real images, if it is another one
    allow_training_references: bool = False
    overrides: Sequence[str] = ()  # "evaluation.FIELD=VALUE"
    weights: Sequence[Weights] = ("ema", "raw")
    seed: int = 0  # of captions, noise and bootstrap
    resamples: int = 50  # of the bootstrap; 0 gives no intervals
    batch_size: int | None = None  # images at once; None fits the devices
    cache_dir: Path | None = None  # of captions and references; None: DATA_DIR/evaluation
    allow_unverified: bool = False  # accept weights that are not the published files


@dataclasses.dataclass(frozen=True)
class _Draw:
    """One set of captions and noise."""

    manifest: CaptionManifest
    about: Mapping[str, Any]  # fields of the metrics' context
    real: RealImages  # those of the captions


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
            for override in options.overrides:
                apply_override(self.config, override)
            check_resamples(options.resamples)
            self._settings = self.config.evaluation
            self._open_data()
            mesh = make_mesh()
            self._metrics = self._build_metrics(mesh)
            text, tokenizer = build.build_text_encoder(self.config)
            generator = build.build_generator(self.config)
            batch_size = options.batch_size or sampling_batch_size(mesh)
            self.sampler = Sampler(generator, text, tokenizer, mesh, batch_size)
            self._z_dim = generator.z_dim
        # By protocol, which part of training used its network.
        self._flattered = {
            name: part
            for name in {metric.prefix for metric in self._metrics} & PROTOCOLS.keys()
            if (part := flattered_by(self.config, PROTOCOLS[name]))
        }
        require_same(
            {
                "captions_sha256": [draw.manifest.digest for draw in self._draws],
                "real images": len(self._all_real.examples),
                "config.json": self.config.to_dict(),
                "--seed": options.seed,
                "--batch-size": options.batch_size,
                "metrics": [[dict(m.settings), dict(m.recipe)] for m in self._metrics],
            }
        )
        self._references: dict[tuple[str, int], Arrays] = {}

    @property
    def manifest(self) -> CaptionManifest:
        """Captions of the first draw."""
        return self._draws[0].manifest

    def _open_data(self) -> None:
        config, options, settings = self.config, self._options, self._settings
        data_set = DataSet(config.data.name, config.data.data_dir, **config.data.fields)
        split = options.split or data_set.held_out()
        if split is None:
            raise EvaluationError(f"{data_set.name!r} has no held-out images: give --split")
        for field, least in (("draws", 1), ("num_samples", 0), ("num_references", 0)):
            if settings[field] < least:
                raise EvaluationError(f"evaluation.{field} is {settings[field]}: at least {least}")
        num = options.num_samples or settings.num_samples or None
        if num is not None and num < 2:
            raise EvaluationError(f"--num-samples is {num}; at least 2 are needed")
        repeat = options.repeat_captions
        repeat = settings.repeat_captions if repeat is None else repeat
        self._source = data_set.load(split)
        self._all_real = self._open_references(data_set, split)
        beside = config.data.data_dir
        beside = "data" if beside.startswith(BUCKET) else beside  # caches are on a disk
        self._cache_dir = options.cache_dir or Path(beside) / "evaluation"
        fingerprint = self._source.fingerprint()
        identity = {"data": data_set.name, "fingerprint": fingerprint, "split": split}
        self._draws = []
        for draw in range(options.draws or settings.draws):
            seed = {"seed": options.seed + draw}
            manifest = open_manifest(
                self._cache_dir, self._source, num, identity | seed, repeat=repeat
            )
            self._draws.append(self._open_draw(manifest, identity))

    def _open_references(self, data_set: DataSet, split: str) -> RealImages:
        """The real images that all samples are compared with."""
        config, settings = self.config, self._settings
        source, wanted = self._source, self._options.reference_split or split
        shared = {*wanted.split("+")} & {*config.data.train_split.split("+")}
        self._trained_on_references = bool(shared)
        if wanted != split:
            if shared and not self._options.allow_training_references:
                raise EvaluationError(
                    f"--reference-split {wanted} holds images that were trained on, which flatters "
                    "copies; where a protocol asks for that, add --allow-training-references"
                )
            source = data_set.load(wanted)
        examples, kind, label = source.one_per_image(), "all of the split", "all"
        if num := settings.num_references:
            if num > len(examples):
                raise EvaluationError(
                    f"evaluation.num_references is {num:,}: {wanted!r} has {len(examples):,} images"
                )
            order = np.random.default_rng(0).permutation(len(examples))
            examples = [examples[index] for index in np.sort(order[:num])]
            kind, label = "random ones of the split", f"{num}"
        recipe = {"data": data_set.name, "fingerprint": source.fingerprint(), "split": wanted}
        recipe |= {"images": kind}
        mirrored = None
        if settings.mirror_references:
            mirrored = np.random.default_rng(1).random(len(examples)) < 0.5
            recipe, label = recipe | {"mirrored": "half, at random"}, f"{label}_mirrored"
        prepared = config.image_size, config.data.resize
        return RealImages(source, examples, *prepared, recipe, label, mirrored=mirrored)

    def _open_draw(self, manifest: CaptionManifest, identity: Mapping[str, str]) -> _Draw:
        choices = manifest.choices
        examples = [choice.example for choice in choices]

        def rows_of(examples: Sequence[int]) -> Int[np.ndarray, "n"]:
            """Row of each example's image among the real images; -1 stays."""
            # An image may have several examples, which follow each other.
            return np.searchsorted(self._all_real.examples, examples, side="right") - 1

        about: dict[str, Any] = {"captions": manifest.captions}
        about["image_ids"] = [choice.image_id for choice in choices]
        if self._all_real.source is self._source and not self._settings.num_references:
            about["targets"] = rows_of(examples)
            about["find_twins"] = functools.cache(
                lambda: rows_of(find_other_images(self._source, choices))
            )
        real = RealImages(
            self._source,
            examples,
            self.config.image_size,
            self.config.data.resize,
            {**identity, "images": "of the captions", "captions_sha256": manifest.digest},
            f"captions_{len(choices)}_{manifest.header['seed']}",
            captions=manifest.captions,
        )
        return _Draw(manifest, about, real)

    def _build_metrics(self, mesh: Mesh) -> list[BuiltMetric]:
        options = self._options
        networks = Networks(
            mesh, options.batch_size, options.allow_unverified, options.network_weights
        )
        self._context = Context(
            networks,
            seed=options.seed,
            # Several draws give the interval themselves.
            resamples=options.resamples if len(self._draws) == 1 else 0,
            image_size=self.config.image_size,
            cache_dir=self._cache_dir,
            num_real=len(self._all_real.examples),
            **self._draws[0].about,
        )
        protocols = options.protocols or self._settings.protocols.split(",")
        can_retrieve = "targets" in self._draws[0].about
        can_retrieve &= self._context.num_real > NUM_DISTRACTORS
        specs = metric_specs(self.config, options, protocols, can_retrieve)
        return build_metrics(specs, list(dict.fromkeys(protocols)), self._context)

    def recipe(self) -> dict[str, Any]:
        """All that the scores depend on, except the checkpoint."""
        measures: dict[str, dict[str, Any]] = {}
        for metric in self._metrics:
            measure = measures.setdefault(metric.prefix, {**metric.recipe, "metrics": []})
            measure["metrics"].append(metric.settings)
        digests = [draw.manifest.digest for draw in self._draws]
        one_draw = len(digests) == 1
        recipe = {
            "data": self.manifest.header | {"captions_sha256": digests[0] if one_draw else digests},
            "references": len(self._all_real.examples),
            "image_size": self.config.image_size,
            "resize_of_references": self.config.data.resize,
            "samples": len(self.manifest.choices),
            "noise_seed": self._options.seed,
            "resamples": self._context.resamples,
            "rounding": "once, to the nearest of 256 levels",
            "arithmetic": "float32, highest matmul precision",
            "text_encoder": self.config.text.to_dict(),
            "measures": measures,
            "flattered": self._flattered,
            "package_version": xmcgan.__version__,
        }
        # What is not as usual.
        loss = self.config.losses.image_pretrained
        if loss.enabled and loss.in_place_of:
            recipe |= {
                "image_network_of_training": f"{loss.network} in place of {loss.in_place_of}"
            }
        recipe |= {} if one_draw else {"draws": len(digests)}
        if self._all_real.source is not self._source:
            recipe |= {"reference_split": self._all_real.recipe["split"]}
        chosen = ("num_references", "mirror_references", "raw_statistics")
        return recipe | {name: self._settings[name] for name in chosen if self._settings[name]}

    def score(self, variables: Any, title: str, save: Path | None = None) -> dict[str, Score]:
        """Scores of a generator by names such as "fd-effnet-lite2/fd"; in process 0 alone.

        The images that are scored, one per caption, go to the folder or zip `save`.
        """
        self.extract_references()
        draws = []
        for number, draw in enumerate(self._draws):
            path = save and (save if len(self._draws) == 1 else part_of(save, f"draw_{number}"))
            draws.append(self._score_draw(number, draw, variables, title, path))
        with raise_on_all():
            if not is_host0():
                return {}
            scores = mean_of_draws(draws)
            if not scores:
                raise EvaluationError("the metrics gave no score")
            return {name: self._marked(name, score) for name, score in scores.items()}

    def _marked(self, name: str, score: Score) -> Score:
        """The score with notes about how far it compares."""
        prefix, _, kind = name.partition("/")
        notes = [score.note]
        num = len(self.manifest.choices)
        is_fid = prefix in PROTOCOLS and PROTOCOLS[prefix].label == "FID"
        # Configs whose scores are published say a number of samples.
        is_published = is_fid and self._settings.num_samples and kind in _DEPEND_ON_NUMBER
        if is_published and num != MAX_CAPTIONS:
            notes.append(
                f"at {num:,} images: not comparable with published scores, at {MAX_CAPTIONS:,}"
            )
        if self._trained_on_references and "_real" not in kind:
            notes.append("the references were trained on")
        flattered = score.flattered or prefix in self._flattered
        return dataclasses.replace(score, note="; ".join(filter(None, notes)), flattered=flattered)

    def _score_draw(
        self, number: int, draw: _Draw, variables: Any, title: str, save: Path | None
    ) -> dict[str, Score]:
        vars(self._context).update(draw.about)
        num, header = len(draw.manifest.choices), draw.manifest.header
        varied = min(num, NUM_VARIED)
        most = max(metric.samples_per_caption for metric in self._metrics)
        # One row per caption, then more of the first captions.
        z = sample_noise(header["seed"], num + (most - 1) * varied, self._z_dim)
        fake = self._extract_samples(draw, z[:num], variables, self._metrics, title, save)
        repeated = [metric for metric in self._metrics if metric.samples_per_caption > 1]
        more = [
            self._extract_samples(draw, z[start : start + varied], variables, repeated, title)
            for start in range(num, len(z), varied)
        ]
        with raise_on_all():
            if not is_host0():
                return {}
            scores = {}
            for metric in self._metrics:
                arrays = fake[metric.extraction]
                if metric.samples_per_caption > 1:  # arrays (captions, samples, ...)
                    samples = [arrays, *(part[metric.extraction] for part in more)]
                    samples = samples[: metric.samples_per_caption]
                    arrays = {k: np.stack([s[k][:varied] for s in samples], 1) for k in arrays}
                real = self._references[metric.extraction, number if metric.paired else -1]
                for name, score in metric.metric.compute(real, arrays).items():
                    if not isinstance(score, Score):
                        raise EvaluationError(f"{metric.prefix}: compute must return Scores")
                    scores[f"{metric.prefix}/{name}"] = score
            return scores

    def _extract_samples(
        self,
        draw: _Draw,
        z: Float[np.ndarray, "n z"],
        variables: Any,
        metrics: list[BuiltMetric],
        title: str,
        save: Path | None = None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Arrays of one image of each of the first captions."""
        captions = draw.manifest.captions[: len(z)]
        origin = {"sampled_from": title, "captions": draw.manifest.header}
        with contextlib.ExitStack() as held:
            writer = None
            if save and is_host0():
                writer = held.enter_context(SampleWriter(save, len(z), origin))

            def batches() -> Iterator[tuple[Images, Sequence[str]]]:
                for start in range(0, len(z), CHUNK):
                    chunk = slice(start, start + CHUNK)
                    with jax.default_matmul_precision("highest"):
                        images = self.sampler(variables, captions[chunk], z[chunk])
                    if writer:
                        chosen = draw.manifest.choices[chunk]
                        entries = [
                            {"caption": each.caption, "image_id": each.image_id, "noise": row}
                            for row, each in enumerate(chosen, start=start)
                        ]
                        writer.add(images, entries)
                    yield images, captions[chunk]

            return extract(metrics, batches(), len(z), title)

    def extract_references(self) -> None:
        """Extract from the real images, or read the cache."""
        for metric in self._metrics:
            for number in range(len(self._draws)) if metric.paired else (-1,):
                key = metric.extraction, number
                if key not in self._references:
                    real = self._draws[number].real if metric.paired else self._all_real
                    self._references[key] = reference_arrays(metric, real, self._cache_dir)


def metric_specs(
    config: ConfigDict, options: Options, protocols: Sequence[str], can_retrieve: bool
) -> dict[str, dict[str, Any]]:
    """Metrics to build, as `build_metrics` takes them."""
    configured = {k: v for k, v in config.evaluation.to_dict().items() if isinstance(v, dict)}
    names = options.metrics
    if names is None:
        # Retrieval that is named although it cannot be computed is an error.
        retrieval = ["retrieval"] if can_retrieve else []
        names = list(configured) or ["quality", *possible([*retrieval, "diversity"], protocols)]
    specs: dict[str, dict[str, Any]] = {}
    for name in names:
        if name == "quality":
            specs |= quality_metrics(protocols)
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
