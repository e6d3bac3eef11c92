"""Whether all processes of a run were started to do the same."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

import xmcgan
from xmcgan.errors import AgreedError, listed
from xmcgan.utils.agreement import exchange
from xmcgan.utils.provenance import fingerprint_differences

# Beside the fingerprint: what decides which program is run when.
_PACE = (
    "log_every_steps", "sample_every_steps", "checkpoint_every_steps", "num_samples",
    "num_microbatches", "remat", "mesh", "restore_step", "allow_mismatch",
    "stop_after_skipped_steps",
)  # fmt: skip


def check_peers(config: ConfigDict, fingerprint: Mapping[str, Any], num_steps: int) -> None:
    """Refuse processes that would not compute the same program on the same data.

    Args:
        config: of this process.
        fingerprint: what a resumed run must share with its start, the data among it.
        num_steps: of the whole run.

    Raises:
        AgreedError: naming every field that differs from process 0's.
    """
    stored = config.to_dict()
    pace = {name: stored[name] for name in _PACE} | {"number of steps": num_steps}
    require_same(dict(fingerprint) | pace)


def require_same(choices: Mapping[str, Any]) -> None:
    """Refuse processes whose choices, as JSON values, or libraries differ.

    Raises:
        AgreedError: naming every field that differs from process 0's.
    """
    versions = {"version of jax": jax.__version__, "version of xmcgan": xmcgan.__version__}
    first, *others = exchange(dict(choices) | versions)
    for number, other in enumerate(others, start=1):
        if differences := fingerprint_differences(first, other):
            raise AgreedError(
                f"processes differ (field: process 0 -> process {number}):{listed(differences)}\n"
                "Give all of them the same command and the same data."
            )
