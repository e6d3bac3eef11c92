"""XMC-GAN: cross-modal contrastive learning for text-to-image generation (CVPR 2021)."""

from typing import Any

__version__ = "0.1.0"


def load_model(path_or_name: Any) -> Any:
    """Return the `TrainedModel` of a model folder, a name such as "emoji64", or "hf:user/name"."""
    from xmcgan.sampling import model_folder  # imports JAX: not for `import xmcgan`

    return model_folder.load_model(path_or_name)
