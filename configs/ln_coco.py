"""Localized Narratives of COCO 2017's images: 134,272 narratives to train on, 8,573 held out.

python scripts/prepare_data.py ln_coco --download       or --source NARRATIVES --source IMAGES
python -m xmcgan.train --config ln_coco:256 --config.losses.image_pretrained.weights=FILE
python -m xmcgan.train --config ln_coco:ablation=sentence+word

Variants: 128 (the default) and 256 pixels; `projected`, `ablation=` as in configs/coco.py. A
narrative has 42 words in the mean: 64 tokens are kept, where COCO's captions have 17.

          batch  hardware                   steps of 500 epochs   published FID
128 px    56     -                                      599,429   -
256 px    256    paper, 32 TPU v3 cores                 131,125   14.1 (best before: 48.7)

Memory and image network: see configs/coco.py; words take 64 instead of 17 places in the attention.
"""

from ml_collections import ConfigDict

from xmcgan.variants import paper_config, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, `projected`, `ablation=...`."""
    parsed = parse_variant(variant, sizes=(128, 256), names=("projected",))
    config = paper_config(parsed)
    config.data.name = "ln_coco"
    config.data.flip = False  # narratives speak of left and right
    config.text.max_tokens = 64
    return config
