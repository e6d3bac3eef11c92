"""Emoji with their names as captions: small, real, and embedded, so nothing is downloaded.

python -m xmcgan.train --config emoji               64 px, one GPU
python -m xmcgan.train --config emoji:quickstart    32 px, a laptop's CPU, minutes
python -m xmcgan.train --config emoji:32,ablation=sentence+word
"""

from ml_collections import ConfigDict

from xmcgan.config import default_config
from xmcgan.variants import apply_ablation, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, `quickstart`, `ablation=`."""
    parsed = parse_variant(variant, sizes=(32, 64), names=("quickstart",))
    config = default_config()
    config.data.name = "emoji"
    config.data.flip = False  # captions speak of left and right, and flags have both
    config.image_size = parsed.size or 64
    config.region_size = config.image_size // 4
    config.batch_size = 64
    config.num_epochs = 1000
    config.generator.width = 14
    config.discriminator.width = 32
    config.generator.sentence_in_first_map = True
    # Names of emoji begin alike; without whitening, what tells them apart would be lost.
    config.generator.whiten_sentence = True
    # Photographs taught the frozen image network; it says little of drawings.
    config.losses.image_pretrained.enabled = False
    if "quickstart" in parsed.names:
        _quickstart(config)
    apply_ablation(config, parsed.ablation)
    return config


def _quickstart(config: ConfigDict) -> None:
    """Shrink the networks to what two CPU cores can train in minutes."""
    config.dtype = "float32"  # a CPU is slower in bfloat16
    config.image_size = 32
    config.region_size = 8
    config.batch_size = 32
    config.d_steps = 1
    config.generator.width = 12
    config.generator.z_dim = 64
    config.generator.learning_rate = 1e-3
    config.discriminator.width = 8
    config.discriminator.learning_rate = 1e-3
    config.num_train_steps = 400
    config.log_every_steps = 20
    config.sample_every_steps = 100
    config.checkpoint_every_steps = 100
    config.keep_checkpoints = 4  # all, for curves of the scores
