"""XMC-GAN: cross-modal contrastive learning for text-to-image generation (CVPR 2021)."""

__version__ = "0.1.0"
