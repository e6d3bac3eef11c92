"""The check that every array passes before it is scored: finite numbers, one row per image."""

import numpy as np
from jaxtyping import Float

from xmcgan.errors import EvaluationError

# Elements looked at in one go; the temporary of `isfinite` stays at one byte for each.
MAX_ELEMENTS = 2**24


def require_finite(
    values: Float[np.ndarray, "n d"], what: str = "features", first_row: int = 0
) -> None:
    """Refuse an array that is not two-dimensional, or holds NaN or infinity.

    Args:
        values: one row for each image.
        what: the name of the array in the message.
        first_row: number of the first row, where the array is a part of a longer one.

    Raises:
        EvaluationError: naming the first bad row, counted from 0.
    """
    if values.ndim != 2 or values.shape[1] == 0:
        raise EvaluationError(
            f"{what} must be an array (images, dimensions), not one of shape {values.shape}"
        )
    step = max(1, MAX_ELEMENTS // values.shape[1])
    for start in range(0, len(values), step):
        finite = np.isfinite(values[start : start + step]).all(axis=1)
        if not finite.all():
            row = first_row + start + int(np.argmin(finite))
            raise EvaluationError(
                f"{what} of image {row} (counted from 0) hold NaN or infinity, so that every score "
                "would; look at that image, and at the network's weights"
            )


def require_pair(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], *, at_least: int
) -> None:
    """Refuse two arrays that cannot be compared with each other.

    Args:
        real: one row for each real image.
        fake: one row for each generated image.
        at_least: images that each side must have.

    Raises:
        EvaluationError: NaN or infinity, two widths, or too few images.
    """
    require_finite(real, "features of the real images")
    require_finite(fake, "features of the generated images")
    if real.shape[1] != fake.shape[1]:
        raise EvaluationError(
            f"real features have {real.shape[1]} dimensions and generated ones {fake.shape[1]}; "
            "extract both with the same protocol"
        )
    if min(len(real), len(fake)) < at_least:
        raise EvaluationError(
            f"this score needs at least {at_least} images on each side; there are {len(real)} real "
            f"and {len(fake)} generated ones"
        )
