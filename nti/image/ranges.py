"""What is said of values that are beyond the range of an image."""

import math

__all__ = ["TOLERANCE", "out_of_range"]

TOLERANCE = 1e-4
"""A range may be left by so much of it, less than half of one of 255 levels: resizing rounds."""


def out_of_range(low: float, high: float, expected: str, advice: str) -> str:
    """Return the message about values from `low` to `high`, NaN and infinity among them."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"image: got values that are not finite, expected {expected}: replace them"
    return f"image: got values from {low:g} to {high:g}, expected {expected}: {advice}"
