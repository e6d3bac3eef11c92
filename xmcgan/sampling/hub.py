"""Model folders on the Hugging Face hub: `hf:user/name`, or `hf:user/name@revision`."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from xmcgan.errors import UserError, WeightsError

PREFIX = "hf:"
# Files of formats that can hold code; they are never read.
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")


def download_model(hub_id: str, names: Sequence[str]) -> Path:
    """Return the folder in the hub's cache with the named files; its name is the commit.

    Raises:
        WeightsError: there is no such model or revision, a file is missing, or the hub cannot be
            reached and the cache does not hold it.
    """
    repo, revision = _split(hub_id)
    cached_only = False
    with _hub_errors(hub_id):
        try:
            found = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=10)
            warn_of_pickles([file.rfilename for file in found.siblings or ()], hub_id)
        except (errors.HfHubHTTPError, errors.HFValidationError):
            raise
        except Exception:  # no network; downloads would try again for half a minute
            cached_only = True
        for name in names:
            file = huggingface_hub.hf_hub_download(
                repo, name, revision=revision, local_files_only=cached_only
            )
            # The first answer says which commit a branch stands for; the others are of that one.
            revision = Path(file).parent.name
    return Path(file).parent


def upload_model(folder: Path, hub_id: str, *, private: bool = False) -> str:
    """Upload a model folder, if needed to a new repository; return the commit's address."""
    repo, revision = _split(hub_id)
    with _hub_errors(hub_id):
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, revision=revision))


def warn_of_pickles(names: Sequence[str], where: str) -> None:
    """Warn of files of a model that are not read because they could run code."""
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        print(f"{where}: ignored {', '.join(sorted(pickles))}: only safetensors and JSON are read")


def _split(hub_id: str) -> tuple[str, str | None]:
    repo, _, revision = hub_id.removeprefix(PREFIX).partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise WeightsError(f"{hub_id!r} is no hub id: write hf:user/name or hf:user/name@revision")
    return repo, revision or None


@contextlib.contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Turn the library's errors into one that names the model."""
    try:
        yield
    except errors.RevisionNotFoundError:
        raise WeightsError(f"{hub_id} has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"there is no model {hub_id}, or it is private: log in with `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(
            f"the hub cannot be reached, and its cache does not hold {hub_id}: {_first(error)}"
        ) from None
    except errors.EntryNotFoundError as error:
        raise WeightsError(f"{hub_id} is no model folder of XMC-GAN: {_first(error)}") from None
    except errors.HFValidationError as error:
        raise WeightsError(f"{hub_id!r} is no hub id: {_first(error)}") from None
    except Exception as error:  # of the HTTP library underneath, which differs by version
        if isinstance(error, UserError):
            raise
        raise WeightsError(f"the hub failed at {hub_id}: {_first(error)}") from None


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
