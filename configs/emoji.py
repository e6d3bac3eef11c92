"""Emoji with their names as captions: small, real, and embedded, so nothing is downloaded.

python -m xmcgan.train --config emoji               64 px, one GPU; the model emoji64
python -m xmcgan.train --config emoji:32            32 px, a CPU, an hour
python -m xmcgan.train --config emoji:quickstart    32 px, a CPU, minutes
python -m xmcgan.train --config emoji:32,paper      the paper's discriminator instead
python -m xmcgan.train --config emoji:32,ablation=sentence+word

The discriminator stands on frozen ImageNet features, which is beyond the paper and needs fewer
images. docs/recipes.md has the runs behind the values.
"""

from ml_collections import ConfigDict

from xmcgan.config import default_config
from xmcgan.utils.variants import apply_ablation, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, `quickstart`, `paper`, `ablation=`."""
    parsed = parse_variant(variant, sizes=(32, 64), names=("quickstart", "paper"))
    is_quick = "quickstart" in parsed.names
    is_small = is_quick or parsed.size == 32
    config = default_config()
    # Data
    config.data.name = "emoji"
    config.data.flip = False  # flags, and hands that point
    config.image_size = 32 if is_small else 64
    # Model
    config.dtype = "float32"
    config.generator.width = 6 if is_small else 14
    config.generator.z_dim = 32  # a caption says nearly all of its image
    config.generator.sentence_in_first_map = True
    # Names of emoji begin alike; without whitening, what tells them apart would be lost.
    config.generator.whiten_sentence = True
    config.discriminator.type = "projected"
    config.discriminator.width = 4 if is_small else 6
    config.discriminator.places = is_small  # emoji64 was trained without
    config.region_size = 8
    # Losses
    for name in ("sentence", "word", "image_discriminator"):
        config.losses[name].weight = 1.0 if is_quick else 0.5
    # Photographs taught the frozen image network; it says little of drawings.
    config.losses.image_pretrained.enabled = False
    # Optimizer: a slow discriminator and a fast generator
    config.batch_size = 32 if is_small else 128
    config.d_steps = 1
    config.generator.learning_rate = 2e-3 if is_small else 1e-3
    config.discriminator.learning_rate = 4e-4 if is_small else 2e-4
    config.learning_rate_decay = 0.6 if is_small else 0.0
    config.adam = {"b1": 0.5, "b2": 0.999, "eps": 1e-8}
    config.ema_decay = 0.999
    config.num_train_steps = 1500 if is_quick else 5000 if is_small else 20_000
    # Evaluation: the standard metrics, on held-out compositions
    if is_small:
        config.sample_every_steps = 500
        config.checkpoint_every_steps = 500
    if is_quick:
        config.log_every_steps = 50
        config.keep_checkpoints = 4  # all, for curves of the scores
    if "paper" in parsed.names:
        config.discriminator.type = "paper"
        config.discriminator.width = 8
        config.discriminator.learning_rate = 1e-3
        config.generator.learning_rate = 4e-4
        config.learning_rate_decay = 0.0
    apply_ablation(config, parsed.ablation)
    return config
