"""COCO 2014, the paper's main data set: 82,783 training images, 40,504 held out, 5 captions each.

python scripts/prepare_data.py coco --download      or --source DIR, where the archives are there
python -m xmcgan.train --config coco:256
python -m xmcgan.train --config coco:ablation=sentence+word

Variants: 128 (the default) and 256 pixels; `official` for the set-up of the released code at 128
pixels, data and evaluation included; `paper` for what differs in the paper (VGG-19, BERT-base,
sentence in the first map); `projected` for a discriminator on frozen features, beyond the paper;
`ablation=` with losses of sentence, word, image, pretrained, joined by +, or none.

          batch  set-up that published it   steps of 500 epochs   published FID (30,000 captions)
128 px    56     official code, 7 GPUs x 8              369,567   10.5 to 11.0, by its own FID
256 px    256    paper, 32 TPU v3 cores                  80,843   9.3, Inception score 30.5

Sources: README of the official code; abstract and blog post of the paper; the Inception score is
unchecked.

Ablation, FID of the paper (unchecked): none 39.3, sentence 19.3, word 24.4, image 29.7, pretrained
39.6, sentence+word 14.3, sentence+word+image 13.0, sentence+word+pretrained 11.1, all 11.9. Its
pretrained network there is VGG-19. scripts/ablate.py --rows paper trains these rows.

Memory and time, compiled for TPU v5e with all frozen networks (scripts/plan.py, docs/scaling.md):
128 px, batch 56: 3.8 GB of a chip's 16 on 2x4, a modeled 7.7 h, 62 chip-hours. 256 px, batch 256:
8.4 GB and 4.0 h on 4x4, 64 chip-hours; 5.7 GB and 2.9 h on 8x8, 184. The official code is held to 8
images of 128 pixels a GPU.
Arithmetic: 258 GFLOP an image of the batch and step at 128 pixels, 913 at 256, before the frozen
image network (the official code: 525 and 1,943).

The image loss reads the official ResNet-50 (scripts/fetch_weights.py resnet50 --accept), or one by
path; without it EfficientNet-Lite0 stands in, and summary, report and recipe say so. Words are
MiniLM's by default; the paper's BERT-base is --config.text.weights=bert-base-uncased. None of these
has been trained to a score here.
"""

from ml_collections import ConfigDict

from xmcgan.config import default_config
from xmcgan.utils.variants import apply_ablation, parse_variant, use_projected


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant: a size, `projected`, `ablation=...`, `name=...`."""
    names = ("projected", "official", "paper")
    parsed = parse_variant(variant, sizes=(128, 256), names=names, options=("name",))
    config = default_config()
    # Data
    config.data.name = f"coco/{parsed.name}" if parsed.name else "coco"
    config.data.flip = True
    config.image_size = parsed.size or 128
    config.text.weights = "minilm"  # the paper: BERT-base, by path
    config.text.max_tokens = 17
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
    # Evaluation: the standard metrics of fd-effnet-lite2, or --protocol fid-2015 with its weights
    config.evaluation.num_samples = 30_000
    if "projected" in parsed.names:
        use_projected(config)
    if "official" in parsed.names:
        use_official(config)
    if "paper" in parsed.names:
        use_paper(config)
    apply_ablation(config, parsed.ablation)
    return config


def use_official(config: ConfigDict) -> None:
    """Set what the released code does; docs/paper_map.md lists what still differs."""
    config.text.weights = "bert-base-uncased"
    config.text.sentence_pooling = "padded_mean"
    config.data.resize = "squash_bilinear"
    config.batch_norm_group_size = config.contrastive_group_size = 8  # images of a device
    config.ema_warmup = False
    # Its FID: Keras' Inception, three draws, 30,000 mirrored references, raw batch statistics
    # beside averaged weights; its Inception score is `is_one_split`.
    config.evaluation.protocols = "fid-keras"
    config.evaluation.draws = 3
    config.evaluation.num_references = 30_000
    config.evaluation.mirror_references = True
    config.evaluation.raw_statistics = True


def use_paper(config: ConfigDict) -> None:
    """Set what the paper says where the released code differs."""
    config.text.weights = "bert-base-uncased"
    config.generator.sentence_in_first_map = True
    config.losses.image_pretrained.network = "vgg19"
    config.losses.image_pretrained.feature = "pooled"  # which one it takes is not known
