"""Localized Narratives of Open Images: 507,444 narratives to train on, 41,691 held out.

python scripts/prepare_data.py ln_open_images --download     or --source DIR
python -m xmcgan.train --config ln_open_images:256 --config.losses.image_pretrained.weights=FILE
python -m xmcgan.train --config ln_open_images:ablation=sentence+word

Variants: 128 (the default) and 256 pixels; `projected`, `ablation=` as in configs/coco.py. A
narrative has 36 words in the mean: 64 tokens are kept.

          batch  hardware                   steps of 500 epochs   published FID
128 px    56     -                                    2,265,375   -
256 px    256    paper, 32 TPU v3 cores                 495,551   26.9 (best before: about 61.9)

500 epochs are COCO's; how long the paper trained here is not known. Memory and image network: see
configs/coco.py; words take 64 instead of 17 places in the attention.
"""

from ml_collections import ConfigDict

from xmcgan.variants import paper_config, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, `projected`, `ablation=...`."""
    parsed = parse_variant(variant, sizes=(128, 256), names=("projected",))
    config = paper_config(parsed)
    config.data.name = "ln_open_images"
    config.data.flip = False  # narratives speak of left and right
    config.text.max_tokens = 64
    return config
