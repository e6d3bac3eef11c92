"""Batches for training, and fixed examples for sample grids and evaluation.

The order is a function of (seed, step) alone: Grain computes the position in the shuffled epoch,
the caption and the flip of every example from its index, so a run resumes at step k by starting at
index k and stores no iterator state.
"""

import dataclasses
from collections.abc import Generator

import grain
import numpy as np
from absl import flags
from jaxtyping import UInt8

from xmcgan.data.images import RESIZE_MODES, Resize, decode_image, resize_image
from xmcgan.data.sources import Example, Source
from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import DataError

Batch = dict[str, np.ndarray]

_THREADS = 4  # decoding releases the interpreter lock, so threads use the cores
_PREFETCH_BATCHES = 4  # no fewer than the threads, or Grain idles some
_WORKER_BUFFER = 2


def steps_per_epoch(num_examples: int, batch_size: int, d_steps: int = 1) -> float:
    """Return how many training steps pass over the data once.

    Args:
        num_examples: size of the training split.
        batch_size: images of one discriminator or generator update.
        d_steps: discriminator updates per step, each on a batch of its own.
    """
    return num_examples / (batch_size * d_steps)


def num_steps(epochs: float, num_examples: int, batch_size: int, d_steps: int = 1) -> int:
    """Return the number of steps that see every example at least `epochs` times (rounded up)."""
    return int(np.ceil(epochs * steps_per_epoch(num_examples, batch_size, d_steps)))


@dataclasses.dataclass(frozen=True)
class _ToArrays(grain.transforms.RandomMap):
    """Turn a stored example into arrays, choosing its caption and its flip."""

    tokenizer: Tokenizer
    image_size: int
    resize: Resize
    flip: bool

    def random_map(self, element: Example, rng: np.random.Generator) -> Batch:
        # Both are drawn in every case, so that switching the flip changes no caption.
        choice, mirrored = rng.integers(len(element.captions)), rng.random() < 0.5
        image = resize_image(
            decode_image(element.image, element.name), self.image_size, self.resize
        )
        if self.flip and mirrored:
            image = np.ascontiguousarray(image[:, ::-1])
        token_ids, word_mask = self.tokenizer([element.captions[choice]])
        return {"image": image, "token_ids": token_ids[0], "word_mask": word_mask[0]}


def _check(source: Source, batch_size: int, d_steps: int, image_size: int, resize: str) -> None:
    for name, value in (
        ("batch_size", batch_size),
        ("d_steps", d_steps),
        ("image_size", image_size),
    ):
        if value < 1:
            raise DataError(f"{name} is {value}; it must be at least 1")
    if resize not in RESIZE_MODES:
        raise DataError(f"resize is {resize!r}; it must be one of {', '.join(RESIZE_MODES)}")
    if batch_size > len(source):
        raise DataError(
            f"batch_size is {batch_size}, but the data set has {len(source)} examples: a batch "
            "would hold the same image twice and contrast it with itself"
        )


def _check_range(name: str, value: int, highest: int) -> None:
    if not 0 <= value <= highest:
        raise DataError(f"{name} is {value}; it must be from 0 to {highest}")


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
    num_microbatches: int = 1,
    start_step: int = 0,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Yield training batches without end, reshuffled every epoch.

    Batch k holds examples k * d_steps * batch_size and following of the shuffled stream, whatever
    `start_step`, `num_workers` and `share`; no example is dropped at the end of an epoch.

    Args:
        source: the training split.
        tokenizer: turns the chosen caption into ids.
        batch_size: b, images of one update.
        d_steps: discriminator updates per step.
        image_size: side of the square images in pixels.
        resize: "crop" (central square) or "squash" (both sides scaled).
        flip: mirror half of the images; leave off where captions speak of left and right.
        seed: of order, captions and flips, from 0 to 2**32 - 1.
        num_microbatches: m, parts of b / m images that a batch comes in.
        start_step: number of the first batch to yield.
        num_workers: decoding processes; 0 decodes in threads of this process.
        share: (i, n): only the i-th of n equal slices of every batch is read, that of process i.

    Returns:
        A generator of `image` uint8 (d_steps * m, b / m / n, h, w, 3), `token_ids` int32 (d_steps
        * m, b / m / n, t) and `word_mask` bool of the same shape, True where a real token stands.
        Its `close()` ends the threads and processes.

    Raises:
        DataError: an argument cannot work; later, a record or an image that cannot be read.
    """
    _check(source, batch_size, d_steps, image_size, resize)
    _check_range("seed", seed, 2**32 - 1)
    _check_range("start_step", start_step, 2**48)
    _check_range("num_workers", num_workers, 256)
    index, count = share
    part_size = batch_size // num_microbatches
    if part_size % count:
        raise DataError(f"a batch of {part_size} images does not divide over {count} processes")
    batches = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(2**52 // len(source))  # endless would overflow where a batch is one image
        .random_map(_ToArrays(tokenizer, image_size, resize, flip))
        .batch(part_size // count)
        .slice(slice(index, None, count))
        .batch(d_steps * num_microbatches)
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
    source: Source,
    num: int,
    *,
    seed: int,
    image_size: int,
    resize: Resize,
) -> tuple[UInt8[np.ndarray, "n h w 3"], list[str]]:
    """Return the same examples on every call: different images, one caption each, no flip.

    Args:
        source: any split.
        num: how many; at most the size of the split.
        seed: of the choice of images and captions.
        image_size: side of the square images in pixels.
        resize: "crop" or "squash", as in training.

    Returns:
        Images and the caption chosen for each.

    Raises:
        DataError: the split has fewer examples, or one cannot be read.
    """
    _check(source, 1, 1, image_size, resize)
    if not 1 <= num <= len(source):
        raise DataError(f"{num} examples asked of a data set that has {len(source)}")
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for index in rng.choice(len(source), size=num, replace=False):
        example = source[int(index)]
        image = decode_image(example.image, example.name)
        images.append(resize_image(image, image_size, resize))
        captions.append(example.captions[rng.integers(len(example.captions))])
    return np.stack(images), captions
