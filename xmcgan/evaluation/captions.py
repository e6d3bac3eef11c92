"""The captions of a score: chosen once by a seed, written to a manifest that can be handed on."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmcgan.data import Source
from xmcgan.errors import EvaluationError
from xmcgan.utils.distributed import is_host0
from xmcgan.utils.files import parsing, write_text
from xmcgan.utils.provenance import fingerprint_differences

MAX_CAPTIONS = 30_000  # the field's number of samples


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """One caption of one image."""

    example: int  # index in the split
    name: str  # of the example
    image_id: str  # examples may share an image
    caption: str


@dataclasses.dataclass(frozen=True)
class CaptionManifest:
    """Captions of an evaluation, in the order of their noise."""

    # Data set, its fingerprint, split, seed, number of captions; of distinct ones if they repeat.
    header: dict[str, Any]
    choices: tuple[CaptionChoice, ...]

    @property
    def captions(self) -> list[str]:
        """The texts."""
        return [choice.caption for choice in self.choices]

    @property
    def text(self) -> str:
        """Content of the file, JSON lines: the header, then the choices."""
        lines = [json.dumps(vars(choice), ensure_ascii=False) for choice in self.choices]
        return "\n".join([json.dumps(self.header), *lines]) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of the file, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def text_key(caption: str) -> str:
    """The same for captions that differ in case and white space only."""
    return " ".join(caption.lower().split())


def choose_captions(source: Source, most: int, seed: int) -> list[CaptionChoice]:
    """Choose up to `most` distinct captions, spread over the images as evenly as possible.

    Every image gives one caption, then every image a second one, until there are enough; images and
    the captions of each are in random order, and a text that was taken before is skipped.
    """
    rng = np.random.default_rng(seed)
    taken: set[str] = set()
    chosen: list[CaptionChoice] = []
    for choice in _round_robin(source, rng):
        key = text_key(choice.caption)
        if key and key not in taken:
            taken.add(key)
            chosen.append(choice)
        if len(chosen) == most:
            break
    return chosen


def _round_robin(source: Source, rng: np.random.Generator) -> Iterator[CaptionChoice]:
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


def find_other_images(source: Source, choices: Sequence[CaptionChoice]) -> list[int]:
    """First example of another image with the text of each choice; -1 if there is none."""
    wanted = {text_key(choice.caption): choice.image_id for choice in choices}
    found: dict[str, int] = {}
    for index in range(len(source)):
        example = source[index]
        image_id = example.image_id or example.name
        for key in map(text_key, example.captions):
            if wanted.get(key, image_id) != image_id:
                found.setdefault(key, index)
    return [found.get(text_key(choice.caption), -1) for choice in choices]


def open_manifest(
    directory: Path,
    source: Source,
    num: int | None,
    identity: Mapping[str, Any],
    *,
    repeat: bool = False,
) -> CaptionManifest:
    """Read the manifest, or choose captions and write it; of several processes the first writes.

    Args:
        num: Captions; None: 30,000, or all distinct ones if there are fewer.
        identity: `data`, the `fingerprint` of the prepared data, `split` and `seed`.
        repeat: Take captions again, in the same order, up to `num` (30,000 if None).
    """
    data, split, seed = (identity[key] for key in ("data", "split", "seed"))
    num = MAX_CAPTIONS if num is None and repeat else num
    label = "most" if num is None else f"{num}_repeated" if repeat else num
    path = directory / f"captions_{data.replace('/', '_')}_{split}_{label}_{seed}.jsonl"
    if path.exists():
        return read_manifest(path, {**identity, **({} if num is None else {"num": num})})
    choices = choose_captions(source, num or MAX_CAPTIONS, seed)
    header = {**identity, "num": len(choices)}
    if num is not None and len(choices) < num:
        if not repeat:
            raise EvaluationError(
                f"{num:,} samples were asked for, but {split!r} of {data!r} has {len(choices):,} "
                "distinct captions; lower --num-samples, or pass --repeat-captions"
            )
        header |= {"num": num, "distinct": len(choices)}
        choices = list(itertools.islice(itertools.cycle(choices), num))
    manifest = CaptionManifest(header, tuple(choices))
    if is_host0():
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, manifest.text)
    return manifest


def read_manifest(path: Path, wanted: Mapping[str, Any]) -> CaptionManifest:
    """Read a manifest; raises EvaluationError if it is damaged or its header is not as wanted."""
    with parsing(path, EvaluationError, "a manifest of captions"):
        header, *lines = map(json.loads, path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        choices = tuple(CaptionChoice(**line) for line in lines)
        types = {tuple(map(type, vars(choice).values())) for choice in choices}
        if not isinstance(header, dict) or not types <= {(int, str, str, str)}:
            raise TypeError("a field is of another type")
    faults = fingerprint_differences({name: header.get(name) for name in wanted}, wanted)
    if len(choices) != header.get("num"):
        faults.append(f"{len(choices)} captions where {header.get('num')} are expected")
    distinct = header.get("distinct", len(choices))
    if len({(choice.example, choice.caption) for choice in choices}) != distinct:
        faults.append("it names a caption twice")
    if faults:
        raise EvaluationError(
            f"{path} does not fit: {'; '.join(faults)}; move it away to choose captions anew"
        )
    return CaptionManifest(header, choices)
