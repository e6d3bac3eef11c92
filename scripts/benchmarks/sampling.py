"""Latency and throughput of sampling, of the package and of the exported program."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from benchmarks.timing import median_ratio, medians, seconds, take_turns
from xmcgan.sampling.export import PROGRAM, WEIGHTS, export_model
from xmcgan.sampling.sampler import Sampler, TrainedModel, sample_noise

GENERATE = Path(__file__).parents[1] / "generate.py"
CAPTION = "a red circle"


def time_starts(flags: Sequence[str]) -> dict[str, float]:
    """Seconds from the command to its first image on disk, compiled anew and from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, GENERATE, *flags, "--caption", CAPTION, "--num", "1"]
        found = {}
        for name in ("first", "later"):
            start = time.perf_counter()
            out = f"{folder}/{name}"
            subprocess.run(
                [*command, "--out", out], env=environment, check=True, stdout=subprocess.DEVNULL
            )
            found[name] = time.perf_counter() - start
    return found


def measure_rates(model: TrainedModel, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Images per second of both programs by batch, in turns."""
    sampler = model.sampler
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, Path(folder))
        program = export.deserialize(bytearray((Path(folder) / PROGRAM).read_bytes()))
        weights = jax.device_put(dict(np.load(Path(folder) / WEIGHTS)))
    exported = jax.jit(program.call)
    rows = []
    for batch in batches:
        captions = [CAPTION] * batch
        token_ids, mask = sampler.tokenizer(captions)
        z = sample_noise(0, batch, sampler.generator.z_dim)
        sized = Sampler(
            sampler.generator,
            sampler.text,
            sampler.tokenizer,
            sampler.mesh,
            batch,
            sampler.text_params,
        )
        times = take_turns(
            {
                "package": partial(seconds, partial(sized, model.variables, captions, z)),
                "exported": partial(seconds, partial(exported, weights, token_ids, mask, z)),
            },
            rounds,
        )
        middle = medians(times)
        rows.append(
            {
                "batch": batch,
                "package": batch / middle["package"],
                "exported": batch / middle["exported"],
                "ratio": median_ratio(times, "exported", "package"),
                "seconds": times,
            }
        )
    return rows
