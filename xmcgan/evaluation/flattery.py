"""Which scores are flattered: made with a network that training learned from."""

from ml_collections import ConfigDict

from xmcgan.evaluation.protocols import Protocol


def flattered_by(config: ConfigDict, protocol: Protocol) -> str:
    """Return which part of a run's training used the protocol's network, empty if none did.

    Args:
        config: of the training run.
        protocol: whose network judges the run.
    """
    parts = []
    loss = config.losses.image_pretrained
    if loss.enabled and loss.network == protocol.network:
        parts.append("image loss")
    discriminator = config.discriminator
    trunk = discriminator.get("trunk", "efficientnet_lite0")
    if discriminator.get("type") == "projected" and trunk == protocol.network:
        parts.append("discriminator")
    return " and ".join(parts)
