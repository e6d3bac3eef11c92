"""Weights at their publishers' addresses, for `scripts/fetch_weights.py NAME --accept`."""

import dataclasses

from xmcgan.utils.download import Archive

_HUB = "https://huggingface.co"
_TORCHVISION = "https://download.pytorch.org/models"
_BERT = f"{_HUB}/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594"
_CLIP_B32 = f"{_HUB}/openai/clip-vit-base-patch32/resolve/main"
_CLIP_L14 = f"{_HUB}/openai/clip-vit-large-patch14-336/resolve/main"


@dataclasses.dataclass(frozen=True)
class Published:
    """Files of a publisher; of a file without sha256 that of the first download is written down.

    `network` is what `scripts/convert_weights.py` converts the first file to; if None, the files
    are used as published.
    """

    network: str | None
    use: str
    terms: str  # the publisher's, as far as stated
    files: tuple[Archive, ...]


def _archives(folder: str, *names: str) -> tuple[Archive, ...]:
    return tuple(Archive(f"{folder}/{name}") for name in names)


PUBLISHED = {
    "inception-2015": Published(
        "inception-2015",
        "protocols fid-2015, fid-pytorch, fid-clean",
        "Apache-2.0",
        (
            Archive(
                "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth",
                95_628_359,
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            ),
        ),
    ),
    "inception-keras": Published(
        "inception-keras",
        "protocol fid-keras",
        "MIT",
        (
            Archive(
                "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
                "inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
                sha256="00c9ea4e4762f716ac4d300d6d9c2935639cc5e4d139b5790d765dcbeea539d0",
            ),
        ),
    ),
    "resnet50": Published(
        "resnet50",
        "image loss of coco, ln_coco, ln_open_images (official code)",
        "not stated; its code is Apache-2.0",
        _archives("https://storage.googleapis.com/gresearch/xmcgan", "resnet_pretrained.npy"),
    ),
    "vgg16": Published(
        "vgg16",
        "protocol pr-vgg16",
        "BSD-3-Clause",
        (
            Archive(
                f"{_TORCHVISION}/vgg16-397923af.pth",
                553_433_881,
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            ),
        ),
    ),
    "vgg19": Published(
        "vgg19",
        "image loss of the paper",
        "BSD-3-Clause",
        (
            Archive(
                f"{_TORCHVISION}/vgg19-dcbb9e9d.pth",
                574_673_361,
                "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
            ),
        ),
    ),
    "bert-base-uncased": Published(
        None,
        "text encoder of the paper",
        "Apache-2.0",
        (
            Archive(
                f"{_BERT}/model.safetensors",
                440_449_768,
                "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
            ),
            *_archives(_BERT, "config.json", "vocab.txt"),
        ),
    ),
    "clip-b32": Published(
        "clip",
        "CLIPScore, R-precision",
        "MIT",
        (
            Archive(
                f"{_CLIP_B32}/pytorch_model.bin",
                sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
            ),
            *_archives(_CLIP_B32, "config.json", "vocab.json", "merges.txt"),
        ),
    ),
    "clip-l14-336": Published(
        "clip",
        "CMMD",
        "MIT",
        (
            Archive(
                f"{_CLIP_L14}/pytorch_model.bin",
                sha256="c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
            ),
            *_archives(_CLIP_L14, "config.json", "vocab.json", "merges.txt"),
        ),
    ),
}
