"""Where compiled programs are kept between runs."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless JAX's own variable says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "xmcgan" / "jax"))
