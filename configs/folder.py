"""Your own images and captions.

python scripts/prepare_data.py folder --source DIR_OR_ZIP --name my_photos
python -m xmcgan.train --config folder:name=my_photos,128
"""

from ml_collections import ConfigDict

from xmcgan.config import default_config
from xmcgan.errors import ConfigError
from xmcgan.utils.variants import apply_ablation, parse_variant, use_projected

SIZES = (32, 64, 128, 256)


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: `name=...`, a size, `tiny`, `projected`, `ablation=`."""
    parsed = parse_variant(variant, sizes=SIZES, names=("tiny", "projected"), options=("name",))
    if not parsed.name:
        raise ConfigError(
            "name the data set that scripts/prepare_data.py made: --config folder:name=my_photos"
        )
    config = default_config()
    # Data
    config.data.name = f"folder/{parsed.name}"
    config.data.flip = True
    config.image_size = parsed.size or 128
    # Model: the paper's
    config.generator.width = 96
    config.generator.z_dim = 128
    config.discriminator.type = "paper"
    config.discriminator.width = 96
    config.region_size = min(16, config.image_size // 4)
    # Losses: hinge, and the contrastive ones with weight 1. The image network is one that needs no
    # download, unlike the paper's; see losses.image_pretrained.weights.
    config.losses.image_pretrained.network = "efficientnet_lite0"
    config.losses.image_pretrained.feature = "pooled"
    # Optimizer
    config.batch_size = 56
    config.d_steps = 2
    config.generator.learning_rate = 1e-4
    config.discriminator.learning_rate = 4e-4
    config.adam = {"b1": 0.5, "b2": 0.999, "eps": 1e-8}
    config.ema_decay = 0.999
    config.num_epochs = 200
    # Evaluation: the standard metrics
    if "tiny" in parsed.names:
        _tiny(config)
    if "projected" in parsed.names:
        use_projected(config)
    if "tiny" in parsed.names and "projected" in parsed.names:
        config.discriminator.width = 4
    apply_ablation(config, parsed.ablation)
    return config


def _tiny(config: ConfigDict) -> None:
    """Shrink the networks to what two CPU cores can train, at learning rates that suit them."""
    config.dtype = "float32"  # a CPU is slower in bfloat16
    config.region_size = 8
    config.batch_size = 32
    config.d_steps = 1
    config.generator.width = 12
    config.generator.z_dim = 64
    config.generator.learning_rate = 4e-4
    config.discriminator.width = 8
    config.discriminator.learning_rate = 1e-3
    config.losses.image_pretrained.enabled = False
    config.log_every_steps = 20
    config.sample_every_steps = 100
    config.checkpoint_every_steps = 100
