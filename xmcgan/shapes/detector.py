"""The detector that scores `shapes`: trained once, cached in a verified file, then only read."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import UInt8

from xmcgan.errors import EvaluationError
from xmcgan.shapes.detections import Detections, accuracy
from xmcgan.shapes.detector_training import (
    LARGEST_VIEW,
    ShapesDetector,
    TrainingRecipe,
    cut_areas,
    held_out_scenes,
    train_detector,
    view,
)
from xmcgan.utils.files import atomic_file, clear_leftovers, lock_folder, writing
from xmcgan.utils.provenance import fingerprint_differences

HELD_OUT_SCENES = 1000
# Raise it with every change of the network, the augmentation or the drawing of scenes.
_VERSION = 1
_BATCH_SIZE = 128


class Detector:
    """Trained detector: images -> `Detections`; `accuracy` is that on held-out real scenes."""

    def __init__(
        self, training: TrainingRecipe, params: Any, accuracy: dict[str, float] | None = None
    ) -> None:
        self.params = params
        self.recipe, self.accuracy = _recipe(training), accuracy or {}
        module = ShapesDetector(training.width)

        @jax.jit
        def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
            areas = cut_areas(images.astype(jnp.float32) / 255)
            logits: Any = module.apply({"params": params}, areas.reshape(-1, *areas.shape[2:]))
            logits = {name: x.reshape(*areas.shape[:2], -1) for name, x in logits.items()}
            logits["background"] = logits["background"].mean(axis=1)
            found = {name: x.argmax(axis=-1) for name, x in logits.items()}
            return found | {"present": logits["present"][..., 0] > 0}

        self._run = run

    @property
    def sha256(self) -> str:
        """Digest of recipe, accuracy and parameters, by which a score names its detector."""
        return _digest(self.tensors, self.recipe, self.accuracy)

    @property
    def tensors(self) -> Any:
        """Parameters by path."""
        return flatten_dict(self.params, sep="/")

    def __call__(self, images: UInt8[np.ndarray, "n s s 3"]) -> Detections:
        """Detect, with the same result however the images are batched."""
        parts = []
        with jax.default_matmul_precision("highest"):
            for start in range(0, len(images), _BATCH_SIZE):
                batch = np.stack([view(x) for x in images[start : start + _BATCH_SIZE]])
                missing = _BATCH_SIZE - len(batch)
                padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
                found = self._run(self.params, padded)
                parts.append({name: np.asarray(x)[: len(batch)] for name, x in found.items()})
        return Detections(**{n: np.concatenate([part[n] for part in parts]) for n in parts[0]})


def default_recipe(image_size: int) -> TrainingRecipe:
    """Recipe for a size of image: at 32 pixels less than a minute on two cores, else minutes."""
    if image_size < 16 or (image_size <= LARGEST_VIEW and image_size % 16):
        raise EvaluationError(
            f"the detector of shapes cannot be made for images of {image_size} pixels: 16, 32, 48, "
            f"{LARGEST_VIEW} or more are needed"
        )
    return TrainingRecipe(image_size)


def open_detector(
    directory: Path, image_size: int, training: TrainingRecipe | None = None
) -> Detector:
    """Read the detector of a size of image, or train it and write it; a second process waits.

    Raises EvaluationError if the size cannot work, the folder cannot be written, or the file is
    damaged or was made by another recipe than `training` (if None, `default_recipe`).
    """
    training = training or default_recipe(image_size)
    path = directory / f"shapes-detector-{image_size}.safetensors"
    with lock_folder(directory, EvaluationError, name=f".{path.name}.lock"):
        clear_leftovers(directory, path.name)
        if path.exists():
            return _read(path, training)
        with jax.default_matmul_precision("highest"):
            params = train_detector(training)
        images, truth, _ = held_out_scenes(HELD_OUT_SCENES, image_size)
        detector = Detector(training, params)
        detector.accuracy = accuracy(detector(images), truth)
        metadata = {name: json.dumps(getattr(detector, name)) for name in ("recipe", "accuracy")}
        metadata["sha256"] = detector.sha256
        with writing(path, EvaluationError), atomic_file(path) as file:
            file.write(safetensors.numpy.save(detector.tensors, metadata))
        return detector


def _recipe(training: TrainingRecipe) -> dict[str, Any]:
    # The scenes themselves stand for the code that samples them.
    _, _, scenes = held_out_scenes(4, training.image_size)
    digest = hashlib.sha256("".join(scene.to_json() for scene in scenes).encode()).hexdigest()
    return {"version": _VERSION, "scenes": digest[:16], **dataclasses.asdict(training)}


def _digest(tensors: dict[str, np.ndarray], recipe: Any, shares: Any) -> str:
    digest = hashlib.sha256(json.dumps([recipe, shares], sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + value.tobytes())
    return digest.hexdigest()


def _read(path: Path, training: TrainingRecipe) -> Detector:
    remedy = "delete it, and it is trained again"
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe, shares = json.loads(metadata["recipe"]), json.loads(metadata["accuracy"])
        if _digest(tensors, recipe, shares) != metadata["sha256"]:
            raise ValueError("its sha256 is not the one it was written with")
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise EvaluationError(f"{path} is damaged ({error}); {remedy}") from None
    if differing := fingerprint_differences(recipe, _recipe(training)):
        raise EvaluationError(f"{path} was trained another way ({'; '.join(differing)}); {remedy}")
    return Detector(training, unflatten_dict(tensors, sep="/"), shares)
