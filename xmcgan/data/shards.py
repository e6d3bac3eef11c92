"""Captioned images to ArrayRecord files, a shard a process: fast, in bounded memory."""

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from xmcgan.data.file_index import FileRef
from xmcgan.data.images import check_image
from xmcgan.errors import DataError

SHARD_BYTES = 128 * 1024**2  # images of one file; what a worker does between two reports
# Image bytes do not compress. One record a group: each can be read alone.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_LENGTH_DELIMITED = 2  # protocol buffers' wire type of strings and messages


class Entry(NamedTuple):
    """Hold one image to store and what is known of it.

    Attributes:
        image: where its bytes are.
        name: its file name in the official data.
        image_id: as its data set writes it.
        source_split: the official split it comes from, such as "train2014".
        captions: at least one.
        caption_ids: one of each caption.
    """

    image: FileRef
    name: str
    image_id: str
    source_split: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...]


class ShardReport(NamedTuple):
    """Say what a shard holds.

    Attributes:
        caption_counts: captions of each image stored, in their order.
        num_bytes: of the images stored.
        faults: of the images left out, each with its name.
    """

    caption_counts: list[int]
    num_bytes: int
    faults: list[str]


def cut_shards(entries: Sequence[Entry], most: int = SHARD_BYTES) -> list[Sequence[Entry]]:
    """Cut entries into runs of about `most` image bytes each; a function of the sizes alone."""
    shards: list[Sequence[Entry]] = []
    start = size = 0
    for number, entry in enumerate(entries):
        if size and size + entry.image.size > most:
            shards.append(entries[start:number])
            start, size = number, 0
        size += entry.image.size
    return [*shards, entries[start:]]


def serialize(entry: Entry, image: bytes) -> bytes:
    """Return a `tf.train.Example`, as TFDS writes it, of an entry and its image's bytes.

    The image's field is put together by hand and the others are appended: concatenated messages
    merge, and so the image is copied once and not four times.
    """
    example: Any = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    fields = example.features.feature
    for key in ("name", "image_id", "source_split"):
        fields[key].bytes_list.value.append(getattr(entry, key).encode())
    for key in ("captions", "caption_ids"):
        fields[key].bytes_list.value.extend(text.encode() for text in getattr(entry, key))
    # Example.features(1) > Features.feature(1) > {key(1), value(2)} > bytes_list(1) > value(1)
    head = _tag(1, len(image))
    head = _tag(1, len(head) + len(image)) + head
    head = _tag(1, len(b"image")) + b"image" + _tag(2, len(head) + len(image)) + head
    head = _tag(1, len(head) + len(image)) + head
    head = _tag(1, len(head) + len(image)) + head
    return b"".join((head, image, example.SerializeToString(deterministic=True)))


def _tag(field: int, length: int) -> bytes:
    """Return the head of a field in wire format: its number and type, and its length."""
    out = bytearray([field << 3 | _LENGTH_DELIMITED])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def write_shard(path: str, entries: Sequence[Entry]) -> ShardReport:
    """Read, check and store the images of one shard; those with faults are left out and named.

    Args:
        path: the ArrayRecord file to write.
        entries: what goes into it, in order.
    """
    counts: list[int] = []
    faults: list[str] = []
    num_bytes = 0
    writer = ArrayRecordWriter(path, _WRITER_OPTIONS)
    try:
        for entry in entries:
            try:
                image = entry.image.read()
                check_image(image, entry.name)
            except DataError as error:
                faults.append(str(error))
                continue
            writer.write(serialize(entry, image))
            counts.append(len(entry.captions))
            num_bytes += len(image)
    finally:
        writer.close()
    return ShardReport(counts, num_bytes, faults)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Hold the arguments of `write_shard`."""

    path: str
    entries: Sequence[Entry]


def write_shards(
    jobs: Sequence[ShardJob], num_workers: int, report: Callable[[int], object]
) -> list[ShardReport]:
    """Write shards in worker processes, or here where one is enough.

    Args:
        jobs: the shards.
        num_workers: processes at most.
        report: is called with the number of images of each shard that is done.

    Returns:
        What the shards hold, in the order of `jobs`.

    Raises:
        DataError: a worker died, as when the machine runs out of memory.
    """
    num_bytes = sum(entry.image.size for job in jobs for entry in job.entries)
    # A process takes seconds to start, in which another writes a shard.
    num_workers = min(num_workers, 1 + num_bytes // SHARD_BYTES)
    if num_workers == 1:
        return [_done(write_shard(job.path, job.entries), job, report) for job in jobs]
    context = multiprocessing.get_context("spawn")  # threads of this process do not survive a fork
    try:
        with concurrent.futures.ProcessPoolExecutor(
            num_workers, mp_context=context, initializer=_end_with_parent
        ) as pool:
            return list(_run(pool, jobs, report))
    except concurrent.futures.process.BrokenProcessPool as error:
        folder = Path(jobs[0].path).parent
        raise DataError(f"a process that wrote to {folder} died: {error}") from error


def _run(
    pool: concurrent.futures.Executor, jobs: Sequence[ShardJob], report: Callable[[int], object]
) -> Iterator[ShardReport]:
    waiting = collections.deque(
        (pool.submit(write_shard, job.path, job.entries), job) for job in jobs
    )
    try:
        while waiting:
            future, job = waiting.popleft()
            yield _done(future.result(), job, report)
    except BaseException:
        pool.shutdown(cancel_futures=True)  # the first fault ends the rest
        raise


def _done(done: ShardReport, job: ShardJob, report: Callable[[int], object]) -> ShardReport:
    report(len(job.entries))
    return done


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would wait for work forever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
