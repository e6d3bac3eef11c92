"""Progress of a run as pictures: the same captions with the same noise at every step."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from xmcgan.data import Source
from xmcgan.data.pipeline import fixed_examples
from xmcgan.sampling.grid import image_grid
from xmcgan.sampling.sampler import Sampler, sample_noise
from xmcgan.training.logging import MetricWriter
from xmcgan.training.monitoring import diversity_warning, sample_diversity
from xmcgan.training.state import TrainState
from xmcgan.utils.distributed import is_host0
from xmcgan.utils.files import atomic_file

COLUMNS = 4


class FixedSamples:
    """Grids of fixed captions of a source, as PNG files in `folder` and in the logs."""

    def __init__(self, source: Source, sampler: Sampler, folder: Path, config: ConfigDict) -> None:
        num = min(config.num_samples, len(source))
        self._real, self._captions = fixed_examples(
            source,
            num,
            seed=config.seed,
            image_size=config.image_size,
            resize=config.data.resize,
        )
        # The second half is for another sample of each caption, to tell how much they differ.
        self._z = sample_noise(config.seed, 2 * num, config.generator.z_dim)
        self._sampler, self._folder = sampler, folder

    def draw(self, state: TrainState, step: int, writer: MetricWriter) -> str:
        """Write the grid of the averaged generator, the real image of each caption beside it.

        Returns:
            A warning if the samples of one caption are nearly alike, else nothing.
        """
        variables = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
        num = len(self._captions)
        images = self._sampler(variables, self._captions, self._z[:num])
        others = self._sampler(variables, self._captions, self._z[num:])
        if not is_host0():
            return ""
        grid = image_grid(
            images, self._captions, COLUMNS, reference_images=self._real, title=f"step {step:,}"
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._folder / f"step_{step:08d}.png") as file:
            grid.save(file, "png")
        writer.write_images(step, {"samples": np.asarray(grid)[None]})
        if (self._real == self._real[0]).all():
            return ""  # a single image, or copies of one: nothing to compare with
        return diversity_warning(sample_diversity(images, others, self._real))
