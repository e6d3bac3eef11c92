"""Write what a run measures: JSON lines and TensorBoard files.

The methods are named as in `clu.metric_writers`, which needs TensorFlow. A resumed run writes each
step once: what was logged past the step it resumes from is dropped.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from xmcgan.utils.files import atomic_file
from xmcgan.utils.tables import markdown_table

Images = Mapping[str, UInt8[np.ndarray, "n h w 3"]]


class MetricWriter:
    """Take everything and write nothing; a writer overrides what it can show."""

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Write numbers by name."""

    def write_images(self, step: int, images: Images) -> None:
        """Write batches of images, uint8 (n, h, w, 3), by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts by name; TensorBoard reads them as Markdown."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the choices that a run was started with, by name."""

    def flush(self) -> None:
        """Hand what was written to the operating system."""

    def close(self) -> None:
        """Flush and let go of the files; nothing may be written afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class JsonLinesWriter(MetricWriter):
    """Append one object a line: `{"step": 100, "time": 1700000000.0, "g_loss": 1.5}`.

    `time` is in seconds since 1970. What is no number in JSON is written as the strings "NaN",
    "Infinity" and "-Infinity", which Python's `float` reads back. Images and hyperparameters are
    left to other writers.
    """

    def __init__(self, path: Path) -> None:
        """Open a file to append to, created with its folder where absent.

        Args:
            path: the file; a line that a killed run left half written is dropped.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        _keep_lines(path, lambda step: True)
        self._file = path.open("a", encoding="utf-8")

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, so that a resumed run writes each step once.

        Args:
            step: the step the run goes on from, 0 for a new one.
        """
        self._file.close()
        _keep_lines(self._path, lambda written: written <= step)
        self._file = self._path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Write the numbers as one line."""
        self._write(step, {name: _json_number(value) for name, value in scalars.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write the texts as one line."""
        self._write(step, texts)

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": int(step), "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        # At once, so that whoever follows the file sees whole lines.
        self._file.flush()


class TensorBoardWriter(MetricWriter):
    """Write TensorBoard event files."""

    def __init__(self, directory: Path, *, purge_step: int | None = None) -> None:
        """Begin an event file in a folder.

        Args:
            directory: the folder to point TensorBoard at.
            purge_step: TensorBoard hides what earlier files in the folder say of this step and
                later ones; a resumed run gives the first step it will do.
        """
        # The default file name is unique by the second only.
        suffix = f".{os.getpid()}.{purge_step or 0}"
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, filename_suffix=suffix)

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Write the numbers; a slash in a name groups them on the page."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)

    def write_images(self, step: int, images: Images) -> None:
        """Write each image under its name, numbered where there are several."""
        for name, image in _single_images(images):
            self._writer.add_image(name, image, step, dataformats="HWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write the texts, read as Markdown."""
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write a table of the hyperparameters on the text page."""
        rows = [("name", "value"), *((name, str(value)) for name, value in sorted(hparams.items()))]
        self._writer.add_text("hparams", "\n".join(markdown_table(rows, numbers=False)))

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MultiWriter(MetricWriter):
    """Hand everything on to several writers, in order."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        """Take over the writers; closing this one closes them."""
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Write numbers by name."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Images) -> None:
        """Write batches of images by name."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts by name."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the choices that a run was started with."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Flush all writers."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Close all writers."""
        for writer in self._writers:
            writer.close()


def _json_number(value: SupportsFloat) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")


def _keep_lines(path: Path, wanted: Callable[[int], bool]) -> None:
    """Keep the whole lines whose step is wanted; the file changes at once or not at all."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _is_whole(line) and wanted(json.loads(line)["step"])]
    if len(kept) < len(lines):
        with atomic_file(path) as file:
            file.writelines(kept)


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line)["step"], int)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _single_images(images: Images) -> Iterator[tuple[str, np.ndarray]]:
    for name, batch in images.items():
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
            raise ValueError(f"{name} must be uint8 (n, h, w, 3), not {batch.dtype} {batch.shape}")
        for number, image in enumerate(batch):
            yield (name if len(batch) == 1 else f"{name}_{number:02d}"), image
