"""The official architecture and its losses, written as literally as they can be described.

An oracle to test `xmcgan` against, and what its speed and memory are measured beside: it shares no
code with it and merges, reorders or saves nothing. Arrays go by the names of a golden file, in
flat dictionaries: the parameters of a generator are those under `generator/params/`, say.
They compute in the type of those arrays.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Arrays = dict[str, Any]


class Network(NamedTuple):
    """A network's arrays; collects in `new_stats` what its statistics become."""

    params: Arrays
    stats: Arrays
    new_stats: Arrays
    train: bool


def under(arrays: Mapping[str, Any], prefix: str) -> Arrays:
    """Return the arrays below `prefix/`."""
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in arrays.items() if name.startswith(start)}


def count(params: Arrays, kind: str) -> int:
    """Count the layers `KIND_0`, `KIND_1`, ... at the top of a network."""
    return len({name.split("/")[0] for name in params if name.startswith(f"{kind}_")})


# The generator.


def dense(net: Network, name: str, x: Any) -> Any:
    """Multiply by a layer's kernel and add its bias."""
    return x @ net.params[f"{name}/kernel"] + net.params[f"{name}/bias"]


def conv(net: Network, name: str, x: Any) -> Any:
    """Convolve with a layer's kernel and add its bias."""
    return convolve(x, net.params[f"{name}/kernel"]) + net.params[f"{name}/bias"]


def convolve(x: Any, kernel: Any) -> Any:
    """Convolve with zero padding to the same size."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def upsample(x: Any) -> Any:
    """Double height and width by repeating pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def normalize(x: Any) -> Any:
    """Scale vectors to unit length."""
    return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def batch_norm(net: Network, name: str, x: Any) -> Any:
    """Normalize by the batch's statistics, or by the running ones."""
    mean, var = net.stats[f"{name}/mean"], net.stats[f"{name}/var"]
    if net.train:
        batch_mean, batch_var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        net.new_stats[f"{name}/mean"] = 0.9 * mean + 0.1 * batch_mean
        net.new_stats[f"{name}/var"] = 0.9 * var + 0.1 * batch_var
        mean, var = batch_mean, batch_var
    return (x - mean) / jnp.sqrt(var + 1e-5)


def global_norm(net: Network, name: str, x: Any, g: Any) -> Any:
    """Normalize, then modulate by the global condition."""
    gamma, beta = dense(net, f"{name}/Dense_0", g), dense(net, f"{name}/Dense_1", g)
    x = batch_norm(net, f"{name}/BatchNorm_0", x)
    return x * (gamma[:, None, None] + 1) + beta[:, None, None]


def spatial_norm(net: Network, name: str, x: Any, s: Any) -> Any:
    """Normalize, then modulate by a condition map of the size of `x`."""
    gamma, beta = conv(net, f"{name}/Conv_0", s), conv(net, f"{name}/Conv_1", s)
    return batch_norm(net, f"{name}/BatchNorm_0", x) * (gamma + 1) + beta


def gen_block(net: Network, name: str, x: Any, g: Any) -> Any:
    """Double a map's size under the global condition."""
    shortcut = conv(net, f"{name}/Conv_2", upsample(x))
    x = jax.nn.relu(global_norm(net, f"{name}/ConditionalBatchNorm_0", x, g))
    x = conv(net, f"{name}/Conv_0", upsample(x))
    x = jax.nn.relu(global_norm(net, f"{name}/ConditionalBatchNorm_1", x, g))
    return conv(net, f"{name}/Conv_1", x) + shortcut


def gen_spatial_block(net: Network, name: str, x: Any, s: Any) -> tuple[Any, Any]:
    """Double a map's size, and its condition map's, under that map."""
    shortcut = conv(net, f"{name}/Conv_2", upsample(x))
    x = jax.nn.relu(spatial_norm(net, f"{name}/LocalConditionalBatchNorm_0", x, s))
    x, s = conv(net, f"{name}/Conv_0", upsample(x)), upsample(s)
    x = jax.nn.relu(spatial_norm(net, f"{name}/LocalConditionalBatchNorm_1", x, s))
    return conv(net, f"{name}/Conv_1", x) + shortcut, s


def generator(net: Network, inputs: Arrays, gamma: float) -> Any:
    """Return images in [0, 1]."""
    z, words = inputs["z"], normalize(inputs["embedding"])
    g = jnp.concatenate([dense(net, "Dense_0", inputs["sentence_embedding"]), z], axis=1)
    x = dense(net, "Dense_1", z).reshape(len(z), 4, 4, -1)
    for index in range(count(net.params, "GenBlock")):
        x = gen_block(net, f"GenBlock_{index}", x, g)

    batch, height, width, _ = x.shape
    query = normalize(conv(net, "Conv_0", x).reshape(batch, height * width, -1))
    logits = gamma * jnp.einsum("brd,btd->brt", query, words)
    is_word = jnp.arange(words.shape[1]) < inputs["max_len"]
    attention = jax.nn.softmax(jnp.where(is_word[:, None, :], logits, -1e9), axis=2)
    context = jnp.einsum("brt,btd->brd", attention, words).reshape(batch, height, width, -1)
    g = jnp.broadcast_to(g[:, None, None], (batch, height, width, g.shape[1]))
    s = jnp.concatenate([context, g], axis=3)
    for index in range(count(net.params, "GenSpatialBlock")):
        x, s = gen_spatial_block(net, f"GenSpatialBlock_{index}", x, s)
    x = jax.nn.relu(spatial_norm(net, "LocalConditionalBatchNorm_0", x, s))
    return (jnp.tanh(conv(net, "Conv_1", x)) + 1) / 2


# The discriminator.


def spectral_kernel(net: Network, name: str) -> Any:
    """Divide a kernel by its largest singular value, after one power iteration."""

    def unit(x: Any) -> Any:
        return x / jnp.sqrt(jnp.sum(x**2) + 1e-10)

    kernel = net.params[f"{name}/kernel"]
    w = kernel.reshape(-1, kernel.shape[-1])
    v = unit(net.stats[f"{name}/u0"] @ w.T)
    u = unit(v @ w)
    u, v = jax.lax.stop_gradient(u), jax.lax.stop_gradient(v)
    net.new_stats[f"{name}/u0"] = u
    return kernel / ((v @ w @ u.T)[0, 0] + 1e-10)


def spectral_dense(net: Network, name: str, x: Any) -> Any:
    """Multiply by a normalized kernel and add the bias."""
    return x @ spectral_kernel(net, name) + net.params[f"{name}/bias"]


def spectral_conv(net: Network, name: str, x: Any) -> Any:
    """Convolve with a normalized kernel and add the bias."""
    return convolve(x, spectral_kernel(net, name)) + net.params[f"{name}/bias"]


def pool(x: Any) -> Any:
    """Average blocks of 2x2 pixels."""
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def stem(net: Network, name: str, x: Any) -> Any:
    """Encode an image at half its size."""
    shortcut = spectral_conv(net, f"{name}/SpectralConv_2", pool(x))
    x = jax.nn.relu(spectral_conv(net, f"{name}/SpectralConv_0", x))
    return pool(spectral_conv(net, f"{name}/SpectralConv_1", x)) + shortcut


def disc_block(net: Network, name: str, x: Any, downsample: bool) -> Any:
    """Encode a map, at half its size if `downsample`."""
    shortcut = x
    x = spectral_conv(net, f"{name}/SpectralConv_0", jax.nn.relu(x))
    x = spectral_conv(net, f"{name}/SpectralConv_1", jax.nn.relu(x))
    if downsample or shortcut.shape[-1] != x.shape[-1]:
        shortcut = spectral_conv(net, f"{name}/SpectralConv_2", shortcut)
    return pool(x) + pool(shortcut) if downsample else x + shortcut


def discriminator(net: Network, image: Any, sentence: Any, cond_size: int) -> tuple[Any, ...]:
    """Return logits (b, 1), global features, regions and projected sentences."""
    x = stem(net, "DiscOptimizedBlock_0", image)
    blocks = count(net.params, "DiscBlock")
    for index in range(blocks):
        x = disc_block(net, f"DiscBlock_{index}", x, downsample=index < blocks - 1)
        if x.shape[1] == cond_size:
            regions = spectral_conv(net, "SpectralConv_0", x)
            regions = regions.reshape(len(x), cond_size**2, -1)
    feature = jax.nn.relu(x).sum(axis=(1, 2))
    sentence = spectral_dense(net, "SpectralDense_1", sentence)
    logits = spectral_dense(net, "SpectralDense_0", feature)
    return logits + (feature * sentence).sum(axis=1, keepdims=True), feature, regions, sentence


# The losses.


def cross_entropies(logits: Any) -> dict[str, Any]:
    """Return loss, accuracy and entropy of both retrieval directions."""
    terms = []
    for way in (logits, logits.T):
        probability, pairs = jax.nn.softmax(way, axis=1), jnp.arange(len(way))
        loss = (jax.nn.logsumexp(way, axis=1) - way[pairs, pairs]).mean()
        accuracy = (way.argmax(axis=1) == pairs).mean()
        entropy = -(probability * jnp.log(probability + 1e-30)).sum(axis=1).mean()
        terms.append((loss, accuracy, entropy))
    (loss, accuracy, entropy), (loss_t, accuracy_t, entropy_t) = terms
    return {
        "loss": loss + loss_t,
        "accuracy": (accuracy + accuracy_t) / 2,
        "entropy": (entropy + entropy_t) / 2,
    }


def contrastive(a: Any, b: Any) -> dict[str, Any]:
    """Contrast two sets of features, row by row a match."""
    return cross_entropies(normalize(a) @ normalize(b).T / 0.1)


def word_loss(regions: Any, words: Any, length: Any) -> dict[str, Any]:
    """Contrast regions (b, r, d) with words (b, t, d) of `length` (b, 1) each."""
    regions, words = normalize(regions), normalize(words)
    is_word = jnp.arange(words.shape[1]) < length  # (captions, t)
    logits = 5 * jnp.einsum("ird,ctd->ictr", regions, words)
    attention = jax.nn.softmax(jnp.where(is_word[None, :, :, None], logits, -1e9), axis=3)
    context = jnp.einsum("ictr,ird->ictd", attention, regions)
    cosine = (normalize(context) * words[None]).sum(axis=3)
    scores = jax.nn.logsumexp(jnp.where(is_word[None], 5 * cosine, -jnp.inf), axis=2) / 5
    return cross_entropies(50 * scores)


def losses(g: Network, d: Network, inputs: Arrays, gamma: float, cond_size: int) -> Arrays:
    """Run both networks on a batch, real and generated images in one, and take every loss.

    Args:
        g: the generator.
        d: the discriminator.
        inputs: `image` (b, h, w, 3) in [0, 1], `embedding` (b, t, d), `max_len` (b, 1),
            `sentence_embedding` (b, e) and `z` (b, z).
        gamma: sharpness of the generator's attention over words.
        cond_size: side of the maps where regions meet words.

    Returns:
        `d_loss`, `g_loss`, `fake`, `logits`, and `NAME_loss`, `NAME_accuracy` and `NAME_entropy`
        of each contrastive loss.
    """
    real, sentence = inputs["image"], inputs["sentence_embedding"]
    words, length, b = inputs["embedding"], inputs["max_len"], len(inputs["image"])
    fake = generator(g, inputs, gamma)
    logits, feature, regions, projected = discriminator(
        d, jnp.concatenate([real, fake]), jnp.concatenate([sentence, sentence]), cond_size
    )
    contrasts = {
        "real_word": word_loss(regions[:b], words, length),
        "fake_word": word_loss(regions[b:], words, length),
        "real_sentence": contrastive(feature[:b], projected[:b]),
        "fake_sentence": contrastive(feature[b:], projected[b:]),
        "image_contrastive": contrastive(feature[:b], feature[b:]),
    }
    d_loss = jax.nn.relu(1 - logits[:b]).mean() + jax.nn.relu(1 + logits[b:]).mean()
    d_loss += contrasts["real_sentence"]["loss"] + contrasts["real_word"]["loss"]
    g_loss = -logits[b:].mean() + contrasts["image_contrastive"]["loss"]
    g_loss += contrasts["fake_sentence"]["loss"] + contrasts["fake_word"]["loss"]
    found = {"d_loss": d_loss, "g_loss": g_loss, "fake": fake, "logits": logits}
    for name, terms in contrasts.items():
        found |= {f"{name}_{field}": value for field, value in terms.items()}
    return found
