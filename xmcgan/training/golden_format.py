"""What a golden file of the official architecture must hold, by name and shape."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xmcgan.errors import DataError

META_FIELDS = ("image_size", "gf_dim", "df_dim", "embedding_dim", "z_dim", "gamma_for_g",
               "cond_size")  # fmt: skip
CONTRASTS = ("real_word", "fake_word", "real_sentence", "fake_sentence", "image_contrastive")
FIRST_SIZE = 4  # height and width of the generator's first feature map
Shapes = dict[str, tuple[int, ...]]


def check_golden(meta: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that a golden file's arrays are complete and fit together.

    Args:
        meta: the file's `meta`.
        arrays: all its other arrays by name.

    Raises:
        DataError: `meta` or an array is missing or wrong, or an unknown parameter is there.
    """
    _check_meta(meta)
    expected = _expected_shapes(meta, arrays)
    missing = [name for name in expected if name not in arrays]
    if missing:
        more = f" and {len(missing) - 1} other arrays" if len(missing) > 1 else ""
        raise DataError(f"it lacks {missing[0]}{more}")
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise DataError(f"{name} has shape {arrays[name].shape}, not {shape}")
    for name in arrays:
        if name.startswith(("generator/", "discriminator/")) and name not in expected:
            raise DataError(f"{name} is no array of this architecture")


def _check_meta(meta: Any) -> None:
    if not isinstance(meta, dict):
        raise DataError("meta is not a JSON object")
    missing = [field for field in META_FIELDS if field not in meta]
    if missing:
        raise DataError(f"meta lacks {', '.join(missing)}")
    for field in META_FIELDS:
        kinds = (int, float) if field == "gamma_for_g" else (int,)
        if type(meta[field]) not in kinds or meta[field] <= 0:
            raise DataError(f"meta: {field} = {meta[field]!r} is no positive number")
    sizes = [FIRST_SIZE]
    while sizes[-1] < meta["image_size"]:
        sizes.append(2 * sizes[-1])
    if sizes[-1] != meta["image_size"] or meta["cond_size"] not in sizes[:-1]:
        raise DataError(
            f"meta: image_size = {meta['image_size']} and cond_size = {meta['cond_size']} must be "
            f"{FIRST_SIZE} times a power of two, cond_size the smaller one"
        )


def _expected_shapes(meta: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Shapes:
    """List every array of the file; numbers of examples and widths of blocks are its own."""
    batch, size = _length(arrays, "input/image", 0), meta["image_size"]
    sentence_dim = _length(arrays, "input/sentence_embedding", 1)
    image, tokens = (batch, size, size, 3), _length(arrays, "input/embedding", 1)
    shapes: Shapes = {
        "input/image": image,
        "input/embedding": (batch, tokens, meta["embedding_dim"]),
        "input/max_len": (batch, 1),
        "input/sentence_embedding": (batch, sentence_dim),
        "input/z": (batch, meta["z_dim"]),
        "expect/generator_eval/image": image,
        "expect/generator_train/image": image,
        "expect/discriminator_train/logits": (2 * batch, 1),
        "expect/step/d_loss": (),
        "expect/step/g_loss": (),
    }
    for name in CONTRASTS:
        for field in ("loss", "acc", "entropy"):
            shapes[f"expect/discriminator_train/{name}_{field}"] = ()
    params, stats = _generator_shapes(meta, arrays, sentence_dim)
    shapes |= _under(("generator/params", "expect/step/g_grad"), params)
    shapes |= _under(("generator/batch_stats", "expect/generator_train/batch_stats"), stats)
    params, vectors = _discriminator_shapes(meta, arrays, sentence_dim)
    shapes |= _under(("discriminator/params", "expect/step/d_grad"), params)
    places = ("discriminator", "expect/discriminator_train")
    shapes |= _under(tuple(f"{place}/spectral_norm_stats" for place in places), vectors)
    return shapes | _loss_shapes(arrays)


def _generator_shapes(
    meta: dict[str, Any], arrays: Mapping[str, np.ndarray], sentence_dim: int
) -> tuple[Shapes, Shapes]:
    """List the generator's parameters and running statistics."""
    dim, z_dim, size, width = meta["embedding_dim"], meta["z_dim"], FIRST_SIZE, 16 * meta["gf_dim"]
    layers: Shapes = {"Dense_0": (sentence_dim, z_dim), "Dense_1": (z_dim, size * size * width)}
    stats: Shapes = {}
    counts = {"GenBlock": 0, "GenSpatialBlock": 0}

    def add_norm(name: str, width: int, *, spatial: bool) -> None:
        kind, fan_in = ("Conv", (1, 1, dim + 2 * z_dim)) if spatial else ("Dense", (2 * z_dim,))
        layers[f"{name}/{kind}_0"] = layers[f"{name}/{kind}_1"] = (*fan_in, width)
        stats[f"{name}/BatchNorm_0/mean"] = stats[f"{name}/BatchNorm_0/var"] = (width,)

    while size < meta["image_size"]:
        spatial = size >= meta["cond_size"]
        kind = "GenSpatialBlock" if spatial else "GenBlock"
        norm = "LocalConditionalBatchNorm" if spatial else "ConditionalBatchNorm"
        block = f"{kind}_{counts[kind]}"
        features = _width(arrays, f"generator/params/{block}/Conv_0/bias", meta["gf_dim"])
        if size == meta["cond_size"]:
            layers["Conv_0"] = (1, 1, width, dim)
        add_norm(f"{block}/{norm}_0", width, spatial=spatial)
        add_norm(f"{block}/{norm}_1", features, spatial=spatial)
        layers |= _block(f"{block}/Conv", width, features, shortcut=True)
        counts[kind], size, width = counts[kind] + 1, 2 * size, features
    add_norm("LocalConditionalBatchNorm_0", width, spatial=True)
    layers["Conv_1"] = (3, 3, width, 3)
    return _with_biases(layers), stats


def _discriminator_shapes(
    meta: dict[str, Any], arrays: Mapping[str, np.ndarray], sentence_dim: int
) -> tuple[Shapes, Shapes]:
    """List the discriminator's parameters and the vectors of its spectral norms."""
    layers: Shapes = {}
    size, width, last = meta["image_size"], 3, False
    names = ["DiscOptimizedBlock_0"]
    while not last:
        # All blocks halve the size down to 4x4, where one more keeps it.
        block, last = names[-1], size == FIRST_SIZE
        features = _width(
            arrays, f"discriminator/params/{block}/SpectralConv_0/bias", meta["df_dim"]
        )
        shortcut = not last or width != features
        layers |= _block(f"{block}/SpectralConv", width, features, shortcut=shortcut)
        size, width = size if last else size // 2, features
        if size == meta["cond_size"] and "SpectralConv_0" not in layers:
            layers["SpectralConv_0"] = (1, 1, width, meta["embedding_dim"])
        names.append(f"DiscBlock_{len(names) - 1}")
    layers["SpectralDense_0"], layers["SpectralDense_1"] = (width, 1), (sentence_dim, width)
    return _with_biases(layers), {f"{name}/u0": (1, shape[-1]) for name, shape in layers.items()}


def _loss_shapes(arrays: Mapping[str, np.ndarray]) -> Shapes:
    pairs, dim = (_length(arrays, "loss/contrastive/a", axis) for axis in (0, 1))
    shapes: Shapes = {f"loss/contrastive/{side}": (pairs, dim) for side in ("a", "b")}
    pairs, regions, dim = (_length(arrays, "loss/word/regions", axis) for axis in range(3))
    tokens = _length(arrays, "loss/word/words", 1)
    for side, count in (("regions", regions), ("words", tokens)):
        shapes[f"loss/word/{side}"] = shapes[f"loss/word/grad_{side}"] = (pairs, count, dim)
    shapes["loss/word/length"] = (pairs, 1)
    for loss in ("contrastive", "word"):
        shapes |= {f"loss/{loss}/{field}": () for field in ("loss", "accuracy", "entropy")}
    return shapes


def _block(name: str, width: int, features: int, *, shortcut: bool) -> Shapes:
    layers: Shapes = {f"{name}_0": (3, 3, width, features), f"{name}_1": (3, 3, features, features)}
    return layers | ({f"{name}_2": (1, 1, width, features)} if shortcut else {})


def _with_biases(layers: Shapes) -> Shapes:
    kernels = {f"{name}/kernel": shape for name, shape in layers.items()}
    return kernels | {f"{name}/bias": shape[-1:] for name, shape in layers.items()}


def _under(prefixes: tuple[str, ...], shapes: Shapes) -> Shapes:
    return {f"{prefix}/{name}": shape for prefix in prefixes for name, shape in shapes.items()}


def _length(arrays: Mapping[str, np.ndarray], name: str, axis: int) -> int:
    """Return the length of one axis of an array that the other shapes follow from."""
    if name not in arrays:
        raise DataError(f"it lacks {name}")
    if arrays[name].ndim <= axis:
        raise DataError(f"{name} has shape {arrays[name].shape}: too few axes")
    return arrays[name].shape[axis]


def _width(arrays: Mapping[str, np.ndarray], name: str, base: int) -> int:
    """Return a block's width, which is a multiple of the base width."""
    features = _length(arrays, name, 0)
    if features == 0 or features % base:
        raise DataError(f"{name} has {features} values, not a multiple of {base} (see meta)")
    return features
