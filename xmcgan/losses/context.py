"""What a loss can see."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from xmcgan.models.outputs import Captions, DiscriminatorOutput

Metrics = dict[str, Float[Array, ""]]


class Features(NamedTuple):
    output: DiscriminatorOutput
    pretrained: Float[Array, "b f"] | None = None  # of the frozen network; None if its loss is off


class Context(NamedTuple):
    """Inputs of the losses: one batch of real and generated images with the same captions."""

    captions: Captions
    real: Features
    fake: Features
    group_size: int = 0  # pairs that see each other as negatives; 0: the whole batch
    # Images in [0, 1], and the discriminator as a function of images, which in `discriminator`
    # losses depends on the parameters that are trained. None with microbatches.
    real_images: Float[Array, "b h w 3"] | None = None
    fake_images: Float[Array, "b h w 3"] | None = None
    # By its second argument with other captions than those of the batch.
    discriminate: Callable[..., DiscriminatorOutput] | None = None
    token_ids: Int[Array, "b t"] | None = None  # of the captions, by the text encoder's tokenizer
    params: Any = None  # the loss's own `params`, on the devices; None if it has none
    # Of the same captions and other noises; None where no loss sets `needs_pairs`.
    other_images: Float[Array, "b h w 3"] | None = None
