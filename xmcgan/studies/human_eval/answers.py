"""The files that raters send back: whole, unedited, of this page, and each person's once."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.page import FORMAT, Key
from xmcgan.utils.files import parsing

QUESTIONS = ("quality", "alignment")


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of one rater; `rankings` are image ids, best first, by question and item."""

    file: Path
    name: str  # two raters may share it
    rater: str  # random id that the page chose; no two share it
    finished: str  # time, ISO 8601 in UTC
    checksum: str
    rankings: Mapping[str, Mapping[str, tuple[str, ...]]]
    skipped: Mapping[str, str]  # reason by item

    @property
    def label(self) -> str:
        """Name and beginning of the id, which tells raters of one name apart."""
        return f"{self.name} ({self.rater[:6]})"


def result_files(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the .json files in given folders except keys."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        files += [file for file in found if file == path or not file.name.endswith(".key.json")]
    if not files:
        raise DataError(f"no results: {', '.join(map(str, paths))} has no .json file")
    return files


def checksum(body: Mapping[str, Any]) -> str:
    """Return the sha256 of an object's canonical JSON, as the page computes it."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_answers(path: Path, key: Key) -> Answers:
    """Read a rater's file; raises DataError unless it is as the page of the key wrote it."""
    with parsing(path, DataError, "a results file of this ranking page"):
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        stated, page = content.pop("checksum"), content["page"]
        if stated != checksum(content):
            raise DataError(f"{path} was edited after the page wrote it: leave it out")
        if page != key.page:
            raise DataError(f"{path} has answers to page {page}, but the key is of {key.page}")
        answers = {answer["item"]: answer for answer in content["answers"]}
        if len(answers) < len(content["answers"]):
            raise ValueError("an item is answered twice")
        skipped = {i: str(answer["skipped"]) for i, answer in answers.items() if answer["skipped"]}
        rankings = {
            question: {i: tuple(answers[i][question]) for i in answers if i not in skipped}
            for question in QUESTIONS
        }
        for question, orders in rankings.items():
            for item, order in orders.items():
                if sorted(order) != sorted(key.items[item].models):
                    raise ValueError(f"{question} of item {item} does not rank its images")
        rater, finished = content["rater"], str(content["finished"])
        name, identity = str(rater["name"]), str(rater["id"])
        return Answers(path, name, identity, finished, stated, rankings, skipped)


def drop_duplicates(answers: Sequence[Answers]) -> tuple[list[Answers], list[str]]:
    """Keep one file per rater id, the one finished first; also return a note per other file."""
    first: dict[str, Answers] = {}
    for one in sorted(answers, key=lambda one: (one.finished, str(one.file))):
        first.setdefault(one.rater, one)
    notes = []
    for one in answers:
        kept = first[one.rater]
        if one is not kept:
            what = "the same file" if one.checksum == kept.checksum else "other, later answers"
            notes.append(f"{one.file.name}: {what} of {one.label} as {kept.file.name}; left out")
    return [one for one in answers if first[one.rater] is one], notes


def attention(one: Answers, key: Key) -> tuple[int, int]:
    """Return how many check questions a rater got right, and of how many.

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


def drop_inattentive_raters(
    answers: Sequence[Answers], key: Key, min_share: float
) -> tuple[list[Answers], list[str]]:
    """Keep raters with at least this share of check questions right; also a note per other."""
    kept, notes = [], []
    for one in answers:
        right, total = attention(one, key)
        if right >= min_share * total:
            kept.append(one)
        else:
            notes.append(f"{one.label}: {right} of {total} attention questions right; left out")
    if not kept:
        raise DataError(f"no valid raters: {'; '.join(notes)}")
    return kept, notes
