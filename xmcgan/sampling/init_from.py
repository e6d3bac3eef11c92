"""First parameters of a new run: those of another run, of a model folder, or of a named model."""

from typing import Any

import jax
import numpy as np

from xmcgan.errors import ConfigError, listed
from xmcgan.sampling.model_folder import find_model, hub_commit, read_model
from xmcgan.training.checkpoint import committed_steps, named_leaves, restore_subtree
from xmcgan.training.state import TrainState
from xmcgan.utils.files import path_of
from xmcgan.utils.mesh import put

_OF_RUN = ("g_params", "g_batch_stats", "ema_params", "ema_batch_stats", "d_params", "d_vectors")
# A model folder has averaged weights of the generator alone; the raw ones start there as well.
_OF_MODEL = {
    "params": ("g_params", "ema_params"),
    "batch_stats": ("g_batch_stats", "ema_batch_stats"),
}


def start_from(state: TrainState, source: str) -> tuple[TrainState, dict[str, Any]]:
    """Take the arrays that fit by name and shape; all others of the state stay as they are.

    Args:
        source: A workdir (its newest checkpoint), a model folder, a name such as "emoji64", or a
            hub id.

    Returns:
        The state, and what was taken, as JSON values.

    Raises:
        ConfigError: Nothing of the generator fits.
        UserError: There is no such source, or it is damaged.
    """
    stored, facts = _read(source)
    own = named_leaves({name: getattr(state, name) for name in _OF_RUN})
    fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape}
    left = [f"{k} {v.shape}: {_why(k, own)}" for k, v in stored.items() if k not in fitting]
    if not any(name.startswith("g_params/") for name in fitting):
        raise ConfigError(
            f"init_from = {source}: no parameter of the generator fits by name and shape:"
            f"{listed(left)}"
        )
    fields = {name: getattr(state, name) for name in _OF_RUN}
    leaves = [
        put(fitting[name].astype(leaf.dtype), leaf.sharding) if name in fitting else leaf
        for name, leaf in named_leaves(fields).items()
    ]
    taken = {}
    for part in ("g_params", "d_params"):
        counts = [sum(name.startswith(part) for name in names) for names in (fitting, own)]
        taken[part] = f"{counts[0]} of {counts[1]}"
    facts |= {"source": source, "arrays": taken, "left_out": left, "taken": sorted(fitting)}
    return state.replace(**jax.tree.unflatten(jax.tree.structure(fields), leaves)), facts


def _why(name: str, own: dict[str, Any]) -> str:
    return f"here {own[name].shape}" if name in own else "not here"


def _read(source: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    checkpoints = path_of(source).expanduser() / "checkpoints"
    if checkpoints.is_dir():
        steps = committed_steps(checkpoints)
        if not steps:
            raise ConfigError(f"init_from = {source}: {checkpoints} has no checkpoint yet")
        stored = restore_subtree(checkpoints, steps[-1], _OF_RUN, optional=_OF_RUN)
        return named_leaves(stored), {"step": steps[-1]}
    folder = find_model(source)
    _, arrays, facts = read_model(folder)
    renamed = {
        f"{field}/{rest}": array
        for name, array in arrays.items()
        for top, _, rest in [name.partition("/")]
        for field in _OF_MODEL[top]
    }
    return renamed, {"sha256": facts["weights"]["sha256"]} | hub_commit(source, folder)


def describe(facts: dict[str, Any]) -> str:
    """What was taken, for the summary."""
    arrays = facts["arrays"]
    text = f"{facts['source']}: {arrays['g_params']} arrays of the generator's parameters, "
    return f"{text}{arrays['d_params']} of the discriminator's{listed(facts['left_out'])}"
