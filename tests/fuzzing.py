"""Damaged inputs, and the one property of every reader: it returns, or raises a UserError."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from xmcgan.errors import UserError

MOST_SECONDS = 60  # of the processor for one input; a reader that takes longer hangs

_EXPLORING = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


def explore(
    read: Callable[[Any], object], inputs: st.SearchStrategy, *, examples: int, number: int = 0
) -> None:
    """Let a reader loose on generated inputs.

    Args:
        read: the reader.
        inputs: generates its argument.
        examples: how many.
        number: of the series; each gives other inputs, always the same.
    """

    @seed(number)
    @settings(max_examples=examples, **_EXPLORING)
    @given(inputs)
    def returns_or_raises_user_error(value: Any) -> None:
        start = time.thread_time()
        with contextlib.suppress(UserError):
            read(value)
        assert time.thread_time() - start < MOST_SECONDS, "the reader hangs"

    returns_or_raises_user_error()


def explore_for(seconds: float, read: Callable[[Any], object], inputs: st.SearchStrategy) -> int:
    """Explore series after series until the time is over; return how many inputs were read."""
    end, number, examples = time.monotonic() + seconds, 0, 200
    while time.monotonic() < end:
        number += 1
        explore(read, inputs, examples=examples, number=number)
    return number * examples


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged_bytes(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Return a file with some bytes changed, cut out, put in or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "flip", "remove", "insert", "cut", "repeat", "nest"]))
        if kind == "set" and at < len(data):
            data[at] = draw(st.sampled_from([0, 1, 0x22, 0x7F, 0x80, 0xFF]))
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif kind == "nest":
            data[at:at] = draw(st.sampled_from([b"[", b'{"a":', b"9"])) * 100_000
        elif kind == "cut":
            del data[at:]
    return bytes(data)


@st.composite
def damaged_json(draw: st.DrawFn, original: Any) -> Any:
    """Return a JSON value in which one or two parts are replaced by others or gone."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 2))):
        holder, key = _a_place(draw, value)
        if holder is None:
            return draw(JSON_VALUES)
        if draw(st.booleans()):
            holder[key] = draw(JSON_VALUES)
        else:
            del holder[key]
    return value


def _a_place(draw: st.DrawFn, value: Any) -> tuple[Any, Any]:
    """Walk down from the root; return a container and a key of it, or None for an empty root."""
    holder, key = None, None
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        holder, key = value, draw(st.sampled_from(keys))
        value = value[key]
        if draw(st.booleans()):
            break
    return holder, key


@st.composite
def damaged_lines(draw: st.DrawFn, originals: list[Any]) -> bytes:
    """Return JSON lines, each intact or damaged as a value, and all of them as bytes."""
    lines = []
    for original in originals:
        value = draw(st.just(original) | damaged_json(original))
        lines.append(json.dumps(value, ensure_ascii=draw(st.booleans())))
    data = "\n".join([*lines, ""]).encode(errors="surrogatepass")
    return draw(st.just(data) | damaged_bytes([data]))
