"""The official architecture and its losses, written as literally as they can be described.

An oracle to test `xmcgan` against: it shares no code with it and merges, reorders or saves
nothing. Arrays go by the names of a golden file, in flat dictionaries: the parameters of a
generator are those under `generator/params/`, say. Everything is float32.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Arrays = dict[str, Any]


class Network(NamedTuple):
    """Hold a network's arrays, and collect in `new_stats` what its statistics become."""

    params: Arrays
    stats: Arrays
    new_stats: Arrays
    train: bool


def under(arrays: Mapping[str, Any], prefix: str) -> Arrays:
    """Return the arrays below `prefix/`."""
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in arrays.items() if name.startswith(start)}


def count(params: Arrays, kind: str) -> int:
    return len({name.split("/")[0] for name in params if name.startswith(f"{kind}_")})


# The generator.


def dense(net: Network, name: str, x: Any) -> Any:
    return x @ net.params[f"{name}/kernel"] + net.params[f"{name}/bias"]


def conv(net: Network, name: str, x: Any) -> Any:
    return convolve(x, net.params[f"{name}/kernel"]) + net.params[f"{name}/bias"]


def convolve(x: Any, kernel: Any) -> Any:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def upsample(x: Any) -> Any:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def normalize(x: Any) -> Any:
    return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def batch_norm(net: Network, name: str, x: Any) -> Any:
    mean, var = net.stats[f"{name}/mean"], net.stats[f"{name}/var"]
    if net.train:
        batch_mean, batch_var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        net.new_stats[f"{name}/mean"] = 0.9 * mean + 0.1 * batch_mean
        net.new_stats[f"{name}/var"] = 0.9 * var + 0.1 * batch_var
        mean, var = batch_mean, batch_var
    return (x - mean) / jnp.sqrt(var + 1e-5)


def global_norm(net: Network, name: str, x: Any, g: Any) -> Any:
    gamma, beta = dense(net, f"{name}/Dense_0", g), dense(net, f"{name}/Dense_1", g)
    x = batch_norm(net, f"{name}/BatchNorm_0", x)
    return x * (gamma[:, None, None] + 1) + beta[:, None, None]


def spatial_norm(net: Network, name: str, x: Any, s: Any) -> Any:
    gamma, beta = conv(net, f"{name}/Conv_0", s), conv(net, f"{name}/Conv_1", s)
    return batch_norm(net, f"{name}/BatchNorm_0", x) * (gamma + 1) + beta


def gen_block(net: Network, name: str, x: Any, g: Any) -> Any:
    shortcut = conv(net, f"{name}/Conv_2", upsample(x))
    x = jax.nn.relu(global_norm(net, f"{name}/ConditionalBatchNorm_0", x, g))
    x = conv(net, f"{name}/Conv_0", upsample(x))
    x = jax.nn.relu(global_norm(net, f"{name}/ConditionalBatchNorm_1", x, g))
    return conv(net, f"{name}/Conv_1", x) + shortcut


def gen_spatial_block(net: Network, name: str, x: Any, s: Any) -> tuple[Any, Any]:
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
    return x @ spectral_kernel(net, name) + net.params[f"{name}/bias"]


def spectral_conv(net: Network, name: str, x: Any) -> Any:
    return convolve(x, spectral_kernel(net, name)) + net.params[f"{name}/bias"]


def pool(x: Any) -> Any:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def stem(net: Network, name: str, x: Any) -> Any:
    shortcut = spectral_conv(net, f"{name}/SpectralConv_2", pool(x))
    x = jax.nn.relu(spectral_conv(net, f"{name}/SpectralConv_0", x))
    return pool(spectral_conv(net, f"{name}/SpectralConv_1", x)) + shortcut


def disc_block(net: Network, name: str, x: Any, downsample: bool) -> Any:
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
    return cross_entropies(normalize(a) @ normalize(b).T / 0.1)


def word_loss(regions: Any, words: Any, length: Any) -> dict[str, Any]:
    regions, words = normalize(regions), normalize(words)
    is_word = jnp.arange(words.shape[1]) < length  # (captions, t)
    logits = 5 * jnp.einsum("ird,ctd->ictr", regions, words)
    attention = jax.nn.softmax(jnp.where(is_word[None, :, :, None], logits, -1e9), axis=3)
    context = jnp.einsum("ictr,ird->ictd", attention, regions)
    cosine = (normalize(context) * words[None]).sum(axis=3)
    scores = jax.nn.logsumexp(jnp.where(is_word[None], 5 * cosine, -jnp.inf), axis=2) / 5
    return cross_entropies(50 * scores)


# What a golden file expects.


@partial(jax.jit, static_argnums=(1, 2))
def networks_and_gradients(arrays: Arrays, gamma: float, cond_size: int) -> Arrays:
    """Return everything under `expect/` from `input/`, `generator/` and `discriminator/`."""
    inputs, g_stats = under(arrays, "input"), under(arrays, "generator/batch_stats")
    d_stats = under(arrays, "discriminator/spectral_norm_stats")
    real, sentence = inputs["image"], inputs["sentence_embedding"]
    words, length = inputs["embedding"], inputs["max_len"]

    def both_losses(g_params: Arrays, d_params: Arrays) -> tuple[Any, Any, Arrays]:
        g, d = Network(g_params, g_stats, {}, True), Network(d_params, d_stats, {}, True)
        fake = generator(g, inputs, gamma)
        logits, feature, regions, projected = discriminator(
            d, jnp.concatenate([real, fake]), jnp.concatenate([sentence, sentence]), cond_size
        )
        b = len(real)
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
        expected = {"generator_train/image": fake, "discriminator_train/logits": logits}
        expected |= {"step/d_loss": d_loss, "step/g_loss": g_loss}
        expected |= prefixed("generator_train/batch_stats", g.new_stats)
        expected |= prefixed("discriminator_train/spectral_norm_stats", d.new_stats)
        for name, terms in contrasts.items():
            for field, short in (("loss", "loss"), ("accuracy", "acc"), ("entropy", "entropy")):
                expected[f"discriminator_train/{name}_{short}"] = terms[field]
        return d_loss, g_loss, expected

    g_params, d_params = under(arrays, "generator/params"), under(arrays, "discriminator/params")
    d_grad = jax.grad(lambda params: both_losses(g_params, params)[0])(d_params)
    g_grad = jax.grad(lambda params: both_losses(params, d_params)[1])(g_params)
    expected = both_losses(g_params, d_params)[2]
    still = Network(g_params, g_stats, {}, False)
    expected["generator_eval/image"] = generator(still, inputs, gamma)
    return expected | prefixed("step/d_grad", d_grad) | prefixed("step/g_grad", g_grad)


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def expect(meta: dict[str, Any], arrays: Mapping[str, Any]) -> Arrays:
    """Return what a golden file of these inputs and parameters has under `expect/`."""
    given = ("input/", "generator/", "discriminator/")
    arrays = {name: value for name, value in arrays.items() if name.startswith(given)}
    with jax.default_matmul_precision("highest"):
        expected = networks_and_gradients(arrays, meta["gamma_for_g"], meta["cond_size"])
    return prefixed("expect", jax.device_get(expected))
