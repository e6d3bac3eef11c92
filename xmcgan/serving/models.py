"""Models by name: loaded on first use, kept in memory while they are used, let go by age."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xmcgan.config import read_config
from xmcgan.errors import CheckpointError, UserError
from xmcgan.sampling import exploration
from xmcgan.sampling.model_folder import CARD, FACTS, find_model, known_models, load_model
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.training.checkpoint import committed_steps

MOST_WEIGHTS = 8  # sets of weights in memory; the longest unused goes first
# By data set; the first two differ in one word.
_EXAMPLES = {
    "emoji": ["woman firefighter: dark skin tone", "woman farmer: dark skin tone", "grinning cat"],
    "shapes": ["a large red circle", "a large blue circle", "a green star left of a red square"],
}
Key = tuple[str, int | None, bool]  # name, step (the newest if None), raw weights


class UnknownModel(UserError):
    """A name that is not among the models that are served."""


class Models:
    """Models that are served; `get` is called by one thread only.

    Args:
        names: of models that come with the repository, model folders or workdirs; None for those
            of the repository. One that is missing or damaged is reported by `describe` and `get`.
        keep_seconds: weights unused for longer are let go.
    """

    def __init__(self, names: Iterable[str] | None = None, keep_seconds: float = 1800) -> None:
        self.folders: dict[str, Path] = {}
        for given in dict.fromkeys(known_models() if names is None else names):
            path = Path(given).expanduser()
            name = given if given in known_models() else path.resolve().name
            self.folders[given if name in self.folders else name] = path
        self._keep_seconds = keep_seconds
        self._runs: dict[str, TrainedModel] = {}
        self._weights: dict[Key, tuple[TrainedModel, float]] = {}

    def get(self, key: Key) -> TrainedModel:
        """Return a model, loaded if it is not in memory.

        Raises:
            UnknownModel: no model of that name is served.
            UserError: it cannot be loaded; the message has no path of this machine.
        """
        name, step, raw = key
        if name not in self.folders:
            raise UnknownModel(f"no model {name!r}: there are {', '.join(self.folders)}")
        try:
            steps = self._steps(name)
            if step is None and steps:
                step = steps[-1]
            key = name, step, raw
            model = self._weights[key][0] if key in self._weights else self._load(*key)
        except UserError as error:
            text = str(error).replace(str(self.folders[name]), name)
            raise type(error)(text) from None
        self._weights[key] = model, time.monotonic()
        if len(self._weights) > MOST_WEIGHTS:
            self._let_go([min(self._weights, key=lambda each: self._weights[each][1])])
        return model

    def release_unused(self) -> None:
        """Release weights that nobody has used for a while."""
        oldest = time.monotonic() - self._keep_seconds
        self._let_go([key for key, (_, used) in self._weights.items() if used < oldest])

    def describe(self, name: str) -> dict[str, Any]:
        """Return JSON values about a model, without loading it; "error" says why it cannot be."""
        steps: list[int] = []
        about: dict[str, Any] = {"name": name, "error": None, "about": "", "examples": []}
        try:
            folder = self._folder(name)
            config = read_config(folder / "config.json")
            data = config.data.name
            steps = self._steps(name)
            if (folder / FACTS).is_file():
                facts = json.loads((folder / FACTS).read_text("utf-8"))
                about["about"] = (
                    f"{_first_sentence(folder / CARD)} Trained on {data}: {facts['steps']:,} "
                    f"steps, {facts['images_seen']:,} images."
                )
            elif steps:
                about["about"] = f"A run trained on {data}, newest checkpoint: step {steps[-1]:,}."
            else:
                raise CheckpointError(f"{name} has no checkpoint yet")
            about["examples"] = _EXAMPLES.get(data.split("/")[0], [])
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            about["error"] = str(error).replace(str(self.folders[name]), name)
        about["steps"] = steps
        about["loaded"] = any(key[0] == name for key in tuple(self._weights))
        return about

    def _folder(self, name: str) -> Path:
        given = self.folders[name]
        return given if given.is_dir() else find_model(str(given))

    def _steps(self, name: str) -> list[int]:
        return committed_steps(self._folder(name) / "checkpoints")

    def _load(self, name: str, step: int | None, raw: bool) -> TrainedModel:
        folder = self._folder(name)
        if (folder / FACTS).is_file():
            if step is not None or raw:
                raise CheckpointError(f"{name} has one set of weights, and no other checkpoints")
            return load_model(folder)
        if step is None:
            raise CheckpointError(f"{name} has no checkpoint yet")
        if name in self._runs:
            return self._runs[name].using(step, raw=raw)
        model = TrainedModel.from_workdir(folder, step, raw=raw)
        model.origin = {"model": name} | {
            key: value for key, value in model.origin.items() if key != "workdir"
        }
        self._runs[name] = model
        return model

    def _let_go(self, keys: list[Key]) -> None:
        for key in keys:
            del self._weights[key]
            if not any(each[0] == key[0] for each in self._weights):
                self._runs.pop(key[0], None)
        if keys:
            exploration.forget_programs()  # they hold the text encoder of each model


def _first_sentence(card: Path) -> str:
    """Return what a model card says first below its title."""
    try:
        parts = card.read_text("utf-8").split("\n\n")
    except OSError:
        return ""
    text = " ".join(next((part for part in parts if not part.startswith("#")), "").split())
    return text.split(". ")[0].rstrip(".") + "."
