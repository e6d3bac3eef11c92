"""CLIP as a frozen judge of how well an image fits a caption.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021:
two pre-layer-norm transformers with quick GELU, one of image patches and one of words.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from xmcgan.errors import WeightsError
from xmcgan.pretrained.bert import layer_norm, self_attention
from xmcgan.pretrained.params import Params, Tensors, check_params, flatten, read_sizes
from xmcgan.pretrained.weights import find_file, identify_file, read_safetensors
from xmcgan.utils.files import parsing

# OpenAI's published files: pytorch_model.bin and model.safetensors of clip-vit-base-patch32, and
# pytorch_model.bin of clip-vit-large-patch14-336.
PUBLISHED_SHA256 = (
    "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d",
    "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
)
# Mean and deviation of the pixels that CLIP was trained on, in [0, 1].
_PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_PIXEL_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
# Constant tables, and the temperature of training: not part of what encodes.
_NOT_NEEDED = re.compile(r"logit_scale$|(text|vision)_model\.embeddings\.position_ids$")
# What config.json must say; see `read_sizes`.
_KIND = {"model_type": "clip", "hidden_act": "quick_gelu"}
# Older configs carry this meaningless id; their captions end at the highest id.
_UNSET_END_TOKEN = 2
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
# Contractions, words, single digits, and runs of anything else.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


# Fields of the networks are those of config.json, which leaves out what equals these defaults.


class ImageTransformer(nn.Module):
    """Images, `image_size` pixels square, to the space that they share with captions."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    num_hidden_layers: int = 12
    layer_norm_eps: float = 1e-5
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512

    @nn.compact
    def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b e"]:
        """Return embeddings, not normalized, of standardized images."""
        width = self.hidden_size
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(width, patch, patch, padding="VALID", use_bias=False, name="patches")(images)
        x = x.reshape(x.shape[0], -1, width)
        initializer = nn.initializers.normal(width**-0.5)
        first = self.param("class_embedding", initializer, (width,))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, width)), x], axis=1)
        x = x + self.param("position_embeddings", initializer, x.shape[1:])
        x = layer_norm(self.layer_norm_eps, "pre_norm")(x)
        x = _layers(self, x, causal=False)
        x = layer_norm(self.layer_norm_eps, "post_norm")(x[:, 0])
        return nn.Dense(self.projection_dim, use_bias=False, name="projection")(x)


class TextTransformer(nn.Module):
    """Captions to the space that they share with images."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    num_hidden_layers: int = 12
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    projection_dim: int = 512

    @nn.compact
    def __call__(self, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Return embeddings, not normalized; what follows the end token changes nothing."""
        initializer = nn.initializers.normal(0.02)
        width = self.hidden_size
        words = self.param("word_embeddings", initializer, (self.vocab_size, width))
        shape = (self.max_position_embeddings, width)
        positions = self.param("position_embeddings", initializer, shape)
        x = jnp.take(words, token_ids, axis=0) + positions[: token_ids.shape[1]]
        x = _layers(self, x, causal=True)
        is_unset = self.eos_token_id == _UNSET_END_TOKEN
        is_end = token_ids if is_unset else token_ids == self.eos_token_id
        x = x[jnp.arange(x.shape[0]), jnp.argmax(is_end, axis=1)]
        x = layer_norm(self.layer_norm_eps, "final_norm")(x)
        return nn.Dense(self.projection_dim, use_bias=False, name="projection")(x)


def _layers(network: ImageTransformer | TextTransformer, x: Array, *, causal: bool) -> Array:
    sizes = network.num_attention_heads, network.intermediate_size, network.layer_norm_eps
    for index in range(network.num_hidden_layers):
        x = Layer(*sizes, causal, name=f"layer_{index}")(x)
    return x


class Layer(nn.Module):
    """Self-attention and a feed-forward part, each on a layer norm of the residual stream."""

    num_heads: int
    intermediate_size: int
    layer_norm_eps: float
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        normed = layer_norm(self.layer_norm_eps, "attention_norm")(x)
        x = x + self_attention(normed, self.num_heads, is_causal=self.causal)
        normed = layer_norm(self.layer_norm_eps, "mlp_norm")(x)
        hidden = nn.Dense(self.intermediate_size, name="intermediate")(normed)
        hidden = hidden * jax.nn.sigmoid(1.702 * hidden)  # quick GELU
        return x + nn.Dense(x.shape[-1], name="output")(hidden)


class ClipTokenizer:
    """Captions to rows of `max_tokens` token ids, from the start token to the end token.

    Byte-level BPE of lower-case text. Deviation: the original code also repairs broken Unicode
    (ftfy) and HTML entities before, which clean captions do not need.
    """

    def __init__(self, directory: Path, max_tokens: int):
        self._tokenizer = _read_tokenizer(directory)
        start, end = map(self._tokenizer.token_to_id, (START_TOKEN, END_TOKEN))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if end is None or start is None or self._tokenizer.encode("").ids != [start, end]:
            raise WeightsError(
                f"the tokenizer in {directory} is not CLIP's: it does not put captions between "
                f"{START_TOKEN} and {END_TOKEN}"
            )
        # A caption that spells out "<|endoftext|>" must not end there.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(length=max_tokens, pad_id=end, pad_token=END_TOKEN)
        self.max_tokens = max_tokens
        self.vocab_size = self._tokenizer.get_vocab_size()

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b t"]:
        """Return int32 token ids; a caption that is too long is cut and keeps its end token."""
        encoded = self._tokenizer.encode_batch(list(captions))
        ids = np.array([caption.ids for caption in encoded], dtype=np.int32)
        return ids.reshape(len(encoded), self.max_tokens)


def _read_tokenizer(directory: Path) -> Tokenizer:
    whole = directory / "tokenizer.json"
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise WeightsError(
            f"no tokenizer in {directory}: put tokenizer.json, or vocab.json and merges.txt, "
            "beside CLIP's weights"
        )
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole))
        return _build_tokenizer(str(vocabulary), str(merges))
    except Exception as error:  # the library raises bare Exception
        raise WeightsError(f"{directory}: not a readable tokenizer: {error}") from error


def _build_tokenizer(vocabulary: str, merges: str) -> Tokenizer:
    bpe = models.BPE.from_file(vocabulary, merges, unk_token=END_TOKEN, end_of_word_suffix="</w>")
    start, end = bpe.token_to_id(START_TOKEN), bpe.token_to_id(END_TOKEN)
    if start is None or end is None:
        raise ValueError(f"{vocabulary} lacks {START_TOKEN} or {END_TOKEN}")
    tokenizer = Tokenizer(bpe)
    tokenizer.add_special_tokens([START_TOKEN, END_TOKEN])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
    bytes_of_pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytes_of_pieces])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END_TOKEN, end), (START_TOKEN, start), trim_offsets=False
    )
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its tokenizer; for `params` see `encoders.TextEncoder`."""

    image_transformer: ImageTransformer
    text_transformer: TextTransformer
    params: Params
    tokenizer: ClipTokenizer
    sha256: str
    verified: bool  # whether the weights are a published file

    @property
    def image_size(self) -> int:
        return self.image_transformer.image_size

    @property
    def architecture(self) -> str:
        """The image network's sizes in words, for records."""
        image = self.image_transformer
        return (
            f"ViT width {image.hidden_size}, {image.num_hidden_layers} layers, "
            f"patch {image.patch_size}, image {image.image_size}"
        )

    def encode_images(self, params: Params, images: Float[Array, "b s s 3"]) -> Float[Array, "b e"]:
        """Return the embeddings, not normalized, of images in [0, 1] of `image_size`."""
        standardized = (images - _PIXEL_MEAN) / _PIXEL_DEVIATION
        return jnp.asarray(self.image_transformer.apply({"params": params["image"]}, standardized))

    def encode_text(self, params: Params, token_ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Return the embeddings of captions, not normalized."""
        return jnp.asarray(self.text_transformer.apply({"params": params["text"]}, token_ids))


def load_clip(path: Path, *, allow_unverified: bool) -> Clip:
    """Load a .safetensors file or its directory, with config and tokenizer, as published."""
    file = find_file(path, "clip")
    identity = identify_file(file, PUBLISHED_SHA256, allow_unverified=allow_unverified)
    image, text = _read_config(file.with_name("config.json"))
    tokenizer = ClipTokenizer(file.parent, text.max_position_embeddings)
    if tokenizer.vocab_size > text.vocab_size:
        raise WeightsError(
            f"the tokenizer in {file.parent} has {tokenizer.vocab_size} tokens and the network "
            f"{text.vocab_size}: they do not belong together"
        )
    tensors = Tensors(file, read_safetensors(file)[0])
    try:
        params = {"image": _image_params(image, tensors), "text": _text_params(text, tensors)}
    except ValueError as error:
        raise WeightsError(f"{file} does not fit the network: {error}") from error
    left_over = [name for name in tensors if not _NOT_NEEDED.match(name)]
    pixels = jax.ShapeDtypeStruct((1, image.image_size, image.image_size, 3), np.float32)
    token_ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    for part, module, inputs in (("image", image, pixels), ("text", text, token_ids)):
        found = flatten(params[part])
        check_params(found, module, inputs, path=file, left_over=left_over)
    return Clip(image, text, params, tokenizer, identity.sha256, identity.verified)


def _read_config(file: Path) -> tuple[ImageTransformer, TextTransformer]:
    with parsing(file, WeightsError, "the config of a CLIP, with vision_config and text_config"):
        config = json.loads(file.read_bytes())
        image = ImageTransformer(**_read_part(config, file, "vision_config", ImageTransformer))
        return image, TextTransformer(**_read_part(config, file, "text_config", TextTransformer))


def _read_part(
    config: dict[str, Any], file: Path, name: str, network: type[nn.Module]
) -> dict[str, Any]:
    """Return the fields of a network in its part of the config; an older `*_dict` of it wins."""
    part = {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}
    # These two belong to the whole; parts may repeat them, with other values.
    part["model_type"] = config.get("model_type", "clip")
    part["projection_dim"] = config.get("projection_dim", ImageTransformer.projection_dim)
    return read_sizes(part, file, network, _KIND, prefix=f"{name}.")


def _image_params(image: ImageTransformer, tensors: Tensors) -> Params:
    embeddings = "vision_model.embeddings"
    patches = tensors.take(f"{embeddings}.patch_embedding.weight")
    return {
        "patches": {"kernel": np.ascontiguousarray(patches.transpose(2, 3, 1, 0))},
        "class_embedding": tensors.take(f"{embeddings}.class_embedding"),
        "position_embeddings": tensors.take(f"{embeddings}.position_embedding.weight"),
        "pre_norm": tensors.norm("vision_model.pre_layrnorm"),  # the file's own spelling
        "post_norm": tensors.norm("vision_model.post_layernorm"),
        "projection": _projection(tensors, "visual_projection"),
        **_layer_params("vision_model", image.num_hidden_layers, tensors),
    }


def _text_params(text: TextTransformer, tensors: Tensors) -> Params:
    embeddings = "text_model.embeddings"
    return {
        "word_embeddings": tensors.take(f"{embeddings}.token_embedding.weight"),
        "position_embeddings": tensors.take(f"{embeddings}.position_embedding.weight"),
        "final_norm": tensors.norm("text_model.final_layer_norm"),
        "projection": _projection(tensors, "text_projection"),
        **_layer_params("text_model", text.num_hidden_layers, tensors),
    }


def _layer_params(tower: str, num_layers: int, tensors: Tensors) -> Params:
    params = {}
    for index in range(num_layers):
        layer = f"{tower}.encoder.layers.{index}"
        params[f"layer_{index}"] = {
            "attention_norm": tensors.norm(f"{layer}.layer_norm1"),
            "query_key_value": tensors.dense(*(f"{layer}.self_attn.{p}_proj" for p in "qkv")),
            "attention_output": tensors.dense(f"{layer}.self_attn.out_proj"),
            "mlp_norm": tensors.norm(f"{layer}.layer_norm2"),
            "intermediate": tensors.dense(f"{layer}.mlp.fc1"),
            "output": tensors.dense(f"{layer}.mlp.fc2"),
        }
    return params


def _projection(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    return {"kernel": np.ascontiguousarray(tensors.take(f"{name}.weight").T)}
