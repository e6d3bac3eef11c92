"""Which networks a benchmark compares, from a command line's words."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from xmcgan.benchmarks.formulations import Formulation, literal, ours
from xmcgan.config import apply_override, default_config, load_config, validate
from xmcgan.errors import ConfigError


def benchmark_config(
    spec: str | None, *, image_size: int | None, width: int | None, batch: int | None
) -> ConfigDict:
    """Return the config of a benchmark, without what the literal formulation does not have.

    That is the frozen image network's loss, and the generator's ways from the sentence.

    Args:
        spec: `NAME[:variant]`, or None for the default config in float32, which is what the
            literal formulation computes in.
        image_size: in pixels, or None for the config's.
        width: of both networks, or None for the config's.
        batch: images of one generator update, or None for the config's.

    Returns:
        A validated config.

    Raises:
        ConfigError: an unknown config, or a size that cannot work.
    """
    config = load_config(spec) if spec else default_config()
    if not spec:
        config.dtype = "float32"
    with config.unlocked():
        config.image_size = image_size or config.image_size
        config.batch_size = batch or config.batch_size
        for network in (config.generator, config.discriminator):
            network.width = width or network.width
        config.losses.image_pretrained.enabled = False
        # The literal formulation is the official code's, which has neither.
        config.generator.sentence_in_first_map = config.generator.whiten_sentence = False
    validate(config)
    if config.image_size < 4 * config.region_size:
        raise ConfigError(
            f"image_size = {config.image_size} cannot work here: the literal discriminator has its "
            f"regions of {config.region_size}x{config.region_size} after its second block, so that "
            f"images have {4 * config.region_size} pixels or more"
        )
    return config


def formulations(
    config: ConfigDict, word_dim: int, variants: Sequence[str] = ()
) -> list[Formulation]:
    """Return the literal formulation, ours, and ours with fields changed.

    Args:
        config: of `benchmark_config`.
        word_dim: size of a word's feature.
        variants: `FIELD=VALUE` each, or several of them joined by commas, as in
            `--config.FIELD=VALUE`.

    Raises:
        ConfigError: a field that is not there, or that changes the sizes to compare.
    """
    rows = [literal(config), ours(config, word_dim)]
    for variant in variants:
        changed = config.copy_and_resolve_references()
        for override in variant.split(","):
            apply_override(changed, override)
        validate(changed)
        for field in ("image_size", "batch_size"):
            if changed[field] != config[field]:
                raise ConfigError(f"--variant {variant} changes {field}, which has a flag")
        rows.append(ours(changed, word_dim, name=f"ours, {variant}"))
    return rows
