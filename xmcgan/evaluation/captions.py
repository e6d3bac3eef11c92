"""The manifest of captions that a score is made from: chosen once, written, reused.

A score over other captions is another score. The manifest is a file that can be handed on: a line
for the choice (data, split, seed, digest of the prepared data) and a line a caption.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmcgan.data.sources import Source
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.recipes import differences
from xmcgan.utils.distributed import is_host0
from xmcgan.utils.files import atomic_file

MOST_CAPTIONS = 30_000  # the field's number of samples


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """Hold one caption and where it stands.

    Attributes:
        example: index of the image in its split.
        name: of the example.
        image_id: of the image, which several examples may share.
        caption: the text.
    """

    example: int
    name: str
    image_id: str
    caption: str


@dataclasses.dataclass(frozen=True)
class CaptionManifest:
    """Hold the captions of an evaluation, in the order in which noise is drawn for them.

    Attributes:
        header: data set, its fingerprint, split, seed and number.
        choices: the captions.
    """

    header: dict[str, Any]
    choices: tuple[CaptionChoice, ...]

    @property
    def captions(self) -> list[str]:
        """Return the texts."""
        return [choice.caption for choice in self.choices]

    @property
    def digest(self) -> str:
        """Return the sha256 of all that the file says, in hexadecimal."""
        return hashlib.sha256("".join(_lines(self)).encode()).hexdigest()


def choose_captions(source: Source, most: int, seed: int) -> list[CaptionChoice]:
    """Choose distinct captions, spread over the images as evenly as can be.

    Images come in an order drawn from the seed, and so do the captions of each. First every image
    gives one caption, then every image a second one, until there are enough; a text that was
    taken before, from whichever image, is passed over.

    Args:
        source: the split.
        most: how many; fewer where the split has fewer distinct ones.
        seed: of both orders.
    """
    rng = np.random.default_rng(seed)
    taken: set[str] = set()
    chosen: list[CaptionChoice] = []
    for choice in _in_rounds(source, rng):
        key = _text_key(choice.caption)
        if key and key not in taken:
            taken.add(key)
            chosen.append(choice)
        if len(chosen) == most:
            break
    return chosen


def find_other_images(source: Source, choices: Sequence[CaptionChoice]) -> list[int]:
    """Return for each choice the first example of another image with the same text, -1 if none.

    Args:
        source: the split of the choices.
        choices: of the manifest.
    """
    wanted = {_text_key(choice.caption): choice.image_id for choice in choices}
    found: dict[str, int] = {}
    for index in range(len(source)):
        example = source[index]
        image_id = example.image_id or example.name
        for key in map(_text_key, example.captions):
            if wanted.get(key, image_id) != image_id:
                found.setdefault(key, index)
    return [found.get(_text_key(choice.caption), -1) for choice in choices]


def _text_key(caption: str) -> str:
    """Return the same text for captions that differ in case and white space alone."""
    return " ".join(caption.lower().split())


def _in_rounds(source: Source, rng: np.random.Generator) -> Iterator[CaptionChoice]:
    """Yield one caption of every image in a drawn order, then their second captions, and so on."""
    later: list[list[CaptionChoice]] = []
    for index in rng.permutation(len(source)).tolist():
        example = source[index]
        order = rng.permutation(len(example.captions))
        image_id = example.image_id or example.name
        first, *rest = (
            CaptionChoice(index, example.name, image_id, example.captions[i]) for i in order
        )
        later.append(rest)
        yield first
    for choices in itertools.zip_longest(*later):
        yield from (choice for choice in choices if choice is not None)


def open_manifest(
    directory: Path,
    source: Source,
    num: int | None,
    *,
    data: str,
    fingerprint: str,
    split: str,
    seed: int,
) -> CaptionManifest:
    """Read the manifest of a choice, or choose and write it; of several processes the first writes.

    Args:
        directory: where manifests are kept.
        source: the split that captions come from.
        num: how many captions; None takes `MOST_CAPTIONS`, or all distinct ones where there are
            fewer.
        data: name of the data set.
        fingerprint: of the prepared data.
        split: name of the split.
        seed: of the choice.

    Raises:
        EvaluationError: the split has too few captions; or the file was changed, belongs to other
            data, or names a caption twice.
    """
    identity = {"data": data, "fingerprint": fingerprint, "split": split, "seed": seed}
    label = "most" if num is None else num
    path = directory / f"captions_{data.replace('/', '_')}_{split}_{label}_{seed}.jsonl"
    if path.exists():
        manifest = read_manifest(path)
        _check(manifest, identity if num is None else {**identity, "num": num}, path)
        return manifest
    choices = choose_captions(source, num or MOST_CAPTIONS, seed)
    if num is not None and len(choices) < num:
        raise EvaluationError(
            f"{num:,} samples were asked for, but {split!r} of {data!r} has {len(choices):,} "
            f"distinct captions; pass --num-samples {len(choices)} or fewer, or another --split"
        )
    manifest = CaptionManifest({**identity, "num": len(choices)}, tuple(choices))
    if is_host0():
        directory.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, path)
    return manifest


def write_manifest(manifest: CaptionManifest, path: Path) -> None:
    """Write a manifest; the file is whole or absent."""
    with atomic_file(path) as file:
        file.writelines(line.encode() for line in _lines(manifest))


def read_manifest(path: Path) -> CaptionManifest:
    """Read a manifest.

    Raises:
        EvaluationError: the file cannot be read as one.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        choices = tuple(CaptionChoice(**json.loads(line)) for line in lines)
        texts = (text for c in choices for text in (c.name, c.image_id, c.caption))
        manifest = CaptionManifest(json.loads(header), choices)
        if (
            not isinstance(manifest.header, dict)
            or not all(type(choice.example) is int for choice in choices)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise TypeError("a field is of another type")
        return manifest
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise EvaluationError(f"{path} is not a manifest of captions: {error}") from None


def _check(manifest: CaptionManifest, wanted: dict[str, Any], path: Path) -> None:
    header, choices = manifest.header, manifest.choices
    faults = differences(header, wanted, wanted)
    if len(choices) != header.get("num"):
        faults.append(f"{len(choices)} captions where {header.get('num')} are expected")
    if len({(choice.example, choice.caption) for choice in choices}) != len(choices):
        faults.append("a caption stands in it twice")
    if faults:
        raise EvaluationError(
            f"{path} does not fit: {'; '.join(faults)}. Scores made with it would not compare; "
            "move the file away to choose captions anew"
        )


def _lines(manifest: CaptionManifest) -> Iterator[str]:
    yield json.dumps(manifest.header) + "\n"
    for choice in manifest.choices:
        yield json.dumps(dataclasses.asdict(choice), ensure_ascii=False) + "\n"
