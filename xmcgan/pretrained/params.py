"""Parameter trees from named tensors, and whether they fit a network."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from xmcgan.errors import WeightsError, listed
from xmcgan.pretrained.weights import convert_command, find_file, read_safetensors

Params = dict[str, Any]
Module = TypeVar("Module", bound=nn.Module)


def load_converted(
    path: Path, network: str, build: Callable[[Mapping[str, str]], Module]
) -> tuple[Module, Params]:
    """Load an image network, built from the metadata of its converted file; may be a directory."""
    file = find_file(path, network)
    tensors, metadata = read_safetensors(file)
    found = metadata.get("network")
    if found is None:
        raise WeightsError(
            f"{file} has names of another program; convert it once with\n"
            f"  {convert_command(network, file)}"
        )
    if found != network:
        raise WeightsError(f"{file} holds the network {found!r} where {network!r} is expected")
    module = build(metadata)
    images = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
    check_params(tensors, module, images, path=file)
    return module, unflatten_dict(tensors, sep="/")


def check_params(
    found: Mapping[str, np.ndarray],
    module: nn.Module,
    *inputs: jax.ShapeDtypeStruct,
    path: Path,
    left_over: Iterable[str] = (),
) -> None:
    """Check that parameters, by path, are those of `module.init`, finite, with none left over."""
    try:
        expected = _expected_shapes(module, *inputs)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: a network of these sizes cannot work: {error}") from error
    faults = [f"missing: {name}" for name in sorted(expected.keys() - found.keys())]
    extra = [*left_over, *sorted(found.keys() - expected.keys())]
    faults += [f"not known to this network: {name}" for name in extra]
    for name in sorted(expected.keys() & found.keys()):
        array = found[name]
        if array.shape != expected[name]:
            faults.append(f"{name} {array.shape} where {expected[name]} is expected")
        elif array.dtype != np.float32 or not np.isfinite(array).all():
            faults.append(f"not finite numbers: {name}")
    if faults:
        raise WeightsError(f"{path} does not fit the network:{listed(faults)}")


@functools.cache
def _expected_shapes(
    module: nn.Module, *inputs: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...]]:
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)
    return {name: leaf.shape for name, leaf in flatten(variables["params"]).items()}


def flatten(params: Params) -> dict[str, Any]:
    """Return the leaves of a parameter tree by path, "layer_0/output/kernel"."""
    flat: Any = flatten_dict(params, sep="/")
    return flat


class Tensors(dict[str, np.ndarray]):
    """Named arrays of a file, taken out one by one: what is left at the end is not known."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.path = path

    def take(self, name: str) -> np.ndarray:
        """Remove and return a tensor; raises WeightsError if it is missing."""
        if name not in self:
            raise WeightsError(f"{self.path} does not fit the network; missing: {name}")
        return self.pop(name)

    def dense(self, *names: str) -> dict[str, np.ndarray]:
        """Take dense layers, `NAME.weight` (outputs, inputs) and `NAME.bias`, as one."""
        weights = np.concatenate([self.take(f"{name}.weight") for name in names])
        biases = np.concatenate([self.take(f"{name}.bias") for name in names])
        return {"kernel": np.ascontiguousarray(weights.T), "bias": biases}

    def norm(self, name: str) -> dict[str, np.ndarray]:
        """Take one layer norm from `NAME.weight` and `NAME.bias`."""
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}


def read_sizes(
    config: Mapping[str, Any],
    file: Path,
    network: type[nn.Module],
    kind: Mapping[str, str],
    prefix: str = "",
) -> dict[str, Any]:
    """Return the fields of a transformer in its config, which may leave out those with defaults.

    `kind` is what the config must say. A float stands for any number above 0, anything else for a
    whole number from 1 to a million.
    """
    own = sorted(network.__annotations__.keys() - {"name", "parent", "dtype"})
    defaults = {field: getattr(network, field, None) for field in own}
    found = {field: config.get(field, default) for field, default in {**kind, **defaults}.items()}
    for field, value in found.items():
        if field in kind:
            valid, wanted = value == kind[field], f"be {kind[field]!r}"
        elif isinstance(defaults[field], float):
            valid = isinstance(value, int | float) and 0 < value < math.inf
            wanted = "be a number above 0"
        else:
            # Far above any network: a damaged size must not take minutes to find out.
            valid = type(value) is int and 1 <= value <= 1_000_000
            wanted = "be a positive integer"
        if not valid:
            raise WeightsError(f"{file}: {prefix}{field} must {wanted}, not {value!r}")
    if found["hidden_size"] % found["num_attention_heads"]:
        raise WeightsError(f"{file}: {prefix}hidden_size is no multiple of num_attention_heads")
    return {field: found[field] for field in own}
