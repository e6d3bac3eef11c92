"""What a caption of `shapes` claims: the inverse of the grammar in `captions.py`."""

import dataclasses
import re
from collections.abc import Iterable
from typing import NoReturn

from xmcgan.errors import DataError
from xmcgan.shapes.captions import COUNTS, PLACES, RELATIONS
from xmcgan.shapes.scene import BACKGROUNDS, COLORS, RADIUS, SHAPES


@dataclasses.dataclass(frozen=True)
class DescribedObject:
    """An object in words, as claimed or as detected; None: left open."""

    shape: str
    color: str
    size: str | None = None
    position: str | None = None


@dataclasses.dataclass(frozen=True)
class Claims:
    """Everything that a caption claims of its image."""

    objects: tuple[DescribedObject, ...] = ()  # as ordered there; no two share shape and color
    relations: tuple[tuple[int, str, int], ...] = ()  # (index of subject, relation, of object)
    background: str | None = None
    count: int | None = None  # of all objects


def _one_of(words: Iterable[str]) -> str:
    """Regular expression of alternatives, the longest first: one may begin another."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_COUNTS = {words: number for number, words in COUNTS.items()}
_POSITION_OF = {place: position for position, places in PLACES.items() for place in places}
_RELATION_OF = {words: name for name, options in RELATIONS.items() for words in options}
_SHAPE = rf"(?P<shape>{_one_of(SHAPES)})"
_COLOR = rf"(?P<color>{_one_of(COLORS)})"
_PLACE = rf"(?P<place>{_one_of(_POSITION_OF)})"

_NOUN = re.compile(rf"an? (?:(?P<size>{_one_of(RADIUS)}) )?{_COLOR} {_SHAPE}")
_PHRASE = re.compile(rf"{_NOUN.pattern}(?: {_PLACE})?")
_SENTENCES = (
    re.compile(rf"the {_SHAPE} {_PLACE} is {_COLOR}"),
    re.compile(rf"the {_COLOR} {_SHAPE} is {_PLACE}"),
)
_PLACE_FIRST = re.compile(rf"{_PLACE} there is (.+)")
_GROUND = re.compile(r"(.+) on an? (.+) background")
_OPENING = re.compile(rf"(?:a picture of|there is|an image with|({_one_of(_COUNTS)}):) (.+)")
_RELATED = re.compile(rf"(.+?) (?:is )?({_one_of(_RELATION_OF)}) (an? .+)")
_JOINT = re.compile(r", | and ")


def parse_claims(caption: str) -> Claims:
    """Parse a caption of `write_captions`, or a new combination of its parts.

    A DataError quotes the part outside the grammar, or two objects of one shape and color.
    """
    text = caption.strip().lower().removesuffix(".").rstrip()
    sentences = filter(None, (pattern.fullmatch(text) for pattern in _SENTENCES))
    if sentence := next(sentences, None):
        return Claims((_described(sentence),))
    claims = _parse_description(text, caption)
    looks = [(item.color, item.shape) for item in claims.objects]
    for color, shape in looks:
        if looks.count((color, shape)) > 1:
            _fail(caption, f"{color} {shape}", "it is named twice, and one cannot tell which")
    return claims


def _parse_description(text: str, caption: str) -> Claims:
    """Parse a list of objects, or a relation, with an opening and a background."""
    background = count = None
    if match := _GROUND.fullmatch(text):
        text, background = match.groups()
        if background not in BACKGROUNDS:
            _fail(caption, background, f"a background is one of {', '.join(BACKGROUNDS)}")
    if text in _COUNTS:
        return Claims(background=background, count=_COUNTS[text])
    if match := _PLACE_FIRST.fullmatch(text):
        place, noun = match.groups()
        item = dataclasses.replace(_parse(noun, caption, _NOUN), position=_POSITION_OF[place])
        return Claims((item,), background=background)
    if match := _OPENING.fullmatch(text):
        number, text = match.groups()
        count = _COUNTS.get(number)
    if match := _RELATED.fullmatch(text):
        subject, words, other = match.groups()
        objects = _parse(subject, caption, _NOUN), _parse(other, caption, _NOUN)
        return Claims(objects, ((0, _RELATION_OF[words], 1),), background, count)
    objects = tuple(_parse(phrase, caption, _PHRASE) for phrase in _JOINT.split(text))
    return Claims(objects, (), background, count)


def _parse(text: str, caption: str, pattern: re.Pattern[str]) -> DescribedObject:
    if match := pattern.fullmatch(text):
        return _described(match)
    if pattern is _PHRASE and (match := _NOUN.match(text)):
        expected = 'a place is named as in "in the top left corner"'
        _fail(caption, text[match.end() :].strip(), expected)
    _fail(caption, text, 'an object is named as in "a small red circle", with or without a size')


def _described(match: re.Match[str]) -> DescribedObject:
    found = match.groupdict()
    place = found.pop("place", None)
    return DescribedObject(**found, position=_POSITION_OF[place] if place else None)


def _fail(caption: str, part: str, expected: str) -> NoReturn:
    raise DataError(
        f"the caption {caption!r} is not of shapes: {part!r} not understood; {expected}"
    )
