"""From the generator of a checkpoint to its scores."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

import xmcgan
from xmcgan import build
from xmcgan.config import read_config
from xmcgan.data import sources
from xmcgan.data.images import decode_image, resize_image
from xmcgan.errors import EvaluationError, did_you_mean
from xmcgan.evaluation.alignment import NUM_DISTRACTORS
from xmcgan.evaluation.bootstrap import check_resamples
from xmcgan.evaluation.captions import CaptionManifest, find_other_images, open_manifest
from xmcgan.evaluation.clip_features import ClipExtractor
from xmcgan.evaluation.diversity import NUM_CAPTIONS, NUM_SAMPLES
from xmcgan.evaluation.features import FeatureExtractor
from xmcgan.evaluation.flattery import flattered_by
from xmcgan.evaluation.measures import (
    METRICS,
    ClipAlignment,
    ClipQuality,
    ImageQuality,
    Measure,
    Observations,
    ShapesAlignment,
)
from xmcgan.evaluation.protocols import get_protocol
from xmcgan.evaluation.references import cached_reference, join
from xmcgan.evaluation.results import Weights
from xmcgan.evaluation.retrieval import require_enough
from xmcgan.evaluation.scores import Score
from xmcgan.sampling.sampler import Sampler, draw_noise
from xmcgan.shapes.detector import Detector, open_detector
from xmcgan.utils.distributed import is_host0, raise_on_all, require_same
from xmcgan.utils.mesh import make_mesh, sampling_batch_size

CHUNK = 512  # images that are drawn before they are observed


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what an evaluation measures and how.

    Attributes:
        protocols: names; the first one's first score tells which checkpoint is best.
        metrics: of each protocol, some of `measures.METRICS`; None takes all that there are enough
            real images for.
        network_weights: path of the weights of a protocol's network, by the protocol's name.
        clip_weights: path of CLIP ViT-B/32 for CLIPScore and R-precision; None leaves them out.
        cmmd_weights: path of CLIP ViT-L/14 at 336 pixels for CMMD; None leaves it out.
        num_samples: images to draw; None takes 30,000, or one for each distinct caption where
            there are fewer.
        split: where captions and real images come from; empty takes held-out images.
        weights: which generators.
        seed: of the choice of captions, of the noise and of the resampling.
        resamples: of the bootstrap; 0 gives no intervals.
        batch_size: images at once; None fits the devices.
        cache_dir: takes caption manifests and the observations of real images; None is
            `DATA_DIR/evaluation`.
        allow_unverified: accept weights that are not the published files.
    """

    protocols: Sequence[str] = ("fd-effnet-lite2",)
    metrics: Sequence[str] | None = None
    network_weights: dict[str, str] = dataclasses.field(default_factory=dict)
    clip_weights: str | None = None
    cmmd_weights: str | None = None
    num_samples: int | None = None
    split: str = ""
    weights: Sequence[Weights] = ("ema", "raw")
    seed: int = 0
    resamples: int = 50
    batch_size: int | None = None
    cache_dir: Path | None = None
    allow_unverified: bool = False


class Evaluator:
    """Draw images from fixed captions and noise, and score them against real images.

    All processes draw and observe, each on its devices; process 0 scores.

    Args:
        workdir: of a training run; its config says what is drawn.
        options: what to measure.

    Attributes:
        config: of the run.
        manifest: the captions.
        mesh: devices that share the work.
        primary: name of the score that tells which checkpoint is best.
        flattered: by protocol, which part of training used its network; absent if none did.

    Raises:
        UserError: anything that would keep it from giving a score, before an image is drawn.
    """

    def __init__(self, workdir: Path, options: Options) -> None:
        self._options = options
        with raise_on_all():
            self.config = _evaluation_config(workdir)
            check_resamples(options.resamples)
            self.mesh = make_mesh()
            self._open_data()
            self._open_networks()
        self._detector = self._open_detector()
        require_same(self._choices())
        self._measures = self._make_measures()
        protocol = get_protocol(options.protocols[0])
        first = {"quality": protocol.label.lower(), "retrieval": "retrieval@1"}
        first |= {"diversity": "diversity"}
        self.primary = f"{protocol.name}/{first[self._metrics[0]]}"
        self._references: dict[str, Observations] = {}

    def observe_references(self) -> None:
        """Observe the real images, or read from the cache what was observed of them."""
        self._references = {m.name: self._observe_references(m) for m in self._measures}

    def score(self, variables: Any, title: str) -> dict[str, Score]:
        """Return all scores of a generator, by names such as "fd-effnet-lite2/fd".

        Args:
            variables: of the generator, as `load_generator` gives them.
            title: of the progress bar.

        Returns:
            The scores in process 0, nothing in the others.

        Raises:
            EvaluationError: images of which there is no score.
        """
        captions, num = self.manifest.captions, len(self.manifest.choices)
        fake = self._observe_samples(variables, captions, self._z[:num], self._measures, title)
        varied = captions[:NUM_CAPTIONS]
        quality = [m for m in self._measures if isinstance(m, ImageQuality)]
        more = [
            self._observe_samples(variables, varied, z, quality, title)
            for z in self._z[num:].reshape(-1, len(varied), self._z.shape[1])
        ]
        with raise_on_all():
            if not is_host0():
                return {}
            scores = {
                f"{measure.name}/{score.name}": score
                for measure in self._measures
                for score in measure.score(self._references[measure.name], fake[measure.name])
            }
            for measure in quality if more else ():
                samples = [seen[measure.name] for seen in (fake, *more)]
                for score in measure.diversity(self._references[measure.name], samples):
                    scores[f"{measure.name}/{score.name}"] = score
            return {
                name: dataclasses.replace(score, flattered=name.split("/")[0] in self.flattered)
                for name, score in scores.items()
            }

    def _observe_samples(
        self,
        variables: Any,
        captions: Sequence[str],
        z: Float[np.ndarray, "n z"],
        measures: Sequence[Measure],
        title: str,
    ) -> dict[str, Observations]:
        """Return what each measure observes of an image of each caption, by its name."""
        parts: dict[str, list[Observations]] = {measure.name: [] for measure in measures}
        with _progress(len(captions), title) as progress:
            for start in range(0, len(captions), CHUNK):
                chunk = slice(start, start + CHUNK)
                with jax.default_matmul_precision("highest"):
                    images = self._sampler(variables, captions[chunk], z[chunk])
                for measure in measures:
                    parts[measure.name].append(measure.observe(images))
                progress.update(len(images))
        return {name: join(seen, len(captions)) for name, seen in parts.items()}

    def recipe(self) -> dict[str, Any]:
        """Return all that the scores depend on, except the checkpoint."""
        return {
            "data": self.manifest.header | {"captions_sha256": self.manifest.digest},
            "references": len(self._images),
            "image_size": self.config.image_size,
            "resize_of_references": self.config.data.resize,
            "samples": len(self.manifest.choices),
            "noise_seed": self._options.seed,
            "rounding": "once, to the nearest of 256 levels",
            "arithmetic": "float32, highest matmul precision",
            "text_encoder": self.config.text.to_dict(),
            "measures": {measure.name: measure.recipe for measure in self._measures},
            "flattered": self.flattered,
            "package_version": xmcgan.__version__,
        }

    def _open_data(self) -> None:
        config, options = self.config, self._options
        name, data_dir = config.data.name, config.data.data_dir
        split = options.split or sources.held_out_split(name, data_dir)
        if split is None:
            raise EvaluationError(
                f"data set {name!r} has no held-out images; --split train scores against the "
                "images that were trained on, which flatters"
            )
        self._split = split
        self._source = sources.load_source(name, data_dir, self._split)
        self._images = self._source.one_per_image()
        self._cache_dir = options.cache_dir or Path(data_dir) / "evaluation"
        if options.num_samples is not None and options.num_samples < 2:
            raise EvaluationError(f"--num-samples is {options.num_samples}; at least 2 are needed")
        self.manifest: CaptionManifest = open_manifest(
            self._cache_dir,
            self._source,
            options.num_samples,
            data=name,
            fingerprint=sources.fingerprint(name, data_dir),
            split=split,
            seed=options.seed,
        )
        self._metrics = _choose_metrics(options.metrics, len(self._images))
        choices = self.manifest.choices
        self._targets = self._image_rows([choice.example for choice in choices])
        self._twins = np.full(len(choices), -1)
        if "retrieval" in self._metrics:
            self._twins = self._image_rows(find_other_images(self._source, choices))

    def _image_rows(self, examples: Sequence[int]) -> Int[np.ndarray, "n"]:
        """Return the row of each example's image among the real images; -1 stays."""
        # An image may have several examples, which follow each other.
        return np.searchsorted(self._images, examples, side="right") - 1

    def _open_networks(self) -> None:
        options, config = self._options, self.config
        loading: Any = {
            "mesh": self.mesh,
            "batch_size": options.batch_size,
            "allow_unverified": options.allow_unverified,
        }
        self._extractors = [
            FeatureExtractor(
                get_protocol(name), weights=options.network_weights.get(name), **loading
            )
            for name in dict.fromkeys(options.protocols)
        ]
        cmmd, clip = options.cmmd_weights, options.clip_weights
        self._cmmd = ClipExtractor(cmmd, **loading) if cmmd else None
        self._clip = ClipExtractor(clip, **loading) if clip else None
        text, tokenizer = build.build_text_encoder(config)
        generator = build.build_generator(config)
        batch_size = options.batch_size or sampling_batch_size(self.mesh)
        self._sampler = Sampler(generator, text, tokenizer, self.mesh, batch_size)
        # After the noise of each caption comes more for the samples that diversity compares.
        num = len(self.manifest.choices)
        if "diversity" in self._metrics:
            num += (NUM_SAMPLES - 1) * min(num, NUM_CAPTIONS)
        self._z = draw_noise(options.seed, num, generator.z_dim)
        parts = {each.protocol.name: flattered_by(config, each.protocol)
                 for each in self._extractors}  # fmt: skip
        self.flattered = {name: part for name, part in parts.items() if part}

    def _open_detector(self) -> Detector | None:
        if self.config.data.name.partition("/")[0] != "shapes":
            return None
        with raise_on_all():
            if is_host0():  # trains it where it is missing; the others read it
                open_detector(self._cache_dir, self.config.image_size)
        with raise_on_all():
            return open_detector(self._cache_dir, self.config.image_size)

    def _choices(self) -> dict[str, Any]:
        """Return what decides which networks all processes run on which images."""
        named = {each.protocol.name: each for each in self._extractors}
        named |= {"--cmmd": self._cmmd, "--clip": self._clip}
        return {
            "captions_sha256": self.manifest.digest,
            "real images": len(self._images),
            "config.json": self.config.to_dict(),
            "--seed": self._options.seed,
            "--batch-size": self._options.batch_size,
            **{name: network.recipe for name, network in named.items() if network},
        }

    def _make_measures(self) -> list[Measure]:
        resampling: Any = {"resamples": self._options.resamples, "seed": self._options.seed}
        measures: list[Measure] = [
            ImageQuality(each, self._targets, self._twins, self._metrics, **resampling)
            for each in self._extractors
        ]
        if self._cmmd:
            measures.append(ClipQuality(self._cmmd, **resampling))
        if self._clip:  # embeds the captions, on all devices
            measures.append(ClipAlignment(self._clip, self.manifest, **resampling))
        if self._detector:
            measures.append(ShapesAlignment(self._detector, self.manifest.captions, **resampling))
        return measures

    def _observe_references(self, measure: Measure) -> dict[str, np.ndarray]:
        """Return what is observed of the real images that a measure compares with."""
        header = self.manifest.header
        if measure.paired:
            indices = [choice.example for choice in self.manifest.choices]
            kind = {"images": "of the captions", "captions_sha256": self.manifest.digest}
            label = f"captions_{len(indices)}_{header['seed']}"
        else:
            indices, kind, label = self._images, {"images": "all of the split"}, "all"
        size, resize = self.config.image_size, self.config.data.resize
        recipe = {
            **kind,
            **{key: header[key] for key in ("data", "fingerprint", "split")},
            "image_size": size,
            "image_resize": resize,
            "n": len(indices),
        }
        data = header["data"].replace("/", "_")
        file = f"{measure.name}_{data}_{self._split}_{size}_{resize}_{label}.npz"
        batches = self._real_images(indices, f"real images, {measure.name}")
        return cached_reference(self._cache_dir / file, recipe, measure, batches, len(indices))

    def _real_images(
        self, indices: Sequence[int], title: str
    ) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        size, resize = self.config.image_size, self.config.data.resize
        with _progress(len(indices), title) as progress:
            for start in range(0, len(indices), CHUNK):
                chunk = indices[start : start + CHUNK]
                with raise_on_all():
                    examples = [self._source[index] for index in chunk]
                    images = [
                        resize_image(decode_image(each.image, each.name), size, resize)
                        for each in examples
                    ]
                yield np.stack(images)
                progress.update(len(chunk))


def _progress(total: int, title: str) -> Any:
    return tqdm(total=total, desc=title, unit="image", leave=False, disable=not is_host0())


def _choose_metrics(asked: Sequence[str] | None, num_real: int) -> list[str]:
    """Return the metrics in their order; those asked for, or all that the real images suffice for.

    Raises:
        EvaluationError: an unknown metric, or too few real images for one that was asked for.
    """
    for name in asked or ():
        if name not in METRICS:
            hint = did_you_mean(name, METRICS)
            raise EvaluationError(f"no metric {name!r} (known: {', '.join(METRICS)}){hint}")
    if asked is None:
        return [each for each in METRICS if each != "retrieval" or num_real > NUM_DISTRACTORS]
    if not asked:
        raise EvaluationError(f"no metrics are given; known: {', '.join(METRICS)}")
    if "retrieval" in asked:
        require_enough(num_real)
    return [each for each in METRICS if each in asked]


def _evaluation_config(workdir: Path) -> ConfigDict:
    config = read_config(workdir / "config.json")
    config.dtype = "float32"  # also where training multiplied in bfloat16
    return config
