"""A number, how sure it is, and both as text."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Value with its 95 % interval, if there is one; `source` says over what it was taken."""

    value: float
    low: float | None = None
    high: float | None = None
    source: str = ""  # "seeds", "images" or "captions"

    def text(self, digits: int = 2, scale: float = 1, sign: str = "") -> str:
        """Return such as `12.34 (11.20 to 13.48)`; `sign` "+" shows the sign of positive values."""
        values = (self.value, self.low, self.high)
        shown = [f"{scale * each:{sign}.{digits}f}" for each in values if each is not None]
        return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} to {shown[2]})"
