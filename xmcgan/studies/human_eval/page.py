"""One self-contained HTML page that asks for rankings: no server, no network, no model names."""

import base64
import html
import importlib.resources
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.folders import ModelImages
from xmcgan.studies.human_eval.key import key_path, read_key, write_key
from xmcgan.studies.human_eval.study import FORMAT, build_items, page_data
from xmcgan.utils.files import write_text

MAX_PAGE_BYTES = 25_000_000  # an e-mail attachment
DEFAULT_TITLE = "Which picture is better?"


def default_checks(num: int) -> int:
    """Return how many attention checks go with `num` captions: one in ten, at least two."""
    return max(2, round(num / 10))


def write_page(
    models: Sequence[ModelImages],
    out: Path,
    *,
    num: int | None = None,
    checks: int | None = None,
    seed: int = 0,
    image_size: int = 256,
    title: str = DEFAULT_TITLE,
) -> tuple[Path, Path]:
    """Write a page and, beside it, its key.

    Args:
        models: with the same captions.
        out: the .html file.
        num: captions; None for 50, or all where there are fewer.
        checks: attention checks besides; None for `default_checks`.
        seed: of captions and order.
        image_size: side in pixels of all images.
        title: heading of the page.

    Returns:
        The page and the key.

    Raises:
        DataError: the images do not do, the page gets too large, or another page is there.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--out {out}: must end in .html")
    if checks is None:
        checks = default_checks(min(50, len(models[0].files)) if num is None else num)
    items = build_items(models, num, checks=checks, seed=seed, image_size=image_size)
    page, shown = page_data(items)
    text = render(page, shown, title)
    size = len(text.encode())
    if size > MAX_PAGE_BYTES:
        raise DataError(
            f"the page would have {size / 1e6:.0f} MB, more than {MAX_PAGE_BYTES / 1e6:.0f}; "
            f"lower --image-size ({image_size}) or --num"
        )
    key = key_path(out)
    if key.exists() and read_key(key).page != page:
        raise DataError(
            f"{key} belongs to another page, whose answers it explains: choose another --out"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_key(key, page, [model.name for model in models], items, seed)
        write_text(out, text)
    except OSError as error:
        raise DataError(f"cannot write to --out {out}: {error.strerror}") from None
    return out, key


def render(page: str, items: Sequence[dict[str, Any]], title: str) -> str:
    """Return the text of a page.

    Args:
        page: its id.
        items: `id`, `caption` and `images` (`id` and `webp` bytes).
        title: heading.
    """
    content = {
        "format": FORMAT,
        "page": page,
        "items": [
            item
            | {
                "images": [
                    {"id": image["id"], "webp": base64.b64encode(image["webp"]).decode()}
                    for image in item["images"]
                ]
            }
            for item in items
        ],
    }
    # "<" would let a caption such as "</script>" end the data.
    study = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _part("page.css"),
        "PROGRAM": _part("page.js"),
        "STUDY": study,
    }
    return re.sub("@@([A-Z]+)@@", lambda mark: parts[mark[1]], _part("page.html"))


def _part(name: str) -> str:
    return (importlib.resources.files("xmcgan.studies.human_eval") / name).read_text(
        encoding="utf-8"
    )
