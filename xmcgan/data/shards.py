"""Captioned images to ArrayRecord files, one shard per process: fast, in bounded memory."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from xmcgan.data.images import check_image
from xmcgan.data.sources import FileRef
from xmcgan.errors import DataError, listed

SHARD_BYTES = 128 * 1024**2  # images of one file; what a worker does between two reports
NARRATIVES = "narratives_per_image"  # in metadata.json, if each caption is an example
# Image bytes do not compress. One record per group: each can be read alone.
_WRITER_OPTIONS = "group_size:1,uncompressed"
FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(),
        "name": tfds.features.Text(),
        "captions": tfds.features.Sequence(tfds.features.Text()),
        "image_id": tfds.features.Text(),
        "caption_ids": tfds.features.Sequence(tfds.features.Text()),
        "source_split": tfds.features.Text(),
        "scene": tfds.features.Text(),
    }
)
_UNKNOWN = {"image_id": "", "caption_ids": [], "source_split": "", "scene": ""}


class Entry(Protocol):
    """One image to store, loaded by the process that writes it: picklable.

    `load` returns what is stored, by the names of `FEATURES`; raises `DataError` if it is unusable.
    """

    @property
    def size(self) -> int: ...  # bytes, about

    def load(self) -> dict[str, Any]: ...


class ImageEntry(NamedTuple):
    """An image file, and what is known of it."""

    image: FileRef
    name: str  # file name in the official data, or path in the user's
    captions: tuple[str, ...]
    image_id: str = ""  # as the official data set writes it
    caption_ids: tuple[str, ...] = ()
    source_split: str = ""  # the official one, such as "train2014"
    check: Callable[[bytes, str], object] = check_image  # raises DataError for unusable bytes

    @property
    def size(self) -> int:
        return self.image.size

    def load(self) -> dict[str, Any]:
        """Read and check the image."""
        image = self.image.read()
        self.check(image, self.name)
        fields = self._asdict()
        del fields["check"]
        return {**fields, "image": image}


@dataclasses.dataclass
class Contents:
    """What is to be written into a data set, before any image is opened."""

    splits: Mapping[str, Sequence[Entry]]
    recipe: dict[str, Any]  # must be equal in a data set of that name that is there already
    sources: Sequence[Path] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # numbers by kind
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)  # examples by split
    narratives: bool = False  # each caption is an example of its own

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entries in self.splits.values() for entry in entries)


class ShardReport(NamedTuple):
    """What a shard holds, and the faults of the images left out."""

    caption_counts: list[int]  # per image
    num_bytes: int
    faults: list[str]


class ShardJob(NamedTuple):
    split: str
    path: str
    entries: Sequence[Entry]


def digest(rows: Iterable[object]) -> str:
    """Return 16 hex digits of what the rows print as."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(repr(row).encode())
    return sha.hexdigest()[:16]


def split_into_shards(entries: Sequence[Entry], max_bytes: int) -> list[Sequence[Entry]]:
    """Cut entries into runs of about `max_bytes` each; a function of the sizes alone."""
    shards: list[Sequence[Entry]] = []
    start = size = 0
    for number, entry in enumerate(entries):
        if size and size + entry.size > max_bytes:
            shards.append(entries[start:number])
            start, size = number, 0
        size += entry.size
    return [*shards, entries[start:]]


def write_version(
    folder: Path, name: str, contents: Contents, num_workers: int, skip_damaged: bool
) -> None:
    """Write a data set's record files into an empty folder, with metadata for TFDS to find them."""
    jobs = []
    for split, entries in contents.splits.items():
        shards = split_into_shards(entries, SHARD_BYTES)
        for index, shard in enumerate(shards):
            file = f"{name}-{split}.array_record-{index:05d}-of-{len(shards):05d}"
            jobs.append(ShardJob(split, str(folder / file), shard))
    total = sum(map(len, contents.splits.values()))
    # disable=None: a bar on a terminal, nothing in a file of logs.
    with tqdm(total=total, desc=f"writing {name}", unit="img", disable=None) as bar:
        reports = write_shards(jobs, num_workers, bar.update)
    left_out = dict(contents.left_out)
    if faults := [fault for report in reports for fault in report.faults]:
        if not skip_damaged or 2 * len(faults) > total:  # most of them: something else is wrong
            raise DataError(
                f"{len(faults):,} of {total:,} images cannot be used:{listed(faults)}\n"
                "repair them or remove their captions; of the official data sets, --skip-damaged "
                "leaves them out"
            )
        left_out["damaged images"] = len(faults)
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=name, filetype_suffix="array_record"
    )
    counts: dict[str, list[int]] = {}
    infos = []
    for split in contents.splits:
        found = [report for job, report in zip(jobs, reports, strict=True) if job.split == split]
        counts[split] = [num for report in found for num in report.caption_counts]
        lengths, num_bytes = [len(r.caption_counts) for r in found], sum(r.num_bytes for r in found)
        place = template.replace(split=split)
        infos.append(tfds.core.SplitInfo(split, lengths, num_bytes, filename_template=place))
    metadata = {
        **contents.recipe,
        "sources": [str(source.resolve()) for source in contents.sources],
        "left_out": left_out,
        "num_captions": {split: sum(found) for split, found in counts.items()},
    }
    if contents.narratives:
        metadata[NARRATIVES] = counts
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=infos,
        metadata=tfds.core.MetadataDict(metadata),
        check_data=False,  # it would want TensorFlow
    )


def write_shards(
    jobs: Sequence[ShardJob], num_workers: int, report: Callable[[int], object]
) -> list[ShardReport]:
    """Write shards in worker processes, or here if one is enough; `report` numbers of images."""
    num_bytes = sum(entry.size for job in jobs for entry in job.entries)
    # A process takes seconds to start, in which another writes a shard.
    num_workers = min(num_workers, 1 + num_bytes // SHARD_BYTES)
    if num_workers == 1:
        return [write_shard(job, report) for job in jobs]
    context = multiprocessing.get_context("spawn")  # threads of this process do not survive a fork
    try:
        with concurrent.futures.ProcessPoolExecutor(
            num_workers, mp_context=context, initializer=_exit_with_parent
        ) as pool:
            reports = []
            for job, done in zip(jobs, pool.map(write_shard, jobs), strict=True):
                reports.append(done)  # the first fault ends the rest
                report(len(job.entries))
            return reports
    except concurrent.futures.process.BrokenProcessPool as error:
        folder = Path(jobs[0].path).parent
        raise DataError(f"a process that wrote to {folder} died: {error}") from error


def write_shard(job: ShardJob, report: Callable[[int], object] = lambda num: None) -> ShardReport:
    """Read, check and store the images of one shard; those with faults are left out and named."""
    specs: Any = FEATURES.get_serialized_info()
    serializer = tfds.core.ExampleSerializer(specs)
    counts: list[int] = []
    faults: list[str] = []
    num_bytes = 0
    with contextlib.closing(ArrayRecordWriter(job.path, _WRITER_OPTIONS)) as writer:
        for entry in job.entries:
            report(1)
            try:
                fields = entry.load()
            except DataError as error:
                faults.append(str(error))
                continue
            example = serializer.get_tf_example(FEATURES.encode_example({**_UNKNOWN, **fields}))
            # Not TFDS's serialize_example: the order of its fields changes from run to run.
            writer.write(example.SerializeToString(deterministic=True))
            counts.append(len(fields["captions"]))
            num_bytes += len(fields["image"])
    return ShardReport(counts, num_bytes, faults)


def _exit_with_parent() -> None:
    """End a worker when its parent is killed; it would wait for work forever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
