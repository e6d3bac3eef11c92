"""The data pipeline beside a bare Pillow loop that decodes the same files."""

import io
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import median_ratio, medians, one_core, take_turns
from xmcgan.data import Source
from xmcgan.data.images import KEPT_BLOCKS
from xmcgan.data.pipeline import train_batches
from xmcgan.data.tokenizer import Tokenizer

Clock = Callable[[], float]

BATCH = 4  # small: what the threads hold back at the end counts against the pipeline
# GFLOP of a step per image of the generator's batch (two discriminator updates, one generator
# update), by the compiler's count; each takes two images from the data.
STEP_GFLOP = {128: 258.0, 256: 913.0}
IMAGES_PER_STEP_IMAGE = 2


def bare_loop(
    files: Sequence[bytes], size: int, num: int, clock: Clock = time.perf_counter
) -> float:
    """Decode `num` encoded images to squares with Pillow alone; return images per second."""
    Image.core.set_blocks_max(0)  # Pillow's default
    Image.core.clear_cache()
    start = clock()
    for data in itertools.islice(itertools.cycle(files), num):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return num / (clock() - start)


def pipeline(
    source: Source,
    tokenizer: Tokenizer,
    size: int,
    num: int,
    num_workers: int = 0,
    clock: Clock = time.perf_counter,
) -> float:
    """Take `num` images in training batches; return images per second once buffers are full."""
    batches = train_batches(
        source,
        tokenizer,
        batch_size=BATCH,
        d_steps=1,
        image_size=size,
        resize="crop",
        flip=True,
        seed=0,
        num_workers=num_workers,
    )
    Image.core.set_blocks_max(KEPT_BLOCKS)
    try:
        warm_up = 4 + 3 * num_workers  # more than the pipeline holds back
        for _ in range(warm_up):
            next(batches)
        start = clock()
        num_batches = -(-num // BATCH)
        for _ in range(num_batches):
            next(batches)
        return num_batches * BATCH / (clock() - start)
    finally:
        batches.close()


def compare(
    source: Source, tokenizer: Tokenizer, size: int, *, num: int, rounds: int
) -> dict[str, Any]:
    """Measure both on one core, in turns, by processor time: others may use the core too."""
    images = (source[i].image for i in range(min(len(source), num)))
    files = [image for image in images if isinstance(image, bytes)]
    with one_core():
        rates = take_turns(
            {
                "pipeline": lambda: pipeline(source, tokenizer, size, num, clock=time.process_time),
                "bare loop": lambda: bare_loop(files, size, num, clock=time.process_time),
            },
            rounds,
        )
    return {
        "image_size": size,
        "images_per_second": medians(rates),
        "ratio": median_ratio(rates, "pipeline", "bare loop"),
        "rounds": rates,
    }


def scaling(
    source: Source,
    tokenizer: Tokenizer,
    size: int,
    *,
    num: int,
    rounds: int,
    workers: Sequence[int],
) -> dict[str, Any]:
    """Measure the pipeline with several numbers of worker processes, on all cores, in turns."""
    rates = take_turns(
        {
            str(number): lambda number=number: pipeline(source, tokenizer, size, num, number)
            for number in workers
        },
        rounds,
    )
    speedup = {name: median_ratio(rates, name, str(workers[0])) for name in rates}
    return {"image_size": size, "images_per_second": medians(rates), "speedup": speedup}


def cores_for_gpu(images_per_second: float, size: int, sustained_tflops: float) -> dict[str, float]:
    """Return how many cores, each of `images_per_second`, feed an accelerator in training."""
    consumption = IMAGES_PER_STEP_IMAGE * sustained_tflops * 1e3 / STEP_GFLOP[size]
    return {
        "image_size": size,
        "consumed_per_second": consumption,
        "cores": consumption / images_per_second,
    }
