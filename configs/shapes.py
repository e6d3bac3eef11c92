"""The embedded data set: drawn scenes of one to three objects, which need no download.

python -m xmcgan.train --config shapes               64 px, one GPU
python -m xmcgan.train --config shapes:projected     64 px, one GPU; the model shapes64
python -m xmcgan.train --config shapes:quickstart    32 px, a laptop's CPU, minutes
python -m xmcgan.train --config shapes:single,small   one object a scene, 32 px, an hour
python -m xmcgan.train --config shapes:64,ablation=sentence+word
"""

from ml_collections import ConfigDict

from xmcgan.config import default_config
from xmcgan.utils.variants import apply_ablation, parse_variant, use_projected

NAMES = ("quickstart", "single", "small", "projected")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, one of `NAMES`, `ablation=`."""
    parsed = parse_variant(variant, sizes=(32, 64, 128), names=NAMES)
    config = default_config()
    # Data
    config.data.name = "shapes"
    config.data.flip = False  # the captions speak of left and right
    config.image_size = parsed.size or 64
    # Model
    config.generator.width = 32
    config.generator.z_dim = 128
    config.generator.sentence_in_first_map = True  # as in the paper: places are decided early
    # Sentences of drawn scenes differ mostly in colors; left and right would be lost beside them.
    config.generator.whiten_sentence = True
    config.discriminator.type = "paper"
    config.discriminator.width = 32
    config.region_size = min(16, config.image_size // 4)
    # Losses: hinge, sentence, word, image. Photographs taught the frozen image network; it says
    # little of drawn shapes.
    config.losses.image_pretrained.enabled = False
    # Optimizer
    config.batch_size = 64
    config.d_steps = 2
    config.generator.learning_rate = 1e-4
    config.discriminator.learning_rate = 4e-4
    config.adam = {"b1": 0.5, "b2": 0.999, "eps": 1e-8}
    config.ema_decay = 0.999
    config.num_epochs = 100
    # Evaluation: the standard metrics, and which claims of a caption hold in its image
    if "single" in parsed.names:
        config.data.name = "shapes/single"
    if "small" in parsed.names:
        _small(config)
    if "quickstart" in parsed.names:
        _quickstart(config)
    if "projected" in parsed.names:
        _projected(config)
    apply_ablation(config, parsed.ablation)
    return config


def _projected(config: ConfigDict) -> None:
    """Put a discriminator on frozen features in the paper's place, as `emoji` has it."""
    use_projected(config)
    # Pooled features hardly tell where an object is: docs/recipes.md.
    config.discriminator.places = True
    config.generator.learning_rate = 1.5e-3
    config.discriminator.learning_rate = 3e-4
    config.learning_rate_decay = 0.5
    config.dtype = "float32"
    config.batch_size = 128
    config.d_steps = 1
    config.region_size = 8
    config.num_train_steps = 20_000
    config.generator.width = 14
    config.generator.z_dim = 32
    config.discriminator.width = 6


def _small(config: ConfigDict) -> None:
    """Shrink the networks to what two CPU cores can train, at learning rates that suit them."""
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
    config.num_train_steps = 5000
    config.sample_every_steps = 500
    config.checkpoint_every_steps = 500


def _quickstart(config: ConfigDict) -> None:
    """Cut the small run to minutes."""
    _small(config)
    config.num_train_steps = 400
    config.log_every_steps = 20
    config.sample_every_steps = 100
    config.checkpoint_every_steps = 100
    config.keep_checkpoints = 4  # all, for curves of the scores
