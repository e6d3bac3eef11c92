"""What differs between how something was made and how it is wanted."""

from collections.abc import Iterable, Mapping
from typing import Any


def differences(
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    names: Iterable[str] | None = None,
    form: str = "{}: {} -> {}",
) -> list[str]:
    """Return the entries in which two recipes differ, for a message.

    Args:
        stored: the one.
        wanted: the other.
        names: of the entries that count; all by default.
        form: of a text: takes the name and both values.

    Returns:
        A text such as `seed: 0 -> 1` for each.
    """
    compared = sorted(stored.keys() | wanted.keys()) if names is None else names
    return [
        form.format(name, stored.get(name), wanted.get(name))
        for name in compared
        if stored.get(name) != wanted.get(name)
    ]
