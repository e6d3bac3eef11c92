"""What a loss can see."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from xmcgan.models.outputs import Captions, DiscriminatorOutput

Metrics = dict[str, Float[Array, ""]]


class Features(NamedTuple):
    """Features of a batch of images.

    Attributes:
        output: Of the discriminator.
        pretrained: Of the frozen image network; None if its loss is off.
    """

    output: DiscriminatorOutput
    pretrained: Float[Array, "b f"] | None = None


class Context(NamedTuple):
    """Inputs of the losses: one batch of real and generated images with the same captions.

    Attributes:
        captions: Encoded captions.
        real: Features of the real images.
        fake: Features of the generated images.
        group_size: Pairs that see each other as negatives; 0: the whole batch.
        real_images: In [0, 1]; None with microbatches.
        fake_images: In [0, 1]; None with microbatches.
        discriminate: Discriminator as a function of images; None with microbatches. In
            `discriminator` losses it depends on the parameters that are trained.
    """

    captions: Captions
    real: Features
    fake: Features
    group_size: int = 0
    real_images: Float[Array, "b h w 3"] | None = None
    fake_images: Float[Array, "b h w 3"] | None = None
    discriminate: Callable[[Float[Array, "b h w 3"]], DiscriminatorOutput] | None = None
