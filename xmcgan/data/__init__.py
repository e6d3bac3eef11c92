"""Data sets, found by the name in the config: ours, or a user's own class by dotted path."""

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from xmcgan.errors import ConfigError, DataError
from xmcgan.utils.files import path_of
from xmcgan.utils.registry import find

# A data set is a class, constructed with a split's name and the fields of `config.data.fields`. It
# has `__len__`, and a `__getitem__` that returns the fields of `Example` as a dict (`image` and
# `captions` at least). docs/extending.md says what it may have besides: `splits`, `prepare`,
# `fingerprint`, `one_per_image`. Ours also get `data_dir`, and as `variant` what follows the slash.
DATA_SETS = {
    "emoji": "xmcgan.data.folder:Emoji",
    "shapes": "xmcgan.shapes.dataset:Shapes",
    "folder": "xmcgan.data.folder:Folder",
    "coco": "xmcgan.data.coco:Coco",
    "ln_coco": "xmcgan.data.localized_narratives:LnCoco",
    "ln_open_images": "xmcgan.data.localized_narratives:LnOpenImages",
    "coco_captions": "xmcgan.data.coco:CocoCaptions",
    "tfds": "xmcgan.data.readers:Tfds",
}
# Names that held-out images go by, in order of preference. Of COCO in Karpathy's splits it is
# all of val2014, which the field evaluates on.
_HELD_OUT = ("restval+val+test", "validation", "val", "dev", "test")
_FINGERPRINT_EXAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned image."""

    image: bytes | UInt8[np.ndarray, "h w 3"]  # an image file, or pixels
    captions: list[str]
    name: str  # unique within its split
    scene: str = ""  # of `shapes`: attributes as JSON
    image_id: str = ""  # as the official data set writes it
    caption_ids: list[str] = dataclasses.field(default_factory=list)


class Source(Protocol):
    """A sequence of examples; all that the pipeline needs of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class DataSet:
    """A data set by its name in the config: "emoji", "folder/mine", "tfds:NAME", "module:Class".

    `data_dir` has all prepared data sets; `fields` are arguments of a user's class.
    """

    def __init__(self, name: str, data_dir: Path | str, **fields: Any) -> None:
        kind, _, variant = name.partition(":" if name.startswith("tfds:") else "/")
        if kind in DATA_SETS:
            fields = {"data_dir": path_of(str(data_dir)), "variant": variant, **fields}
        else:
            kind = name
        self.name, self._fields = name, fields
        self._class = find(kind, DATA_SETS, "data set")

    def prepare(self) -> None:
        """Prepare a data set that needs no source; for any other check that it is prepared."""
        if hasattr(self._class, "prepare"):
            self._class.prepare(**self._fields)

    def load(self, split: str) -> "Split":
        """Return a split; several joined by "+" are read one after the other."""
        try:
            inspect.signature(self._class).bind(split, **self._fields)
        except TypeError as error:
            raise ConfigError(f"data.fields of data set {self.name!r}: {error}") from None
        found = Split(self.name, split, self._fields, self._class(split, **self._fields))
        if len(found) == 0:
            raise DataError(f"split {split!r} of data set {self.name!r} is empty")
        return found

    def splits(self) -> dict[str, int]:
        """Return the number of examples of every split, as far as the data set names them."""
        return {name: len(self.load(name)) for name in self._split_names()}

    def held_out(self) -> str | None:
        """Return the name of the split of images that are not trained on, if there is any."""
        names = self._split_names()
        return next((s for s in _HELD_OUT if all(part in names for part in s.split("+"))), None)

    def _split_names(self) -> list[str]:
        names: Any = getattr(self._class, "splits", ())
        found: Any = names(**self._fields) if callable(names) else names
        return list(found)


class Split:
    """One split of a data set: a sequence of examples."""

    def __init__(self, data_set: str, split: str, fields: dict[str, Any], records: Any) -> None:
        self._data_set, self._split, self._fields = data_set, split, fields
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        fields = self._records[index]
        try:
            example = Example(**{"name": f"{self._split}-{index}", **fields})
            texts = example.captions
            if not texts:
                raise TypeError("it has no caption")
            if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
                raise TypeError(f"captions must be a list of strings, not {texts!r}")
            return example
        except TypeError as error:
            where = f"example {index} of split {self._split!r} of data set {self._data_set!r}"
            raise DataError(f"{where}: {error}") from error

    def one_per_image(self) -> list[int]:
        """Return the index of one example of each image, for what concerns images alone."""
        own = getattr(self._records, "one_per_image", None)
        return own() if own else list(range(len(self)))

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when the data change; a resumed run must share them."""
        if hasattr(self._records, "fingerprint"):
            return self._records.fingerprint()
        what = [self._data_set, self._split, self._fields, len(self)]
        digest = hashlib.sha256(json.dumps(what, default=str, sort_keys=True).encode())
        for index in np.unique(np.linspace(0, len(self) - 1, _FINGERPRINT_EXAMPLES, dtype=int)):
            example = self[int(index)]
            digest.update(repr((example.name, list(example.captions))).encode())
            image = example.image
            digest.update(image if isinstance(image, bytes) else image.tobytes())
        return digest.hexdigest()[:16]
