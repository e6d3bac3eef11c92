"""The key of a page: which model drew which image. It stays with the researcher."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.study import FORMAT, Item
from xmcgan.utils.files import write_text


@dataclasses.dataclass(frozen=True)
class KeyItem:
    """Hold an item's caption and who drew each of its images (None: noise)."""

    caption: str
    models: Mapping[str, str | None]

    @property
    def noise(self) -> str | None:
        """The image that an attentive rater puts last; None if the item is no check."""
        return next((image for image, model in self.models.items() if model is None), None)


@dataclasses.dataclass(frozen=True)
class Key:
    """Hold what joins answers with models.

    Attributes:
        page: id of the page.
        models: names, in the order of the command line.
        items: by id.
    """

    page: str
    models: tuple[str, ...]
    items: Mapping[str, KeyItem]


def key_path(page: Path) -> Path:
    """Return where the key of a page file stands."""
    return page.with_name(f"{page.stem}.key.json")


def write_key(
    path: Path, page: str, models: Sequence[str], items: Sequence[Item], seed: int
) -> None:
    """Write a key."""
    content = {
        "format": FORMAT,
        "page": page,
        "seed": seed,
        "models": list(models),
        "items": [
            {
                "id": item.id,
                "caption": item.caption,
                "images": [
                    {"id": image.id, "model": image.model, "file": image.file}
                    for image in item.images
                ],
            }
            for item in items
        ],
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_key(path: Path) -> Key:
    """Read a key.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        items = {
            item["id"]: KeyItem(
                item["caption"], {image["id"]: image["model"] for image in item["images"]}
            )
            for item in content["items"]
        }
        return Key(content["page"], tuple(content["models"]), items)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no key of a ranking page: {error!r}") from None
