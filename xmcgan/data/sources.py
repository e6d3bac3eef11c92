"""Prepared data sets as random-access sequences of examples."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds

from xmcgan.errors import DataError

BUILDERS = ("shapes", "folder")


@dataclasses.dataclass(frozen=True)
class Example:
    """Hold one captioned image as it is stored.

    Attributes:
        image: the bytes of the image file.
        captions: at least one caption.
        name: the image's name, unique within its split.
        scene: for `shapes`, the scene's attributes as JSON; empty elsewhere.
    """

    image: bytes
    captions: list[str]
    name: str
    scene: str = ""


class Source(Protocol):
    """Give examples by index; all that the pipeline asks of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def dataset_dir(name: str, data_dir: Path | str) -> Path:
    """Return the folder that holds the versions of a data set.

    Args:
        name: "shapes" or "folder/NAME".
        data_dir: root of all prepared data sets.
    """
    builder, _, config = name.partition("/")
    return Path(data_dir) / builder / (config or "default")


def prepare_command(name: str, data_dir: Path | str) -> str:
    """Return the command line that prepares a data set."""
    builder, _, config = name.partition("/")
    command = f"python scripts/prepare_data.py {builder} --data-dir {data_dir}"
    if builder == "folder":
        return f"{command} --name {config or 'NAME'} --source DIR_OR_ZIP"
    return f"{command} --name {config}" if config else command


def _versions(name: str, data_dir: Path | str) -> list[Path]:
    builder = name.partition("/")[0]
    if builder not in BUILDERS:
        raise DataError(f"unknown data set {name!r}: it must be shapes or folder/NAME")
    root = dataset_dir(name, data_dir)
    return [path.parent for path in root.glob("[0-9]*.[0-9]*.[0-9]*/dataset_info.json")]


def is_prepared(name: str, data_dir: Path | str) -> bool:
    """Return whether any version of a data set is prepared."""
    return bool(_versions(name, data_dir))


def find_version(name: str, data_dir: Path | str) -> Path:
    """Return the folder of a data set's newest prepared version.

    Raises:
        DataError: nothing is prepared there; the message gives the command.
    """
    found = _versions(name, data_dir)
    if not found:
        raise DataError(
            f"data set {name!r} is not prepared in {data_dir}; run\n"
            f"  {prepare_command(name, data_dir)}"
        )
    return max(found, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def _open_builder(directory: Path) -> Any:
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # damaged JSON raises many types
        raise DataError(f"{directory} is not a readable data set: {error}") from error


class TfdsSource:
    """Read one split of a prepared data set, opened on first use so that it pickles small.

    Args:
        directory: the folder of one version, with `dataset_info.json` and the record files.
        split: name of the split.
    """

    def __init__(self, directory: Path, split: str):
        self._directory, self._split = directory, split

    @functools.cached_property
    def _records(self) -> Any:
        builder = _open_builder(self._directory)
        splits = builder.info.splits
        if self._split not in splits:
            known = ", ".join(sorted(splits))
            raise DataError(f"{self._directory} has no split {self._split!r}; it has: {known}")
        try:
            return builder.as_data_source(
                self._split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except Exception as error:  # a truncated file, sometimes without a message
            raise DataError(
                f"split {self._split!r} of {self._directory} is damaged: {error or 'no detail'}; "
                "delete that folder and prepare it again"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        records = self._records
        try:
            fields = records[index]
        except IndexError:
            raise
        except Exception as error:
            raise DataError(
                f"record {index} of split {self._split!r} in {self._directory} is damaged "
                f"({error}); delete that folder and prepare it again"
            ) from error
        return Example(
            image=fields["image"],
            captions=[caption.decode() for caption in fields["captions"]],
            name=fields["name"].decode(),
            scene=fields["scene"].decode() if "scene" in fields else "",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_directory": self._directory, "_split": self._split}


def load_source(name: str, data_dir: Path | str, split: str) -> TfdsSource:
    """Open one split of a prepared data set.

    Args:
        name: "shapes" or "folder/NAME".
        data_dir: root of all prepared data sets.
        split: "train", "validation", or what the data's own captions call it.

    Returns:
        A sequence of `Example`.

    Raises:
        DataError: the data set is not prepared (the message gives the command), damaged, or has
            no such split.
    """
    source = TfdsSource(find_version(name, data_dir), split)
    if len(source) == 0:
        raise DataError(f"split {split!r} of {name!r} in {data_dir} is empty")
    return source


def list_splits(name: str, data_dir: Path | str) -> dict[str, int]:
    """Return the number of examples of every split of a prepared data set."""
    builder = _open_builder(find_version(name, data_dir))
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def fingerprint(name: str, data_dir: Path | str) -> str:
    """Return 16 hex digits that change when the prepared data change.

    They cover name, version, splits and shard lengths, and of each record file its length and its
    last 64 KiB, where ArrayRecord keeps its index; reading whole files would cost minutes.
    """
    directory = find_version(name, data_dir)
    digest = hashlib.sha256(json.dumps([name, directory.name]).encode())
    info = json.loads((directory / "dataset_info.json").read_text())
    digest.update(json.dumps(info["splits"], sort_keys=True).encode())
    for path in sorted(directory.glob("*.array_record*")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            file.seek(max(0, size - 65536))
            digest.update(file.read())
    return digest.hexdigest()[:16]
