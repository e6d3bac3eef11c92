"""The files that raters send back: whole, unedited, of this page, and each person's once."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.key import Key
from xmcgan.studies.human_eval.study import FORMAT

QUESTIONS = ("quality", "alignment")


@dataclasses.dataclass(frozen=True)
class Answers:
    """Hold the answers of one rater.

    Attributes:
        file: where they were read.
        name: that the rater gave; two raters may share it.
        rater: random id that the page drew; no two share it.
        finished: time, ISO 8601 in UTC.
        checksum: of the content.
        rankings: for each question, the order of images (best first) by item.
        skipped: reason by item.
    """

    file: Path
    name: str
    rater: str
    finished: str
    checksum: str
    rankings: Mapping[str, Mapping[str, tuple[str, ...]]]
    skipped: Mapping[str, str]

    @property
    def label(self) -> str:
        """Name and the beginning of the id, which tells raters of one name apart."""
        return f"{self.name} ({self.rater[:6]})"


def result_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the .json files in given folders but for keys.

    Raises:
        DataError: there are none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [p for p in sorted(path.glob("*.json")) if not p.name.endswith(".key.json")]
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path} does not exist")
    if not files:
        raise DataError(f"no results: {', '.join(map(str, paths))} has no .json file")
    return files


def checksum(body: Mapping[str, Any]) -> str:
    """Return the sha256 of an object's canonical JSON, as the page computes it."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_answers(path: Path, key: Key) -> Answers:
    """Read a rater's file.

    Raises:
        DataError: it cannot be read, was edited, is of another page, or does not rank this page's
            images.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        stated, page = content.pop("checksum"), content["page"]
        actual = checksum(content)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no results file of a ranking page: {error!r}") from None
    if stated != actual:
        raise DataError(
            f"{path} was edited after the page wrote it (checksum); ask {_name(content)} for the "
            "original, or leave the file out"
        )
    if page != key.page:
        raise DataError(f"{path} has results of another page ({page}, the key is of {key.page})")
    try:
        return _parse(path, content, key, stated)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} does not fit the page: {error!r}") from None


def _name(content: Mapping[str, Any]) -> str:
    rater = content.get("rater")
    return str(rater.get("name", "the rater")) if isinstance(rater, dict) else "the rater"


def _parse(path: Path, content: Mapping[str, Any], key: Key, stated: str) -> Answers:
    rankings: dict[str, dict[str, tuple[str, ...]]] = {question: {} for question in QUESTIONS}
    skipped: dict[str, str] = {}
    for answer in content["answers"]:
        item = answer["item"]
        if item in skipped or item in rankings[QUESTIONS[0]]:
            raise ValueError(f"item {item} is answered twice")
        if answer["skipped"]:
            skipped[item] = str(answer["skipped"])
            continue
        for question in QUESTIONS:
            order = tuple(answer[question])
            if sorted(order) != sorted(key.items[item].models):
                raise ValueError(f"{question} of item {item} does not rank its images")
            rankings[question][item] = order
    rater = content["rater"]
    name, identity = str(rater["name"]), str(rater["id"])
    finished = str(content["finished"])
    return Answers(path, name, identity, finished, stated, rankings, skipped)


def without_duplicates(answers: Sequence[Answers]) -> tuple[list[Answers], list[str]]:
    """Keep one file of each rater id, the one finished first.

    Returns:
        Answers in the order of their files, and a line about each file that is left out.
    """
    kept: dict[str, Answers] = {}
    for one in sorted(answers, key=lambda one: (one.finished, str(one.file))):
        kept.setdefault(one.rater, one)
    notes = []
    for one in answers:
        first = kept[one.rater]
        if one is not first:
            what = "the same file" if one.checksum == first.checksum else "other, later answers"
            notes.append(f"{one.file.name}: {what} of {one.label} as {first.file.name}; left out")
    return [one for one in answers if kept[one.rater] is one], notes


def attention(one: Answers, key: Key) -> tuple[int, int]:
    """Return how many check questions a rater got right, of how many.

    Each attention check asks two: noise has to come last for quality and for alignment. A check
    that was skipped counts as wrong, unless its images failed to load.
    """
    right = total = 0
    for item, content in key.items.items():
        if content.noise is None or "failed to load" in one.skipped.get(item, ""):
            continue
        total += len(QUESTIONS)
        for question in QUESTIONS:
            right += one.rankings[question].get(item, (None,))[-1] == content.noise
    return right, total


def attentive(
    answers: Sequence[Answers], key: Key, lowest: float
) -> tuple[list[Answers], list[str]]:
    """Keep the raters who got at least the share `lowest` of check questions right.

    Returns:
        Their answers, and a line about each rater who is left out.

    Raises:
        DataError: nobody is left.
    """
    kept, notes = [], []
    for one in answers:
        right, total = attention(one, key)
        if right >= lowest * total:
            kept.append(one)
        else:
            notes.append(f"{one.label}: {right} of {total} attention questions right; left out")
    if not kept:
        raise DataError(f"no valid raters: {'; '.join(notes)}")
    return kept, notes
