"""Names in a config that stand for classes: registered ones, or a user's own by dotted path."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmcgan.errors import ConfigError, did_you_mean


def find(name: str, registered: Mapping[str, str], kind: str) -> Any:
    """Return the class or function behind a name, such as "hinge" of a `kind` "loss".

    The name is a key of `registered`, or `module:attribute` of a module on Python's path or in the
    current directory. Raises ConfigError if there is no such name, module or attribute.
    """
    path = registered.get(name, name)
    module_name, _, attribute = path.partition(":")
    if not attribute:
        raise ConfigError(
            f"unknown {kind} {name!r}{did_you_mean(name, registered)}; a {kind} of your own is "
            f"named by module:attribute, such as my_{kind.replace(' ', '_')}s:Mine"
        )
    if name not in registered and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # scripts/*.py have their own folder there instead
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"{kind} {name!r}: {error}") from error
