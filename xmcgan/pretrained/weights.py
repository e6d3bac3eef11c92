"""Pretrained weights: where they lie, whether they are the published ones, and how they are read.

At run time every file is safetensors. `scripts/convert_weights.py` converts other formats once and
keeps the original's digests in the metadata, so that pins, protocols and recorded results name the
same sha256 before and after a conversion.
"""

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from xmcgan.errors import WeightsError, did_you_mean
from xmcgan.pretrained.sources import SOURCES, Source
from xmcgan.utils.download import PinnedFile, fault_of, sha256_of
from xmcgan.utils.files import home

_FOREIGN_SUFFIXES = (".pth", ".pt", ".bin", ".npy", ".h5")


def default_weights_dir() -> Path:
    """Return `XMCGAN_WEIGHTS_DIR` if set, else `weights/` of the checkout or working directory."""
    if configured := os.environ.get("XMCGAN_WEIGHTS_DIR"):
        return Path(configured).expanduser()
    return home() / "weights"


def resolve(name_or_path: str | os.PathLike[str], weights_dir: Path | None = None) -> Path:
    """Return the directory of a name of `SOURCES`, or the existing path of the user.

    Files that come by pip are verified here, those of publishers where they are loaded.
    """
    name = str(name_or_path)
    if source := SOURCES.get(name):
        directory = (weights_dir or default_weights_dir()) / name
        if source.requirement:
            verify(source, directory)
        elif not is_there(name, weights_dir):
            raise WeightsError(
                f"the weights {name!r} are missing (nothing is in {directory}); fetch them from "
                f"{source.origin} with\n  {fetch_command(directory)} --accept\n"
                "or give the path of a file"
            )
        return directory
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    raise WeightsError(
        f"no weights at {path}: it is neither a file or directory nor one of the names "
        f"({', '.join(SOURCES)}){did_you_mean(name, SOURCES)}"
    )


def is_there(name: str, weights_dir: Path | None = None) -> bool:
    """Return whether the directory of a name of `SOURCES` has weights, of whatever format."""
    directory = (weights_dir or default_weights_dir()) / name
    suffixes = (".safetensors", *_FOREIGN_SUFFIXES)
    return directory.is_dir() and any(file.suffix in suffixes for file in directory.iterdir())


def verify(source: Source, directory: Path) -> None:
    """Check that a directory has every run-time file of a source, unchanged."""
    remedy = f"fetch it with\n  {fetch_command(directory)}"
    for path, pinned in zip(source.paths(directory), source.files, strict=True):
        fault = fault_of(path, pinned) if source.network is None else _fault_of(path, pinned)
        if fault:
            raise WeightsError(f"{path} {fault}; {remedy}")


def _fault_of(converted: Path, pinned: PinnedFile) -> str:
    """Return what is wrong with a converted file, as `fault_of` does of one that is not."""
    try:
        _, metadata = read_safetensors(converted)
    except WeightsError as error:
        return f"cannot be used: {error}"
    if metadata.get("source_sha256") != pinned.sha256:
        return f"was not converted from {pinned.file_name}"
    return ""


def fetch_command(directory: Path) -> str:
    """Return the command that puts the files of a source into a directory, which has its name."""
    command = f"python scripts/fetch_weights.py {directory.name}"
    if directory.parent != default_weights_dir():
        command += f" --weights-dir {directory.parent}"
    return command


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """sha256 of a file of weights (of the original, if converted), and whether it is published."""

    sha256: str
    verified: bool


def identify_file(
    path: Path, published: Collection[str], *, allow_unverified: bool
) -> FileIdentity:
    """Return which safetensors file this is; one that is not published only if this is allowed.

    `published` are sha256 of the published files, or MD5 if no better digest was published.
    """
    metadata = _read_metadata(path)
    sha256 = metadata.get("source_sha256") or sha256_of(path)
    verified = sha256 in published or metadata.get("source_md5") in published
    if not verified and not allow_unverified:
        raise WeightsError(
            f"{path} cannot be verified: its sha256 is {sha256}, and the published files have "
            f"{' or '.join(published) or 'no known digest'}; get the published file, or pass "
            "--allow-unverified-weights to use this one (its scores are then marked as unverified)"
        )
    return FileIdentity(sha256, verified)


def find_file(path: Path, network: str) -> Path:
    """Return the safetensors file that a path means: itself, or the only one in the directory.

    `network` is what scripts/convert_weights.py calls it, for the message about another format.
    """
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        foreign = [file for file in sorted(path.iterdir()) if file.suffix in _FOREIGN_SUFFIXES]
        if len(found) != 1 and (found or not foreign):
            names = ", ".join(file.name for file in found) or "none"
            raise WeightsError(f"{path} must have exactly one .safetensors file; found: {names}")
        path = (found or foreign)[0]
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: there is no such file or directory")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is not a safetensors file; {convert_command(network, path)}")
    return path


def convert_command(network: str, path: Path) -> str:
    """Return advice, for the end of a message, to convert a file of weights."""
    command = f"python scripts/convert_weights.py {network} {shlex.quote(str(path))}"
    return f"convert it once with\n  {command}\nand give the file that this writes"


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return tensors, floats as float32, and the metadata of a safetensors file."""
    metadata = _read_metadata(path)
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    tensors = {name: upcast(tensor) for name, tensor in tensors.items()}
    digest = metadata.pop("content_sha256", None)
    is_converted = digest is not None or "source_sha256" in metadata
    if is_converted and digest != content_sha256(tensors, metadata):
        raise WeightsError(f"{path} is damaged: it was changed after its conversion")
    return tensors, metadata


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def upcast(tensor: np.ndarray) -> np.ndarray:
    """Return floating-point values as float32, and others as they are."""
    # bfloat16 is an extension type, which NumPy files under kind "V".
    return tensor.astype(np.float32, copy=False) if tensor.dtype.kind in "fV" else tensor


def content_sha256(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the digest by which a converted file notices damage to its values or metadata."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
