"""Batches for training, and fixed examples for sample grids and evaluation.

The order is a function of (seed, step) alone: Grain computes the position in the shuffled epoch,
the caption and the flip of every example from its index, so a run resumes at step k by starting at
index k and stores no iterator state.
"""

import dataclasses
import logging
from collections.abc import Generator
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8

from xmcgan.data import Example, Source
from xmcgan.data.images import Resize, decode_image, resize_image
from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import DataError

Batch = dict[str, np.ndarray]

_THREADS = 4  # decoding releases the interpreter lock, so threads use the cores
_PREFETCH_BATCHES = 4  # no fewer than the threads, or Grain idles some
_WORKER_BUFFER = 2


def steps_per_epoch(num_examples: int, batch_size: int, d_steps: int = 1) -> float:
    """Return how many training steps pass over the data once; each takes `d_steps` batches."""
    return num_examples / (batch_size * d_steps)


def num_steps(epochs: float, num_examples: int, batch_size: int, d_steps: int = 1) -> int:
    """Return the number of steps that see every example at least `epochs` times (rounded up)."""
    return int(np.ceil(epochs * steps_per_epoch(num_examples, batch_size, d_steps)))


class SkippingSource:
    """A source that gives the next readable example in the place of a damaged one.

    What stands in for a record is a function of its index, so a resumed run sees the same examples.
    Each process counts the damaged records that it meets.
    """

    def __init__(self, source: Source, max_damaged: int) -> None:
        # The last record is kept: if all are damaged, nothing can stand in.
        self._source, self._max_damaged = source, min(max_damaged, len(source) - 1)
        self._damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        while True:
            try:
                return self._source[index]
            except DataError as error:
                if index not in self._damaged:
                    self._damaged.add(index)
                    num, most = len(self._damaged), self._max_damaged
                    if num > most:
                        what = f"More records are damaged than data.max_damaged_records = {most}"
                        raise DataError(f"{error}\n{what} allows.") from error
                    logging.warning(
                        "damaged record %d of at most %d left out: %s", num, most, error
                    )
                index = (index + 1) % len(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_damaged": set()}


@dataclasses.dataclass(frozen=True)
class _ToArrays(grain.transforms.RandomMap):
    """Example to arrays, with a random caption and a random flip."""

    tokenizer: Tokenizer
    image_size: int
    resize: Resize
    flip: bool

    def random_map(self, element: Example, rng: np.random.Generator) -> Batch:
        # Both are drawn in every case, so that switching the flip changes no caption.
        choice, mirrored = rng.integers(len(element.captions)), rng.random() < 0.5
        decoded = decode_image(element.image, element.name)
        image = resize_image(decoded, self.image_size, self.resize)
        if self.flip and mirrored:
            image = np.ascontiguousarray(image[:, ::-1])
        token_ids, word_mask = self.tokenizer([element.captions[choice]])
        return {"image": image, "token_ids": token_ids[0], "word_mask": word_mask[0]}


def _closing(dataset: grain.IterDataset[Batch]) -> Generator[Batch, None, None]:
    """Yield from a data set, and end its threads and processes with the generator."""
    iterator = iter(dataset)
    try:
        yield from iterator
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise DataError(
            f"a process that decodes images died, as when memory runs out: {error}; the same "
            "command resumes, with fewer of them by --config.data.num_workers"
        ) from error
    finally:
        iterator.close()


def train_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    d_steps: int,
    image_size: int,
    resize: Resize,
    flip: bool,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Yield training batches without end, reshuffled every epoch; `close()` ends the threads.

    Batch k holds examples k * d_steps * batch_size and following of the shuffled stream, whatever
    `start_step`, `num_workers` and `share`; no example is dropped at the end of an epoch.

    Args:
        seed: of order, captions and flips, from 0 to 2**32 - 1.
        num_workers: decoding processes; 0 decodes in threads of this process.
        share: (i, n): only the i-th of n equal slices of every batch is read, that of process i.

    Yields:
        `image` uint8 (d_steps, b / n, h, w, 3), `token_ids` int32 (d_steps, b / n, t) and
        `word_mask` bool of the same shape, True for real tokens.
    """
    if batch_size > len(source):
        raise DataError(
            f"batch_size is {batch_size}, but the data set has {len(source)} examples: a batch "
            "would hold the same image twice and contrast it with itself"
        )
    index, count = share
    if batch_size % count:
        raise DataError(f"a batch of {batch_size} images does not divide over {count} processes")
    batches = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(2**52 // len(source))  # endless would overflow where a batch is one image
        .random_map(_ToArrays(tokenizer, image_size, resize, flip))
        .batch(batch_size // count)
        .slice(slice(index, None, count))
        .batch(d_steps)
        .slice(slice(start_step, None))
    )
    if num_workers == 0:
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH_BATCHES)
        return _closing(batches.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():  # Grain reads its flags; notebooks and tests parse none
        flags.FLAGS.mark_as_parsed()
    workers = grain.multiprocessing.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=_WORKER_BUFFER
    )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_WORKER_BUFFER)
    return _closing(batches.to_iter_dataset(options).mp_prefetch(workers))


def fixed_examples(
    source: Source, num: int, *, seed: int, image_size: int, resize: Resize
) -> tuple[UInt8[np.ndarray, "n h w 3"], list[str]]:
    """Return the same examples on every call: different images, one caption each, no flip."""
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for index in rng.choice(len(source), size=num, replace=False):
        example = source[int(index)]
        image = decode_image(example.image, example.name)
        images.append(resize_image(image, image_size, resize))
        captions.append(example.captions[rng.integers(len(example.captions))])
    return np.stack(images), captions
