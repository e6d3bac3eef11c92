"""Data sets prepared once: captioned images in ArrayRecord files, with the metadata of TFDS.

DATA_DIR/NAME/VARIANT/1.0.0/NAME-SPLIT.array_record-00000-of-00001
"""

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from xmcgan.data.shards import FEATURES, NARRATIVES, Contents, write_version
from xmcgan.errors import DataError
from xmcgan.utils.download import check_free
from xmcgan.utils.files import is_in_bucket, lock_folder, num_cores, read_json

MAX_WORKERS = 3  # as many as memory of 1 GB and a disk serve

_VERSION = "1.0.0"
_OVERHEAD = 1.05  # of a prepared data set over its images, at most


class Prepared:
    """One split of a prepared data set; opened on first use, so that it pickles small."""

    name: ClassVar[str]
    source_flags: ClassVar[str] = ""  # of `prepare_data.py`, to say where its images come from

    def __init__(self, split: str, *, data_dir: Path, variant: str = "") -> None:
        self._full_name = f"{self.name}/{variant}" if variant else self.name
        self.directory, self._split = self.find_version(data_dir, variant), split

    @classmethod
    def root(cls, data_dir: Path, variant: str = "") -> Path:
        """Return the folder that holds the versions of a data set."""
        return data_dir / cls.name / (variant or "default")

    @classmethod
    def find_version(cls, data_dir: Path, variant: str = "") -> Path:
        """Return the folder of the newest version; if there is none, an error gives the command."""
        found = _versions(cls.root(data_dir, variant))
        if not found and is_in_bucket(data_dir):
            raise DataError(
                f"{cls.root(data_dir, variant)} holds no prepared data set; prepare it in a folder "
                f"of a machine, then copy it: gcloud storage cp -r data/{cls.name} {data_dir}/"
            )
        if not found:
            raise DataError(
                f"data set {'/'.join(filter(None, (cls.name, variant)))!r} is not prepared in "
                f"{data_dir}; run\n  {cls.command(data_dir, variant)}"
            )
        return max(found, key=lambda path: tuple(map(int, path.name.split("."))))

    @classmethod
    def command(cls, data_dir: Path, variant: str = "") -> str:
        """Return the command that prepares the data set."""
        name = f" --name {variant}" if variant else ""
        command = f"python scripts/prepare_data.py {cls.name} --data-dir {data_dir}{name}"
        return f"{command} {cls.source_flags}".rstrip()

    @classmethod
    def splits(cls, data_dir: Path, variant: str = "", **fields: Any) -> list[str]:
        """Return the names of the splits."""
        del fields
        return list(_open_builder(cls.find_version(data_dir, variant)).info.splits)

    @classmethod
    def embedded(cls, variant: str) -> Contents | None:
        """Return what the data set holds if it needs no source."""
        del variant
        return None

    @classmethod
    def prepare(cls, data_dir: Path, variant: str = "", **fields: Any) -> None:
        """Write an embedded data set on first use; check that any other is there."""
        del fields
        is_missing = not is_in_bucket(data_dir) and not _versions(cls.root(data_dir, variant))
        if is_missing and (contents := cls.embedded(variant)):
            cls.write(contents, data_dir, variant)
        cls.find_version(data_dir, variant)

    @classmethod
    def write(
        cls,
        contents: Contents,
        data_dir: Path,
        variant: str = "",
        *,
        num_workers: int = 0,
        skip_damaged: bool = False,
    ) -> bool:
        """Write a data set, in one process per core if 0; False if another did so already."""
        if variant and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", variant):
            raise DataError(f"the name {variant!r} is not made of letters, digits, _ and - only")
        if not contents.splits:
            raise DataError("no image with captions was found")
        root = cls.root(data_dir, variant)
        try:
            with lock_folder(root, DataError):
                if _versions(root):
                    directory = cls.find_version(data_dir, variant)
                    metadata = _metadata(directory)
                    stored = {key: metadata.get(key) for key in contents.recipe}
                    if stored != contents.recipe:
                        raise DataError(
                            f"{directory} was prepared from other data: {stored}, asked: "
                            f"{contents.recipe}; choose another --name, or delete that folder"
                        )
                    return False
                for leftover in root.glob("incomplete.*"):
                    shutil.rmtree(leftover)  # an earlier run was killed here
                if (root / _VERSION).exists():  # renamed, so it was complete once
                    raise DataError(f"{root / _VERSION} is damaged; delete it and prepare it again")
                check_free(root, int(contents.num_bytes * _OVERHEAD))
                workers = num_workers or min(num_cores(), MAX_WORKERS)
                with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as folder:
                    os.mkdir(f"{folder}/{_VERSION}")
                    write_version(Path(folder, _VERSION), cls.name, contents, workers, skip_damaged)
                    os.rename(f"{folder}/{_VERSION}", root / _VERSION)
        except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as RuntimeError
            raise DataError(f"cannot write to {root}: {error}") from error
        return True

    def __len__(self) -> int:
        return len(self._records) if self._ends is None else int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._ends is None:
            return self._read(index)
        record = int(np.searchsorted(self._ends, index, side="right"))
        fields, place = self._read(record), index - int(self._ends[record])
        caption, caption_id = fields["captions"][place], fields["caption_ids"][place]
        name = f"{fields['name']}#{caption_id}"
        return {**fields, "captions": [caption], "caption_ids": [caption_id], "name": name}

    def one_per_image(self) -> list[int]:
        """Return the index of one example of each image."""
        return list(range(len(self))) if self._ends is None else [0, *self._ends[:-1].tolist()]

    def fingerprint(self) -> str:
        """Return 16 hex digits of name, version, splits, and the size and end of each file."""
        digest = hashlib.sha256(json.dumps([self._full_name, self.directory.name]).encode())
        info = json.loads((self.directory / "dataset_info.json").read_text())
        digest.update(json.dumps(info["splits"], sort_keys=True).encode())
        for path in sorted(self.directory.glob("*.array_record*")):
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{path.name}:{size}".encode())
                file.seek(max(0, size - 65536))  # the index; whole files would cost minutes
                digest.update(file.read())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        builder = _open_builder(self.directory)
        known = builder.info.splits
        if not all(part.partition("[")[0] in known for part in self._split.split("+")):
            names = ", ".join(sorted(known))
            raise DataError(f"{self.directory} has no split {self._split!r}; it has: {names}")
        try:
            # The bytes of the records: TFDS's decoding would take as long again as reading.
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            return builder.as_data_source(self._split, deserialize_method=raw)
        except Exception as error:  # a truncated file, sometimes without a message
            raise self._damaged(f"split {self._split!r}", error or "no detail") from error

    @functools.cached_property
    def _ends(self) -> np.ndarray | None:
        """Return for each record how many examples end with it, if each narrative is one."""
        per_image = _metadata(self.directory).get(NARRATIVES)
        if per_image is None:
            return None
        counts = [per_image.get(part, []) for part in self._split.split("+")]
        ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
        if len(ends) != len(self._records):
            raise self._damaged("metadata.json", f"{len(ends)} of {len(self._records)} records")
        return ends

    def _damaged(self, what: str, why: object) -> DataError:
        return DataError(f"{what} is damaged ({why}); delete {self.directory}, prepare it again")

    def _read(self, index: int) -> dict[str, Any]:
        try:
            record: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(self._records[index])
            return self.parse(record.features.feature)
        except Exception as error:  # of the reader, the parser, or fields of other kinds
            what = f"record {index} of split {self._split!r} in {self._file_of(index)}"
            raise self._damaged(what, error) from error

    @staticmethod
    def parse(features: Any) -> dict[str, Any]:
        """Return the fields of a record; data sets of older releases have fewer."""
        values = {key: features[key].bytes_list.value for key in FEATURES if key in features}
        if not values.get("image") or not values.get("captions"):
            raise ValueError("it has no image or no caption")  # as the records of a cut file
        (image,) = values.pop("image")
        texts = {key: [value.decode() for value in found] for key, found in values.items()}
        return {
            "image": image,
            **{key: texts.get(key, []) for key in ("captions", "caption_ids")},
            **{key: texts.get(key, [""])[0] for key in ("name", "image_id", "scene")},
        }

    def _file_of(self, index: int) -> str:
        """Return the path of the file that holds a record; splits and shards follow each other."""
        for part in _open_builder(self.directory).info.splits[self._split].file_instructions:
            if index < part.examples_in_shard:
                return str(part.filename)
            index -= part.examples_in_shard
        return str(self.directory)

    def __getstate__(self) -> dict[str, Any]:
        cached = ("_records", "_ends")
        return {key: value for key, value in self.__dict__.items() if key not in cached}


def _versions(root: Path) -> list[Path]:
    return [path.parent for path in root.glob("[0-9]*.[0-9]*.[0-9]*/dataset_info.json")]


def _open_builder(directory: Path) -> Any:
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # damaged JSON raises many types
        raise DataError(f"{directory} is not a readable data set: {error}") from error


def _metadata(directory: Path) -> dict[str, Any]:
    path = directory / "metadata.json"
    return dict(read_json(path, DataError, "metadata of TFDS")) if path.exists() else {}


def describe(data_set: type[Prepared], contents: Contents, data_dir: Path, variant: str) -> str:
    """Return the counts of a prepared data set beside the published ones, and its size."""
    directory = data_set.find_version(data_dir, variant)
    metadata, published = _metadata(directory), dict(contents.published)
    lines, sizes = [], {}
    for split in data_set.splits(data_dir, variant):
        source = data_set(split, data_dir=data_dir, variant=variant)
        sizes[split] = len(source)
        num_captions = metadata.get("num_captions", {}).get(split)
        what = f"images with {num_captions:,} captions" if num_captions else "images"
        if contents.narratives:
            what = f"narratives of {len(source.one_per_image()):,} images"
        of = f" (published: {published[split]:,})" if split in published else ""
        lines.append(f"  {split:<12}{sizes[split]:>9,} {what}{of}")
    if published:
        part = "not the published numbers: a part of the data, or another release"
        lines.append(f"  {'these are the full published data' if sizes == published else part}")
    left_out = metadata.get("left_out", {})
    lines += [f"  left out    {num:>9,} {reason}" for reason, num in sorted(left_out.items())]
    size = sum(path.stat().st_size for path in directory.iterdir())
    return "\n".join([*lines, f"  in {directory}, {size / 1e9:,.3f} GB"])
