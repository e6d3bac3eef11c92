"""ResNet-50 is the literal network of each of its files, batch norms unfolded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from convert_weights import convert
from jax import lax
from torch_writer import Tensor, save_archive

from xmcgan.errors import WeightsError
from xmcgan.pretrained.encoders import load_image_encoder
from xmcgan.pretrained.resnet import load_resnet50

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
IMAGES = np.random.default_rng(5).uniform(size=(2, 64, 64, 3)).astype(np.float32)


def random_official_tree():
    """Return random weights in the official file's naming."""
    rng = np.random.default_rng(0)
    params, stats = {}, {}

    def layer(params, stats, conv, norm, size, inputs, outputs):
        kernel = rng.normal(size=(size, size, inputs, outputs)) * (size**2 * inputs) ** -0.5
        params[conv] = {"kernel": kernel.astype(np.float32)}
        draw = lambda low, high: rng.uniform(low, high, outputs).astype(np.float32)  # noqa: E731
        params[norm] = {"scale": draw(0.5, 1.5), "bias": draw(-0.5, 0.5)}
        stats[norm] = {"mean": draw(-0.5, 0.5), "var": draw(0.5, 2)}

    layer(params, stats, "init_conv", "init_bn", 7, 3, 64)
    inputs = 64
    for stage, (width, repeats) in enumerate(STAGES, start=1):
        p, s = params.setdefault(f"stage{stage}", {}), stats.setdefault(f"stage{stage}", {})
        for index in range(1, repeats + 1):
            block = (p.setdefault(f"block{index}", {}), s.setdefault(f"block{index}", {}))
            layer(*block, "conv1", "bn1", 1, inputs, width)
            layer(*block, "conv2", "bn2", 3, width, width)
            layer(*block, "conv3", "bn3", 1, width, 4 * width)
            if index == 1:
                layer(*block, "proj_conv", "proj_bn", 1, inputs, 4 * width)
            inputs = 4 * width
    head = rng.normal(size=(2048, 1000)).astype(np.float32) / 45
    params["head"] = {"kernel": head, "bias": rng.normal(size=1000).astype(np.float32)}
    return {"params": params, "batch_stats": stats}


def torch_tensors(tree):
    """Return the same weights in torchvision's naming."""
    tensors = {}

    def layer(params, stats, conv, norm, prefix, torch_conv, torch_norm):
        kernel = params[conv]["kernel"].transpose(3, 2, 0, 1)
        tensors[f"{prefix}{torch_conv}.weight"] = np.ascontiguousarray(kernel)
        names = {"weight": params[norm]["scale"], "bias": params[norm]["bias"]}
        names |= {"running_mean": stats[norm]["mean"], "running_var": stats[norm]["var"]}
        for name, value in names.items():
            tensors[f"{prefix}{torch_norm}.{name}"] = value
        tensors[f"{prefix}{torch_norm}.num_batches_tracked"] = np.array(3, np.int64)

    params, stats = tree["params"], tree["batch_stats"]
    layer(params, stats, "init_conv", "init_bn", "", "conv1", "bn1")
    for stage, (_, repeats) in enumerate(STAGES, start=1):
        for index in range(1, repeats + 1):
            block = [part[f"stage{stage}"][f"block{index}"] for part in (params, stats)]
            prefix = f"layer{stage}.{index - 1}."
            for n in (1, 2, 3):
                layer(*block, f"conv{n}", f"bn{n}", prefix, f"conv{n}", f"bn{n}")
            if index == 1:
                layer(*block, "proj_conv", "proj_bn", prefix, "downsample.0", "downsample.1")
    tensors["fc.weight"] = np.ascontiguousarray(params["head"]["kernel"].T)
    tensors["fc.bias"] = params["head"]["bias"]
    return tensors


def literal_resnet(tree, images, *, like_torch):
    """Compute the network with its batch norms apart, in the framework's own padding."""

    def conv_norm(x, params, stats, conv, norm, stride=1):
        kernel = params[conv]["kernel"]
        half = kernel.shape[0] // 2
        padding = [(half, half)] * 2 if like_torch else "SAME"
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=numbers)
        x = (x - stats[norm]["mean"]) / jnp.sqrt(stats[norm]["var"] + 1e-5)
        return x * params[norm]["scale"] + params[norm]["bias"]

    params, stats = tree["params"], tree["batch_stats"]
    if like_torch:
        images = (images - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = conv_norm(jnp.asarray(images, jnp.float32), params, stats, "init_conv", "init_bn", 2)
    if like_torch:
        x = jax.nn.relu(x)
    padding = [(0, 0), (1, 1), (1, 1), (0, 0)] if like_torch else "SAME"
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    for stage, (_, repeats) in enumerate(STAGES, start=1):
        for index in range(1, repeats + 1):
            block = [part[f"stage{stage}"][f"block{index}"] for part in (params, stats)]
            stride = 2 if stage > 1 and index == 1 else 1
            y = jax.nn.relu(conv_norm(x, *block, "conv1", "bn1"))
            y = jax.nn.relu(conv_norm(y, *block, "conv2", "bn2", stride))
            y = conv_norm(y, *block, "conv3", "bn3")
            if index == 1:
                x = conv_norm(x, *block, "proj_conv", "proj_bn", stride)
            x = jax.nn.relu(x + y)
    features = x.mean((1, 2))
    return features, features @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.fixture(scope="module")
def tree():
    return random_official_tree()


@pytest.fixture(scope="module")
def files(tree, tmp_path_factory):
    """Return the same weights, converted from the official .npy and from torchvision's naming."""
    folder = tmp_path_factory.mktemp("resnet")
    np.save(folder / "official.npy", np.array(tree, dtype=object), allow_pickle=True)
    safetensors.numpy.save_file(torch_tensors(tree), folder / "torch.safetensors")
    return {
        False: convert("resnet50", folder / "official.npy"),
        True: convert("resnet50", folder / "torch.safetensors"),
    }


@pytest.mark.parametrize("like_torch", [False, True])
def test_features_and_logits_are_the_literal_formula(tree, files, like_torch):
    module, params = load_resnet50(files[like_torch])
    found = jax.jit(module.apply)({"params": params}, IMAGES)
    expected = jax.jit(literal_resnet, static_argnames="like_torch")(
        tree, IMAGES, like_torch=like_torch
    )
    for name, a, b in zip(("features", "logits"), found, expected, strict=True):
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-4, name


def test_kind_of_file_decides_padding_stem_and_normalization(files):
    assert [load_resnet50(file)[0].is_official for file in files.values()] == [True, False]


def test_both_files_and_a_pth_give_the_same_parameters(tree, files, tmp_path):
    state = {name: Tensor(tensor) for name, tensor in torch_tensors(tree).items()}
    pth = convert("resnet50", save_archive(tmp_path / "a.pth", state))
    expected = load_resnet50(files[True])[1]
    for file in (files[False], pth):
        jax.tree.map(np.testing.assert_array_equal, load_resnet50(file)[1], expected)


def test_missing_tensor_is_named(tree, tmp_path):
    tensors = torch_tensors(tree)
    del tensors["layer3.5.bn2.running_var"]
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors .*layer3\.5\.bn2\.running_var"):
        convert("resnet50", tmp_path / "a.safetensors")


def test_encoder_resizes_and_reports_its_width(files):
    for feature, width in (("pooled", 2048), ("logits", 1000)):
        encoder = load_image_encoder("resnet50", files[False], input_size=32, feature=feature)
        images = jax.ShapeDtypeStruct((3, 48, 48, 3), jnp.float32)
        assert jax.eval_shape(encoder.apply, encoder.params, images).shape == (3, width)
        assert encoder.width == width
