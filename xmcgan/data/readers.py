"""Captions in others' forms: Hugging Face's folders, CSV, WebDataset, Parquet; TFDS in place."""

import csv
import functools
import io
import itertools
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from xmcgan.data.records import Prepared
from xmcgan.data.sources import (
    DEFAULT_SPLIT,
    CaptionedImage,
    FileRef,
    ImageStore,
    check_member,
    clean_captions,
    decode_text,
    parse_object,
    read_text_files,
    split_fault,
)
from xmcgan.errors import DataError, listed

Rows = Iterable[tuple[str, dict[str, Any]]]  # where it is, for errors, and its fields
TABLES = (".csv", ".tsv")

USUAL_COLUMNS = {
    "image": ("image", "file_name", "filename"),
    "caption": ("caption", "captions", "text"),
    "split": ("split",),
}
# As Hugging Face reads the names of folders and files: train/, data/test-00000-of-00002.parquet.
_SPLIT_NAME = re.compile(r"(?:^|/)(train|validation|valid|val|dev|test)(?=[-._/\d]|$)")
_METADATA = '{"file_name": "a.jpg", "text": "..."}'
_BUFFER_BYTES = 65_536  # of Parquet; without one a whole group of rows is read at once
_IMAGE_ROWS = 16  # that are in memory together


class Columns(NamedTuple):
    """Names of the columns that matter; an empty one is found by its usual names."""

    image: str = ""
    caption: str = ""
    split: str = ""

    def find(self, kind: str, there: Collection[str], where: str) -> str:
        """Return the name of a column; "" if there is no split."""
        asked = getattr(self, kind)
        names = (asked,) if asked else USUAL_COLUMNS[kind]
        found = next((name for name in names if name in there), "")
        if not found and (asked or kind != "split"):
            raise DataError(
                f"{where}: no column {' or '.join(map(repr, names))}; it has "
                f"{', '.join(map(repr, there)) or 'none'}; name one by --{kind}-column"
            )
        return found


USUAL = Columns()


def read_table(data: bytes, file: str) -> Rows:
    """Yield the rows of CSV, TSV or JSON lines by their line numbers."""
    text = decode_text(data, file)
    if file.lower().endswith(".jsonl"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield where, parse_object(line, where, _METADATA)
        return
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, number = None, 1
    try:
        for row in rows:
            where, number = f"{file}, line {number}", rows.line_num + 1
            if header is None:
                header = row
            elif row and len(row) != len(header):
                raise DataError(f"{where}: {len(row)} fields; the header has {len(header)}")
            elif row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: {error}") from error


def collect(
    rows: Rows, store: ImageStore, file: str, columns: Columns
) -> tuple[list[CaptionedImage], int]:
    """Bring together the captions of each image, and count the empty ones.

    Paths are relative to the folder of `file`, else to the store. A row without a split has that
    which `file` is named after, or a folder of the image.
    """
    images: dict[str, CaptionedImage] = {}
    empty: dict[str, str] = {}
    missing: list[str] = []
    num_dropped = 0
    for where, fields in rows:
        name, texts, split = (
            fields.get(columns.find(kind, fields, where)) for kind in ("image", "caption", "split")
        )
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: the image must be a path, not {name!r}")
        beside = (PurePosixPath(file).parent / name).as_posix()
        path = beside if beside in store else PurePosixPath(name).as_posix()
        if path not in store:
            missing.append(f"{where}: {name}")
            continue
        if split is None:
            split = split_of(f"{file}/{PurePosixPath(path).parent}/")
        if fault := split_fault(split):
            raise DataError(f"{where}: {fault}")
        captions, dropped = _clean(texts, where)
        known = images.setdefault(path, CaptionedImage(path, split, ()))
        if known.split != split:
            raise DataError(f"{where}: image {name!r} is in split {known.split!r} already")
        images[path] = known._replace(captions=known.captions + captions)
        if not images[path].captions:
            empty.setdefault(path, where)
        num_dropped += dropped
    if missing:
        raise DataError(
            f"captions name {len(missing)} images that are not in {store.source}:{listed(missing)}"
        )
    for path, where in empty.items():
        if not images[path].captions:
            clean_captions((), where)
    return list(images.values()), num_dropped


def _clean(texts: Any, where: str) -> tuple[tuple[str, ...], int]:
    """Return the captions of a row, possibly none, and how many were empty."""
    texts = [
        "" if text is None else text for text in (texts if isinstance(texts, list) else [texts])
    ]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: the caption must be a string or a list of strings")
    if not any(text.strip() for text in texts):
        return (), len(texts)
    return clean_captions(texts, where)


def split_of(path: str) -> str:
    """Return the split that a folder or file of a path is named after; "train" if none is."""
    found = _SPLIT_NAME.search(path)
    return found[1] if found else DEFAULT_SPLIT


def read_tables(
    store: ImageStore, files: Sequence[str], columns: Columns
) -> tuple[list[CaptionedImage], int]:
    """Read `metadata.jsonl`, CSV or TSV files of a store."""
    found = [collect(read_table(store.read(f), f), store, f, columns) for f in files]
    return [image for images, _ in found for image in images], sum(num for _, num in found)


# WebDataset.


class TarMember(FileRef):
    """A file in a tar, by its first byte."""

    __slots__ = ()

    def load(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.position)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError("the tar is cut off")
        return data


def read_tars(store: ImageStore, files: Sequence[str]) -> tuple[list[CaptionedImage], int]:
    """Add the members of tars to the store; read KEY.txt beside KEY.jpg as img2dataset writes them.

    The image is named SHARD.tar/KEY.jpg: keys are unique within a tar only.
    """
    for file in files:
        path = _path_of(store, file)
        for ref in _list_tar(path):
            check_member(path, str(ref.member))
            name = f"{file}/{ref.member}"
            if name in store:
                what = "two captions for one key: " if name.endswith(".txt") else ""
                raise DataError(f"{path}: {what}member {ref.member!r} occurs twice")
            store[name] = ref
    images, num_dropped = read_text_files(store)
    splits = (split_of(f"{PurePosixPath(image.image).parent}/") for image in images)
    return [i._replace(split=s) for i, s in zip(images, splits, strict=True)], num_dropped


def _list_tar(path: str) -> Iterator[TarMember]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members.clear()  # pyright: ignore  # it would keep them all
                if member.isreg():
                    name = PurePosixPath(member.name).as_posix()
                    yield TarMember(path, member.size, name, member.offset_data)
            end = archive.offset
        with open(path, "rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a member nor the end is at byte {end:,}")
    except Exception as error:  # damaged headers raise many types
        raise DataError(
            f"{path} is not a readable tar, as when it is compressed or was cut off: {error}"
        ) from error


def _path_of(store: ImageStore, file: str) -> str:
    if store[file].member is not None:
        raise DataError(f"{file} is inside a zip; unpack {store.source}")
    return store[file].path


# Parquet.


class ParquetRow(FileRef):
    """The bytes of the image in a row."""

    __slots__ = ()

    @property
    def where(self) -> str:
        return f"row {self.position} of {self.path}"

    def load(self) -> bytes:
        images = _open_images(self.path, str(self.member), os.stat(self.path).st_mtime_ns)
        value = images.read(self.position)
        if not value:
            raise ValueError("it has no bytes of an image")
        return value


class _ImageRows:
    """The images of a Parquet file in the order of its rows, a few of them in memory."""

    def __init__(self, path: str, column: str) -> None:
        from pyarrow import default_memory_pool

        self._file, self._column = _open_parquet(path), column
        self._pool = default_memory_pool()
        metadata = self._file.metadata
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        self._ends = np.cumsum([group.num_rows for group in groups])
        self._batches: Any = None
        self._start, self._images = 0, ()

    def read(self, row: int) -> bytes | None:
        if self._batches is None or row < self._start:
            group = int(np.searchsorted(self._ends, row, side="right"))
            self._start, self._images = int(self._ends[group - 1]) if group else 0, ()
            groups = range(group, len(self._ends))
            self._batches = self._file.iter_batches(_IMAGE_ROWS, groups, [self._column])
        while row >= self._start + len(self._images):
            self._start += len(self._images)
            self._images = next(self._batches).column(0)
            self._pool.release_unused()  # it would keep the memory of rows read before
        value = self._images[row - self._start].as_py()
        return value["bytes"] if isinstance(value, dict) else value


@functools.lru_cache(maxsize=1)
def _open_images(path: str, column: str, changed: int) -> _ImageRows:
    """Open a file once per process, and again if it was replaced."""
    del changed
    return _ImageRows(path, column)


def _open_parquet(path: str) -> Any:
    from pyarrow import parquet  # 50 MB that nothing else needs

    try:
        return parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except Exception as error:  # damage raises many types
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def read_parquet(
    store: ImageStore, files: Sequence[str], columns: Columns
) -> tuple[list[CaptionedImage], int]:
    """Read images and captions from the rows of Parquet files; the image is named FILE/ROW."""
    rows = itertools.chain.from_iterable(_parquet_rows(store, file, columns) for file in files)
    return collect(rows, store, "", columns)


def _parquet_rows(store: ImageStore, file: str, columns: Columns) -> Rows:
    """Add each row's image to the store, and yield its captions."""
    path = _path_of(store, file)
    parquet = _open_parquet(path)
    schema, metadata = parquet.schema_arrow, parquet.metadata
    image, caption, split = (
        columns.find(kind, schema.names, file) for kind in ("image", "caption", "split")
    )
    column = _bytes_column(schema.field(image), file)
    # Images are not read yet: the mean size of a row will do.
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups) // max(1, metadata.num_rows)
    number = 0
    try:
        for batch in parquet.iter_batches(columns=[caption, *filter(None, [split])]):
            for fields in batch.to_pylist():
                store[f"{file}/{number}"] = ParquetRow(path, size, column, number)
                yield f"{file}, row {number}", {**fields, image: f"{file}/{number}"}
                number += 1
    except Exception as error:
        raise DataError(f"{path}: its captions cannot be read: {error}") from error


def _bytes_column(field: Any, file: str) -> str:
    """Return the path of the column of bytes: of Hugging Face {bytes, path}, or plain."""
    from pyarrow import types

    path, kind = field.name, field.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        path, kind = f"{path}.bytes", kind.field("bytes").type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return path
    raise DataError(f"{file}: column {field.name!r} has {kind}, not the bytes of image files")


# TFDS.


class Tfds(Prepared):
    """A split of a captioned data set that TFDS prepared, or a slice such as `train[:1000]`.

    Args:
        variant: its name and config in `data_dir`, such as "coco_captions/2014".
        image_key: the feature with the image.
        caption_key: the feature with a text or several; "captions/text" if it is within another.
    """

    name = "tfds"

    def __init__(
        self,
        split: str,
        *,
        data_dir: Path,
        variant: str = "",
        image_key: str = "image",
        caption_key: str = "caption",
    ) -> None:
        super().__init__(split, data_dir=data_dir, variant=variant)
        self._keys = {"image_key": image_key, "caption_key": caption_key}

    @classmethod
    def root(cls, data_dir: Path, variant: str = "") -> Path:
        return data_dir / variant

    @classmethod
    def command(cls, data_dir: Path, variant: str = "") -> str:
        return f"tfds build {variant} --file_format=array_record --data_dir={data_dir}"

    def parse(self, features: Any) -> dict[str, Any]:
        values = {}
        for option, key in self._keys.items():
            values[option] = features[key].bytes_list.value if key in features else ()
            if not values[option]:
                there = (name for name in sorted(features) if features[name].bytes_list.value)
                raise ValueError(
                    f"no image or text in feature {key!r}; there are {', '.join(there)}; name one "
                    f"by --config.data.fields.{option}=NAME"
                )
        texts = [text.decode() for text in values["caption_key"]]
        captions, _ = clean_captions(texts, self._keys["caption_key"])
        return {"image": values["image_key"][0], "captions": list(captions)}

    def _damaged(self, what: str, why: object) -> DataError:
        if not any(self.directory.glob("*.array_record*")):
            why = "it has other files than ArrayRecord: tfds build ... --file_format=array_record"
        return DataError(f"{what} of {self.directory} cannot be used: {why}")
