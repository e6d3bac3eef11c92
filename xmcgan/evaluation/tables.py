"""Scores of a comparison as a table of text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xmcgan.evaluation.scores import Score
from xmcgan.utils.tables import aligned_table


def score_json(scores: Sequence[Score], recipe: Mapping[str, Any]) -> str:
    """Return one JSON object: the scores by name, and their recipe.

    Args:
        scores: of one comparison.
        recipe: of `folder_commands.compare`.
    """
    fields = ("value", "low", "high", "better", "note")
    named = {score.name: {field: getattr(score, field) for field in fields} for score in scores}
    return json.dumps({"scores": named, "recipe": dict(recipe)}, indent=2, allow_nan=False)


def score_table(scores: Sequence[Score], recipe: Mapping[str, Any]) -> str:
    """Return aligned lines: a score each with its interval, then what was compared.

    Args:
        scores: in the order to show.
        recipe: of `folder_commands.compare`.
    """
    verified = ", UNVERIFIED" if recipe.get("weights_verified") is False else ""
    lines = [
        *score_lines({score.name: score for score in scores}),
        "",
        f"protocol  {recipe.get('protocol', 'of the statistics')}",
        f"weights   sha256 {recipe.get('weights_sha256', 'unknown')}{verified}",
        f"real      {_named(recipe['real'])}",
        f"fake      {_named(recipe['fake'])}",
    ]
    return "\n".join(lines)


def score_lines(scores: Mapping[str, Score]) -> list[str]:
    """Return aligned lines: a score each with its interval, then what is noted of it."""
    rows = [("score", "value", "95 % interval", "better")]
    for name, score in scores.items():
        interval = "-" if score.low is None else f"{score.low:.4f} to {score.high:.4f}"
        flattered = " (flattered)" if score.flattered else ""
        rows.append((f"{name}{flattered}", f"{score.value:.4f}", interval, score.better))
    notes = [f"{name}: {score.note}" for name, score in scores.items() if score.note]
    return [*aligned_table(rows), *notes]


def _named(images: Mapping[str, Any]) -> str:
    num = images["num_images"]
    prepared = images.get("preparation", "preparation unknown")
    return (
        f"{images.get('statistics') or images['source']} ({'?' if num is None else num} images, "
        f"{prepared})"
    )
