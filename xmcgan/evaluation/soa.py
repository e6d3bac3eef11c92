"""Semantic object accuracy: images of the authors' captions, and scores of what is detected there.

Hinz, Heinrich, Wermter, "Semantic Object Accuracy for Generative Text-to-Image Synthesis", TPAMI
2020: does a detector find in an image the object that its caption names? The detector, YOLOv3, is
the authors' (docs/evaluation.md). A label is a folder such as `label_01_bicycle`, as they name it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from xmcgan.data.sources import clean_captions
from xmcgan.errors import DataError, EvaluationError, UserError, did_you_mean, listed
from xmcgan.sampling.sampler import TrainedModel, sample_noise
from xmcgan.utils.distributed import broadcast_from_host0, is_host0
from xmcgan.utils.files import parsing, read_json, write_text, writing
from xmcgan.utils.provenance import fingerprint_differences

# Names that the authors' script gives to YOLOv3's classes (data/coco.names).
CLASSES = (
    "person", "bicycle", "car", "motorbike", "aeroplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "sofa",
    "pottedplant", "bed", "diningtable", "toilet", "tvmonitor", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
IMAGES_PER_CAPTION = 3
PERSON, PERSON_CAPTIONS = 0, 30_000  # so many random captions of this label, one image each
MANIFEST, IMAGES, RESULT = "manifest.json", "images", "soa.json"
_SUFFIXES = (".png", ".jpg", ".jpeg")  # that the authors' script reads
_CHUNK = 256  # images in memory at once, 50 MB at 256 pixels

Read = Callable[[Path], Any]  # the values of a .json or .pkl


def read_values(path: Path) -> Any:
    """Return the values of a JSON file."""
    return read_json(path, DataError, "a JSON file")


def _read_object(path: Path) -> dict[str, Any]:
    value = read_values(path)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path} must be a JSON object")
    return value


def read_captions(source: Path, read: Read = read_values) -> dict[str, list[dict[str, Any]]]:
    """Return the captions of each label, from `label_XX_NAME.pkl` or `.json` of a folder.

    A file holds a list of objects with `caption`; `id` and `image_id` are kept if they are there.
    """
    paths = [path for path in sorted(source.glob("label_*")) if path.suffix in (".pkl", ".json")]
    if not paths:
        raise DataError(f"{source} has no caption files label_XX_NAME.pkl or .json")
    _check_labels([path.stem for path in paths], source)
    return {path.stem: _captions(read(path), path) for path in paths}


def _captions(value: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{path} holds no list of captions, or an empty one")
    entries = []
    for index, entry in enumerate(value):
        where = f"{path}, entry {index}"
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
            raise DataError(f'{where}: must be an object with a "caption"')
        ids = {key: entry[key] for key in ("id", "image_id") if isinstance(entry.get(key), int)}
        entries.append({"caption": clean_captions([entry["caption"]], where)[0], **ids})
    return entries


def label_number(folder: str) -> int:
    """Return the number of a label; raises DataError if its name has no `label_XX`."""
    match = re.search(r"label_([0-9]{2})(?![0-9])", folder)
    if match is None or int(match[1]) >= len(CLASSES):
        raise DataError(f"{folder!r} names no label_XX from 00 to {len(CLASSES) - 1}")
    return int(match[1])


def _check_labels(folders: Sequence[str], where: Path) -> None:
    numbers = [*map(label_number, folders)]
    if twice := [f for f, n in zip(folders, numbers, strict=True) if numbers.count(n) > 1]:
        raise DataError(f"{where} has a label twice:{listed(twice)}")


def plan_samples(
    captions: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    num: int = IMAGES_PER_CAPTION,
    seed: int = 0,
    max_captions: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return the captions to sample for each label, with the file names of each as `images`.

    Of `person` 30,000 random captions get one image each, as the authors ask; of all other labels
    every caption gets `num`, or of more than `max_captions` so many random ones.
    """
    plan = {}
    for folder, entries in captions.items():
        number = label_number(folder)
        each, most = num, max_captions or len(entries)
        if number == PERSON:
            each, most = 1, min(most, PERSON_CAPTIONS)
        kept = range(len(entries))
        if most < len(entries):
            random = np.random.default_rng([seed, number])
            kept = sorted(random.choice(len(entries), most, replace=False).tolist())
        plan[folder] = [
            {**entries[i], "images": [f"{i:05d}_{k}.png" for k in range(each)]} for i in kept
        ]
    return plan


def write_samples(model: TrainedModel, out: Path, manifest: Mapping[str, Any]) -> int:
    """Sample the `labels` of a manifest to OUT/images/LABEL; return the number of images.

    Labels that are complete are left as they are, so that the same command continues. The manifest,
    JSON values with at least `labels` (of `plan_samples`), `seed` and `truncation`, lies beside
    `images`: within, the authors' script would stumble over it.
    """
    labels, total = manifest["labels"], 0
    finished = broadcast_from_host0(lambda: _prepare(out, manifest))
    for folder in tqdm(labels, unit="label", disable=None if is_host0() else True):
        files = [file for entry in labels[folder] for file in entry["images"]]
        total += len(files)
        if folder in finished:
            continue
        captions = [entry["caption"] for entry in labels[folder] for _ in entry["images"]]
        # A seed for each label: its images do not depend on which other labels are sampled.
        seeds = np.random.SeedSequence([manifest["seed"], label_number(folder)])
        seed = int(seeds.generate_state(1)[0]) >> 1
        z_dim = model.sampler.generator.z_dim
        z = sample_noise(seed, len(files), z_dim, manifest["truncation"])
        for start in range(0, len(files), _CHUNK):
            part = slice(start, start + _CHUNK)
            images = model(captions[part], z[part])
            if is_host0():
                for file, image in zip(files[part], images, strict=True):
                    _write_image(out / IMAGES / folder / file, image)
    return total


def _prepare(out: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Write the manifest and make folders; return the labels that are complete."""
    path, labels = out / MANIFEST, manifest["labels"]
    if path.exists() and (differing := fingerprint_differences(_read_object(path), manifest)):
        lines = [f"{line[:200]} ..." if len(line) > 200 else line for line in differing]
        raise UserError(f"{out} holds other samples: choose another folder{listed(lines)}")
    if not path.exists() and (out / IMAGES).exists():
        raise UserError(f"{out / IMAGES} exists, and {path} does not: choose another folder")
    with writing(out, UserError):
        for folder in labels:
            (out / IMAGES / folder).mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    images = {folder: {f for entry in labels[folder] for f in entry["images"]} for folder in labels}
    return [folder for folder in labels if images[folder] <= {*os.listdir(out / IMAGES / folder)}]


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG that is whole if it is there; its temporary name is none of an image."""
    temporary = path.with_suffix(".tmp")
    Image.fromarray(image).save(temporary, format="PNG")
    os.replace(temporary, path)


def list_samples(root: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return the images of each label, and the manifest without `labels`, {} if there is none.

    `root` is of `write_samples`, or any folder of label folders.
    """
    images = root / IMAGES if (root / IMAGES).is_dir() else root
    folders = sorted(path.name for path in images.glob("*/"))
    if not folders:
        raise EvaluationError(f"{images} has no folders label_XX_NAME")
    _check_labels(folders, images)
    files = {
        folder: sorted(p.name for p in (images / folder).iterdir() if p.suffix in _SUFFIXES)
        for folder in folders
    }
    if empty := [folder for folder in folders if not files[folder]]:
        raise EvaluationError(f"{images}: no images of{listed(empty)}")
    if not (root / MANIFEST).exists():
        return files, {}
    manifest = _read_object(root / MANIFEST)
    with parsing(root / MANIFEST, EvaluationError, "a manifest of samples"):
        labels = manifest.pop("labels")
        wanted = {each: [f for e in labels[each] for f in e["images"]] for each in labels}
        _ = manifest["images_per_caption"], manifest["max_captions"]
    if differing := _differences(wanted, files, "is missing", f"is not in {MANIFEST}"):
        raise EvaluationError(f"{root} is incomplete, or was changed:{listed(differing)}")
    return files, manifest


def _differences(
    wanted: Mapping[str, Iterable[str]], given: Mapping[str, Iterable[str]], lacks: str, more: str
) -> list[str]:
    """Return a line per label, or image of a label in both, that one of the two lacks."""
    both = wanted.keys() & given.keys()
    one, other = (
        {*side} | {f"{folder}/{file}" for folder in both for file in side[folder]}
        for side in (wanted, given)
    )
    return [f"{name} {lacks if name in one else more}" for name in sorted(one ^ other)]


def read_detections(source: Path, read: Read = read_values) -> dict[str, dict[str, bool]]:
    """Return for each label and image whether the label's object was detected.

    `source` is the authors' output, a folder of `detected_LABEL.pkl` or one of them, each {image:
    [names, numbers, boxes]}; or a JSON file {LABEL: {image: [name or number]}}.
    """
    if source.suffix == ".json":
        found = {folder: (source, images) for folder, images in _read_object(source).items()}
    else:
        found = {
            path.stem.removeprefix("detected_"): (path, read(path))
            for path in detection_files(source)
        }
    _check_labels([*found], source)
    return {folder: _recognized(images, folder, path) for folder, (path, images) in found.items()}


def detection_files(source: Path) -> list[Path]:
    """Return a file of detections, or those of the authors' output folder."""
    paths = [source] if source.is_file() else sorted(source.glob("detected_*.pkl"))
    if not paths or paths[0].suffix not in (".pkl", ".json"):
        raise EvaluationError(f"{source}: no detected_LABEL.pkl, and no .json of detections")
    return paths


def _recognized(images: Any, folder: str, where: Path) -> dict[str, bool]:
    """Return whether the label is among the detections of each image."""
    if not isinstance(images, dict) or not all(isinstance(image, str) for image in images):
        raise EvaluationError(f"{where}: must hold images by name for {folder}")
    recognized = {}
    for image, found in images.items():
        if where.suffix == ".pkl":
            found = found[1] if isinstance(found, list) and len(found) == 3 else None
        if not isinstance(found, list):
            raise EvaluationError(f"{where}: detections of {folder}/{image} are no list")
        recognized[image] = label_number(folder) in [_class_number(each, where) for each in found]
    return recognized


def _class_number(value: Any, where: Path) -> int:
    if isinstance(value, str):
        if value not in CLASSES:
            hint = did_you_mean(value, CLASSES)
            raise EvaluationError(f"{where}: {value[:40]!r} is no class of YOLOv3{hint}")
        return CLASSES.index(value)
    if type(value) is int and 0 <= value < len(CLASSES):
        return value
    raise EvaluationError(f"{where}: a class is a name, or a number from 0 to {len(CLASSES) - 1}")


def compute_scores(counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return SOA-C and SOA-I, in [0, 1], of the numbers of recognized and of all images per label.

    `soa_c_top40` and `soa_c_bottom40` are SOA-C of the 40 labels with the most and the fewest
    images (ties by number); None unless all 80 labels are there.
    """
    labels = {
        folder: {
            "class": CLASSES[label_number(folder)],
            "accuracy": counts[folder][0] / counts[folder][1],
            "recognized": counts[folder][0],
            "images": counts[folder][1],
        }
        for folder in sorted(counts, key=label_number)
    }

    def mean(part: Sequence[dict[str, Any]]) -> float:
        return sum(label["accuracy"] for label in part) / len(part)

    by_images, half = sorted(labels.values(), key=lambda each: each["images"]), len(CLASSES) // 2
    complete = len(labels) == len(CLASSES)
    num_images = sum(label["images"] for label in labels.values())
    return {
        "soa_c": mean(by_images),
        "soa_i": sum(label["recognized"] for label in labels.values()) / num_images,
        "soa_c_top40": mean(by_images[half:]) if complete else None,
        "soa_c_bottom40": mean(by_images[:half]) if complete else None,
        "num_images": num_images,
        "labels": labels,
    }


def score(samples: Path, detections: Path, read: Read = read_values) -> dict[str, Any]:
    """Return the scores of samples, with `notes` on what is not as published, as JSON values."""
    files, manifest = list_samples(samples)
    detected = read_detections(detections, read)
    lacks, more = "has no detections", "has detections, and is not among the samples"
    if differing := _differences(files, detected, lacks, more):
        raise EvaluationError(f"{detections} does not fit {samples}:{listed(differing)}")
    notes = []
    if len(files) != len(CLASSES):
        notes.append(f"{len(files)} of {len(CLASSES)} labels")
    if not manifest:
        notes.append(f"no {MANIFEST}: how many images each caption has is not known")
    elif manifest["images_per_caption"] != IMAGES_PER_CAPTION or manifest["max_captions"]:
        notes.append("other numbers of captions or images per caption than published")
    sha = hashlib.sha256(b"".join(path.read_bytes() for path in detection_files(detections)))
    origin = {"source": str(detections), "sha256": sha.hexdigest()}
    scores = compute_scores({each: (sum(d.values()), len(d)) for each, d in detected.items()})
    return scores | {"notes": notes, "samples": manifest, "detections": origin}
