"""Captions in every form that users have them in, read as rows; TFDS in place."""

import collections
import csv
import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from xmcgan.data.records import Prepared
from xmcgan.data.sources import FileRef, ImageStore, check_member, clean_captions
from xmcgan.errors import DataError, listed
from xmcgan.utils.files import parsing

TABLES = (".csv", ".tsv")
JSONL_NAME = "captions.jsonl"
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")  # of Hugging Face

USUAL_COLUMNS = {
    "image": ("image", "file_name", "filename"),
    "caption": ("caption", "captions", "text"),
    "split": ("split",),
}
_DEFAULT_SPLIT = "train"
# As Hugging Face reads the names of folders and files: train/, data/test-00000-of-00002.parquet.
_SPLIT_NAME = re.compile(r"(?:^|/)(train|validation|valid|val|dev|test)(?=[-._/\d]|$)")
_LINE = '{"image": "images/a.jpg", "split": "train", "captions": ["..."]}'
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

    def pick(self, fields: dict[str, Any], where: str) -> tuple[Any, Any, Any]:
        """Return image, captions and split of a row."""
        image, captions, split = (fields.get(self.find(k, fields, where)) for k in USUAL_COLUMNS)
        return image, captions, split


USUAL = Columns()


class Row(NamedTuple):
    """Some captions of an image, not checked yet."""

    file: str  # to whose folder the image's path is relative, else to the store
    where: str  # for errors
    image: Any
    captions: Any  # a string or a list
    split: Any = None  # if None, what `file` is named after, or a folder of the image


class CaptionedImage(NamedTuple):
    """An image's path in its store, split and captions."""

    image: str
    split: str
    captions: tuple[str, ...]


def read_captions(
    store: ImageStore, captions: Path | None, columns: Columns, counts: collections.Counter[str]
) -> list[CaptionedImage]:
    """Return images with captions, of the file `captions` or the first form that is in the store.

    In this order: `captions.jsonl`; Hugging Face's metadata; WebDataset tars; one .txt per image;
    CSV or TSV; Parquet. `counts` is of what is left out.
    """
    return collect(_rows(store, captions, columns), store, counts)


def _rows(store: ImageStore, captions: Path | None, columns: Columns) -> Iterable[Row]:
    def tables(files: list[str]) -> Iterator[Row]:
        for file in files:
            yield from read_table(store.read(file), file, columns)

    def ending(*suffixes: str) -> list[str]:
        return [name for name in sorted(store) if name.lower().endswith(suffixes)]

    if captions is not None:
        if not captions.is_file():
            raise DataError(f"no caption file at {captions}")
        data, file = captions.read_bytes(), captions.name
        is_table = captions.suffix.lower() in TABLES
        return read_table(data, file, columns) if is_table else parse_jsonl(data, file)
    own = sorted(name for name, ref in store.items() if ref.name == JSONL_NAME)
    if len(own) > 1:
        raise DataError(f"{store.source} has several {JSONL_NAME}: {', '.join(own)}; name one")
    if own:
        return parse_jsonl(store.read(own[0]), own[0])
    if metadata := [name for name in sorted(store) if store[name].name in METADATA_NAMES]:
        return tables(metadata)
    if tars := ending(".tar"):  # beside which img2dataset leaves Parquet without images
        add_tar_members(store, tars)
        return text_rows(store, by_folder=True)
    if texts := list(text_rows(store)):
        return texts
    if files := ending(*TABLES):
        return tables(files)
    return (row for file in ending(".parquet") for row in parquet_rows(store, file, columns))


def collect(
    rows: Iterable[Row], store: ImageStore, counts: collections.Counter[str]
) -> list[CaptionedImage]:
    """Check rows and bring together the captions of each image; empty ones are counted."""
    images: dict[str, CaptionedImage] = {}
    places: dict[str, str] = {}
    missing: list[str] = []
    for file, where, name, texts, split in rows:
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: the image must be a path, not {name!r}")
        beside = (PurePosixPath(file).parent / name).as_posix()
        path = beside if beside in store else PurePosixPath(name).as_posix()
        if path not in store:
            missing.append(f"{where}: {name}")
            continue
        if split is None:
            split = split_of(f"{file}/{PurePosixPath(path).parent}/")
        if not isinstance(split, str) or not re.fullmatch(r"(?!all$)[A-Za-z]\w*", split, re.ASCII):
            fault = f'"split" is {split!r}; use letters, digits and _ ("all" is taken)'
            raise DataError(f"{where}: {fault}")
        texts = texts if isinstance(texts, list) else [texts]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise DataError(f"{where}: the caption must be a string or a list of strings")
        kept = clean_captions([text or "" for text in texts], where, counts, may_be_none=True)
        known = images.get(path, CaptionedImage(path, split, ()))
        if known.split != split:
            raise DataError(f"{where}: image {name!r} is in split {known.split!r} already")
        images[path] = known._replace(captions=known.captions + kept)
        places.setdefault(path, where)
    if missing:
        raise DataError(
            f"captions name {len(missing)} images that are not in {store.source}:{listed(missing)}"
        )
    for path, image in images.items():
        if not image.captions:
            clean_captions((), places[path])  # raises
    return list(images.values())


def split_of(path: str) -> str:
    """Return the split that a folder or file of a path is named after; "train" if none is."""
    found = _SPLIT_NAME.search(path)
    return found[1] if found else _DEFAULT_SPLIT


# JSON lines, CSV and TSV; one .txt per image.


def parse_jsonl(data: bytes, file: str) -> Iterator[Row]:
    """Yield lines with `image`, all its `captions`, and optionally `split`."""
    lines: dict[str, str] = {}
    for where, fields in _json_objects(data, file, _LINE):
        image, texts = fields.get("image"), fields.get("captions")
        strings = [image, *texts] if image and isinstance(texts, list) else [None]
        if not all(isinstance(text, str) for text in strings):
            what = '"image" must be a path and "captions" a list of strings'
            raise DataError(f"{where}: {what}; expected {_LINE}")
        path = PurePosixPath(str(image)).as_posix()
        if path in lines:
            raise DataError(
                f"{where}: image {path!r} already has captions in {lines[path]}; put all captions "
                "of an image in one line"
            )
        lines[path] = where
        yield Row(file, where, path, texts, fields.get("split", _DEFAULT_SPLIT))


def _json_objects(data: bytes, file: str, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(decode_text(data, file).split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            with parsing(where, DataError, f"a JSON object such as {example}"):
                fields = dict(json.loads(line))
            yield where, fields


def decode_text(data: bytes, file: str) -> str:
    """Decode UTF-8; an error names the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line}: not UTF-8 text ({error.reason})") from error


def read_table(data: bytes, file: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of CSV, TSV or Hugging Face's JSON lines by their line numbers."""
    if file.lower().endswith(".jsonl"):
        for where, fields in _json_objects(data, file, _METADATA):
            yield Row(file, where, *columns.pick(fields, where))
        return
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    text = io.StringIO(decode_text(data, file), newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header, number = None, 1
    try:
        for row in rows:
            where, number = f"{file}, line {number}", rows.line_num + 1
            if header is None:
                header = row
            elif row and len(row) != len(header):
                raise DataError(f"{where}: {len(row)} fields; the header has {len(header)}")
            elif row:
                fields = dict(zip(header, row, strict=True))
                yield Row(file, where, *columns.pick(fields, where))
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: {error}") from error


def text_rows(store: ImageStore, *, by_folder: bool = False) -> Iterator[Row]:
    """Yield captions from one .txt file beside each image (`a/b.jpg`, `a/b.txt`), one per line."""
    images: dict[str, str] = {}
    for image in store.images():
        path = PurePosixPath(image)
        text = path.with_suffix(".txt").as_posix()
        if text not in store:
            continue
        if text in images:
            raise DataError(f"{text} describes two images: {images[text]!r} and {image!r}")
        images[text] = image
        lines = decode_text(store.read(text), text).split("\n")
        while len(lines) > 1 and not lines[-1].strip():  # the end of a file, not a caption
            lines.pop()
        split = split_of(f"{path.parent}/") if by_folder else _DEFAULT_SPLIT
        yield Row(text, text, path.name, lines, split)


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


def add_tar_members(store: ImageStore, files: Sequence[str]) -> None:
    """Add the members of tars to the store; captions are KEY.txt beside KEY.jpg, as of img2dataset.

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


def parquet_rows(store: ImageStore, file: str, columns: Columns) -> Iterator[Row]:
    """Add each row's image to the store, named FILE/ROW, and yield its captions."""
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
                name = f"{PurePosixPath(file).name}/{number}"
                store[f"{file}/{number}"] = ParquetRow(path, size, column, number)
                yield Row(file, f"{file}, row {number}", name, fields[caption], fields.get(split))
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

    `variant` is its name and config in `data_dir`, such as "coco_captions/2014"; `caption_key` is
    "captions/text" if the texts are within another feature.
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
        captions = list(clean_captions(texts, self._keys["caption_key"]))
        return {"image": values["image_key"][0], "captions": captions}

    def _damaged(self, what: str, why: object) -> DataError:
        if not any(self.directory.glob("*.array_record*")):
            why = "it has other files than ArrayRecord: tfds build ... --file_format=array_record"
        return DataError(f"{what} of {self.directory} cannot be used: {why}")
