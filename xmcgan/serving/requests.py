"""What a client may ask for, and the limits of it."""

import json
import unicodedata
from typing import Any, NamedTuple

from xmcgan.errors import UserError
from xmcgan.serving.models import Key

MOST_BYTES = 64 * 1024  # of a request
MOST_CHARACTERS, MOST_PER_CAPTION, MOST_IMAGES = 500, 16, 48
_SEEDS = (0, 2**32 - 1)


class BadRequest(UserError):
    """A request that cannot be answered as it is."""


class Ask(NamedTuple):
    """A request; `end_seed` is that of a way, the rest as in scripts/generate.py."""

    key: Key
    captions: list[str]
    seed: int = 0
    end_seed: int = 0
    num: int = 1
    truncation: float | None = None
    shared_noise: bool = False
    format: str = "json"


# By route: fewest and most captions, answers, and fields that only this one has.
_ROUTES = {
    "generate": ((1, 16), ("json", "png", "zip"), ("num", "shared_noise")),
    "between": ((2, 2), ("json", "gif"), ("end_seed",)),
    "attention": ((1, 1), ("json",), ()),
}


def parse(route: str, body: bytes, default_model: str) -> Ask:
    """Read the body of a request; raises BadRequest."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise BadRequest("the request is not a JSON object")
    num_captions, formats, own = _ROUTES[route]
    common = ("captions", "seed", "truncation", "model", "step", "weights", "format")
    for name in fields:
        if name not in (*common, *own):
            raise BadRequest(f"unknown field {name[:40]!r}")
    seed = _integer(fields, "seed", 0, *_SEEDS)
    ask = Ask(
        key=_key(fields, default_model),
        captions=_captions(fields.get("captions"), *num_captions),
        seed=seed,
        end_seed=_integer(fields, "end_seed", seed, *_SEEDS),
        num=_integer(fields, "num", 1, 1, MOST_PER_CAPTION),
        truncation=_truncation(fields.get("truncation")),
        shared_noise=_choice(fields, "shared_noise", (False, True)),
        format=_choice(fields, "format", formats),
    )
    if len(ask.captions) * ask.num > MOST_IMAGES:
        raise BadRequest(
            f"{len(ask.captions)} captions x {ask.num} are too many images: at most {MOST_IMAGES}"
        )
    return ask


def _integer(fields: dict, name: str, default: int, least: int, most: int) -> int:
    value = fields.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"{name} must be a whole number from {least} to {most}")
    return value


def _choice(fields: dict, name: str, choices: tuple[Any, ...]) -> Any:
    value = fields.get(name, choices[0])
    if type(value) is not type(choices[0]) or value not in choices:
        raise BadRequest(f"{name} must be one of {', '.join(map(json.dumps, choices))}")
    return value


def _truncation(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 100:  # not a number, too
        raise BadRequest("truncation must be a number from 0 to 100, or null")
    return float(value)


def _key(fields: dict, default_model: str) -> Key:
    model, step = fields.get("model", default_model), fields.get("step")
    if not isinstance(model, str) or len(model) > 200:
        raise BadRequest("model must be a name that /models lists")
    if step is not None:
        step = _integer(fields, "step", 0, 0, 2**63)
    return model, step, _choice(fields, "weights", ("ema", "raw")) == "raw"


def _captions(texts: Any, least: int, most: int) -> list[str]:
    """Return the texts without white space around them."""
    if not isinstance(texts, list) or not least <= len(texts) <= most:
        number = f"{least}" if least == most else f"{least} to {most}"
        raise BadRequest(f"captions must be a list of {number}")
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise BadRequest(f"caption {place} is empty")
        if len(text) > MOST_CHARACTERS:
            raise BadRequest(
                f"caption {place} has {len(text):,} characters: at most {MOST_CHARACTERS}"
            )
        # Cs: halves of surrogate pairs, which UTF-8 cannot hold.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text.strip()):
            raise BadRequest(f"caption {place} has control characters")
    return [text.strip() for text in texts]
