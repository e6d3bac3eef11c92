"""Samples as files: PNG images in a folder or a zip, and a manifest of captions and noise."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xmcgan.errors import UserError

MANIFEST = "manifest.json"
SHARD = 1000  # images of a folder; some file systems are slow with more


class SampleWriter:
    """Writes images as they are sampled; they appear at `path` when the last one is written.

    They replace images of an earlier manifest there; other files stay. More than 1,000 are put into
    folders `000/`, `001/` and so on. `scripts/human_eval.py` reads the manifest.

    Args:
        path: A folder, or a file that ends in .zip.
        num: Images that will be written.
        origin: First entries of the manifest.

    Raises:
        UserError: `path` cannot be written.
    """

    def __init__(self, path: Path, num: int, origin: Mapping[str, Any]) -> None:
        check_writable(path)
        self._path, self._num, self._origin = path, num, dict(origin)
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._zip: zipfile.ZipFile | None = None
        self._entries: list[dict[str, Any]] = []

    def __enter__(self) -> "SampleWriter":
        if self._path.suffix == ".zip":
            self._zip = zipfile.ZipFile(self._partial, "w")
        else:
            self._partial.mkdir()
        return self

    def add(
        self,
        images: UInt8[np.ndarray, "n h w 3"],
        entries: Sequence[Mapping[str, Any]],
        names: Iterable[str] = (),
    ) -> None:
        """Write images; `entries` say the `caption` of each and whatever else is known of it."""
        numbers = range(len(self._entries), len(self._entries) + len(images))
        for number, name, image, entry in zip(
            numbers, names or [f"{n:06d}" for n in numbers], images, entries, strict=True
        ):
            shard = f"{number // SHARD:03d}/" if self._num > SHARD else ""
            file = f"{shard}{name}.png"
            data = io.BytesIO()
            Image.fromarray(image).save(data, "PNG")
            self._write(file, data.getvalue())
            self._entries.append({"file": file, **entry})

    def _write(self, file: str, data: bytes) -> None:
        if self._zip is not None:
            self._zip.writestr(file, data)
        else:
            path = self._partial / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                manifest = {**self._origin, "images": self._entries}
                text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
                self._write(MANIFEST, text.encode())
                if self._zip is not None:
                    self._zip.close()
                    self._partial.replace(self._path)
                else:
                    self._replace_folder()
        finally:
            if self._zip is not None:
                self._zip.close()
                self._partial.unlink(missing_ok=True)
            shutil.rmtree(self._partial, ignore_errors=True)

    def _replace_folder(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for entry in json.loads((self._path / MANIFEST).read_bytes())["images"]:
                if not Path(entry["file"]).is_absolute() and ".." not in entry["file"]:
                    (self._path / entry["file"]).unlink(missing_ok=True)
        for entry in [*self._entries, {"file": MANIFEST}]:
            target = self._path / entry["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._partial / entry["file"]).replace(target)


def check_writable(path: Path) -> None:
    """Raise UserError if samples cannot be written to a path; create its parent folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.is_dir() == (path.suffix == ".zip"):
            raise UserError(
                f"cannot write to {path}: it is a {'folder' if path.is_dir() else 'file'}"
            )
        with tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from None


def part_of(path: Path, name: str) -> Path:
    """Path of one set of several: a folder in a folder, or `NAME_PART.zip`."""
    return path.with_name(f"{path.stem}_{name}.zip") if path.suffix == ".zip" else path / name
