"""Prepared data sets as random-access sequences of examples."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from xmcgan.errors import DataError, did_you_mean

BUILDERS = ("emoji", "shapes", "folder", "coco", "ln_coco", "ln_open_images", "coco_captions")
# Names that held-out images go by, in order of preference; first Karpathy's parts of val2014.
_HELD_OUT = ("restval+val+test", "validation", "val", "dev", "test")
NARRATIVES = "narratives_per_image"  # in metadata.json, where each caption is an example


@dataclasses.dataclass(frozen=True)
class Example:
    """Hold one captioned image as it is stored.

    Attributes:
        image: the bytes of the image file.
        captions: at least one caption.
        name: the image's name, unique within its split.
        scene: for `shapes`, the scene's attributes as JSON; empty elsewhere.
        image_id: as the official data set writes it; empty for `shapes` and `folder`.
        caption_ids: one of each caption, where the official data set has them.
    """

    image: bytes
    captions: list[str]
    name: str
    scene: str = ""
    image_id: str = ""
    caption_ids: list[str] = dataclasses.field(default_factory=list)


class Source(Protocol):
    """Give examples by index; all that the pipeline asks of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def dataset_dir(name: str, data_dir: Path | str) -> Path:
    """Return the folder that holds the versions of a data set.

    Args:
        name: "shapes", "folder/NAME", "coco", "coco/NAME" and so on.
        data_dir: root of all prepared data sets.
    """
    builder, _, config = name.partition("/")
    return Path(data_dir) / builder / (config or "default")


def prepare_command(name: str, data_dir: Path | str) -> str:
    """Return the command line that prepares a data set."""
    builder, _, config = name.partition("/")
    if builder == "coco_captions":
        return "  (TFDS prepares it: tfds build coco_captions --file_format=array_record)"
    command = f"python scripts/prepare_data.py {builder} --data-dir {data_dir}"
    if builder == "folder":
        return f"{command} --name {config or 'NAME'} --source DIR_OR_ZIP"
    if builder == "emoji":  # there is one only
        return command
    command = f"{command} --name {config}" if config else command
    return command if builder == "shapes" else f"{command} --source DIR (or --download)"


def _versions(name: str, data_dir: Path | str) -> list[Path]:
    builder = name.partition("/")[0]
    if builder not in BUILDERS:
        raise DataError(
            f"unknown data set {name!r}; known are {', '.join(BUILDERS)}, and /NAME"
            f"{did_you_mean(builder, BUILDERS)}"
        )
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

    Where each caption is an example of its own, the image is stored once all the same: example i is
    found by the numbers of captions of the images before it.

    Args:
        directory: the folder of one version, with `dataset_info.json` and the record files.
        split: name of the split, or several joined by "+".
    """

    def __init__(self, directory: Path, split: str):
        self._directory, self._split = directory, split

    @functools.cached_property
    def _records(self) -> Any:
        builder = _open_builder(self._directory)
        _check_split(builder, self._split, self._directory)
        try:
            # The records themselves: TFDS's decoding would take as long again as reading.
            return builder.as_data_source(self._split).data_source
        except Exception as error:  # a truncated file, sometimes without a message
            raise DataError(
                f"split {self._split!r} of {self._directory} is damaged: {error or 'no detail'}; "
                "delete that folder and prepare it again"
            ) from error

    @functools.cached_property
    def _ends(self) -> np.ndarray | None:
        """Return for each record how many examples end with it; None where it is one each."""
        per_image = _narratives_per_image(self._directory)
        if per_image is None:
            return None
        counts = [per_image.get(part, []) for part in self._split.split("+")]
        ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
        if len(ends) != len(self._records):
            raise DataError(
                f"{self._directory} is damaged: {len(self._records)} records, but metadata.json "
                f"speaks of {len(ends)}; delete that folder and prepare it again"
            )
        return ends

    def __len__(self) -> int:
        num_records = len(self._records)
        return num_records if self._ends is None else int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        if self._ends is None:
            return self._read(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = int(np.searchsorted(self._ends, index, side="right"))
        return _narrative(self._read(record), int(self._ends[record]) - index)

    def one_per_image(self) -> list[int]:
        """Return the index of one example of each image, for what concerns images alone."""
        return list(range(len(self))) if self._ends is None else [0, *self._ends[:-1].tolist()]

    def _read(self, index: int) -> Example:
        records = self._records
        if not 0 <= index < len(records):
            raise IndexError(index)
        try:
            stored: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
            stored.ParseFromString(records[index])
            fields = stored.features.feature
            if "image" not in fields:  # of a truncated file come empty records
                raise ValueError("it has no image")
            example = _to_example(fields)
            if not example.captions:
                raise ValueError("it has no caption")
            return example
        except Exception as error:  # of the reader, the parser, or fields of other kinds
            place = self._directory / _file_of(self._directory, self._split, index)
            raise DataError(
                f"record {index} of split {self._split!r} in {place} is damaged ({error}); "
                f"delete the folder {self._directory} and prepare it again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"_directory": self._directory, "_split": self._split}


def _check_split(builder: Any, split: str, directory: Path) -> None:
    splits = builder.info.splits
    if not all(part in splits for part in split.split("+")):
        known = ", ".join(sorted(splits))
        raise DataError(f"{directory} has no split {split!r}; it has: {known}")


def _file_of(directory: Path, split: str, index: int) -> str:
    """Return the name of the file that holds a record; splits and shards follow each other."""
    infos = _open_builder(directory).info.splits
    for info in (infos[part] for part in split.split("+")):
        for name, length in zip(info.filenames, info.shard_lengths, strict=True):
            if index < length:
                return name
            index -= length
    return ""


def _narratives_per_image(directory: Path) -> dict[str, list[int]] | None:
    path = directory / "metadata.json"
    try:
        return json.loads(path.read_bytes()).get(NARRATIVES) if path.exists() else None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is not readable: {error}") from error


def _to_example(fields: Any) -> Example:
    """Return a record as an example; records of TFDS's own `coco_captions` have other fields."""
    if "image/filename" in fields:
        return Example(
            image=fields["image"].bytes_list.value[0],
            captions=_texts(fields, "captions/text"),
            name=_text(fields, "image/filename"),
            image_id=str(fields["image/id"].int64_list.value[0]),
            caption_ids=[str(number) for number in fields["captions/id"].int64_list.value],
        )
    return Example(
        image=fields["image"].bytes_list.value[0],
        captions=_texts(fields, "captions"),
        name=_text(fields, "name"),
        scene=_text(fields, "scene"),
        image_id=_text(fields, "image_id"),
        caption_ids=_texts(fields, "caption_ids"),
    )


def _texts(fields: Any, key: str) -> list[str]:
    return [text.decode() for text in fields[key].bytes_list.value] if key in fields else []


def _text(fields: Any, key: str) -> str:
    return fields[key].bytes_list.value[0].decode() if key in fields else ""


def _narrative(example: Example, from_end: int) -> Example:
    """Keep one caption of an example, the `from_end`-th from the end, and name it after that."""
    caption_id = example.caption_ids[-from_end]
    return dataclasses.replace(
        example,
        captions=[example.captions[-from_end]],
        caption_ids=[caption_id],
        name=f"{example.name}#{caption_id}",
    )


def load_source(name: str, data_dir: Path | str, split: str) -> TfdsSource:
    """Open one split of a prepared data set.

    Args:
        name: "shapes", "folder/NAME", "coco" and so on.
        data_dir: root of all prepared data sets.
        split: "train", "validation", or what the data's own captions call it; several joined by
            "+" are read one after the other.

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
    directory = find_version(name, data_dir)
    infos = _open_builder(directory).info.splits
    per_image = _narratives_per_image(directory)
    if per_image is not None:
        return {split: sum(per_image[split]) for split in infos}
    return {split: info.num_examples for split, info in infos.items()}


def held_out_split(name: str, data_dir: Path | str) -> str | None:
    """Return the split of images that were not trained on, by its name; None where there is none.

    Of COCO in Karpathy's splits it is all of val2014, which the field evaluates on.
    """
    splits = list_splits(name, data_dir)
    return next((s for s in _HELD_OUT if all(part in splits for part in s.split("+"))), None)


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
