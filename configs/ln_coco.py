"""Localized Narratives of COCO 2017's images: 134,272 narratives to train on, 8,573 held out.

python scripts/prepare_data.py ln_coco --download       or --source NARRATIVES --source IMAGES
python -m xmcgan.train --config ln_coco:256
python -m xmcgan.train --config ln_coco:ablation=sentence+word

Variants: 128 (the default) and 256 pixels; `projected`, `ablation=` as in configs/coco.py. A
narrative has 42 words in the mean: 64 tokens are kept, where COCO's captions have 17.

          batch  hardware                   steps of 500 epochs   published FID
128 px    56     -                                      599,429   -
256 px    256    paper, 32 TPU v3 cores                 131,125   14.1 (best before: 48.7)

Source: abstract and blog post of the paper.

Image network: see configs/coco.py. Words take 64 instead of 17 places in the attention. A step is
that of configs/ln_open_images.py: on TPU v5e 4x4 at 256 px 8.1 GB of a chip's 16, a modeled 6.3 h,
101 chip-hours.
"""

from ml_collections import ConfigDict

from xmcgan.config import default_config
from xmcgan.utils.variants import apply_ablation, parse_variant, use_projected


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, `projected`, `ablation=...`."""
    parsed = parse_variant(variant, sizes=(128, 256), names=("projected",))
    config = default_config()
    # Data
    config.data.name = "ln_coco"
    config.data.flip = False  # narratives speak of left and right
    config.image_size = parsed.size or 128
    config.text.weights = "minilm"  # the paper: BERT-base, by path
    config.text.max_tokens = 64
    # Model: paper, section 4, with the official code's widths
    config.dtype = "bfloat16"
    config.generator.width = 96
    config.generator.z_dim = 128
    config.discriminator.type = "paper"
    config.discriminator.width = 96
    config.region_size = 16
    # Losses: hinge, and the contrastive ones with weight 1
    config.losses.image_pretrained.network = "resnet50"
    config.losses.image_pretrained.feature = "logits"
    # Optimizer; the paper's batch at 256 pixels, the official code's 7 GPUs of 8 images at 128
    config.batch_size = 256 if config.image_size == 256 else 56
    config.d_steps = 2
    config.generator.learning_rate = 1e-4
    config.discriminator.learning_rate = 4e-4
    config.adam = {"b1": 0.5, "b2": 0.999, "eps": 1e-8}
    config.ema_decay = 0.999
    config.num_epochs = 500
    # Evaluation: the standard metrics of fd-effnet-lite2, or --protocol fid-2015 with its weights.
    # As published, of 30,000 images: narratives repeat with other noise.
    config.evaluation.num_samples = 30_000
    config.evaluation.repeat_captions = True
    if "projected" in parsed.names:
        use_projected(config)
    apply_ablation(config, parsed.ablation)
    return config
